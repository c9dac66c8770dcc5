"""What is left of a network's accuracy on adversarial images: numbers, table, JSON and figure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from caps_tf.errors import UserError
from caps_tf.evaluation.predictions import Predictions
from caps_tf.evaluation.style import COLORS, FAINT, add_legend, new_figure, style_axes


class Round(NamedTuple):
    """What a network says about images that were attacked with one epsilon, and one choice of targets.

    Attributes:
        predictions: of the attacked images.
        target: int [n], the class that each shall be taken for; None without targets.
        zeros: float [n], which share of an image's gradient is exactly zero.
    """

    predictions: Predictions
    target: np.ndarray | None
    zeros: np.ndarray


class AttackResult(NamedTuple):
    """What an attack with one epsilon achieves.

    Attributes:
        epsilon: how far a pixel was moved at the most.
        num_examples: attacked images, each counted once for every target.
        accuracy: share of them that the network still gets right.
        success: share of them that it takes for the target, the mean of rounds; None without targets.
        zero_gradient: mean share of the gradient, at the images as they were, that is exactly zero: these pixels are
            not moved at first, and a network whose gradient is mostly zero is not robust but hides how to attack it.
    """

    epsilon: float
    num_examples: int
    accuracy: float
    success: float | None
    zero_gradient: float


@dataclass(frozen=True)
class Robustness:
    """The results of an attack.

    Attributes:
        title: the attack in words.
        settings: JSON values: what made the images.
        num_classes: of the network.
        parts: name of a test part -> its results in the order of epsilon.
    """

    title: str
    settings: Mapping[str, Any]
    num_classes: int
    parts: Mapping[str, Sequence[AttackResult]]


def attack_result(epsilon: float, rounds: Sequence[Round]) -> AttackResult:
    """Counts rounds of one epsilon; images whose own class is the target are left out.

    Raises:
        UserError: there are no images of another class than the target.

    Example:
        >>> part = Predictions(np.eye(2, dtype=np.float32), np.array([0, 0]), 0.5, ("cat", "dog"))
        >>> attack_result(0.1, [Round(part, np.array([1, 1]), np.zeros(2))])
        AttackResult(epsilon=0.1, num_examples=2, accuracy=0.5, success=0.5, zero_gradient=0.0)
    """
    correct, zeros, success = [], [], []
    for predictions, target, share in rounds:
        counts = np.ones(len(predictions), bool) if target is None else predictions.label != target
        correct.append(predictions.correct[counts])
        zeros.append(share[counts])
        if target is not None and counts.any():
            success.append(float((predictions.predicted == target)[counts].mean()))
    all_correct = np.concatenate(correct)
    if not len(all_correct):
        raise UserError("every attacked image is of the class `attack_target`: choose another, or attack more images")
    return AttackResult(
        epsilon,
        len(all_correct),
        float(all_correct.mean()),
        float(np.mean(success)) if success else None,
        float(np.concatenate(zeros).mean(dtype=np.float64)),
    )


def attack_table(robustness: Robustness) -> str:
    """A table for the terminal.

    Example:
        >>> results = [AttackResult(0.0, 10, 0.9, None, 0.25), AttackResult(0.1, 10, 0.3, None, 0.25)]
        >>> print(attack_table(Robustness("FGSM, white box", {}, 5, {"test": results})))
        FGSM, white box
        test, 10 images, 25.0 % of the gradient is zero
        epsilon  accuracy
         0.0000   90.00 %
         0.1000   30.00 %
    """
    lines = [robustness.title]
    for name, results in robustness.parts.items():
        first = results[0]
        zeros = f"{100 * first.zero_gradient:.1f} % of the gradient is zero"
        lines.append(f"{name}, {first.num_examples:,} images, {zeros}")
        lines.append("epsilon  accuracy" + ("" if first.success is None else "  taken for the target"))
        for each in results:
            success = "" if each.success is None else f"{100 * each.success:20.2f} %"
            lines.append(f"{each.epsilon:7.4f}{100 * each.accuracy:8.2f} %{success}")
    return "\n".join(lines)


def attack_json(robustness: Robustness) -> dict[str, Any]:
    """The results as JSON types.

    Example:
        >>> results = [AttackResult(0.1, 10, 0.3, None, 0.25)]
        >>> attack_json(Robustness("FGSM", {"kind": "fgsm"}, 5, {"test": results}))["parts"]["test"][0]["accuracy"]
        0.3
    """
    parts = {name: [result._asdict() for result in results] for name, results in robustness.parts.items()}
    return {"title": robustness.title, "settings": dict(robustness.settings), "parts": parts}


def attack_figure(robustness: Robustness) -> Figure:
    """Draws accuracy over epsilon, and how many images are taken for the target, as figure 3 of Hinton et al. 2018.

    Example:
        >>> results = [AttackResult(0.1, 10, 0.3, 0.5, 0.25)]
        >>> [axes.get_ylabel() for axes in attack_figure(Robustness("FGSM", {}, 5, {"test": results})).axes]
        ['accuracy', 'taken for the target']
    """
    targeted = any(result.success is not None for results in robustness.parts.values() for result in results)
    labels = {"accuracy": "accuracy", "success": "taken for the target"} if targeted else {"accuracy": "accuracy"}
    figure = new_figure(4.8 * len(labels) + 0.4, 3.8, robustness.title)
    panels = figure.subplots(1, len(labels), squeeze=False)[0]
    for axes, (value, label) in zip(panels, labels.items(), strict=True):
        for color, (name, results) in zip(COLORS, robustness.parts.items(), strict=False):
            epsilons, shares = zip(*((result.epsilon, getattr(result, value)) for result in results), strict=True)
            axes.plot(epsilons, shares, "o-", color=color, markersize=4, linewidth=1.6, label=name)
        if value == "accuracy":
            axes.axhline(1 / robustness.num_classes, color=FAINT, linewidth=1, linestyle=(0, (4, 3)), label="chance")
        style_axes(axes, "epsilon (pixels are from 0 to 1)", label)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        axes.set_ylim(-0.02, 1.02)
        add_legend(axes)
    return figure
