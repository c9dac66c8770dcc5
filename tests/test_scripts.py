"""train_val.py and test.py as their users run them: real processes on a small data set in the NORB format."""

import dataclasses
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from caps_tf.training.config import RunConfig
from tests.small_norb import ROOT, TINY, expect_one_line, run_script

SLOW = ("--epoch=1", "--lrn_rate=1e-5")


def train(storage, name, *flags, **options):
    """Trains a new run; returns its directory."""
    process = run_script("train_val.py", *TINY, f"--storage={storage}", f"--name={name}", *flags, **options)
    return Path(re.search(r"^trained: (.*)$", process.stdout, re.M).group(1))


@pytest.fixture(scope="module")
def run(storage):
    """Two epochs in one go: what other runs are compared with."""
    return train(storage, "whole", "--epoch=2")


def weights(run_directory, checkpoint=None):
    """Every variable of a run's newest checkpoint that training decides, by name."""
    path = checkpoint or tf.train.latest_checkpoint(run_directory / "train" / "checkpoints")
    reader = tf.train.load_checkpoint(str(path))
    names = [name for name in reader.get_variable_to_shape_map() if name.startswith(("model/", "optimizer/"))]
    assert len(names) > 20
    return {name: reader.get_tensor(name) for name in sorted(names)}


def assert_same_weights(found, expected):
    assert found.keys() == expected.keys()
    for name, value in found.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def log_lines(run_directory, split):
    lines = (run_directory / "train" / "log.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["split"] == split]


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
    assert checkpoints == {"step-15.index", "step-30.index"}
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


def test_test_py_tests_all_or_the_best_checkpoint(run):
    run_script("test.py", f"--load_dir={run}", "--ckpt_name=all")
    assert {path.name for path in (run / "test").iterdir()} >= {"step-15", "step-30"}
    assert "test accuracy" in run_script("test.py", f"--load_dir={run}", "--ckpt_name=best").stdout


def test_a_run_continued_or_started_over_ends_with_the_same_weights_bit_for_bit(storage, run):
    first = train(storage, "halves", "--epoch=1")
    run_script("train_val.py", f"--load_dir={first}", "--epoch=2")
    assert_same_weights(weights(first), weights(run))
    assert json.loads((first / "train" / "params.json").read_text())["epoch"] == 2
    # Started over, it goes the same way again and leaves nothing of the first time.
    run_script("train_val.py", f"--load_dir={first}", "--reset")
    assert_same_weights(weights(first), weights(run))
    assert [line["step"] for line in log_lines(first, "train")] == [5, 10, 15, 20, 25, 30]


def test_a_run_continued_in_the_middle_of_an_epoch_ends_with_the_same_weights(storage, run):
    broken = train(storage, "middle", "--epoch=1", "--checkpoint_every=7")
    # Forget all that came after step 7, as a killed process would.
    run_script("train_val.py", f"--load_dir={broken}", "--ckpt_name=step-7", "--epoch=2")
    assert_same_weights(weights(broken), weights(run))
    steps = [line["step"] for line in log_lines(broken, "train")]
    assert steps == sorted(set(steps))


@pytest.fixture(scope="module")
def slow_run(storage):
    """One epoch on one device at a rate at which rounding stays rounding instead of growing from step to step."""
    return train(storage, "slow", *SLOW)


def assert_learned_the_same(found, expected):
    """Losses, weights, and Adam's means of all gradients, which a gradient summed twice or not at all would change."""
    for one, two in zip(log_lines(found, "train"), log_lines(expected, "train"), strict=True):
        np.testing.assert_allclose(one["loss"], two["loss"], rtol=1e-3)
        assert abs(one["accuracy"] - two["accuracy"]) < 0.05
    found, expected = weights(found), weights(expected)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        if value.dtype.kind == "f":
            largest = np.abs(expected[name]).max()
            np.testing.assert_allclose(value, expected[name], rtol=0, atol=0.01 * largest + 1e-9, err_msg=name)


def test_two_devices_learn_what_one_does(storage, slow_run):
    assert_learned_the_same(train(storage, "two_devices", *SLOW, "--num_gpus=2"), slow_run)


def test_two_workers_learn_what_one_process_does_and_only_the_chief_writes(storage, slow_run):
    ports = []
    for _ in range(2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
    cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
    workers = []
    for index in range(2):
        config = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
        command = [sys.executable, "train_val.py", *TINY, *SLOW, f"--storage={storage}", f"--name=worker{index}"]
        workers.append(
            subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, "TF_CONFIG": config},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    outputs = [worker.communicate(timeout=300) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    chief = Path(re.search(r"^trained: (.*)$", outputs[0][0], re.M).group(1))
    assert_learned_the_same(chief, slow_run)
    assert not list((storage / "logs" / "smallNORB").glob("*_worker1"))


@pytest.mark.slow
def test_xla_learns_what_plain_tensorflow_does(storage, slow_run):
    assert_learned_the_same(train(storage, "xla", *SLOW, "--jit_compile=on"), slow_run)


@pytest.mark.parametrize("protocol", ["azimuth", pytest.param("elevation", marks=pytest.mark.slow)])
def test_the_novel_viewpoint_protocol_reports_familiar_and_novel_views(storage, protocol):
    trained = train(storage, protocol, "--epoch=1", f"--viewpoints={protocol}", "--network=cnn_baseline")
    run_script("test.py", f"--load_dir={trained}")
    [report] = (trained / "test").glob("*/report.json")
    parts = json.loads(report.read_text())["parts"]
    by = {name: set(parts[name]["accuracy_by"][protocol]) for name in ("familiar", "novel")}
    if protocol == "azimuth":
        assert by == {"familiar": {"0", "40", "340"}, "novel": {"160"}}
    else:
        assert by == {"familiar": {"30", "35"}, "novel": {"70"}}


@pytest.mark.parametrize("precision", [pytest.param("mixed_bfloat16", marks=pytest.mark.slow), "mixed_float16"])
def test_half_precision_trains_to_a_finite_loss(storage, precision):
    trained = train(storage, precision, "--epoch=1", f"--precision={precision}")
    assert all(np.isfinite(line["loss"]) for line in log_lines(trained, "train"))


def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_and_layer(storage):
    process = run_script(
        "train_val.py",
        *TINY,
        *(f"--storage={storage}", "--name=diverges", "--lrn_rate=1e30", "--epoch=1", "--checkpoint_every=1"),
        check=False,
    )
    expect_one_line(process, "step 1", "NaN or infinite", "layer ")
    [directory] = (storage / "logs" / "smallNORB").glob("*_diverges")
    kept = tf.train.latest_checkpoint(directory / "train" / "checkpoints")
    assert all(np.isfinite(value).all() for value in weights(directory, kept).values())


def test_a_directory_without_checkpoints_and_another_architecture_get_one_clear_line(storage, run, tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "params.json").write_text((run / "train" / "params.json").read_text())
    expect_one_line(run_script("test.py", f"--load_dir={tmp_path}", check=False), "holds no checkpoints")
    expect_one_line(run_script("test.py", f"--load_dir={run}", "--ckpt_name=step-1", check=False), "step-15, step-30")
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
