"""Figures of what a decoder draws: images beside their reconstructions, and what each element of a pose stands for.

After figures 3 and 4 of Sabour, Frosst, Hinton, "Dynamic Routing Between Capsules" (NIPS 2017).
"""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from caps_tf.evaluation.mistakes import displayable
from caps_tf.evaluation.predictions import Predictions
from caps_tf.evaluation.style import INK, new_figure

Decode = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Poses [n, classes, pose size] of class capsules, and how much of each is kept [n, classes], to images [n, h, w, c] with
values from 0 to 1."""

OFFSETS = np.linspace(-0.25, 0.25, 11)
"""What is added to an element of a pose, as published."""
_GAP = 2
_MOST_ELEMENTS = 16


def reconstructions(
    predictions: Predictions, images: Sequence[np.ndarray], decode: Decode, most: int = 10
) -> Figure | None:
    """Draws images of each class that were recognised, and the worst mistakes, above what the decoder makes of them.

    Of a right answer it is drawn from the pose of its class; of a wrong one from that of the predicted class and below
    from that of the true one.

    Args:
        predictions: n of them, with poses.
        images: [n, h, w, 1 to 3] as `mistakes.worst_mistakes` takes them.
        decode: the decoder.
        most: how many of each kind to show at most.

    Returns:
        The figure; None without examples.

    Example:
        >>> part = Predictions(np.eye(2), np.array([0, 0]), 0.5, ("cat", "dog"), poses=np.zeros((2, 2, 4)))
        >>> decode = lambda poses, kept: np.zeros((len(poses), 8, 8, 1))
        >>> len(reconstructions(part, np.zeros((2, 8, 8, 1), np.uint8), decode).axes)
        2
    """
    assert predictions.poses is not None, "a decoder draws from poses"
    wrong = np.flatnonzero(~predictions.correct)
    wrong = wrong[np.argsort(-predictions.wrong_margin[wrong], kind="stable")][:most]
    names, true, predicted = predictions.class_names, predictions.label, predictions.predicted
    kinds = [
        ("right answers", _right_of_every_class(predictions, most), {"drawn": true}),
        ("worst mistakes", wrong, {"as predicted": predicted, "as true": true}),
    ]
    kinds = [kind for kind in kinds if len(kind[1])]
    if not kinds:
        return None
    height, width = displayable(np.asarray(images[0])).shape[:2]
    rows = [1 + len(drawn) for _, _, drawn in kinds]
    columns = max(len(examples) for _, examples, _ in kinds)
    figure = new_figure(
        0.8 * columns + 1.6, 0.8 * height / width * sum(rows) + 0.9 * len(kinds) + 0.4, "Reconstructions"
    )
    panels = figure.subplots(len(kinds), 1, squeeze=False, height_ratios=rows)[:, 0]
    for axes, (title, examples, drawn) in zip(panels, kinds, strict=True):
        tiles = [[displayable(np.asarray(images[example])) for example in examples]]
        for classes in drawn.values():
            tiles.append(_decoded(decode, predictions.poses[examples], classes[examples]))
        answers = [
            _short(names[true[each]])
            + ("" if true[each] == predicted[each] else f"\nas {_short(names[predicted[each]])}")
            for each in examples
        ]
        _show(axes, tiles, title, ["image", *drawn], answers)
    return figure


def pose_elements(predictions: Predictions, decode: Decode, most: int = 3) -> Figure | None:
    """Draws images of a few classes again and again, each row with one element of the pose turned from -0.25 to 0.25.

    Args:
        predictions: n of them, with poses.
        decode: the decoder.
        most: how many classes, with one right answer of each.

    Returns:
        The figure, with the first 16 elements of longer poses; None without right answers.

    Example:
        >>> part = Predictions(np.eye(2), np.array([0, 1]), 0.5, ("cat", "dog"), poses=np.zeros((2, 2, 4)))
        >>> len(pose_elements(part, lambda poses, kept: np.zeros((len(poses), 8, 8, 1))).axes)
        2
    """
    assert predictions.poses is not None, "a decoder draws from poses"
    examples = _right_of_every_class(predictions, min(most, len(np.unique(predictions.label[predictions.correct]))))
    if len(examples) == 0:
        return None
    elements = min(predictions.poses.shape[-1], _MOST_ELEMENTS)
    drawn = []
    for example in examples:
        poses = np.tile(predictions.poses[example], (elements, len(OFFSETS), 1, 1))
        for element in range(elements):
            poses[element, :, predictions.label[example], element] += OFFSETS
        classes = np.full(elements * len(OFFSETS), predictions.label[example])
        turned = _decoded(decode, poses.reshape(-1, *poses.shape[2:]), classes)
        drawn.append([turned[start : start + len(OFFSETS)] for start in range(0, len(turned), len(OFFSETS))])
    height, width = drawn[0][0][0].shape[:2]
    tall = max(0.35 * height / width * elements, 1.5)
    figure = new_figure(4.4 * len(examples), tall + 1.2, "Elements of the pose")
    ends = [f"{offset:+.2f}" if place in (0, len(OFFSETS) - 1) else "" for place, offset in enumerate(OFFSETS)]
    ends[len(OFFSETS) // 2] = "0"
    for axes, example, tiles in zip(figure.subplots(1, len(examples), squeeze=False)[0], examples, drawn, strict=True):
        title = _short(predictions.class_names[predictions.label[example]])
        _show(axes, tiles, title, [str(element + 1) for element in range(elements)], ends)
    return figure


def _right_of_every_class(predictions: Predictions, most: int) -> np.ndarray:
    """Right answers: the first of each class, then the second of each, and so on."""
    right = np.flatnonzero(predictions.correct)
    by_class = right[np.argsort(predictions.label[right], kind="stable")]
    labels = predictions.label[by_class]
    place_in_class = np.arange(len(labels)) - np.searchsorted(labels, labels)
    return by_class[np.argsort(place_in_class, kind="stable")][:most]


def _decoded(decode: Decode, poses: np.ndarray, classes: np.ndarray) -> list[np.ndarray]:
    """What is drawn of one class each, as pictures."""
    kept = np.eye(poses.shape[1], dtype=np.float32)[classes]
    return [displayable(np.round(255 * image).astype(np.uint8)) for image in decode(poses, kept)]


def _show(
    axes: Axes, tiles: Sequence[Sequence[np.ndarray]], title: str, rows: Sequence[str], columns: Sequence[str]
) -> None:
    """Draws rows of pictures of one size with white gaps, and writes a word before each row and above each column."""

    def padded(tile: np.ndarray) -> np.ndarray:
        return np.pad(tile, [(0, _GAP)] * 2 + [(0, 0)] * (tile.ndim - 2), constant_values=255)

    height, width = tiles[0][0].shape[:2]
    picture = np.concatenate([np.concatenate([padded(tile) for tile in row], axis=1) for row in tiles])
    axes.imshow(picture[:-_GAP, :-_GAP], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    places = (np.arange(len(words)) * (size + _GAP) + size / 2 for words, size in ((columns, width), (rows, height)))
    axes.set_xticks(next(places), columns, parse_math=False)
    axes.set_yticks(next(places), rows)
    axes.tick_params(length=0, labelsize=8, labelcolor=INK, top=False, labeltop=True, bottom=False, labelbottom=False)
    axes.set_title(title, fontsize=10, color=INK, parse_math=False)
    axes.spines[:].set_visible(False)


def _short(name: str) -> str:
    return name if len(name) <= 12 else name[:11] + "…"
