"""train_val.py on several devices and workers, in half precision, on novel viewpoints, and when the loss is not finite."""

import json

import numpy as np
import pytest
import tensorflow as tf

from tests.clusters import Cluster
from tests.runs import assert_learned_the_same, log_lines, train, weights
from tests.small_norb import TINY, expect_one_line, run_script

SLOW = ("--epoch=1", "--lrn_rate=1e-5")


@pytest.fixture(scope="module")
def slow_run(storage):
    """One epoch on one device at a rate at which rounding stays rounding instead of growing from step to step."""
    return train(storage, "slow", *SLOW)


def test_two_devices_learn_what_one_does(storage, slow_run):
    assert_learned_the_same(train(storage, "two_devices", *SLOW, "--num_gpus=2"), slow_run)


def test_two_workers_learn_what_one_process_does_and_only_the_chief_writes(storage, slow_run):
    with Cluster(2) as cluster:
        cluster.start("train_val.py", *TINY, *SLOW, f"--storage={storage}", "--name=worker{index}")
        cluster.end()
    [chief] = (storage / "logs" / "smallNORB").glob("*_worker0")
    assert_learned_the_same(chief, slow_run)
    assert not list((storage / "logs" / "smallNORB").glob("*_worker1"))


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_xla_learns_what_plain_tensorflow_does(storage, slow_run, devices):
    flags = ("--jit_compile=on", f"--num_gpus={devices}")
    assert_learned_the_same(train(storage, f"xla_{devices}", *SLOW, *flags), slow_run)


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
