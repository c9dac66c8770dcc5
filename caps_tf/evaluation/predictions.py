"""What a network said about one part of a test set, as NumPy arrays."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from caps_tf.errors import UserError

VIEW_NAMES = ("left", "right")


def factor_label(name: str, value: int) -> str:
    """Names one value of a factor as a reader knows it: "45" degrees of elevation, the "left" view, lighting "3".

    Example:
        >>> factor_label("azimuth", 60), factor_label("view", 1), factor_label("lighting", 3)
        ('60', 'right', '3')
    """
    if name == "view" and 0 <= value < len(VIEW_NAMES):
        return VIEW_NAMES[value]
    return str(int(value))


def are_right(scores: np.ndarray, label: np.ndarray, label2: np.ndarray | None = None) -> np.ndarray:
    """Whether the class of the highest score is the true one; where two are true, whether the two highest are theirs.

    Of equal scores the first counts as the highest.

    Args:
        scores: [n, classes].
        label: [n] int.
        label2: [n] int, the other true class of each example, or None.

    Returns:
        [n] bool.

    Example:
        >>> scores = np.array([[0.9, 0.1, 0.8], [0.9, 0.8, 0.1]])
        >>> are_right(scores, np.array([2, 2]), np.array([0, 0])).tolist()
        [True, False]
    """
    if label2 is None:
        return scores.argmax(axis=-1) == label
    return np.all(np.sort(_highest(scores, 2)) == np.sort(np.stack([label, label2], axis=1)), axis=1)


def _highest(scores: np.ndarray, number: int) -> np.ndarray:
    """[n, number] int, the classes of the highest scores, the highest first; the first of equals."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :number]


@dataclass(frozen=True, eq=False)
class Predictions:
    """The scores of n examples, with what is known about each example.

    Args:
        scores: [n, classes] float; the highest is the predicted class (the first of equals).
        label: [n] int, the true classes.
        loss: mean over the n examples.
        class_names: a name for every class, in the order of the scores.
        factors: name -> [n] int. Known names: instance, elevation and azimuth (degrees), lighting, view
            (0 left, 1 right); others are reported under their index.
        poses: [n, classes, pose size] float, the class capsules' poses, or None for networks without them.
        ids: [n] str, the record each example comes from; the two views of a stereo pair share it.
        label2: [n] int, the other true class where two overlap, else None. An answer is then the classes of the two
            highest scores, and right if they are the two true ones.
        fingerprints: [n] int, of the bytes that each example was read from, or None.

    Raises:
        ValueError: shapes disagree.
        UserError: scores or loss are not finite, or a label is not one of the classes.

    Example:
        >>> predictions = Predictions(
        ...     scores=np.array([[0.9, 0.1], [0.6, 0.4]], np.float32), label=np.array([0, 1]), loss=0.3,
        ...     class_names=("cat", "dog"))
        >>> predictions.accuracy
        0.5
    """

    scores: np.ndarray
    label: np.ndarray
    loss: float
    class_names: tuple[str, ...]
    factors: Mapping[str, np.ndarray] = field(default_factory=dict)
    poses: np.ndarray | None = None
    ids: np.ndarray | None = None
    label2: np.ndarray | None = None
    fingerprints: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.scores.ndim != 2 or self.scores.shape[1] != len(self.class_names):
            raise ValueError(f"scores {self.scores.shape} should be [n, {len(self.class_names)}], one per class name")
        if len(set(self.class_names)) != len(self.class_names):
            raise ValueError(f"class names repeat: {self.class_names}")
        per_example = {"label": self.label, **self.factors}
        optional = ("ids", "label2", "fingerprints")
        per_example |= {name: value for name in optional if (value := getattr(self, name)) is not None}
        for name, values in per_example.items():
            if values.shape != (len(self),):
                raise ValueError(f"{name} {values.shape} should be [{len(self)}], one per example")
        if self.poses is not None and (self.poses.ndim != 3 or self.poses.shape[:2] != self.scores.shape):
            raise ValueError(f"poses {self.poses.shape} should be {self.scores.shape} and a pose size")
        if len(self) == 0:
            return
        damaged = np.count_nonzero(~np.isfinite(self.scores).all(axis=1))
        if damaged or not np.isfinite(self.loss):
            raise UserError(
                f"the network's output is not finite (loss {self.loss}, {damaged} of {len(self)} examples): "
                "test an earlier checkpoint"
            )
        if self.labels.min() < 0 or self.labels.max() >= len(self.class_names):
            raise UserError(
                f"labels run from {self.labels.min()} to {self.labels.max()}, but the network knows "
                f"{len(self.class_names)} classes: test it on the data set it was trained on"
            )

    def __len__(self) -> int:
        return len(self.scores)

    @cached_property
    def predicted(self) -> np.ndarray:
        """[n] int, the class of the highest score; the first where several are equal."""
        return self.scores.argmax(axis=1)

    @cached_property
    def labels(self) -> np.ndarray:
        """[n, 1] int, the true classes, or [n, 2] where two overlap."""
        return np.stack([self.label] if self.label2 is None else [self.label, self.label2], axis=1)

    @cached_property
    def answers(self) -> np.ndarray:
        """Of the shape of `labels`, the classes of the highest scores, the highest first."""
        return _highest(self.scores, self.labels.shape[1])

    @cached_property
    def correct(self) -> np.ndarray:
        """[n] bool."""
        return are_right(self.scores, self.label, self.label2)

    @cached_property
    def wrong_margin(self) -> np.ndarray:
        """[n] float: the best wrong class's score minus the (lower) true class's; the larger, the worse the mistake."""
        wrong = self.scores.astype(np.float64)
        np.put_along_axis(wrong, self.labels, -np.inf, axis=1)
        return wrong.max(axis=1) - np.take_along_axis(self.scores, self.labels, axis=1).min(axis=1)

    def take(self, rows: np.ndarray) -> "Predictions":
        """Some of the examples, in this order, with the mean loss of all."""
        per_example = ("scores", "label", "poses", "ids", "label2", "fingerprints")
        arrays = {name: values[rows] for name in per_example if (values := getattr(self, name)) is not None}
        factors = {name: values[rows] for name, values in self.factors.items()}
        return replace(self, **arrays, factors=factors)

    @property
    def accuracy(self) -> float:
        """The fraction of right answers.

        Raises:
            ValueError: there are no examples.
        """
        if len(self) == 0:
            raise ValueError("no examples, no accuracy")
        return float(self.correct.mean())


def objects_of(part: Predictions) -> np.ndarray | None:
    """[n] int, the object that each example shows: an instance of a class; None where instances are not known.

    Example:
        >>> part = Predictions(np.eye(2, dtype=np.float32), np.array([0, 1]), 0.5, ("cat", "dog"),
        ...                    factors={"instance": np.array([7, 7])})
        >>> objects_of(part).tolist()
        [0, 1]
    """
    if "instance" not in part.factors or part.label2 is not None:
        return None
    pairs = np.stack([part.label, part.factors["instance"]], axis=1)
    return np.unique(pairs, axis=0, return_inverse=True)[1].ravel()


def concatenate(parts: Iterable[Predictions]) -> Predictions:
    """Joins parts of one test set, such as familiar and novel viewpoints, into one.

    Poses, ids, second labels, fingerprints and factors which not every part has are left out. The loss is the mean over
    all examples.

    Raises:
        ValueError: no parts, or their class names differ.

    Example:
        >>> part = Predictions(np.eye(2, dtype=np.float32), np.array([0, 1]), 0.5, ("cat", "dog"))
        >>> len(concatenate([part, part]))
        4
    """
    parts = list(parts)
    if len({part.class_names for part in parts}) != 1:
        raise ValueError("only parts with the same class names can be joined")

    def join(arrays: list[np.ndarray | None]) -> np.ndarray | None:
        known = [array for array in arrays if array is not None]
        return np.concatenate(known) if len(known) == len(arrays) else None

    total = sum(len(part) for part in parts)
    return Predictions(
        scores=np.concatenate([part.scores for part in parts]),
        label=np.concatenate([part.label for part in parts]),
        loss=sum(part.loss * len(part) for part in parts if len(part)) / max(total, 1),
        class_names=parts[0].class_names,
        factors={
            name: np.concatenate([part.factors[name] for part in parts])
            for name in parts[0].factors
            if all(name in part.factors for part in parts)
        },
        poses=join([part.poses for part in parts]),
        ids=join([part.ids for part in parts]),
        label2=join([part.label2 for part in parts]),
        fingerprints=join([part.fingerprints for part in parts]),
    )
