"""--routing_gauges of train_val.py: what it logs, for every network, and that training does not know of it."""

import math

import numpy as np
import pytest

from tests.clusters import Cluster
from tests.networks import ATTENTION
from tests.runs import assert_same_weights, continued, log_lines, train, weights
from tests.small_norb import SMALL_DATA, TINY

SHARES = ("routing_entropy", "parents_off", "parents_on", "activation_mean", "activation_deviation", "variance_floor")
EM_GAUGES = (*SHARES, "vote_scale", "vote_spread_2")
EM_LAYERS = ("conv_capsules_1", "conv_capsules_2", "class_capsules")


def read_gauges(run_directory):
    """The gauges of each training line of a log, all finite, and shares between 0 and 1."""
    lines = [{name: value for name, value in line.items() if "/" in name} for line in log_lines(run_directory, "train")]
    for name, value in (gauge for line in lines for gauge in line.items()):
        assert math.isfinite(value) and value >= 0 or name.startswith("vote_agreement"), (name, value)
        assert not name.startswith(SHARES) or value <= 1 + 1e-5, (name, value)
    return lines


@pytest.fixture(scope="module")
def watched(storage):
    return train(storage, "watched", "--epoch=1", "--checkpoint_every=12", "--routing_gauges")


def test_gauges_of_matrix_capsules_have_the_names_and_ranges_that_the_documentation_says(watched):
    lines = read_gauges(watched)
    assert len(lines) == 3
    for line in lines:
        assert {f"{gauge}/{layer}" for gauge in EM_GAUGES for layer in EM_LAYERS} <= set(line)
        ratios = {name: value for name, value in line.items() if name.startswith("update_ratio/")}
        assert set(line) - set(ratios) == {f"{gauge}/{layer}" for gauge in EM_GAUGES for layer in EM_LAYERS}
        # What starts at -1000 hardly moves; what starts near 0 does.
        assert ratios["update_ratio/class_capsules/beta_a"] < 1e-4 < ratios["update_ratio/relu_conv1/kernel"] < 1


def test_a_run_learns_the_same_with_gauges_and_without(watched, trained):
    latest = trained / "train" / "checkpoints" / "step-15"
    assert_same_weights(weights(watched), weights(trained, latest))
    assert read_gauges(trained) == [{}] * 6


@pytest.mark.campaign
def test_a_run_that_was_stopped_goes_on_with_the_same_gauges(storage, watched):
    broken = continued(watched, storage, "broken", "step-12")
    assert_same_weights(weights(broken), weights(watched))
    assert read_gauges(broken) == read_gauges(watched)


@pytest.mark.campaign
def test_gauges_of_heinsens_routing(storage):
    flags = ("--network=conv_capsules", "--routing=heinsen", "--convolutions=4k5s2,8s2", "--capsules=2", "--epoch=1")
    for line in read_gauges(train(storage, "heinsen", *flags, "--routing_gauges")):
        expected = (*SHARES, "vote_scale", "vote_spread_2")
        assert {f"{gauge}/class_capsules" for gauge in expected} <= set(line)
        assert line["update_ratio/class_capsules/W"] > 0


@pytest.mark.campaign
@pytest.mark.parametrize("devices", [1, 2])
def test_gauges_of_heinsens_network(storage, devices):
    flags = [flag for flag in SMALL_DATA if not flag.startswith(("--margin_steps", "--image_size", "--resize"))]
    flags += ["--network=heinsen_norb", "--resize=32", "--image_size=29", "--views=stereo", "--log_every=7"]
    found = train(storage, f"heinsen{devices}", *flags, f"--num_gpus={devices}", "--epoch=1", "--routing_gauges")
    for line in read_gauges(found):
        expected = (*SHARES, "vote_scale", "vote_spread_2", "vote_spread_3")
        assert {f"{gauge}/{layer}" for gauge in expected for layer in ("part_capsules", "class_capsules")} <= set(line)
        assert line["update_ratio/class_capsules/W"] > 0


@pytest.mark.campaign
def test_gauges_of_attention_and_of_a_network_without_routing(storage):
    flags = ("--network=attention", f"--config_path={ATTENTION}", "--backbone=simple", "--epoch=1")
    for line in read_gauges(train(storage, "attention", *flags, "--routing_gauges", "--num_routing=2")):
        routing = {name for name in line if not name.startswith("update_ratio")}
        both = {
            f"{gauge}/{layer}"
            for gauge in ("routing_entropy", "vote_scale", "vote_agreement_1")
            for layer in ("capsules_1", "class_capsules")
        }
        assert routing == both | {"vote_agreement_2/class_capsules"}  # what lies below routes once, concurrently
        assert line["routing_entropy/capsules_1"] == pytest.approx(1.0)
    for line in read_gauges(train(storage, "cnn", "--network=cnn_baseline", "--epoch=1", "--routing_gauges")):
        assert line and all(name.startswith("update_ratio/") for name in line)


@pytest.mark.slow
def test_the_chief_alone_writes_gauges(storage):
    with Cluster(2) as cluster:
        cluster.start(
            "train_val.py", *TINY, "--epoch=1", "--routing_gauges", f"--storage={storage}", "--name=gauges{index}"
        )
        cluster.end()
    [chief] = (storage / "logs" / "smallNORB").glob("*_gauges0")
    assert not list((storage / "logs" / "smallNORB").glob("*_gauges1"))
    entropies = [line["routing_entropy/class_capsules"] for line in read_gauges(chief)]
    assert len(entropies) == 3 and np.all(np.array(entropies) > 0)
