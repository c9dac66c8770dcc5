"""The figures of a report: what they show of which examples, and that they are really drawn."""

import dataclasses

import numpy as np
import pytest

from caps_tf.evaluation import figures, mistakes, style, trajectories
from caps_tf.evaluation.predictions import Predictions
from tests.evaluation_examples import NAMES, assert_drawn, hand_made, log_records, turning_toys


def texts(figure) -> str:
    """Everything written in a figure that has been saved, as ticks get their labels when drawn."""
    from matplotlib.text import Text

    return "\n".join(text.get_text() for text in figure.findobj(Text) if text.get_visible())


def test_learning_curves_show_both_splits_and_the_schedules(tmp_path):
    figure = figures.learning_curves(log_records())
    assert_drawn(style.save_figure(figure, tmp_path / "curves.png"))
    text = texts(figure)
    for expected in ("training step", "loss", "accuracy", "validation", "mean of 6 records", "learning rate",
                     "spread loss margin", "inverse temperature", "best validation 50.0 % at step 2,000"):  # fmt: skip
        assert expected in text
    assert figures.learning_curves([]) is None


def test_learning_curves_need_only_what_was_logged(tmp_path):
    records = [{"step": 5, "split": "train", "loss": None}, {"step": 10, "split": "validation", "accuracy": 0.5}]
    figure = figures.learning_curves(records)
    assert_drawn(style.save_figure(figure, tmp_path / "curves.png"))
    assert "learning rate" not in texts(figure)


def test_confusion_figure_shows_counts_and_shares(tmp_path):
    figure = figures.confusion({"familiar": hand_made(), "novel": hand_made()})
    assert_drawn(style.save_figure(figure, tmp_path / "confusion.png"))
    text = texts(figure)
    for expected in ("familiar: 50.0 % of 6 right", "novel", "true class", "predicted class", "cat", "fox", "25.0"):
        assert expected in text


def test_confusion_of_many_classes_and_of_odd_names(tmp_path):
    names = ("a$b", "$x^{$", *(f"class {index}" for index in range(98)))
    part = Predictions(np.eye(100, dtype=np.float32), np.arange(100), 0.0, names)
    assert_drawn(style.save_figure(figures.confusion({"test": part}), tmp_path / "confusion.png"))


def test_viewpoint_figure_breaks_lines_between_familiar_and_novel(tmp_path):
    parts = {"familiar": turning_toys([15, 16, 17, 0, 1, 2]), "novel": turning_toys(range(3, 15))}
    figure = figures.accuracy_over_viewpoint(parts)
    assert_drawn(style.save_figure(figure, tmp_path / "viewpoint.png"))
    text = texts(figure)
    for expected in ("azimuth (degrees)", "elevation (degrees)", "accuracy", "familiar", "novel", "chance", "Wilson"):
        assert expected in text
    familiar, novel = figure.axes[0].lines[:2]
    assert familiar.get_xdata().tolist() == list(range(0, 360, 20))
    assert np.flatnonzero(np.isnan(familiar.get_ydata())).tolist() == list(range(3, 15))
    assert np.flatnonzero(~np.isnan(novel.get_ydata())).tolist() == list(range(3, 15))
    assert familiar.get_color() != novel.get_color()


def test_viewpoint_figure_is_none_without_viewpoints():
    assert figures.accuracy_over_viewpoint({"test": dataclasses.replace(hand_made(), factors={})}) is None


def test_worst_mistakes_come_worst_first_with_their_own_images(tmp_path):
    part = hand_made()  # mistakes: 4 (by 0.65), then 1 and 3 (by 0.5 each)
    images = np.arange(6, dtype=np.uint8)[:, None, None] * np.ones((1, 8, 8), np.uint8)
    figure = mistakes.worst_mistakes(part, images, "test")
    assert [int(axes.images[0].get_array()[0, 0]) for axes in figure.axes] == [4, 1, 3]
    assert_drawn(style.save_figure(figure, tmp_path / "worst.png"))
    text = texts(figure)
    for expected in ("Worst 3 of 3 mistakes, test", "true dog  0.15", "predicted cat  0.80", "el 70° · az 340°"):
        assert expected in text


@pytest.mark.parametrize("shape, dtype", [((12, 8, 1), np.float32), ((12, 8, 2), np.uint8), ((12, 8, 3), np.float64)])
def test_worst_mistakes_takes_grey_stereo_and_colour(tmp_path, shape, dtype):
    part = hand_made()
    images = np.random.default_rng(0).uniform(-3, 200, (len(part), *shape)).astype(dtype)
    figure = mistakes.worst_mistakes(part, images)
    shown = figure.axes[0].images[0].get_array()
    assert shown.dtype == np.uint8
    assert shown.shape == {1: (12, 8), 2: (12, 16), 3: (12, 8, 3)}[shape[-1]]
    assert_drawn(style.save_figure(figure, tmp_path / "worst.png"))


def test_disagreements_show_the_worst_mistakes_that_the_other_network_does_not_make(tmp_path):
    first = hand_made()  # mistakes: 4 (by 0.65), then 1 and 3 (by 0.5 each)
    right = np.eye(3, dtype=np.float32)[first.label]
    # The second makes mistake 4 too, and one of its own, 2.
    second = dataclasses.replace(first, scores=np.where(np.isin(range(6), (2, 4))[:, None], 1 - right, right))
    assert [chosen.tolist() for chosen in mistakes.disagreements(first, second)] == [[2], [1, 3]]
    images = {number: np.full((8, 8), number, np.uint8) for number in (1, 2, 3)}
    figure = mistakes.disagreement_figure(first, second, ("em", "cnn"), images)
    assert [int(axes.images[0].get_array()[0, 0]) for axes in figure.axes] == [2, 1, 3]
    assert_drawn(style.save_figure(figure, tmp_path / "disagreements.png"))
    for expected in ("Only em is right", "Only cnn is right", "el 30° · az 340°"):
        assert expected in texts(figure)
    assert mistakes.disagreement_figure(first, first, ("em", "cnn"), {}) is None
    # Of one object an image, where objects are known: 0 and 5 are the worst mistakes, but of the same toy.
    toys = turning_toys(range(3), [0], categories=[0]).take(np.arange(6))
    objects = {**toys.factors, "instance": np.array([2, 7, 7, 7, 2, 2])}
    margins = np.array([9, 1, 2, 3, 5, 8], np.float32)
    wrong = np.stack([np.zeros(6), margins, *np.zeros((3, 6))], axis=1)
    worse, better = (
        dataclasses.replace(toys, factors=objects, scores=scores) for scores in (wrong, np.eye(5)[toys.label])
    )
    assert mistakes.disagreements(better, worse, most=3)[0].tolist() == [0, 3, 5]


def test_worst_mistakes_without_mistakes_or_with_missing_images():
    right = Predictions(np.eye(2, dtype=np.float32), np.array([0, 1]), 0.0, ("cat", "dog"))
    assert mistakes.worst_mistakes(right, np.zeros((2, 4, 4), np.uint8)) is None
    with pytest.raises(ValueError, match="1 images for 2"):
        mistakes.worst_mistakes(right, np.zeros((1, 4, 4), np.uint8))


def test_trajectory_is_of_one_toy_over_ascending_azimuth():
    part = turning_toys()
    order = np.random.default_rng(3).permutation(len(part))
    # Take three azimuths of instance 2 away: instance 7 has more views.
    order = order[~((part.factors["instance"] == 2) & (part.factors["azimuth"] > 280))[order]]
    shuffled = dataclasses.replace(
        part, scores=part.scores[order], label=part.label[order], poses=part.poses[order],
        factors={name: values[order] for name, values in part.factors.items()},
    )  # fmt: skip
    found = trajectories.find_trajectories(shuffled)
    assert [trajectory.category for trajectory in found] == list(NAMES)
    for category, trajectory in enumerate(found):
        assert trajectory.held == {"instance": 7, "elevation": 30, "lighting": 0}
        assert trajectory.azimuth.tolist() == list(range(0, 360, 20))
        fixed = [part.factors[name] == value for name, value in trajectory.held.items()]
        row = np.flatnonzero(np.logical_and.reduce([*fixed, part.label == category, part.factors["azimuth"] == 80]))[0]
        np.testing.assert_array_equal(trajectory.poses[4], part.poses[row, part.predicted[row]])
        assert trajectory.winner[4] == part.predicted[row]


def test_principal_plane_keeps_distances_of_a_plane_curve():
    angle = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(16, 2)))[0]
    points = np.stack([3 * np.cos(angle), np.sin(angle)], axis=1)
    coordinates, shares = trajectories.principal_plane(points @ basis.T + 5, np.full(12, True))
    np.testing.assert_allclose(np.abs(coordinates), np.abs(points), atol=1e-9)
    np.testing.assert_allclose(shares, [0.9, 0.1])


def test_principal_plane_of_a_pose_that_never_changes_is_finite():
    coordinates, shares = trajectories.principal_plane(np.ones((4, 16)), np.full(4, True))
    assert not coordinates.any() and not shares.any()


def test_pose_trajectory_joins_familiar_and_novel_azimuths(tmp_path):
    parts = {"familiar": turning_toys([15, 16, 17, 0, 1, 2], categories=[1, 4]),
             "novel": turning_toys(range(3, 15), categories=[1, 4])}  # fmt: skip
    figure = trajectories.pose_trajectory(parts)
    assert_drawn(style.save_figure(figure, tmp_path / "trajectory.png"))
    text = texts(figure)
    for expected in ("azimuth (degrees)", "PC 1", "pose element", "of 18 right", "car, toy 2, elevation 30°"):
        assert expected in text


def test_the_path_is_closed_on_a_grid_of_rounded_degrees_and_open_where_azimuths_are_missing():
    ring = (0, 22, 45, 68, 90, 112, 135, 158, 180, 202, 225, 248, 270, 292, 315, 338)
    for azimuths, links in ((ring, 16), ([azimuth for azimuth in ring if azimuth not in (90, 248)], 12)):
        part = turning_toys(range(len(azimuths)), [0], categories=[0])
        factors = {**part.factors, "azimuth": np.array(azimuths)[part.factors["azimuth"] // 20]}
        right = dataclasses.replace(part, scores=np.eye(5, dtype=np.float32)[part.label], factors=factors)
        assert len(trajectories.pose_trajectory({"test": right}).axes[0].lines) == links


def test_pose_trajectory_is_none_without_poses_viewpoints_or_four_azimuths():
    part = turning_toys(range(4), [0])
    assert trajectories.pose_trajectory({"test": part}) is not None
    assert trajectories.pose_trajectory({"test": turning_toys(range(3), [0])}) is None
    assert trajectories.pose_trajectory({"test": dataclasses.replace(part, poses=None)}) is None
    assert trajectories.pose_trajectory({"test": dataclasses.replace(part, factors={})}) is None


def test_pose_trajectory_where_every_answer_is_wrong(tmp_path):
    part = turning_toys(range(0, 18, 3), [0], categories=[4])
    wrong = dataclasses.replace(part, scores=np.roll(np.eye(5, dtype=np.float32)[part.label], 1, axis=1))
    assert not wrong.correct.any()
    assert_drawn(style.save_figure(trajectories.pose_trajectory({"test": wrong}), tmp_path / "trajectory.png"))
