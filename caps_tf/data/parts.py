"""Which records train, validate and test, as numbers: held-out records or toys, and the novel-viewpoint protocol.

Validation records always come from the training files; the test files are for the final figure only. Nothing here reads
files or imports TensorFlow.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from caps_tf.data.viewpoints import are_familiar, parse_viewpoints, to_degrees
from caps_tf.errors import UserError

Labels = Mapping[str, np.ndarray]
"""By name, each int [n]: "instance", "label_azimuth" and "label_elevation" of the records of a file split."""


class Divisible(Protocol):
    """What dividing asks of a data set: its name, how many records it has, and the unit of viewpoints, if it has any."""

    @property
    def name(self) -> str: ...

    @property
    def num_train(self) -> int: ...

    @property
    def num_test(self) -> int: ...

    @property
    def test_split(self) -> str: ...

    @property
    def viewpoint_unit(self) -> str | None: ...


class Part(NamedTuple):
    """Records that belong together, in the order of their files.

    Attributes:
        source: the split of the files.
        start, stop: a range of records.
        keep: [stop - start] bool, which of them belong to the part; None for all.
    """

    source: str
    start: int
    stop: int
    keep: np.ndarray | None = None

    @property
    def num_records(self) -> int:
        """How many records belong to the part."""
        return self.stop - self.start if self.keep is None else int(self.keep.sum())


def divide(
    dataset: Divisible,
    read_labels: Callable[[str], Labels],
    val_prop: float = 0.1,
    val_instances: Sequence[int] = (),
    viewpoints: str = "",
) -> dict[str, Part]:
    """Divides a data set; what the arguments and the names of the parts mean is in `splits.make_splits`.

    Args:
        dataset: the data set.
        read_labels: of the records of a file split; called for data that name viewpoints only, once a split.
        val_prop, val_instances, viewpoints: see `splits.make_splits`.

    Returns:
        "train", "validation" (unless `val_prop` is 0), and "test", or "familiar" and "novel".

    Raises:
        UserError: the data set has no toys or viewpoints, or lacks such a toy, or a part would be empty.

    Example:
        >>> from types import SimpleNamespace
        >>> plain = SimpleNamespace(name="plain", num_train=10, num_test=4, test_split="test", viewpoint_unit=None)
        >>> {name: part.num_records for name, part in divide(plain, dict, val_prop=0.2).items()}
        {'train': 8, 'validation': 2, 'test': 4}
    """
    check_proportion(val_prop)
    ranges = parse_viewpoints(viewpoints)
    if (ranges or val_instances) and dataset.viewpoint_unit is None:
        raise UserError(f"{dataset.name}: its records name neither toys nor viewpoints: use val_prop only")
    read_labels = functools.cache(read_labels)
    whole = dataset.num_train
    if val_instances:
        validates = _held_out(dataset.name, read_labels("train")["instance"], val_instances)
        parts = {"train": Part("train", 0, whole, ~validates), "validation": Part("train", 0, whole, validates)}
    else:
        cut = whole - round(val_prop * whole)
        parts = {"train": Part("train", 0, cut)}
        if val_prop:
            parts["validation"] = Part("train", cut, whole)
    parts["test"] = Part(dataset.test_split, 0, dataset.num_test)
    if ranges:
        parts = _apart(parts, lambda source: are_familiar(ranges, _degrees(dataset, read_labels(source))))
    for name, part in parts.items():
        if not part.num_records:
            raise UserError(f"{dataset.name}: no records for {name}: change val_prop, val_instances or viewpoints")
    return parts


def _held_out(name: str, instances: np.ndarray, val_instances: Sequence[int]) -> np.ndarray:
    """Which training records are of the toys that validate."""
    present = np.unique(instances).tolist()
    for instance in val_instances:
        if instance not in present:
            known = ", ".join(map(str, present))
            raise UserError(f"{name}: no records for validation of instance {instance}: it trains on {known}")
    return np.isin(instances, val_instances)


def _apart(parts: Mapping[str, Part], familiar: Callable[[str], np.ndarray]) -> dict[str, Part]:
    """Leaves familiar viewpoints to every part, and makes two of the test."""
    kept: dict[str, Part] = {}
    for name, part in parts.items():
        known = familiar(part.source)[part.start : part.stop]
        if name == "test":
            kept["familiar"], kept["novel"] = part._replace(keep=known), part._replace(keep=~known)
        else:
            kept[name] = part._replace(keep=known if part.keep is None else part.keep & known)
    return kept


def _degrees(dataset: Divisible, labels: Labels) -> dict[str, np.ndarray]:
    unit = dataset.viewpoint_unit
    assert unit is not None, "divide refuses data without viewpoints"
    return {factor: to_degrees(factor, labels[f"label_{factor}"], unit) for factor in ("azimuth", "elevation")}


def check_proportion(val_prop: float) -> None:
    """Refuses a share of the training records that is none.

    Raises:
        UserError: unless it is at least 0 and below 1.
    """
    if not 0 <= val_prop < 1:
        raise UserError(f"val_prop must be at least 0 and below 1, not {val_prop}")
