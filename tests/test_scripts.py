"""train_val.py and test.py as their users run them: real processes on a small data set in the NORB format."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
import tensorflow as tf

from caps_tf.training.config import RunConfig
from tests.runs import assert_same_weights, continued, log_lines, weights
from tests.small_norb import expect_one_line, run_script


@pytest.fixture(scope="module")
def run(trained, storage):
    """Two epochs in one go: what other runs are compared with."""
    return shutil.copytree(trained, storage / "logs" / "smallNORB" / trained.name)


def test_a_run_leaves_parameters_checkpoints_scalars_histograms_and_a_log(run):
    train_directory = run / "train"
    assert re.fullmatch(r"\d{8}_\d{6}_whole", run.name) and run.parent.name == "smallNORB"
    params = json.loads((train_directory / "params.json").read_text())
    assert set(params) == {option.name for option in dataclasses.fields(RunConfig)}
    assert params["A"] == 4 and params["epoch"] == 2
    steps = [line["step"] for line in log_lines(run, "train")]
    assert steps == [5, 10, 15, 20, 25, 30]
    for line in log_lines(run, "train"):
        assert {"loss", "accuracy", "margin", "inverse_temperature", "learning_rate", "images_per_second"} <= set(line)
    assert [line["step"] for line in log_lines(run, "validation")] == [15, 30]
    checkpoints = {path.name for path in (train_directory / "checkpoints").glob("step-*.index")}
    assert checkpoints == {f"step-{step}.index" for step in (12, 15, 24, 30)}
    assert len(list((train_directory / "checkpoints" / "best").glob("*.index"))) == 1
    tags = set()
    for path in train_directory.glob("events.*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            tags |= {value.tag for value in event.summary.value}
    assert {"train/loss", "train/margin", "validation/accuracy", "activations/conv_capsules_1"} <= tags


def test_test_py_counts_every_test_image_once_and_draws_its_report(run):
    process = run_script("test.py", f"--load_dir={run}", "--batch_size=37")
    report = json.loads((run / "test" / "step-30" / "report.json").read_text())["parts"]["test"]
    assert report["num_examples"] == 5 * 5 * 3 * 4 * 2 == np.sum(report["confusion"])
    assert set(report["accuracy_by"]) >= {"elevation", "azimuth", "lighting", "view"}
    assert set(report["accuracy_by"]["elevation"]) == {"30", "35", "70"}
    assert set(report["accuracy_by"]["azimuth"]) == {"0", "40", "160", "340"}
    assert f"{report['accuracy']:.2%}" in process.stdout
    pictures = {path.name for path in (run / "test" / "step-30").glob("*.png")}
    assert {"learning_curves.png", "confusion.png", "accuracy_over_viewpoint.png", "pose_trajectory.png"} <= pictures


@pytest.mark.parametrize("checkpoint", ["step-12", pytest.param("step-15", marks=pytest.mark.campaign)])
def test_a_run_continued_in_an_epoch_or_behind_one_ends_with_the_same_weights_bit_for_bit(storage, run, checkpoint):
    broken = continued(run, storage, f"from_{checkpoint}", checkpoint)
    assert_same_weights(weights(broken), weights(run))
    assert [line["step"] for line in log_lines(broken, "train")] == [5, 10, 15, 20, 25, 30]


def test_a_directory_without_checkpoints_and_another_architecture_get_one_clear_line(storage, run, tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "params.json").write_text((run / "train" / "params.json").read_text())
    expect_one_line(run_script("test.py", f"--load_dir={tmp_path}", check=False), "holds no checkpoints")
    expect_one_line(run_script("test.py", f"--load_dir={run}", "--ckpt_name=step-1", check=False), "step-24, step-30")
    other = run_script("train_val.py", f"--load_dir={run}", "--C=5", check=False)
    expect_one_line(other, "another architecture")
    other = run_script("train_val.py", f"--load_dir={run}", "--network=cnn_baseline", check=False)
    expect_one_line(other, "another architecture")
    assert json.loads((run / "train" / "params.json").read_text())["C"] == 3


def test_helpfull_lists_the_flags_in_groups():
    text = run_script("train_val.py", "--helpfull", check=False).stdout
    for group in ("data:", "network:", "optimisation:", "devices:", "run:"):
        assert re.search(rf"^{group}$", text, re.M), group
    for option in dataclasses.fields(RunConfig):
        assert f"--{option.name}" in text or f"--[no]{option.name}" in text
