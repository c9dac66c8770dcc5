"""Which records train, validate and test: held-out records or toys, and the novel-viewpoint protocol.

Validation records always come from the training files; the test files are for the final figure only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from caps_tf.data.damage import find_damage
from caps_tf.data.datasets import VIEWPOINT_FEATURES, ImageDataset, SentenceDataset
from caps_tf.errors import UserError

# G. E. Hinton, S. Sabour, N. Frosst, "Matrix capsules with EM routing", ICLR 2018, section 5.1, as
# (feature, familiar labels, novel labels). Azimuth label a is 20a degrees: familiar are 300, 320, 340, 0, 20 and 40.
# Elevation label e is 30 + 5e degrees: familiar are the three lowest.
_PROTOCOLS = {
    "azimuth": ("label_azimuth", (15, 16, 17, 0, 1, 2), tuple(range(3, 15))),
    "elevation": ("label_elevation", (0, 1, 2), (3, 4, 5, 6, 7, 8)),
}
VIEWPOINTS = tuple(_PROTOCOLS)


@dataclass(frozen=True, eq=False)
class Split:
    """Records of a data set that belong together. A stereo pair is one record, so both views are on one side.

    Attributes:
        dataset: where the records are.
        name: "train", "validation", "test", "familiar" or "novel".
        source: the split of the files, as TensorFlow Datasets calls it.
        start, stop: a range of records in the order of the files, which is shuffled.
        keep: of those, only records whose label of each of these features is among the values.
        num_records: how many remain.
    """

    dataset: ImageDataset | SentenceDataset
    name: str
    source: str
    start: int
    stop: int
    num_records: int
    keep: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def records(self) -> tf.data.Dataset:
        """The records in the order of the files: undecoded features (images, embeddings), and "position"."""
        records = _read(self.dataset, self.source, self.start, self.stop).enumerate(self.start)
        records = records.map(lambda position, record: {**record, "position": position})
        if self.keep:
            records = records.filter(self._is_kept)
        return records.apply(tf.data.experimental.assert_cardinality(self.num_records))

    def _is_kept(self, record: Mapping[str, tf.Tensor]) -> tf.Tensor:
        kept = [tf.reduce_any(record[key] == tf.constant(values, tf.int64)) for key, values in self.keep.items()]
        return tf.reduce_all(kept)


def make_splits(
    dataset: ImageDataset,
    val_prop: float = 0.1,
    val_instances: Sequence[int] = (),
    viewpoints: str | None = None,
) -> dict[str, Split]:
    """Divides a data set.

    Args:
        dataset: the data set.
        val_prop: proportion of the training records that validate (the last ones in the files' shuffled order), 0 for
            none.
        val_instances: instead, the training toys that validate, so that validation is on toys never trained on, as
            the test is. NORB only.
        viewpoints: None, or "azimuth" or "elevation" for the novel-viewpoint protocol: training and validation see
            only familiar viewpoints, and the test records are split in two. NORB only.

    Returns:
        "train", "validation" (unless `val_prop` is 0), and "test", or "familiar" and "novel".

    Raises:
        UserError: the data set has no toys or viewpoints, or a split would be empty.

    Example:
        >>> splits = make_splits(open_dataset("smallNORB"), viewpoints="azimuth")  # doctest: +SKIP
        >>> {name: split.num_records for name, split in splits.items()}  # doctest: +SKIP
        {'train': 7287, 'validation': 813, 'familiar': 8100, 'novel': 16200}
    """
    if not 0 <= val_prop < 1:
        raise UserError(f"val_prop must be at least 0 and below 1, not {val_prop}")
    if viewpoints not in (None, *VIEWPOINTS):
        raise UserError(f"viewpoints must be one of {', '.join(VIEWPOINTS)}, not {viewpoints!r}")
    if (viewpoints or val_instances) and not dataset.has_viewpoints:
        raise UserError(f"{dataset.name}: its records name neither toys nor viewpoints: use val_prop only")

    # name -> (source, start, stop, keep)
    whole = dataset.num_train
    if val_instances:
        trained = tuple(instance for instance in range(10) if instance not in val_instances)
        parts = {
            "train": ("train", 0, whole, {"instance": trained}),
            "validation": ("train", 0, whole, {"instance": tuple(val_instances)}),
        }
    else:
        cut = whole - round(val_prop * whole)
        parts = {"train": ("train", 0, cut, {})}
        if val_prop:
            parts["validation"] = ("train", cut, whole, {})
    test = (dataset.test_split, 0, dataset.num_test)
    if viewpoints:
        feature, familiar, novel = _PROTOCOLS[viewpoints]
        parts = {name: (*part[:3], {**part[3], feature: familiar}) for name, part in parts.items()}
        parts["familiar"] = (*test, {feature: familiar})
        parts["novel"] = (*test, {feature: novel})
    else:
        parts["test"] = (*test, {})

    labels: dict[str, dict[str, np.ndarray]] = {}
    splits = {}
    for name, (source, start, stop, keep) in parts.items():
        if keep and source not in labels:
            labels[source] = _viewpoint_labels(dataset, source)
        kept = [np.isin(labels[source][key][start:stop], values) for key, values in keep.items()]
        num_records = int(np.all(kept, axis=0).sum()) if keep else stop - start
        if not num_records:
            raise UserError(f"{dataset.name}: no records for {name}: change val_prop, val_instances or viewpoints")
        splits[name] = Split(dataset, name, source, start, stop, num_records, keep)
    return splits


def make_sentence_splits(dataset: SentenceDataset, val_prop: float = 0.1) -> dict[str, Split]:
    """Divides a set of sentences: the files' own validation split validates, if there is one.

    Args:
        dataset: the sentences.
        val_prop: without a validation split, the proportion of the training records that validate; 0 for none.

    Returns:
        "train", "validation" (unless `val_prop` is 0 and there is no such split) and "test".

    Raises:
        UserError: a split would be empty.
    """
    if not 0 <= val_prop < 1:
        raise UserError(f"val_prop must be at least 0 and below 1, not {val_prop}")
    held_out = 0 if dataset.num_validation else round(val_prop * dataset.num_train)
    parts = {"train": ("train", 0, dataset.num_train - held_out)}
    if dataset.num_validation:
        parts["validation"] = ("validation", 0, dataset.num_validation)
    elif held_out:
        parts["validation"] = ("train", dataset.num_train - held_out, dataset.num_train)
    parts["test"] = ("test", 0, dataset.num_test)
    if dataset.num_train == held_out:
        raise UserError(f"{dataset.name}: no records for train: lower --val_prop")
    return {name: Split(dataset, name, source, start, stop, stop - start) for name, (source, start, stop) in parts.items()}


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
