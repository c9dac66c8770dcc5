"""The figure of the worst mistakes, with their images."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from caps_tf.evaluation.predictions import Predictions, factor_label
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
        axes.imshow(displayable(np.asarray(images[example])), cmap="gray", vmin=0, vmax=255)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        answers = (("true", predictions.labels, INK, 14), ("predicted", predictions.answers, COLORS[1], 4))
        for word, classes, color, points in answers:
            text = f"{word} {', '.join(_scored(predictions, example, each) for each in classes[example])}"
            place = {"xy": (0, 1), "xycoords": "axes fraction", "xytext": (0, points), "textcoords": "offset points"}
            axes.annotate(text, **place, fontsize=8, color=color, parse_math=False)
        axes.set_xlabel(_describe(predictions, example), fontsize=6.5, color=FAINT, loc="left")
    return figure


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
