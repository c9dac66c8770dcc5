"""What test.py reports: hand-computed numbers, the training log, and the page with its figures."""

import dataclasses
import doctest
import importlib
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import caps_tf.evaluation
from caps_tf.errors import UserError
from caps_tf.evaluation import metrics, report, training_log
from caps_tf.evaluation.predictions import Predictions, concatenate
from caps_tf.presets import load_preset
from caps_tf.training.config import RunConfig
from tests.evaluation_examples import Page, assert_drawn, hand_made, log_records, turning_toys, write_log


def toy_images(predictions: Predictions) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (len(predictions), 12, 12), np.uint8)


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


# The whole report


def test_report_shows_every_number_and_figure(tmp_path):
    parts = {"familiar": turning_toys([16, 17, 0, 1]), "novel": turning_toys(range(4, 12))}
    images = {"novel": toy_images(parts["novel"])}
    log = write_log(tmp_path / "log.jsonl", log_records(), '{"st')
    details = {"dataset": "toys <&>", "step": 2000}
    paths = report.write_report(tmp_path / "test", parts, log, images, title="A & B", details=details)

    assert set(paths) == {"json", "html", "predictions", "accuracy_over_viewpoint", "accuracy_over_viewpoint_narrow",
                          "confusion", "learning_curves", "worst_mistakes_novel", "pose_trajectory"}  # fmt: skip
    assert sorted((tmp_path / "test").iterdir()) == sorted(paths.values())
    content = json.loads(paths["json"].read_text())
    assert content["details"] == details
    assert content["parts"] == metrics.report(parts)
    assert "Wilson" in content["intervals"]
    page = Page(paths["html"].read_text())
    figure_paths = [path for path in paths.values() if path.suffix == ".png"]
    for path in figure_paths:
        assert_drawn(path)
    assert page.sources[0] == "accuracy_over_viewpoint.png"  # viewpoints are known: the main picture
    assert page.narrow == ["accuracy_over_viewpoint_narrow.png"]
    assert sorted(page.sources + page.narrow) == sorted(path.name for path in figure_paths)
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
    assert set(paths) == {"json", "html", "predictions", "confusion"}
    assert not old.exists()
    assert Page(paths["html"].read_text()).sources == ["confusion.png"]


def test_the_page_opens_with_accuracy_interval_and_what_was_tested_and_folds_parameters(tmp_path):
    params = dataclasses.asdict(
        RunConfig(**{**load_preset("demo").flags, "preset": "demo", "epoch": 40, "name": "long"})
    )
    checkpoint = "/data/logs/toys/20261127_long/train/checkpoints/best/step-600"
    facts = {"checkpoint": checkpoint, "step": 600, "parameters": 56551, "tested": "2026-11-28 14:40"}
    report.write_report(
        tmp_path, {"test": hand_made()}, title="em on toys", details={**facts, **params, "dataset": "a/toys"}
    )
    page = Page((tmp_path / "report.html").read_text())
    # Three of six: (0.5 + z^2 / 12 -+ z sqrt(0.25 / 6 + z^2 / 144)) / (1 + z^2 / 6) with z = 1.96.
    assert page.shown.startswith(
        "em on toys em on toys test accuracy 50.0 % 95 % interval 18.8 to 81.2 % 6 test examples of toys, judged by "
        "checkpoint step-600 of 20261127_long (56,551 parameters), tested 2026-11-28 14:40."
    ), page.shown
    for shown in ("Parameters: 2 differ from the preset demo", "Accuracy in groups"):
        assert shown in page.shown
    # Folded: first what is not the preset's, then everything.
    assert "this run preset demo dataset a/toys smallNORB epoch 40 15 All" in page.text
    for hidden in ("a/toys", "final_lambda", "jit_compile"):
        assert hidden in page.text and hidden not in page.shown
    assert "viewport" in (tmp_path / "report.html").read_text()


def test_damaged_log_stops_the_report_before_anything_is_written(tmp_path):
    log = write_log(tmp_path / "log.jsonl", [], "garbage\n")
    with pytest.raises(UserError, match="line 1"):
        report.write_report(tmp_path / "test", {"test": hand_made()}, log)
    assert not (tmp_path / "test").exists()


def test_unwritable_directory_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        report.write_report(tmp_path / "file", {"test": hand_made()})
