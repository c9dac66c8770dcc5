"""train_val.py on several devices and workers, in half precision, on novel viewpoints, and when the loss is not finite."""

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf

from caps_tf.training.checkpoints import list_checkpoints
from tests.clusters import Cluster
from tests.runs import assert_learned_the_same, assert_same_weights, log_lines, train, weights
from tests.small_norb import SMALL_DATA, TINY, expect_one_line, run_script

SLOW = ("--epoch=1", "--lrn_rate=1e-5", "--schedule=one_cycle")
"""At a rate at which rounding stays rounding instead of growing from step to step; a momentum that follows a schedule."""
CNN = ("--network=cnn_baseline", "--dropout=0")
"""Without dropout, whose masks depend on how many devices draw them."""


@pytest.fixture(scope="module", params=["cnn", pytest.param("capsules", marks=pytest.mark.campaign)])
def alone(request, storage):
    """The flags of one epoch, and the run that they make on one device."""
    flags = (*SLOW, "--checkpoint_every=8", *(CNN if request.param == "cnn" else ()))
    return flags, train(storage, f"{request.param}_alone", *flags)


def test_two_devices_learn_what_one_does(storage, alone):
    flags, run = alone
    assert_learned_the_same(train(storage, f"{run.name}_two_devices", *flags, "--num_gpus=2"), run)


@pytest.mark.campaign
def test_two_workers_learn_what_one_process_does_and_only_the_chief_writes(storage, alone):
    flags, run = alone
    names = [f"{run.name}_worker{index}" for index in range(2)]
    data = SMALL_DATA if "--network=cnn_baseline" in flags else TINY
    with Cluster(2) as cluster:
        cluster.start("train_val.py", *data, *flags, f"--storage={storage}", f"--name={run.name}_worker{{index}}")
        cluster.end()
    [chief] = run.parent.glob(f"*_{names[0]}")
    assert_learned_the_same(chief, run)
    assert not list(run.parent.glob(f"*_{names[1]}"))


def test_test_py_tests_the_best_checkpoint(alone):
    flags, run = alone
    start = "kept" if "--network=cnn_baseline" in flags else "new"
    assert "test accuracy" in run_script("test.py", f"--load_dir={run}", "--ckpt_name=best", start=start).stdout
    assert len(list((run / "test").iterdir())) == 1


def test_a_run_started_over_goes_the_same_way_again_and_leaves_nothing_of_the_first_time(alone):
    _, run = alone
    again = shutil.copytree(run, run.parent / f"{run.name}_again")
    (again / "train" / "checkpoints" / "step-99.index").touch()
    run_script("train_val.py", f"--load_dir={again}", "--reset", "--keep_checkpoints=7")
    assert json.loads((again / "train" / "params.json").read_text())["keep_checkpoints"] == 7
    assert_same_weights(weights(again), weights(run))
    for split in ("train", "validation"):
        assert [line["step"] for line in log_lines(again, split)] == [line["step"] for line in log_lines(run, split)]
    assert list_checkpoints(again / "train" / "checkpoints") == ["step-8", "step-15"]


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_xla_learns_what_plain_tensorflow_does(storage, devices):
    plain = train(storage, f"plain_{devices}", *SLOW)
    flags = ("--jit_compile=on", f"--num_gpus={devices}")
    assert_learned_the_same(train(storage, f"xla_{devices}", *SLOW, *flags), plain)


@pytest.mark.campaign
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


@pytest.mark.campaign
@pytest.mark.parametrize("flags", [CNN, ()], ids=["cnn", "capsules"])
@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_trains_to_a_finite_loss(storage, precision, flags):
    trained = train(storage, f"{precision}_{len(flags)}", *SLOW, f"--precision={precision}", *flags)
    assert all(np.isfinite(line["loss"]) for line in log_lines(trained, "train"))


def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_and_layer(storage):
    process = run_script(
        "train_val.py",
        *(*SMALL_DATA, *CNN),
        *(f"--storage={storage}", "--name=diverges", "--lrn_rate=1e30", "--epoch=1", "--checkpoint_every=1"),
        check=False,
    )
    expect_one_line(process, "step 1", "NaN or infinite", "layer ")
    [directory] = (storage / "logs" / "smallNORB").glob("*_diverges")
    kept = tf.train.latest_checkpoint(directory / "train" / "checkpoints")
    assert all(np.isfinite(value).all() for value in weights(directory, kept).values())
