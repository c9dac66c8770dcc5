"""Records of images to batches (tf.data): decode, resize, crop, normalise and augment.

Training batches are a function of the seed and the epoch, so that a run which is resumed in the middle of an epoch sees
exactly the batches that it would have seen. Evaluation batches count every example once.
"""

import functools
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from caps_tf.data.augmentation import augment, central_crop, normalize
from caps_tf.data.batches import SHUFFLE_BYTES, as_written, fingerprint, finish, record_id
from caps_tf.data.datasets import ImageDataset
from caps_tf.data.preprocessing import CANVASES, Preprocessing
from caps_tf.data.protocols import Partners, Stage, affine_stage, evaluation_key, overlap_stage, unchanged
from caps_tf.data.splits import Split
from caps_tf.data.viewpoints import to_degrees
from caps_tf.errors import UserError

_VIEWPOINT_KEYS = {
    "instance": "instance",
    "elevation": "label_elevation",
    "azimuth": "label_azimuth",
    "lighting": "label_lighting",
}


def num_examples(split: Split[ImageDataset], preprocessing: Preprocessing) -> int:
    """Examples in a split: its records, or twice as many where each camera's image is an example."""
    return split.num_records * (2 if preprocessing.views == "both" and split.dataset.has_stereo else 1)


def num_training_batches(split: Split[ImageDataset], preprocessing: Preprocessing, batch_size: int) -> int:
    """Batches in an epoch of `training_batches`."""
    return num_examples(split, preprocessing) // batch_size


def num_evaluation_batches(split: Split[ImageDataset], preprocessing: Preprocessing, batch_size: int) -> int:
    """Batches of `evaluation_batches`."""
    return -(-num_examples(split, preprocessing) // batch_size)


@as_written
def training_batches(
    split: Split[ImageDataset],
    preprocessing: Preprocessing,
    batch_size: int,
    *,
    epoch: int,
    seed: int = 0,
    skip_batches: int = 0,
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
        `num_training_batches - skip_batches` dicts of image float32 [b, h, w, c], label int32 [b], id int64 [b] and,
        of stereo pairs, view int32 [b] (see `evaluation_batches`). Where two classes overlap, also label2 int32 [b] and
        target float32 [b, classes], 1 for both.

    Raises:
        UserError: `preprocessing` does not fit the data set, or the split holds less than one batch.
    """
    shape = preprocessing.input_shape(split.dataset)
    count = num_examples(split, preprocessing)
    if count < batch_size:
        raise UserError(f"{split.dataset.name}: {count} {split.name} examples are less than a batch of {batch_size}")
    shuffle_seed, *augment_seed = np.random.SeedSequence([seed, epoch]).generate_state(3).view(np.int32).tolist()
    protocol = _protocol(split, preprocessing)

    def prepare(position: tf.Tensor, example: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        # Every example has a seed of its own, so that the result depends neither on which thread does the work nor
        # on where a resumed run starts.
        seed = tf.random.fold_in(augment_seed, position)
        example = protocol({**example, "image": _decode(example["image"], split.dataset, preprocessing)}, seed)
        image = augment(example["image"], seed, preprocessing)
        kept = {key: example[key] for key in ("label", "id", "view", "label2", "target") if key in example}
        return {"image": tf.ensure_shape(image, shape), **kept}

    # Shuffled before decoding, when an example of smallNORB is small enough for the buffer to hold all of them.
    buffer = min(count, max(1, SHUFFLE_BYTES * count // (split.num_records * split.dataset.record_bytes)))
    examples = _examples(split, preprocessing).shuffle(buffer, seed=shuffle_seed, reshuffle_each_iteration=False)
    examples = examples.enumerate().skip(skip_batches * batch_size)
    examples = examples.map(prepare, num_parallel_calls=tf.data.AUTOTUNE)
    # A smaller last batch would weigh its examples more, be compiled a second time, and may leave a replica empty. The
    # examples left out are others in every epoch.
    return finish(examples.batch(batch_size, drop_remainder=True))


@as_written
def evaluation_batches(split: Split[ImageDataset], preprocessing: Preprocessing, batch_size: int) -> tf.data.Dataset:
    """All examples of a split, once each, in the order of the files.

    The last batch is filled up with examples of weight 0, so that every batch has the same shape.

    Args:
        split: the records.
        preprocessing: what is done to the images; the crop is the centre and nothing is random. What a protocol draws
            is the same at every call; it transforms images of the split "novel".
        batch_size: the global batch, over all replicas.

    Returns:
        Dicts of image float32 [b, h, w, c], label int32 [b], weight float32 [b] (1, or 0 for filling), id int64 [b],
        view int32 [b] (0 left, 1 right), and where known also instance, elevation and azimuth in degrees, and lighting,
        int32 [b]; label2 and target as in training. An id is the row in the .mat or IDX file, and otherwise the position
        in the files' order; fingerprint int32 [b] is of the undecoded image, or pair.

    Raises:
        UserError: `preprocessing` does not fit the data set.
    """
    shape = preprocessing.input_shape(split.dataset)
    protocol = _protocol(split, preprocessing)

    def prepare(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        example = {**example, "fingerprint": fingerprint(example["image"])}
        example |= {"image": _decode(example["image"], split.dataset, preprocessing)}
        example = protocol(example, evaluation_key(example))
        image = example["image"]
        image = normalize(central_crop(image, preprocessing), image, preprocessing)
        return example | {"image": tf.ensure_shape(image, shape), "weight": tf.constant(1.0)}

    examples = _examples(split, preprocessing).map(prepare, num_parallel_calls=tf.data.AUTOTUNE)
    filling = -num_examples(split, preprocessing) % batch_size
    filler = examples.take(1).cache().repeat(filling).map(lambda example: example | {"weight": tf.constant(0.0)})
    return finish(examples.concatenate(filler).batch(batch_size, drop_remainder=True))


def _examples(split: Split[ImageDataset], preprocessing: Preprocessing) -> tf.data.Dataset:
    """Undecoded examples: image string [n], the n views of which make its channels; labels; id; and view of a pair."""
    info = split.dataset.builder.info
    label_key = info.supervised_keys[1]
    stereo, unit = split.dataset.has_stereo, split.dataset.viewpoint_unit

    def select(record: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        views = tf.stack([record["image"], record["image2"]] if stereo else [record["image"]])
        labels = {"label": tf.cast(record[label_key], tf.int32), "id": record_id(record)}
        if unit is not None:
            labels |= {
                key: to_degrees(key, tf.cast(record[feature], tf.int32), unit)
                for key, feature in _VIEWPOINT_KEYS.items()
            }
        if not stereo:
            return {"image": views, **labels}
        if preprocessing.views == "both":
            repeated = {key: tf.fill([2], value) for key, value in labels.items()}
            return {"image": views[:, None], "view": tf.range(2), **repeated}
        first, last = {"left": (0, 1), "right": (1, 2), "stereo": (0, 2)}[preprocessing.views]
        return {"image": views[first:last], "view": tf.constant(first), **labels}

    examples = split.records().map(select, num_parallel_calls=tf.data.AUTOTUNE)
    return examples.unbatch() if stereo and preprocessing.views == "both" else examples


def _protocol(split: Split[ImageDataset], preprocessing: Preprocessing) -> Stage:
    """What `preprocessing.protocol` makes of the decoded examples of a split."""
    if not preprocessing.protocol:
        return unchanged
    size = CANVASES[preprocessing.protocol]
    if preprocessing.protocol == "affine":
        return affine_stage(size, novel=split.name == "novel")
    decode = functools.partial(_decode, dataset=split.dataset, preprocessing=preprocessing)
    return overlap_stage(size, _partners(split, preprocessing), decode, len(split.dataset.class_names))


@functools.lru_cache(maxsize=3)  # every epoch asks for those of training and of validation, and reading takes seconds
def _partners(split: Split[ImageDataset], preprocessing: Preprocessing) -> Partners:
    name, needed = split.dataset.name, split.num_records * split.dataset.record_bytes
    if needed > SHUFFLE_BYTES:
        raise UserError(
            f"{name}: protocol=overlap keeps all images in memory, and they take {needed / 1e9:.1f} GB, more than "
            f"{SHUFFLE_BYTES / 1e9:.1f}: use a smaller data set"
        )
    return Partners(_examples(split, preprocessing), f"{name}, {split.name}")


def _decode(encoded: tf.Tensor, dataset: ImageDataset, preprocessing: Preprocessing) -> tf.Tensor:
    """Decodes [n] views into one float32 image [h, w, n c], resized."""
    decode = dataset.builder.info.features["image"].decode_example
    num_views = 2 if preprocessing.views == "stereo" else 1
    image = tf.concat([decode(encoded[view]) for view in range(num_views)], axis=-1)
    if preprocessing.resize:
        image = _resize(image, preprocessing.resize)
    return tf.cast(image, tf.float32)


def _resize(image: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    shrinks = all(have is not None and have >= want for have, want in zip(image.shape[:2], size, strict=True))
    method = tf.image.ResizeMethod.AREA if shrinks else tf.image.ResizeMethod.BILINEAR
    return tf.image.resize(image, size, method=method, antialias=True)
