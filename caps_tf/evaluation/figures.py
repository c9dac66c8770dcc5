"""Figures of a test: learning curves, confusion, accuracy over viewpoint.

Each function returns a `matplotlib.figure.Figure`, or None where there is nothing to draw;
`caps_tf.evaluation.style.save_figure` writes it as PNG.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from caps_tf.evaluation.metrics import confusion_matrix, count_by, wilson_interval
from caps_tf.evaluation.predictions import Predictions
from caps_tf.evaluation.style import COLORS, FAINT, INK, add_legend, new_figure, style_axes

_SCHEDULES = {
    "learning_rate": "learning rate",
    "momentum": "momentum",
    "margin": "spread loss margin",
    "inverse_temperature": "inverse temperature",
    "reconstruction": "reconstruction error",
}
_MOST_POINTS_UNSMOOTHED = 60
_MOST_CLASSES_WITH_COUNTS = 12


def learning_curves(records: Iterable[Mapping[str, Any]]) -> Figure | None:
    """Draws loss and accuracy of training and validation over steps, and below them the schedules.

    Long training curves are drawn faintly, with a running mean in full colour; the legend says of how many records.

    Args:
        records: of `training_log.read_log`.

    Returns:
        The figure; None without records.

    Example:
        >>> learning_curves([{"step": 10, "split": "train", "loss": 0.4, "accuracy": 0.6}]) is None
        False
    """
    records = list(records)
    if not records:
        return None
    schedules = {name: label for name, label in _SCHEDULES.items() if len(series(records, "train", name)[0])}
    figure = new_figure(10, 5.6 if schedules else 3.8, "Learning curves")
    rows = figure.subfigures(2, 1, squeeze=False, height_ratios=(2, 1))[:, 0] if schedules else [figure]
    for axes, name in zip(rows[0].subplots(1, 2), ("loss", "accuracy"), strict=True):
        _draw_curves(axes, records, name)
    if schedules:
        for axes, (name, label) in zip(rows[1].subplots(1, len(schedules), squeeze=False)[0], schedules.items()):
            steps, values = series(records, "train", name)
            axes.plot(steps, values, color=INK, linewidth=1.2, marker=_marker(steps), markersize=4)
            style_axes(axes, "training step", "", label)
            _start_at_zero(axes)
            axes.ticklabel_format(axis="y", scilimits=(-2, 3), useMathText=True)
            axes.yaxis.get_offset_text().set_fontsize(8)
            count_steps(axes)
    return figure


def series(records: Sequence[Mapping[str, Any]], split: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of what a log has of a name, where it is a finite number.

    Example:
        >>> [values.tolist() for values in series([{"step": 5, "split": "train", "loss": 0.5}], "train", "loss")]
        [[5.0], [0.5]]
    """
    points = [
        (record["step"], record[name])
        for record in records
        if record["split"] == split and record.get(name) is not None and np.isfinite(record[name])
    ]
    steps, values = np.array(points, np.float64).reshape(-1, 2).T
    return steps, values


def running_mean(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """A long curve smoothed, and over how many points; a short one as it is, over 1.

    Example:
        >>> steps, values, window = running_mean(np.arange(90.0), np.ones(90))
        >>> steps[:2].tolist(), len(values), window
        ([1.0, 2.0], 88, 3)
    """
    if len(steps) <= _MOST_POINTS_UNSMOOTHED:
        return steps, values, 1
    window = len(steps) // 30
    smooth = np.convolve(values, np.full(window, 1 / window), mode="valid")
    return steps[(window - 1) // 2 :][: len(smooth)], smooth, window


def _draw_curves(axes: Axes, records: Sequence[Mapping[str, Any]], name: str) -> None:
    raw = series(records, "train", name)
    steps, values, window = running_mean(*raw)
    if window > 1:
        axes.plot(*raw, color=COLORS[0], alpha=0.25, linewidth=0.8)
    label = f"training (mean of {window} records)" if window > 1 else "training"
    if len(steps):
        axes.plot(steps, values, color=COLORS[0], linewidth=1.6, marker=_marker(steps), markersize=4, label=label)
    steps, values = series(records, "validation", name)
    if len(steps):
        axes.plot(steps, values, color=COLORS[1], linewidth=1.6, marker="o", markersize=3.5, label="validation")
    style_axes(axes, "training step", name)
    if name == "accuracy":
        axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        if len(steps):
            best = int(values.argmax())
            axes.set_title(
                f"best validation {values[best]:.1%} at step {steps[best]:,.0f}".replace("%", " %"), fontsize=9
            )
    else:
        _start_at_zero(axes)
    count_steps(axes)
    if axes.lines:
        add_legend(axes)


def _marker(steps: np.ndarray) -> str | None:
    return "o" if len(steps) == 1 else None  # a line of one point is invisible


def _start_at_zero(axes: Axes) -> None:
    highest = max((np.max(line.get_ydata()) for line in axes.lines), default=0)
    axes.set_ylim(0, 1.08 * highest if highest > 0 else 1)


def count_steps(axes: Axes) -> None:
    """Has a few whole numbers of steps below the axes."""
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def confusion(parts: Mapping[str, Predictions]) -> Figure | None:
    """Draws the confusion matrices side by side: rows are true classes and add up to 100 %.

    Up to twelve classes the cells also show percentage and count.

    Args:
        parts: name -> predictions; those of overlapping classes are left out.

    Returns:
        The figure; None without examples.

    Example:
        >>> part = Predictions(np.eye(2, dtype=np.float32), np.array([0, 1]), 0.5, ("cat", "dog"))
        >>> [axes.get_title() for axes in confusion({"test": part}).axes[:1]]
        ['test: 100.0 % of 2 right']
    """
    parts = {name: part for name, part in parts.items() if len(part) and part.label2 is None}
    if not parts:
        return None
    num_classes = max(len(part.class_names) for part in parts.values())
    side = float(np.clip(1.6 + 0.62 * num_classes, 3.6, 9))
    figure = new_figure(side * len(parts) + 0.8, side + 0.4, "Confusion matrix")
    panels = figure.subplots(1, len(parts), squeeze=False)[0]
    for axes, (name, part) in zip(panels, parts.items(), strict=True):
        image = _draw_confusion(axes, part)
        accuracy = f"{100 * part.accuracy:.1f} % of {len(part):,} right"
        style_axes(axes, "predicted class", "true class", f"{name}: {accuracy}", grid=False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=panels, shrink=0.8, pad=0.02, format=PercentFormatter(1, 0, " %"))
    bar.set_label("share of the true class", fontsize=9, color=INK)
    bar.ax.tick_params(labelsize=8, length=0)
    bar.outline.set_visible(False)
    return figure


def _draw_confusion(axes: Axes, part: Predictions) -> AxesImage:
    names = part.class_names
    counts = confusion_matrix(part.label, part.predicted, len(names))
    totals = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    every = -(-len(names) // 40)  # more names than this would overlap
    ticks = np.arange(0, len(names), every)
    shown = [names[tick] for tick in ticks]  # a $ in a name begins no formula
    axes.set_xticks(ticks, shown, rotation=45, ha="right", rotation_mode="anchor", parse_math=False)
    axes.set_yticks(ticks, shown, parse_math=False)
    if len(names) <= _MOST_CLASSES_WITH_COUNTS:
        for row, column in np.ndindex(counts.shape):
            if totals[row, 0] == 0:
                continue
            ink = "white" if shares[row, column] > 0.55 else INK
            place: dict[str, Any] = {"ha": "center", "color": ink}
            axes.text(column, row - 0.03, f"{100 * shares[row, column]:.1f}", va="bottom", fontsize=8.5, **place)
            axes.text(column, row + 0.09, f"{counts[row, column]:,}", va="top", fontsize=6.5, alpha=0.8, **place)
    return image


def accuracy_over_viewpoint(parts: Mapping[str, Predictions], stacked: bool = False) -> Figure | None:
    """Draws accuracy over azimuth and elevation, in degrees, one colour a part, with 95 % Wilson intervals.

    A line is broken where a part has no examples but another part has: familiar viewpoints end where novel begin.

    Args:
        parts: name -> predictions with the factors "azimuth" and "elevation", or one of them.
        stacked: whether one stands above the other, for narrow screens, rather than beside it.

    Returns:
        The figure; None where no part knows its viewpoints.

    Example:
        >>> part = Predictions(np.eye(2, dtype=np.float32), np.array([0, 1]), 0.5, ("cat", "dog"),
        ...                    factors={"azimuth": np.array([0, 20])})
        >>> accuracy_over_viewpoint({"test": part}).axes[0].get_xlabel()
        'azimuth (degrees)'
    """
    parts = {name: part for name, part in parts.items() if len(part)}
    factors = [name for name in ("azimuth", "elevation") if any(name in part.factors for part in parts.values())]
    if not factors:
        return None
    across, down = (1, len(factors)) if stacked else (len(factors), 1)
    width, height = (4.2, 2.7) if stacked else (5.2, 3.2)
    figure = new_figure(width * across, height * down + 0.6, "Accuracy over viewpoint")
    panels = figure.subplots(down, across, sharey=True, squeeze=False).ravel()
    chance = 1 / max(len(part.class_names) for part in parts.values())
    for axes, factor in zip(panels, factors, strict=True):
        known = {name: part for name, part in parts.items() if factor in part.factors}
        degrees = np.unique(np.concatenate([part.factors[factor] for part in known.values()]))
        for color, (name, part) in zip(itertools.cycle(COLORS), known.items()):
            present, right, totals = count_by(part.factors[factor], part.correct)
            curves = np.full((3, len(degrees)), np.nan)
            curves[:, np.searchsorted(degrees, present)] = right / totals, *wilson_interval(right, totals)
            axes.fill_between(degrees, curves[1], curves[2], color=color, alpha=0.18, linewidth=0)
            axes.plot(degrees, curves[0], "o-", color=color, markersize=4, linewidth=1.6, label=name)
        axes.axhline(chance, color=FAINT, linewidth=1, linestyle=(0, (4, 3)), label="chance")
        style_axes(axes, f"{factor} (degrees)", "accuracy" if stacked or axes is panels[0] else "")
        axes.set_xticks(degrees[:: -(-len(degrees) // 9)])
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        axes.set_ylim(0, 1.02)
    lines, labels = panels[0].get_legend_handles_labels()
    band = Patch(color=FAINT, alpha=0.3, linewidth=0)
    add_legend(
        figure, [*lines, band], [*labels, "95 % Wilson interval"], loc="outside lower center", ncols=2 if stacked else 4
    )
    return figure
