"""train_val.py on several devices and workers, in half precision, on novel viewpoints, and when the loss is not finite."""

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

from tests.runs import log_lines, train, weights
from tests.small_norb import ROOT, TINY, expect_one_line, run_script

SLOW = ("--epoch=1", "--lrn_rate=1e-5")


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
