"""The look all figures share. Figures are made without pyplot, so no global state of matplotlib is touched."""

import io
import os
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from caps_tf.files import write_atomically

# Okabe & Ito's palette, which colour-blind readers can tell apart; adjacent ones differ most.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
INK = "#222222"
FAINT = "#767676"
_DOTS_PER_INCH = 150


def new_figure(width: float, height: float, title: str = "") -> Figure:
    """Makes a white figure, with a bold title, whose parts arrange themselves.

    Args:
        width: inches.
        height: inches.
        title: above everything.
    """
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
    figure = Figure(figsize=(width, height), dpi=_DOTS_PER_INCH, layout=layout, facecolor="white")
    if title:
        figure.suptitle(title, fontsize=12, fontweight="bold", color=INK)
    return figure


def style_axes(axes: Axes, xlabel: str, ylabel: str, title: str = "", grid: bool = True) -> None:
    """Labels the axes, and leaves of the frame only what helps reading values."""
    axes.set_xlabel(xlabel, fontsize=9, color=INK)
    axes.set_ylabel(ylabel, fontsize=9, color=INK)
    axes.set_title(title, fontsize=10, color=INK)
    axes.tick_params(labelsize=8, length=3, color=FAINT, labelcolor=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    if grid:
        axes.grid(color="#E4E4E4", linewidth=0.7)
        axes.set_axisbelow(True)


def add_legend(owner: Axes | Figure, *entries, **options) -> None:
    """Adds a frameless legend to axes or a figure; the arguments are those of `Axes.legend`."""
    owner.legend(*entries, fontsize=8, frameon=False, labelcolor=INK, **options)


def save_figure(figure: Figure, path: str | os.PathLike) -> Path:
    """Writes a figure atomically as PNG.

    Raises:
        UserError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     save_figure(new_figure(2, 1, "empty"), f"{directory}/empty.png").name
        'empty.png'
    """
    return write_atomically(path, png_bytes(figure))


def png_bytes(figure: Figure) -> bytes:
    """A figure as the content of a PNG file.

    Example:
        >>> png_bytes(new_figure(2, 1))[1:4]
        b'PNG'
    """
    png = io.BytesIO()
    FigureCanvasAgg(figure).print_png(png)
    return png.getvalue()
