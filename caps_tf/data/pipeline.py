"""Records to batches (tf.data): decode, halve, standardise, crop and augment, as in the literature on smallNORB.

Training batches are a function of the seed and the epoch, so that a run which is resumed in the middle of an epoch sees
exactly the batches that it would have seen. Evaluation batches count every example once.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from caps_tf.data.datasets import ImageDataset
from caps_tf.data.splits import Split
from caps_tf.errors import UserError

VIEWS = ("both", "left", "right", "stereo")

_SHUFFLE_BYTES = 1 << 30
_VIEWPOINT_KEYS = {
    "instance": "instance",
    "elevation": "label_elevation",
    "azimuth": "label_azimuth",
    "lighting": "label_lighting",
}


@dataclass(frozen=True)
class Preprocessing:
    """From a decoded image to the network's input, in this order; by default as in the literature on smallNORB.

    Attributes:
        resize: (height, width), or None. To shrink images of one size, each new pixel is the mean of the area that it
            covers (halving: of 2x2 pixels); otherwise resizing is bilinear, with antialiasing.
        standardize: subtract the image's mean and divide by its standard deviation.
        crop: (height, width) of the network's input, or None: a random crop for training, the centre otherwise.
        max_brightness_delta: in training, a number between -delta and delta is added; 0 for none.
        contrast: in training, the distance to each channel's mean is multiplied by a number in this range; (1, 1) for
            none.
        views: what an example is where records are stereo pairs: "both" (each camera's image is an example), "left",
            "right", or "stereo" (one example with two channels, augmented alike).
    """

    resize: tuple[int, int] | None = (48, 48)
    standardize: bool = True
    crop: tuple[int, int] | None = (32, 32)
    max_brightness_delta: float = 2.0
    contrast: tuple[float, float] = (0.5, 1.5)
    views: str = "both"

    def input_shape(self, dataset: ImageDataset) -> tuple[int, int, int]:
        """The shape of the network's input, (h, w, c).

        Raises:
            UserError: the data set does not have these views, its images differ in size and are not resized, or they
                are smaller than the crop.

        Example:
            >>> Preprocessing(views="stereo").input_shape(open_dataset("smallNORB"))  # doctest: +SKIP
            (32, 32, 2)
        """
        if self.views not in VIEWS:
            raise UserError(f"views must be one of {', '.join(VIEWS)}, not {self.views!r}")
        if self.views in ("right", "stereo") and not dataset.has_stereo:
            raise UserError(f"{dataset.name}: has only one view of each object: use views=both, not {self.views}")
        height, width, channels = dataset.image_shape
        height, width = self.resize or (height, width)
        if height is None or width is None:
            raise UserError(f"{dataset.name}: its images differ in size: resize them to one (--resize=height,width)")
        if self.crop:
            if self.crop[0] > height or self.crop[1] > width:
                raise UserError(
                    f"{dataset.name}: cannot crop {self.crop[0]}x{self.crop[1]} pixels out of {height}x{width}: "
                    "use a smaller crop"
                )
            height, width = self.crop
        return height, width, channels * (2 if self.views == "stereo" else 1)


def num_examples(split: Split, preprocessing: Preprocessing) -> int:
    """Examples in a split: its records, or twice as many where each camera's image is an example."""
    return split.num_records * (2 if preprocessing.views == "both" and split.dataset.has_stereo else 1)


def num_training_batches(split: Split, preprocessing: Preprocessing, batch_size: int) -> int:
    """Batches in an epoch of `training_batches`."""
    return num_examples(split, preprocessing) // batch_size


def num_evaluation_batches(split: Split, preprocessing: Preprocessing, batch_size: int) -> int:
    """Batches of `evaluation_batches`."""
    return -(-num_examples(split, preprocessing) // batch_size)


def training_batches(
    split: Split, preprocessing: Preprocessing, batch_size: int, *, epoch: int, seed: int = 0, skip_batches: int = 0
) -> tf.data.Dataset:
    """One epoch of shuffled and augmented batches, a function of (seed, epoch) and of TensorFlow's global seed, if set.

    Args:
        split: the records.
        preprocessing: what is done to the images.
        batch_size: the global batch, over all replicas.
        epoch: counted from 0.
        seed: of the run.
        skip_batches: how many batches of the epoch a resumed run has already seen.

    Returns:
        `num_training_batches - skip_batches` dicts of image float32 [b, h, w, c], label int32 [b], id int64 [b] (see
        `evaluation_batches`) and view int32 [b].

    Raises:
        UserError: `preprocessing` does not fit the data set, or the split holds less than one batch.
    """
    shape = preprocessing.input_shape(split.dataset)
    count = num_examples(split, preprocessing)
    if count < batch_size:
        raise UserError(f"{split.dataset.name}: {count} {split.name} examples are less than a batch of {batch_size}")
    shuffle_seed, *augment_seed = np.random.SeedSequence([seed, epoch]).generate_state(3).view(np.int32).tolist()

    def prepare(position: tf.Tensor, example: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        # Every example has a seed of its own, so that the result depends neither on which thread does the work nor
        # on where a resumed run starts.
        image = _load(example["image"], split.dataset, preprocessing)
        image = _augment(image, tf.random.fold_in(augment_seed, position), preprocessing)
        return {"image": tf.ensure_shape(image, shape)} | {key: example[key] for key in ("label", "id", "view")}

    # Shuffled before decoding, when an example of smallNORB is small enough for the buffer to hold all of them.
    buffer = min(count, max(1, _SHUFFLE_BYTES * count // (split.num_records * split.dataset.record_bytes)))
    examples = _examples(split, preprocessing).shuffle(buffer, seed=shuffle_seed, reshuffle_each_iteration=False)
    examples = examples.enumerate().skip(skip_batches * batch_size)
    examples = examples.map(prepare, num_parallel_calls=tf.data.AUTOTUNE)
    # A smaller last batch would weigh its examples more, be compiled a second time, and may leave a replica empty. The
    # examples left out are others in every epoch.
    return _finish(examples.batch(batch_size, drop_remainder=True))


def evaluation_batches(split: Split, preprocessing: Preprocessing, batch_size: int) -> tf.data.Dataset:
    """All examples of a split, once each, in the order of the files.

    The last batch is filled up with examples of weight 0, so that every batch has the same shape.

    Args:
        split: the records.
        preprocessing: what is done to the images; the crop is the centre and nothing is random.
        batch_size: the global batch, over all replicas.

    Returns:
        Dicts of image float32 [b, h, w, c], label int32 [b], weight float32 [b] (1, or 0 for filling), id int64 [b],
        view int32 [b] (0 left, 1 right), and for NORB also instance, elevation, azimuth (0-17) and lighting, int32 [b].
        An id is the row in the .mat or IDX file, and otherwise the position in the files' order.

    Raises:
        UserError: `preprocessing` does not fit the data set.
    """
    shape = preprocessing.input_shape(split.dataset)

    def prepare(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        image = _load(example["image"], split.dataset, preprocessing)
        if preprocessing.crop:
            image = tf.image.resize_with_crop_or_pad(image, *preprocessing.crop)
        return example | {"image": tf.ensure_shape(image, shape), "weight": tf.constant(1.0)}

    examples = _examples(split, preprocessing).map(prepare, num_parallel_calls=tf.data.AUTOTUNE)
    filling = -num_examples(split, preprocessing) % batch_size
    filler = examples.take(1).cache().repeat(filling).map(lambda example: example | {"weight": tf.constant(0.0)})
    return _finish(examples.concatenate(filler).batch(batch_size, drop_remainder=True))


def _examples(split: Split, preprocessing: Preprocessing) -> tf.data.Dataset:
    """Undecoded examples: image string [n], the n views of which make its channels; labels; id; and view."""
    info = split.dataset.builder.info
    label_key = info.supervised_keys[1]
    stereo = split.dataset.has_stereo

    def select(record: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        views = tf.stack([record["image"], record["image2"]] if stereo else [record["image"]])
        labels = {"label": tf.cast(record[label_key], tf.int32), "id": _record_id(record)}
        if split.dataset.has_viewpoints:
            labels |= {key: tf.cast(record[feature], tf.int32) for key, feature in _VIEWPOINT_KEYS.items()}
        if preprocessing.views == "both":
            count = 2 if stereo else 1
            repeated = {key: tf.fill([count], value) for key, value in labels.items()}
            return {"image": views[:, None], "view": tf.range(count), **repeated}
        first, last = {"left": (0, 1), "right": (1, 2), "stereo": (0, 2)}[preprocessing.views]
        return {"image": views[first:last], "view": tf.constant(first), **labels}

    examples = split.records().map(select, num_parallel_calls=tf.data.AUTOTUNE)
    return examples.unbatch() if preprocessing.views == "both" else examples


def _record_id(record: Mapping[str, tf.Tensor]) -> tf.Tensor:
    """The row that an id such as "train_00042" names, else the record's position: numbers, which fit every device."""
    if "id" not in record or record["id"].dtype != tf.string:
        return record["position"]
    return tf.cond(
        tf.strings.regex_full_match(record["id"], r"(train|test)_\d{1,18}"),
        lambda: tf.strings.to_number(tf.strings.regex_replace(record["id"], r"^[a-z]+_", ""), tf.int64),
        lambda: record["position"],
    )


def _load(encoded: tf.Tensor, dataset: ImageDataset, preprocessing: Preprocessing) -> tf.Tensor:
    """Decodes [n] views into one float32 image [h, w, n c], resized and standardised."""
    decode = dataset.builder.info.features["image"].decode_example
    num_views = 2 if preprocessing.views == "stereo" else 1
    image = tf.concat([decode(encoded[view]) for view in range(num_views)], axis=-1)
    if preprocessing.resize:
        image = _resize(image, preprocessing.resize)
    image = tf.cast(image, tf.float32)
    return tf.image.per_image_standardization(image) if preprocessing.standardize else image


def _resize(image: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    shrinks = all(have is not None and have >= want for have, want in zip(image.shape[:2], size, strict=True))
    method = tf.image.ResizeMethod.AREA if shrinks else tf.image.ResizeMethod.BILINEAR
    return tf.image.resize(image, size, method=method, antialias=True)


def _augment(image: tf.Tensor, key: tf.Tensor, preprocessing: Preprocessing) -> tf.Tensor:
    crop_key, brightness_key, contrast_key = tf.unstack(tf.random.split(key, 3))
    if preprocessing.crop:
        image = tf.image.stateless_random_crop(image, (*preprocessing.crop, tf.shape(image)[-1]), crop_key)
    if preprocessing.max_brightness_delta:
        image = tf.image.stateless_random_brightness(image, preprocessing.max_brightness_delta, brightness_key)
    lower, upper = preprocessing.contrast
    if lower < upper:
        image = tf.image.stateless_random_contrast(image, lower, upper, contrast_key)
    return image


def _finish(batches: tf.data.Dataset) -> tf.data.Dataset:
    options = tf.data.Options()
    # Every worker reads all records and takes its part of each batch: sharding by files would change the batches.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return batches.with_options(options).prefetch(tf.data.AUTOTUNE)
