"""How a class capsule's pose moves as the camera goes round a toy.

If capsules hold what their paper promises, a small turn of the camera moves the pose a little, and a full turn brings
it back: the path is smooth and closed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from caps_tf.evaluation.predictions import Predictions, concatenate, factor_label
from caps_tf.evaluation.style import FAINT, INK, new_figure, style_axes

FEWEST_AZIMUTHS = 4
_MOST_CATEGORIES = 6
_CYCLE = "twilight_shifted"  # ends as it begins, like an angle
_HELD_FIXED = ("instance", "elevation", "lighting", "view")


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The pose of the winning class capsule over azimuth, everything else held fixed.

    Args:
        category: the toy's true class, by name.
        held: factor -> the value it is held at (instance, elevation, lighting, view, as far as known).
        azimuth: [t] int, degrees, ascending.
        poses: [t, pose size] float, of the class that won at each azimuth.
        winner: [t] int, that class.
        correct: [t] bool, whether it is the true class.
    """

    category: str
    held: Mapping[str, int]
    azimuth: np.ndarray
    poses: np.ndarray
    winner: np.ndarray
    correct: np.ndarray

    @property
    def title(self) -> str:
        """Names the toy and what is held fixed."""
        units = {"instance": "toy {}", "elevation": "elevation {}°", "lighting": "lighting {}", "view": "{} view"}
        held = [units[name].format(factor_label(name, value)) for name, value in self.held.items()]
        return ", ".join([self.category, *held])


def find_trajectories(predictions: Predictions) -> list[Trajectory]:
    """Picks for each category the toy (and elevation, lighting, view) seen at most azimuths; the first of equals.

    Args:
        predictions: with poses and the factor "azimuth".

    Returns:
        In the order of the classes; categories seen at fewer than four azimuths are left out. Empty without poses or
        azimuths.
    """
    if predictions.poses is None or "azimuth" not in predictions.factors:
        return []
    fixed = [name for name in _HELD_FIXED if name in predictions.factors]
    groups = np.stack([predictions.label, *(predictions.factors[name] for name in fixed)], axis=1)
    azimuth = predictions.factors["azimuth"]
    # One row a group and azimuth, so that counting a group's rows counts its azimuths.
    rows, first = np.unique(np.column_stack([groups, azimuth]), axis=0, return_index=True)
    groups, counts = np.unique(rows[:, :-1], axis=0, return_counts=True)
    found = []
    for category in np.unique(groups[:, 0]):
        best = int(np.argmax(np.where(groups[:, 0] == category, counts, 0)))
        if counts[best] < FEWEST_AZIMUTHS:
            continue
        examples = first[(rows[:, :-1] == groups[best]).all(axis=1)]
        winner = predictions.predicted[examples]
        found.append(
            Trajectory(
                category=predictions.class_names[category],
                held={name: int(value) for name, value in zip(fixed, groups[best, 1:], strict=True)},
                azimuth=azimuth[examples],
                poses=predictions.poses[examples, winner].astype(np.float64),
                winner=winner,
                correct=predictions.correct[examples],
            )
        )
    return found


def principal_plane(poses: np.ndarray, fit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Projects poses onto the plane in which some of them vary most.

    Args:
        poses: [t, pose size] float.
        fit: [t] bool, the poses which choose the plane; at least one.

    Returns:
        (coordinates [t, 2], the share of the fitted poses' variance along each axis [2]).

    Example:
        >>> line = np.outer(np.arange(4.0), [3.0, 4.0, 0.0])
        >>> coordinates, shares = principal_plane(line, np.full(4, True))
        >>> np.abs(coordinates[:, 0]).round(6).tolist(), shares.round(6).tolist()
        ([7.5, 2.5, 2.5, 7.5], [1.0, 0.0])
    """
    centred = poses - poses[fit].mean(axis=0)
    _, singular, axes = np.linalg.svd(centred[fit], full_matrices=False)
    variance = np.zeros(2)
    variance[: len(singular)] = singular[:2] ** 2
    coordinates = np.zeros((len(poses), 2))
    coordinates[:, : len(axes)] = centred @ axes[:2].T
    return coordinates, variance / max(np.sum(singular**2), np.finfo(np.float64).tiny)


def pose_trajectory(parts: Mapping[str, Predictions]) -> Figure | None:
    """Draws the winning class pose over azimuth for one toy of each category: its path, and each of its elements.

    Left, the path in its principal plane. Right, each element's change from its mean over azimuth. Different class
    capsules have different frames, so the path is drawn only between azimuths at which the same class won; a cross
    marks those where a wrong class won, and the plane, the means and the elements shown are of the others (of all,
    if fewer than three are right).

    Args:
        parts: name -> predictions. Parts with poses are joined, so that familiar and novel azimuths make one turn.

    Returns:
        The figure; None where no part has poses and viewpoints, or no toy is seen at four azimuths or more.
    """
    usable = [part for part in parts.values() if len(part) and part.poses is not None and "azimuth" in part.factors]
    if not usable:
        return None
    trajectories = find_trajectories(concatenate(usable))[:_MOST_CATEGORIES]
    if not trajectories:
        return None
    rows = len(trajectories)
    figure = new_figure(10.5, 2.6 * rows + 1.0, "Pose of the winning class capsule as the camera turns")
    grid = figure.add_gridspec(rows + 1, 2, width_ratios=(1, 1.9), height_ratios=[1] * rows + [0.07])
    for row, trajectory in enumerate(trajectories):
        fit = trajectory.correct if trajectory.correct.sum() >= 3 else np.full(len(trajectory.azimuth), True)
        _draw_path(figure.add_subplot(grid[row, 0]), trajectory, fit)
        axes = figure.add_subplot(grid[row, 1])
        bar = figure.colorbar(_draw_elements(axes, trajectory, fit), ax=axes, pad=0.01, aspect=14)
        _style_bar(bar, "change from mean")
    cycle = ScalarMappable(Normalize(0, 360), _CYCLE)
    bar = figure.colorbar(cycle, cax=figure.add_subplot(grid[rows, 0]), location="bottom", ticks=range(0, 361, 60))
    _style_bar(bar, "azimuth of the points above (degrees)")
    note = figure.add_subplot(grid[rows, 1])
    note.set_axis_off()
    note.text(0, 0.5, "× a wrong class won: its pose has another frame", fontsize=8, color=INK, va="center")
    return figure


def _style_bar(bar: Colorbar, label: str) -> None:
    bar.set_label(label, fontsize=8, color=INK)
    bar.ax.tick_params(labelsize=7, length=0)
    bar.outline.set_visible(False)


def _draw_path(axes: Axes, trajectory: Trajectory, fit: np.ndarray) -> None:
    points, shares = principal_plane(trajectory.poses, fit)
    steps = np.diff(trajectory.azimuth, append=trajectory.azimuth[0] + 360)
    following = np.roll(np.arange(len(points)), -1).tolist()
    for start, end in enumerate(following):
        # A step twice as wide as the smallest would hide azimuths never seen; on an uneven grid, steps differ by less.
        if steps[start] < 2 * steps.min() and trajectory.winner[start] == trajectory.winner[end]:
            axes.plot(*points[[start, end]].T, color="#B0B0B0", linewidth=1, zorder=1)
    look: dict[str, Any] = {"cmap": _CYCLE, "vmin": 0, "vmax": 360, "edgecolors": INK, "linewidths": 0.5, "zorder": 2}
    for chosen, marker in ((trajectory.correct, "o"), (~trajectory.correct, "X")):
        x, y = points[chosen].T
        axes.scatter(x, y, s=36, marker=marker, c=trajectory.azimuth[chosen], **look)
    style_axes(axes, f"PC 1 ({100 * shares[0]:.0f} % of variance)", f"PC 2 ({100 * shares[1]:.0f} %)")
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.1)


def _draw_elements(axes: Axes, trajectory: Trajectory, fit: np.ndarray) -> AxesImage:
    change = np.where(fit[:, None], trajectory.poses - trajectory.poses[fit].mean(axis=0), np.nan).T
    limit = max(np.nanmax(np.abs(change)), 1e-9)
    heat = axes.imshow(change, cmap="PuOr", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    axes.set_facecolor("#E4E4E4")
    right, steps = int(trajectory.correct.sum()), len(trajectory.azimuth)
    style_axes(axes, "azimuth (degrees)", "pose element", grid=False)
    title = f"{trajectory.title}: {right} of {steps} right"
    axes.set_title(title, fontsize=9, color=INK, loc="left", parse_math=False)
    shown = np.arange(0, steps, -(-steps // 18))
    axes.set_xticks(shown, trajectory.azimuth[shown])
    side = round(len(change) ** 0.5)
    if side * side == len(change):  # a pose matrix, row by row
        axes.set_yticks(np.arange(side) * side + (side - 1) / 2, [f"row {row + 1}" for row in range(side)])
        for row in range(1, side):
            axes.axhline(row * side - 0.5, color="white", linewidth=1.5)
    for column in np.flatnonzero(~trajectory.correct).tolist():
        axes.text(column, (len(change) - 1) / 2, "×", ha="center", va="center", fontsize=10, color=INK)
    axes.tick_params(length=2, color=FAINT, labelsize=7)
    axes.spines[:].set_visible(False)
    return heat
