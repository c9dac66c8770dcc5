"""Pictures of the credit that classes assign to what they were decided from: tokens of a sentence, places of an image.

The credit is that of one routing, or of several by `caps_tf.routing.end_to_end_credit`; purple is negative, orange
positive. What an input proposes has a sign too, so a network may speak for a class in either colour.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from caps_tf.evaluation.style import INK, new_figure

_AGAINST_AND_FOR = "PuOr_r"
_COLUMNS = 80
_INCHES_PER_COLUMN = 0.095


def sentence_credit(
    tokens: Sequence[str], credit: np.ndarray, class_names: Sequence[str], title: str = ""
) -> Figure | None:
    """Draws a sentence once for each class, each token coloured by the credit which the class assigns to it.

    Args:
        tokens: words or parts of words, in order.
        credit: [tokens, classes], float.
        class_names: names of the classes.
        title: above everything.

    Returns:
        The figure, with one scale of colours for all classes; None without tokens.

    Raises:
        ValueError: if the credit has another shape.

    Example:
        >>> figure = sentence_credit(["not", "bad"], np.array([[1.0, -1.0], [0.5, 2.0]]), ["negative", "positive"])
        >>> [axes.get_title(loc="left") for axes in figure.axes[:2]]
        ['negative', 'positive']
    """
    credit = np.asarray(credit, np.float64)
    if credit.shape != (len(tokens), len(class_names)):
        raise ValueError(
            f"expected the credit of {len(tokens)} tokens towards {len(class_names)} classes, not shape {credit.shape}"
        )
    if not tokens:
        return None
    places = _lay_out(tokens)
    lines = places[-1][0] + 1
    figure = new_figure(_COLUMNS * _INCHES_PER_COLUMN + 1.4, (0.26 * lines + 0.4) * len(class_names) + 0.6, title)
    panels = figure.subplots(len(class_names), 1, squeeze=False)[:, 0]
    colors = _symmetric_colors(credit)
    for axes, name, towards in zip(panels, class_names, credit.T, strict=True):
        axes.set(xlim=(0, _COLUMNS), ylim=(lines, 0))
        axes.set_axis_off()
        axes.set_title(name, fontsize=10, color=INK, loc="left", parse_math=False)
        for token, (line, column, width), value in zip(tokens, places, towards, strict=True):
            axes.add_patch(Rectangle((column, line + 0.05), width, 0.9, color=colors.to_rgba(value), linewidth=0))
            text = axes.text(column + width / 2, line + 0.52, _printable(token), ha="center", va="center", fontsize=9)
            text.set(family="monospace", parse_math=False, color=_ink_on(colors.to_rgba(value)))
    _add_scale(figure, colors, panels)
    return figure


def image_credit(image: np.ndarray, credit: np.ndarray, class_names: Sequence[str], title: str = "") -> Figure | None:
    """Draws an image, and beside it for each class the credit which the class assigns to each position.

    Args:
        image: [h, w], [h, w, 1] or [h, w, 3]; uint8 is shown as it is, others stretched from black to white.
        credit: [rows, columns, classes], float, of a grid of positions that covers the image.
        class_names: names of the classes.
        title: above everything.

    Returns:
        The figure, with one scale of colours for all classes; None without classes.

    Raises:
        ValueError: if the credit or the image has another shape.

    Example:
        >>> figure = image_credit(np.zeros((8, 8), np.uint8), np.ones((2, 2, 1)), ["cat"])
        >>> [axes.get_title() for axes in figure.axes[:2]]
        ['image', 'cat']
    """
    image, credit = np.asarray(image), np.asarray(credit, np.float64)
    if credit.ndim != 3 or credit.shape[2] != len(class_names):
        raise ValueError(f"expected credit [rows, columns, {len(class_names)} classes], not shape {credit.shape}")
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3)):
        raise ValueError(f"expected an image [h, w], [h, w, 1] or [h, w, 3], not shape {image.shape}")
    if not class_names:
        return None
    count = len(class_names) + 1
    columns = min(count, 6)
    rows = -(-count // columns)
    height, width = image.shape[:2]
    figure = new_figure(2.0 * columns + 1.0, (2.0 * height / width + 0.4) * rows + 0.5, title)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    shown = image.astype(np.float64).reshape(height, width, -1)
    low, high = (0.0, 255.0) if image.dtype == np.uint8 else (shown.min(), shown.max())
    shown = (shown - low) / max(high - low, 1e-12)
    grey = {"cmap": "gray", "vmin": 0, "vmax": 1}
    colors = _symmetric_colors(credit)
    for axes in panels:
        axes.set_axis_off()
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    for axes, name, towards in zip(panels, ["image", *class_names], [None, *np.moveaxis(credit, -1, 0)], strict=False):
        axes.set_title(name, fontsize=9, color=INK, parse_math=False)
        if towards is None:
            axes.imshow(shown if shown.shape[2] == 3 else shown[:, :, 0], **grey)
        else:
            axes.imshow(shown.mean(axis=2), **grey)
            axes.imshow(towards, cmap=colors.cmap, norm=colors.norm, extent=extent, alpha=0.65, interpolation="nearest")
    _add_scale(figure, colors, list(panels))
    return figure


def _lay_out(tokens: Sequence[str]) -> list[tuple[int, int, int]]:
    """(line, column, width) of each token, in characters, broken where a line is full."""
    places, line, column = [], 0, 0
    for token in tokens:
        width = len(_printable(token)) + 1
        if column and column + width > _COLUMNS:
            line, column = line + 1, 0
        places.append((line, column, width))
        column += width
    return places


def _printable(token: str) -> str:
    token = "".join(character if character.isprintable() else "·" for character in token.strip()) or "·"
    return token if len(token) < _COLUMNS else token[: _COLUMNS - 2] + "…"


def _symmetric_colors(credit: np.ndarray) -> ScalarMappable:
    finite = np.abs(credit[np.isfinite(credit)])
    limit = max(float(finite.max(initial=0.0)), 1e-9)
    return ScalarMappable(Normalize(-limit, limit), _AGAINST_AND_FOR)


def _ink_on(color: Sequence[float] | np.ndarray) -> str:
    luminance = 0.2126 * color[0] + 0.7152 * color[1] + 0.0722 * color[2]
    return "white" if luminance < 0.45 else INK


def _add_scale(figure: Figure, colors: ScalarMappable, panels) -> None:
    bar = figure.colorbar(colors, ax=panels, shrink=0.9, pad=0.02, aspect=14)
    bar.set_label("credit", fontsize=8, color=INK)
    bar.ax.tick_params(labelsize=7, length=0)
    bar.outline.set_visible(False)
