"""Whether two networks that judged the same examples differ: tests over pairs, and the figures that show both.

The accuracies' intervals say how far a network would be from its accuracy on other examples. Two networks that see the
same examples mostly fail on the same hard ones, and whether they differ is decided by the others: those that only one of
them gets right.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from scipy import stats

from caps_tf.errors import UserError
from caps_tf.evaluation.figures import count_steps, running_mean, series
from caps_tf.evaluation.predictions import Predictions
from caps_tf.evaluation.style import COLORS, add_legend, new_figure, style_axes

FEW = 25
"""Discordant pairs, below which McNemar's test is the exact one."""


class McNemar(NamedTuple):
    """McNemar's test of two networks on the same examples.

    Attributes:
        both: examples that both get right.
        only_first, only_second: discordant pairs: examples that only one of them gets right.
        neither: examples that both get wrong.
        p_value: two-sided, for "both make equally many errors".
        is_exact: whether by the binomial distribution rather than by chi-square.
    """

    both: int
    only_first: int
    only_second: int
    neither: int
    p_value: float
    is_exact: bool


class SignTest(NamedTuple):
    """Two networks compared object by object.

    Attributes:
        first_better, second_better: objects of whose images one of them gets more right than the other.
        alike: objects of whose images both get as many right.
        p_value: exact, two-sided, for "either is as likely to be the better one on an object"; those alike do not count.
    """

    first_better: int
    second_better: int
    alike: int
    p_value: float


def mcnemar(first: np.ndarray, second: np.ndarray) -> McNemar:
    """Tests whether two networks err equally often (McNemar 1947).

    With fewer than 25 discordant pairs the test is exact: each is as likely to be the one's as the other's. With more it
    is chi-square of one degree of freedom, (|b - c| - 1)^2 / (b + c), with Edwards' correction for continuity. Both take
    examples as independent.

    Args:
        first: [n] bool, what the first network gets right.
        second: [n] bool, what the second gets right of the same examples.

    Raises:
        ValueError: their numbers differ.

    Example:
        >>> mcnemar(np.array([True] * 7 + [False]), np.array([True, False] + 5 * [False] + [True]))
        McNemar(both=1, only_first=6, only_second=1, neither=0, p_value=0.125, is_exact=True)
    """
    if first.shape != second.shape:
        raise ValueError(f"{first.shape} and {second.shape} results are not of the same examples")
    only_first, only_second = int(np.count_nonzero(first & ~second)), int(np.count_nonzero(second & ~first))
    discordant = only_first + only_second
    if is_exact := discordant < FEW:
        p_value = _fair(only_first, only_second)
    else:
        chi_square = max(abs(only_first - only_second) - 1, 0) ** 2 / discordant
        p_value = float(stats.chi2.sf(chi_square, df=1))
    both, neither = int(np.count_nonzero(first & second)), int(np.count_nonzero(~first & ~second))
    return McNemar(both, only_first, only_second, neither, p_value, is_exact)


def sign_test(first: np.ndarray, second: np.ndarray, objects: np.ndarray) -> SignTest:
    """Compares two networks object by object, for examples that are many views of few objects.

    Args:
        first: [n] bool, what the first network gets right.
        second: [n] bool, what the second gets right of the same examples.
        objects: [n] int, the object that each example shows.

    Example:
        >>> right = np.array([True, True, True, False])
        >>> sign_test(right, ~right, np.array([0, 0, 1, 1]))
        SignTest(first_better=1, second_better=0, alike=1, p_value=1.0)
    """
    _, number = np.unique(objects, return_inverse=True)
    lead = np.bincount(number, weights=first.astype(int) - second.astype(int))
    first_better, second_better = int(np.count_nonzero(lead > 0)), int(np.count_nonzero(lead < 0))
    alike = len(lead) - first_better - second_better
    return SignTest(first_better, second_better, alike, _fair(first_better, second_better))


def _fair(one: int, other: int) -> float:
    """Exact, two-sided p of two counts of a fair coin."""
    return float(stats.binomtest(one, one + other).pvalue) if one + other else 1.0


def paired(first: Predictions, second: Predictions) -> tuple[Predictions, Predictions]:
    """Puts the same examples at the same places, whatever order they were tested in.

    Raises:
        UserError: they are not the same examples.

    Example:
        >>> part = Predictions(np.eye(2, dtype=np.float32), np.array([0, 1]), 0.5, ("cat", "dog"), ids=np.array(["3", "2"]))
        >>> [each.ids.tolist() for each in paired(part, part)]
        [['2', '3'], ['2', '3']]
    """
    if first.class_names != second.class_names:
        raise UserError("the classes differ")
    if len(first) != len(second):
        raise UserError(f"there are {len(first):,} and {len(second):,} examples")
    if first.ids is None or second.ids is None:
        raise UserError("their examples are not known by number")
    first, second = _in_order(first), _in_order(second)
    for words, one, other in (
        ("numbers", first.ids, second.ids),
        ("cameras", first.factors.get("view"), second.factors.get("view")),
        ("images or sentences", first.fingerprints, second.fingerprints),
        ("labels", first.labels, second.labels),
    ):
        if (one is None) != (other is None) or not np.array_equal(np.array(one), np.array(other)):
            raise UserError(f"as many examples, but of other {words}")
    return first, second


def _in_order(part: Predictions) -> Predictions:
    """Sorted by record and camera."""
    assert part.ids is not None
    view = part.factors.get("view", np.zeros(len(part), int))
    return part.take(np.lexsort((view, part.ids.astype(str))))


def p_text(p_value: float) -> str:
    """A p-value to read.

    Example:
        >>> p_text(0.0213), p_text(0.00002)
        ('0.021', 'below 0.0001')
    """
    return "below 0.0001" if p_value < 1e-4 else f"{p_value:.2g}"


def compared_curves(logs: Mapping[str, Iterable[Mapping[str, Any]]]) -> Figure | None:
    """Draws the runs' training loss and validation accuracy over steps, one colour a run.

    Args:
        logs: name of a run -> its records, of `training_log.read_log`.

    Returns:
        The figure; None without records.

    Example:
        >>> record = {"step": 10, "split": "train", "loss": 0.4, "accuracy": 0.6}
        >>> [axes.get_ylabel() for axes in compared_curves({"em": [record], "cnn": []}).axes]
        ['training loss', 'training accuracy']
    """
    records: dict[str, Sequence[Mapping[str, Any]]] = {name: list(log) for name, log in logs.items()}
    validated = any(len(series(log, "validation", "accuracy")[0]) for log in records.values())
    panels = [("train", "loss", "training loss")]
    panels += [
        ("validation", "accuracy", "validation accuracy") if validated else ("train", "accuracy", "training accuracy")
    ]
    if not any(records.values()):
        return None
    figure = new_figure(10, 4, "Learning curves")
    for axes, (split, name, label) in zip(figure.subplots(1, 2), panels, strict=True):
        for number, (run, log) in enumerate(records.items()):
            steps, values, _ = running_mean(*series(log, split, name))
            marker = "o" if len(steps) == 1 else None
            axes.plot(steps, values, color=COLORS[number % len(COLORS)], linewidth=1.6, marker=marker, label=run)
        style_axes(axes, "training step", label)
        if name == "accuracy":
            axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        count_steps(axes)
    lines, labels = figure.axes[0].get_legend_handles_labels()
    add_legend(figure, lines, labels, loc="outside lower center", ncols=2)
    return figure
