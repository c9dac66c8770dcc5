"""What test.py reports: hand-computed numbers, and figures and pages that are really there."""

import dataclasses
import doctest
import html.parser
import importlib
import itertools
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import caps_tf.evaluation
from caps_tf.errors import UserError
from caps_tf.evaluation import figures, metrics, mistakes, report, style, training_log, trajectories
from caps_tf.evaluation.predictions import Predictions, concatenate

NAMES = ("animal", "human", "airplane", "truck", "car")


def hand_made() -> Predictions:
    """Six examples of three classes (the third never seen) whose results are easy to work out by hand."""
    return Predictions(
        scores=np.array(
            [[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.4, 0.6, 0.0], [0.1, 0.2, 0.7], [0.8, 0.15, 0.05], [0.3, 0.35, 0.35]],
            np.float32,
        ),
        label=np.array([0, 0, 1, 1, 1, 1]),
        loss=1 / 3,
        class_names=("cat", "dog", "fox"),
        factors={"elevation": np.array([30, 30, 30, 70, 70, 70]), "azimuth": np.array([340, 0, 340, 340, 340, 340])},
    )


def turning_toys(azimuths=range(18), lightings=range(2), categories=range(5)) -> Predictions:
    """Two toys a category at every azimuth, in steps of 20 degrees; the pose of each class runs round an ellipse."""
    rng = np.random.default_rng(0)
    toys = np.array(list(itertools.product(categories, (2, 7), (30, 50), [20 * step for step in azimuths], lightings)))
    label, instance, elevation, azimuth, lighting = toys.T
    scores = rng.uniform(0, 0.6, (len(toys), 5)).astype(np.float32)
    scores[np.arange(len(toys)), label] += 0.35
    angle = np.deg2rad(azimuth)
    axes = np.random.default_rng(1).normal(size=(5, 2, 16))
    poses = np.einsum("na,cap->ncp", np.stack([3 * np.cos(angle), np.sin(angle)], axis=1), axes)
    factors = {"instance": instance, "elevation": elevation, "azimuth": azimuth, "lighting": lighting}
    return Predictions(scores, label, 0.5, NAMES, factors, poses.astype(np.float32))


def toy_images(predictions: Predictions) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (len(predictions), 12, 12), np.uint8)


def log_records(steps=range(10, 2010, 10)) -> list[dict]:
    records = []
    for step in steps:
        record = {"step": step, "epoch": step // 500, "loss": 1000 / (step + 1000), "accuracy": step / 4000}
        extra = {"margin": 0.2, "inverse_temperature": 0.002, "learning_rate": 3e-3, "images_per_second": 50.0}
        records.append({**record, **extra, "split": "train", "time": 1.0})
        if step % 500 == 0:
            records.append({**record, "split": "validation"})
    return records


def write_log(path: Path, records: list[dict], tail: str = "") -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + tail)
    return path


def texts(figure) -> str:
    """Everything written in a figure that has been saved, as ticks get their labels when drawn."""
    from matplotlib.text import Text

    return "\n".join(text.get_text() for text in figure.findobj(Text) if text.get_visible())


def assert_drawn(path: Path, smallest_side: int = 200) -> None:
    """The PNG is whole, of a readable size, and neither blank nor flat."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    assert min(pixels.shape) >= smallest_side
    assert pixels.std() > 5
    assert np.mean(pixels < 250) > 0.005  # something besides white paper


@pytest.mark.parametrize("module", [module.name for module in pkgutil.iter_modules(caps_tf.evaluation.__path__)])
def test_documented_examples_run(module):
    results = doctest.testmod(importlib.import_module(f"caps_tf.evaluation.{module}"))
    assert results.failed == 0


def test_evaluation_needs_neither_tensorflow_nor_a_display():
    names = ", ".join(module.name for module in pkgutil.iter_modules(caps_tf.evaluation.__path__))
    code = (
        f"import sys; from caps_tf.evaluation import {names}; "
        "assert not {'tensorflow', 'keras', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)


# Numbers


def test_confusion_matrix_has_true_classes_in_rows():
    part = hand_made()
    confusion = metrics.confusion_matrix(part.label, part.predicted, 3)
    assert confusion.tolist() == [[1, 1, 0], [1, 2, 1], [0, 0, 0]]


def test_report_gives_hand_computed_accuracies():
    entry = metrics.report({"test": hand_made()})["test"]
    assert entry["num_examples"] == 6
    assert entry["accuracy"] == 0.5
    assert entry["loss"] == 0.333333
    by_class = entry["accuracy_by_class"]
    accuracies = {name: (group["accuracy"], group["num_examples"]) for name, group in by_class.items()}
    assert accuracies == {"cat": (0.5, 2), "dog": (0.5, 4)}  # no fox was seen: left out, not NaN
    by = entry["accuracy_by"]
    by_degrees = {
        factor: [(degrees, group["accuracy"]) for degrees, group in by[factor].items()] for factor in by
    }  # fmt: skip
    assert by_degrees == {"elevation": [("30", 0.666667), ("70", 0.333333)], "azimuth": [("0", 0.0), ("340", 0.6)]}


def test_report_survives_json_unchanged(tmp_path):
    content = metrics.report({"familiar": hand_made(), "novel": turning_toys()})
    path = metrics.write_json(tmp_path / "new" / "report.json", content)
    assert json.loads(path.read_text()) == content
    assert [entry.name for entry in path.parent.iterdir()] == ["report.json"]  # no temporary file left


def test_json_with_nan_is_refused_and_the_old_file_kept(tmp_path):
    path = metrics.write_json(tmp_path / "report.json", {"loss": 1})
    with pytest.raises(ValueError):
        metrics.write_json(path, {"loss": float("nan")})
    assert json.loads(path.read_text()) == {"loss": 1}


@pytest.mark.parametrize(
    "correct, total, low, high",
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3; and its mirror.
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0),
    ],
)
def test_wilson_interval_has_the_published_values(correct, total, low, high):
    np.testing.assert_allclose(metrics.wilson_interval(correct, total), (low, high), atol=5e-5)


def test_wilson_interval_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        metrics.wilson_interval(np.array([0]), np.array([0]))


def test_both_views_are_averaged_per_record():
    part = dataclasses.replace(
        hand_made(),
        # By the mean a and c are right; by the first view all would be, by the second none.
        scores=np.array([[0.9, 0.1, 0], [0.4, 0.6, 0], [0.6, 0.4, 0], [0, 0.9, 0], [1, 0, 0], [0, 0.5, 0]], np.float32),
        label=np.zeros(6, int),
        ids=np.array(["a", "a", "b", "b", "c", "c"]),
    )
    averaged = metrics.report({"test": part})["test"]["accuracy_views_averaged"]
    assert (averaged["num_examples"], averaged["accuracy"]) == (3, 0.666667)
    with pytest.raises(ValueError, match="different labels"):
        metrics.report({"test": dataclasses.replace(part, label=np.array([0, 1, 0, 0, 0, 0]))})


def test_ids_without_repeats_report_no_average():
    part = dataclasses.replace(hand_made(), ids=np.array(list("abcdef")))
    assert "accuracy_views_averaged" not in metrics.report({"test": part})["test"]


def test_single_class_and_empty_part():
    single = Predictions(np.ones((3, 1), np.float32), np.zeros(3, int), 0.0, ("toy",))
    empty = Predictions(np.zeros((0, 1), np.float32), np.zeros(0, int), float("nan"), ("toy",))
    entries = metrics.report({"single": single, "empty": empty})
    assert entries["single"]["confusion"] == [[3]]
    assert entries["single"]["accuracy"] == 1.0
    assert entries["empty"] == {"num_examples": 0}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"scores": np.full((6, 3), np.nan, np.float32)}, "6 of 6 examples"),
        ({"loss": float("inf")}, "not finite"),
        ({"label": np.array([0, 0, 1, 1, 1, 3])}, "0 to 3, but the network knows 3 classes"),
    ],
)
def test_bad_network_output_is_a_user_error(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(hand_made(), **change)


@pytest.mark.parametrize(
    "change",
    [
        {"label": np.zeros(5, int)},
        {"factors": {"azimuth": np.zeros(5, int)}},
        {"ids": np.array(["a"])},
        {"poses": np.zeros((6, 2, 16))},
        {"class_names": ("a", "b")},
        {"class_names": ("a", "b", "a")},
    ],
)
def test_shapes_that_disagree_are_refused(change):
    with pytest.raises(ValueError):
        dataclasses.replace(hand_made(), **change)


def test_concatenating_parts_keeps_what_all_have():
    first = hand_made()
    second = dataclasses.replace(first, loss=1.0, factors={"azimuth": first.factors["azimuth"]})
    both = concatenate([first, second])
    assert len(both) == 12
    assert both.loss == pytest.approx(2 / 3)
    assert list(both.factors) == ["azimuth"]
    assert both.poses is None


# The training log


def test_log_is_read_and_its_unfinished_last_line_left_out(tmp_path):
    records = log_records(range(10, 60, 10))
    assert training_log.read_log(write_log(tmp_path / "log.jsonl", records)) == records
    assert training_log.read_log(write_log(tmp_path / "log.jsonl", records, '{"step": 60, "sp')) == records


@pytest.mark.parametrize(
    "line, message",
    [
        ("hello", "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"split": "train"}', "step"),
        ('{"step": 1.5, "split": "train"}', "step"),
        ('{"step": 1, "split": "test"}', "split"),
        ('{"step": 1, "split": "train", "loss": "low"}', '"loss" is not a number'),
    ],
)
def test_garbage_in_the_log_is_named_by_file_and_line(tmp_path, line, message):
    path = write_log(tmp_path / "log.jsonl", log_records([10]), line + "\n")
    with pytest.raises(UserError, match=rf"log\.jsonl, line 2: .*{message}"):
        training_log.read_log(path)


def test_missing_log_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="log.jsonl"):
        training_log.read_log(tmp_path / "log.jsonl")


def test_steps_repeated_after_a_restart_replace_the_lost_ones(tmp_path):
    lost = [{"step": step, "split": "train", "loss": 1.0} for step in (10, 20, 30)]
    again = [{"step": step, "split": "train", "loss": 2.0} for step in (15, 25)]
    assert training_log.read_log(write_log(tmp_path / "log.jsonl", lost + again)) == [lost[0], *again]


# Figures


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


# The whole report


class Page(html.parser.HTMLParser):
    """The images a page shows and the text in it; fails on tags that are not closed."""

    def __init__(self, source: str):
        super().__init__()
        self.sources, self.text, self.open = [], "", []
        self.feed(source)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        if tag == "img":
            self.sources.append(dict(attributes)["src"])
        elif tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_report_shows_every_number_and_figure(tmp_path):
    parts = {"familiar": turning_toys([16, 17, 0, 1]), "novel": turning_toys(range(4, 12))}
    images = {"novel": toy_images(parts["novel"])}
    log = write_log(tmp_path / "log.jsonl", log_records(), '{"st')
    details = {"dataset": "toys <&>", "step": 2000}
    paths = report.write_report(tmp_path / "test", parts, log, images, title="A & B", details=details)

    assert set(paths) == {"json", "html", "accuracy_over_viewpoint", "confusion", "learning_curves",
                          "worst_mistakes_novel", "pose_trajectory"}  # fmt: skip
    assert sorted((tmp_path / "test").iterdir()) == sorted(paths.values())
    content = json.loads(paths["json"].read_text())
    assert content["details"] == details
    assert content["parts"] == metrics.report(parts)
    assert "Wilson" in content["intervals"]
    page = Page(paths["html"].read_text())
    figure_paths = [path for name, path in paths.items() if name not in ("json", "html")]
    assert page.sources == [path.name for path in figure_paths]
    for path in figure_paths:
        assert_drawn(path)
    for part in parts.values():
        assert f"{100 * part.accuracy:.1f} %" in page.text
    for expected in ("A & B", "toys <&>", "by lighting", "elevation (degrees)", "independent"):
        assert expected in page.text


def test_report_of_images_without_viewpoints_is_short_and_clears_old_figures(tmp_path):
    old = tmp_path / "accuracy_over_viewpoint.png"
    old.write_bytes(b"stale")
    part = dataclasses.replace(hand_made(), factors={})
    empty = dataclasses.replace(part, scores=part.scores[:0], label=part.label[:0])
    paths = report.write_report(tmp_path, {"test": part, "novel": empty}, log_path=tmp_path / "no such log")
    assert set(paths) == {"json", "html", "confusion"}
    assert not old.exists()
    assert Page(paths["html"].read_text()).sources == ["confusion.png"]


def test_damaged_log_stops_the_report_before_anything_is_written(tmp_path):
    log = write_log(tmp_path / "log.jsonl", [], "garbage\n")
    with pytest.raises(UserError, match="line 1"):
        report.write_report(tmp_path / "test", {"test": hand_made()}, log)
    assert not (tmp_path / "test").exists()


def test_unwritable_directory_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        report.write_report(tmp_path / "file", {"test": hand_made()})
