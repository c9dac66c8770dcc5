"""Accuracies with confidence intervals, confusion matrices, and the JSON report made of them."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from caps_tf.evaluation.predictions import Predictions, factor_label
from caps_tf.files import write_atomically

INTERVAL_NOTE = (
    "Intervals are 95 % Wilson score intervals. They take examples as independent; images of one toy are not, "
    "so across new toys expect wider ones."
)
PAIRS_NOTE = (
    "Each image shows two classes, and an answer is right if it names both. In groups by class it counts in both. "
    "A confusion matrix is left out: two wrong answers are not about one true class each."
)
_Z_95 = 1.959963984540054  # the standard normal's 97.5 % quantile


def wilson_interval(correct: ArrayLike, total: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % Wilson score interval of a proportion (Wilson 1927); unlike the normal one it is sound near 0 and 1.

    Args:
        correct: [...] int, successes.
        total: [...] int, trials, at least 1.

    Returns:
        (low, high), each [...] float in [0, 1].

    Raises:
        ValueError: a total below 1.

    Example:
        >>> low, high = wilson_interval(10, 10)
        >>> print(f"{low:.4f} {high:.4f}")
        0.7225 1.0000
    """
    correct, total = np.asarray(correct, np.float64), np.asarray(total, np.float64)
    if np.any(total < 1):
        raise ValueError("an interval needs at least one example")
    fraction, z2 = correct / total, _Z_95**2
    centre = (fraction + z2 / (2 * total)) / (1 + z2 / total)
    half = _Z_95 / (1 + z2 / total) * np.sqrt(fraction * (1 - fraction) / total + z2 / (4 * total**2))
    return np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)


def confusion_matrix(label: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts examples by true (row) and predicted (column) class.

    Args:
        label: [n] int.
        predicted: [n] int.
        num_classes: more than the largest of them.

    Returns:
        [num_classes, num_classes] int.

    Example:
        >>> confusion_matrix(np.array([0, 0, 1]), np.array([0, 1, 1]), 2).tolist()
        [[1, 1], [0, 1]]
    """
    cells = np.bincount(label * num_classes + predicted, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def count_by(groups: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts right answers in each group.

    Args:
        groups: [n] int, the group of each example.
        correct: [n] bool.

    Returns:
        (groups present, ascending; right answers; examples), each [groups present] int.

    Example:
        >>> [counts.tolist() for counts in count_by(np.array([7, 3, 7]), np.array([True, False, False]))]
        [[3, 7], [0, 1], [1, 2]]
    """
    present, inverse, totals = np.unique(groups, return_inverse=True, return_counts=True)
    return present, np.bincount(inverse, weights=correct, minlength=len(present)).astype(int), totals


def report(parts: Mapping[str, Predictions]) -> dict[str, dict[str, Any]]:
    """Computes everything the JSON report says; only JSON types, six significant digits, no NaN.

    Args:
        parts: name ("test", or "familiar" and "novel") -> its predictions.

    Returns:
        part name -> a dictionary of
            num_examples: int; the only entry of a part without examples.
            accuracy, interval: fraction of right answers, and its 95 % Wilson interval [low, high].
            loss: mean.
            class_names: list of str.
            confusion: rows are true classes, columns predicted ones; counts. Not where two classes overlap.
            accuracy_by_class: class name -> {accuracy, interval, num_examples}.
            accuracy_by: factor -> value ("45" for degrees, "left" for views) -> {accuracy, interval, num_examples}.
            accuracy_views_averaged: {accuracy, interval, num_examples} over records, where several examples share a
                record id: the mean of their scores decides.
        Groups without examples are left out.

    Raises:
        ValueError: examples of one record have different labels.

    Example:
        >>> part = Predictions(np.eye(2, dtype=np.float32), np.array([0, 0]), 0.5, ("cat", "dog"))
        >>> report({"test": part})["test"]["confusion"]
        [[1, 1], [0, 0]]
    """
    return {name: _report_part(part) for name, part in parts.items()}


def write_json(path: str | os.PathLike, content: Any) -> Path:
    """Writes JSON atomically, indented for people.

    Raises:
        ValueError: a NaN or infinity, which JSON cannot hold.
        UserError: the file cannot be written.
    """
    return write_atomically(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def _report_part(part: Predictions) -> dict[str, Any]:
    if len(part) == 0:
        return {"num_examples": 0}
    entry = {
        **_proportion(int(np.count_nonzero(part.correct)), len(part)),
        "loss": _six_digits(part.loss),
        "class_names": list(part.class_names),
        "accuracy_by_class": {
            part.class_names[group]: _proportion(right, total)
            for group, right, total in zip(
                *count_by(part.labels.ravel(), np.repeat(part.correct, part.labels.shape[1])), strict=True
            )
        },
        "accuracy_by": {
            name: {
                factor_label(name, group): _proportion(right, total)
                for group, right, total in zip(*count_by(values, part.correct), strict=True)
            }
            for name, values in part.factors.items()
        },
    }
    if part.label2 is None:
        entry["confusion"] = confusion_matrix(part.label, part.predicted, len(part.class_names)).tolist()
    if part.ids is not None and len(records := np.unique(part.ids)) < len(part):
        entry["accuracy_views_averaged"] = _proportion(_right_records(part, part.ids), len(records))
    return entry


def _right_records(part: Predictions, ids: np.ndarray) -> int:
    """How many records, by the ids of examples, are classified right by the mean of their examples' scores."""
    records, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    if np.any(part.label[first][inverse] != part.label):
        raise ValueError("examples of one record have different labels: ids must be unique to a record")
    sums = np.zeros((len(records), len(part.class_names)))
    np.add.at(sums, inverse, part.scores)
    # Within a record the sum and the mean have the same highest class.
    return int(np.count_nonzero(sums.argmax(axis=1) == part.label[first]))


def _proportion(right: int, total: int) -> dict[str, Any]:
    low, high = wilson_interval(right, total)
    return {
        "num_examples": int(total),
        "accuracy": _six_digits(right / total),
        "interval": [_six_digits(float(low)), _six_digits(float(high))],
    }


def _six_digits(value: float) -> float:
    return float(f"{value:.6g}")
