"""The parts of a data set (`parts`) as splits of TensorFlow Datasets, whose records tf.data reads."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from caps_tf.data.batches import as_written
from caps_tf.data.damage import find_damage
from caps_tf.data.datasets import VIEWPOINT_FEATURES, ImageDataset, SentenceDataset
from caps_tf.data.parts import check_proportion, divide
from caps_tf.errors import UserError

Dataset = TypeVar("Dataset", bound=ImageDataset | SentenceDataset, covariant=True)


@dataclass(frozen=True, eq=False)
class Split(Generic[Dataset]):
    """Records of a data set that belong together. A stereo pair is one record, so both views are on one side.

    Attributes:
        dataset: where the records are.
        name: "train", "validation", "test", "familiar" or "novel".
        source: the split of the files, as TensorFlow Datasets calls it.
        start, stop: a range of records in the order of the files, which is shuffled.
        num_records: how many of them belong to the split.
        keep: [stop - start] bool, which of them do; None for all.
    """

    dataset: Dataset
    name: str
    source: str
    start: int
    stop: int
    num_records: int
    keep: np.ndarray | None = None

    def records(self) -> tf.data.Dataset:
        """The records in the order of the files: undecoded features (images, embeddings), and "position"."""
        records = _read(self.dataset, self.source, self.start, self.stop).enumerate(self.start)
        records = records.map(lambda position, record: {**record, "position": position})
        if self.keep is not None:
            keep = tf.constant(self.keep)
            records = records.filter(lambda record: keep[record["position"] - self.start])
        return records.apply(tf.data.experimental.assert_cardinality(self.num_records))


def make_splits(
    dataset: ImageDataset,
    val_prop: float = 0.1,
    val_instances: Sequence[int] = (),
    viewpoints: str = "",
) -> dict[str, Split[ImageDataset]]:
    """Divides a data set.

    Args:
        dataset: the data set.
        val_prop: proportion of the training records that validate (the last ones in the files' shuffled order), 0 for
            none.
        val_instances: instead, the training toys that validate, so that validation is on toys never trained on, as
            the test is. For data that name toys only.
        viewpoints: "", or the familiar viewpoints as `viewpoints.parse_viewpoints` reads them: training and validation
            see only these, and the test records are split in two. For data that name viewpoints only.

    Returns:
        "train", "validation" (unless `val_prop` is 0), and "test", or "familiar" and "novel".

    Raises:
        UserError: the data set has no toys or viewpoints, or lacks such a toy, or a split would be empty.

    Example:
        >>> splits = make_splits(open_dataset("smallNORB"), viewpoints="azimuth")  # doctest: +SKIP
        >>> {name: split.num_records for name, split in splits.items()}  # doctest: +SKIP
        {'train': 7287, 'validation': 813, 'familiar': 8100, 'novel': 16200}
    """
    read_labels = functools.partial(_viewpoint_labels, dataset)
    parts = divide(dataset, read_labels, val_prop, val_instances, viewpoints)
    return {
        name: Split(dataset, name, part.source, part.start, part.stop, part.num_records, part.keep)
        for name, part in parts.items()
    }


def make_sentence_splits(dataset: SentenceDataset, val_prop: float = 0.1) -> dict[str, Split[SentenceDataset]]:
    """Divides a set of sentences: the files' own validation split validates, if there is one.

    Args:
        dataset: the sentences.
        val_prop: without a validation split, the proportion of the training records that validate; 0 for none.

    Returns:
        "train", "validation" (unless `val_prop` is 0 and there is no such split) and "test".

    Raises:
        UserError: a split would be empty.
    """
    check_proportion(val_prop)
    held_out = 0 if dataset.num_validation else round(val_prop * dataset.num_train)
    parts = {"train": ("train", 0, dataset.num_train - held_out)}
    if dataset.num_validation:
        parts["validation"] = ("validation", 0, dataset.num_validation)
    elif held_out:
        parts["validation"] = ("train", dataset.num_train - held_out, dataset.num_train)
    parts["test"] = ("test", 0, dataset.num_test)
    if dataset.num_train == held_out:
        raise UserError(f"{dataset.name}: no records for train: lower `val_prop`")
    return {
        name: Split(dataset, name, source, start, stop, stop - start) for name, (source, start, stop) in parts.items()
    }


@as_written
def _viewpoint_labels(dataset: ImageDataset, source: str) -> dict[str, np.ndarray]:
    """Reads instance and viewpoint of every record, without the images."""
    records = _read(dataset, source, 0, dataset.builder.info.splits[source].num_examples)
    labels = records.map(lambda record: {key: record[key] for key in VIEWPOINT_FEATURES})
    try:
        batches = list(labels.batch(4096).as_numpy_iterator())
    except tf.errors.OpError as error:
        raise UserError(find_damage(dataset) or f"{dataset.name}: cannot be read ({error.message})") from error
    return {key: np.concatenate([batch[key] for batch in batches]) for key in VIEWPOINT_FEATURES}


def _read(dataset: ImageDataset | SentenceDataset, source: str, start: int, stop: int) -> tf.data.Dataset:
    """Reads a range of records in the order of the files; images and embeddings stay undecoded."""
    config = tfds.ReadConfig(try_autocache=False, interleave_cycle_length=1)
    large = [key for key in ("image", "image2", "embedding") if key in dataset.builder.info.features]
    options = {"decoders": {key: tfds.decode.SkipDecoding() for key in large}, "read_config": config}
    if isinstance(dataset.builder, tfds.ImageFolder):  # cannot read a part of a split
        return dataset.builder.as_dataset(split=source, **options).skip(start).take(stop - start)
    part = tfds.core.ReadInstruction(source, from_=start, to=stop, unit="abs")
    return dataset.builder.as_dataset(split=part, **options)
