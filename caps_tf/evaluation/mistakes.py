"""Figures of mistakes with their images: the worst of one network, and those that another does not make."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from caps_tf.evaluation.predictions import Predictions, factor_label, objects_of
from caps_tf.evaluation.style import COLORS, FAINT, INK, new_figure


def worst_mistakes(
    predictions: Predictions, images: Sequence[np.ndarray], name: str = "", most: int = 24
) -> Figure | None:
    """Draws the mistakes with the largest score of a wrong class over the true class, worst first.

    Args:
        predictions: n of them.
        images: [n, h, w], [n, h, w, 1], [n, h, w, 3], or [n, h, w, 2] (a stereo pair, drawn side by side); indexed,
            so anything with len and [] will do. uint8 is shown as it is; others are stretched, each by itself, from
            black to white.
        name: of the part, for the title.
        most: how many to show at most.

    Returns:
        The figure; None without mistakes.

    Raises:
        ValueError: the number of images is not n.

    Example:
        >>> part = Predictions(np.eye(2, dtype=np.float32), np.array([0, 0]), 0.5, ("cat", "dog"))
        >>> len(worst_mistakes(part, np.zeros((2, 8, 8), np.uint8)).axes)
        1
    """
    if len(images) != len(predictions):
        raise ValueError(f"{len(images)} images for {len(predictions)} predictions")
    wrong = np.flatnonzero(~predictions.correct)
    if len(wrong) == 0:
        return None
    shown = wrong[np.argsort(-predictions.wrong_margin[wrong], kind="stable")][:most]
    columns = min(len(shown), 6)
    rows = -(-len(shown) // columns)
    title = f"Worst {len(shown)} of {len(wrong):,} mistakes" + (f", {name}" if name else "")
    height, width = displayable(np.asarray(images[shown[0]])).shape[:2]
    figure = new_figure(max(1.75 * columns, 4.2), (1.6 * height / width + 0.75) * rows + 0.5, title)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[len(shown) :]:
        axes.remove()
    for axes, example in zip(panels, shown, strict=False):
        answers = (("true", predictions.labels, INK), ("predicted", predictions.answers, COLORS[1]))
        lines = [
            (f"{word} {', '.join(_scored(predictions, example, each) for each in classes[example])}", color)
            for word, classes, color in answers
        ]
        _draw(axes, images[example], lines, _describe(predictions, example))
    return figure


def disagreements(first: Predictions, second: Predictions, most: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """The worst mistakes of each of two networks that the other does not make, worst first.

    Where objects are known, one image of each comes first: many are mistaken in image after image.

    Args:
        first, second: of the same examples in the same order.
        most: how many of each at most.

    Returns:
        Numbers of examples that only the first gets right, and of those that only the second does.

    Example:
        >>> right = Predictions(np.eye(2, dtype=np.float32), np.array([0, 1]), 0.0, ("cat", "dog"))
        >>> wrong = Predictions(np.eye(2, dtype=np.float32)[::-1], np.array([0, 1]), 9.0, ("cat", "dog"))
        >>> [chosen.tolist() for chosen in disagreements(right, wrong)]
        [[0, 1], []]
    """
    chosen = []
    for better, worse in ((first, second), (second, first)):
        only = np.flatnonzero(better.correct & ~worse.correct)
        only = only[np.argsort(-worse.wrong_margin[only], kind="stable")]
        if (objects := objects_of(worse)) is not None:
            shown: Counter[int] = Counter()
            turns = []
            for each in objects[only].tolist():
                turns.append(shown[each])
                shown[each] += 1
            only = only[np.argsort(turns, kind="stable")]
        chosen.append(only[:most])
    return chosen[0], chosen[1]


def disagreement_figure(
    first: Predictions, second: Predictions, names: tuple[str, str], images: Mapping[int, np.ndarray]
) -> Figure | None:
    """Draws the examples of `disagreements`, those that only the first gets right above those of the second.

    Args:
        first, second: of the same examples in the same order.
        names: of the two networks.
        images: of these examples, by their numbers, as `worst_mistakes` takes them; others are not drawn.

    Returns:
        The figure; None without such examples.

    Example:
        >>> part = Predictions(np.eye(2, dtype=np.float32), np.array([0, 1]), 0.0, ("cat", "dog"))
        >>> disagreement_figure(part, part, ("em", "cnn"), {}) is None
        True
    """
    shown = [[each for each in numbers if each in images] for numbers in disagreements(first, second)]
    blocks = [(name, numbers) for name, numbers in zip(names, shown, strict=True) if numbers]
    if not blocks:
        return None
    height, width = displayable(np.asarray(images[blocks[0][1][0]])).shape[:2]
    columns = max(len(numbers) for _, numbers in blocks)
    figure = new_figure(max(1.75 * columns, 4.2), (1.6 * height / width + 1.2) * len(blocks))
    for part, (name, numbers) in zip(figure.subfigures(len(blocks), 1, squeeze=False)[:, 0], blocks, strict=True):
        part.suptitle(f"Only {name} is right", fontsize=10, fontweight="bold", color=INK, parse_math=False)
        panels = part.subplots(1, columns, squeeze=False)[0]
        for axes in panels[len(numbers) :]:
            axes.remove()
        for axes, example in zip(panels, numbers, strict=False):
            answers = ((first, COLORS[0]), (second, COLORS[1]))
            lines = [
                (", ".join(_scored(each, example, kind) for kind in each.answers[example]), c) for each, c in answers
            ]
            _draw(axes, images[example], lines, _describe(first, example))
    return figure


def _draw(axes: Axes, image: np.ndarray, lines: Sequence[tuple[str, str]], below: str) -> None:
    """An image with lines of text and their colours above it."""
    axes.imshow(displayable(np.asarray(image)), cmap="gray", vmin=0, vmax=255)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    for number, (text, color) in enumerate(lines, start=1):
        offset = (0, 4 + 10 * (len(lines) - number))
        place: dict[str, Any] = {"xycoords": "axes fraction", "xytext": offset, "textcoords": "offset points"}
        axes.annotate(text, (0, 1), **place, fontsize=8, color=color, parse_math=False)
    axes.set_xlabel(below, fontsize=6.5, color=FAINT, loc="left")


def _scored(predictions: Predictions, example: int, category: int) -> str:
    """The name of a class, shortened, and its score."""
    name = predictions.class_names[category]
    return f"{name if len(name) <= 14 else name[:13] + '…'}  {predictions.scores[example, category]:.2f}"


def displayable(image: np.ndarray) -> np.ndarray:
    """[h, w] or [h, w, 1 to 3] of any dtype -> [h, w], [h, 2 w] or [h, w, 3] uint8."""
    if image.ndim == 3 and image.shape[-1] < 3:
        image = np.concatenate(np.moveaxis(image, -1, 0), axis=1)
    if image.dtype == np.uint8:
        return image
    low, high = float(image.min()), float(image.max())
    return np.round((image - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)


def _describe(predictions: Predictions, example: int) -> str:
    """One or two short lines on where an example stands in the data set."""
    forms = (
        {"instance": "toy {}", "lighting": "light {}", "view": "{}"},
        {"elevation": "el {}°", "azimuth": "az {}°"},
    )
    known = predictions.factors
    lines = [
        [text.format(factor_label(name, known[name][example])) for name, text in form.items() if name in known]
        for form in forms
    ]
    return "\n".join(" · ".join(line) for line in lines if line)
