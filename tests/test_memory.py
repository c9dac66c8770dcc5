"""A run that cannot fit into memory is refused before it starts, with what to lower, and one that fits is not."""

import pytest
import tensorflow as tf

from caps_tf import limits
from caps_tf.costs import estimate_memory
from caps_tf.errors import UserError
from caps_tf.networks import NETWORKS
from caps_tf.training import memory
from caps_tf.training.config import RunConfig
from caps_tf.training.data import TrainingData
from caps_tf.training.factories import make_model

SMALL = {**NETWORKS["matrix_capsules"].smallest, "batch_size": 64}
IMAGES = TrainingData({"image": (20, 20, 1)}, 5, 1, None, None)
SENTENCES = TrainingData({"embedding": (None, 3, 8), "mask": (None,)}, 5, 1, None, None)


@pytest.fixture(scope="module")
def model():
    return make_model(RunConfig(**SMALL), IMAGES.input_shapes, IMAGES.num_classes)


def check(data=IMAGES, **options):
    memory.check_memory(RunConfig(**{**SMALL, **options}), data, tf.distribute.get_strategy())


def test_the_estimate_grows_linearly_in_the_batch(model):
    one, two, three = (estimate_memory(model, batch) for batch in (640, 1280, 1920))
    assert two - one > 640 * 20 * 20 * 4
    assert three - two == pytest.approx(two - one, rel=0.01)


def test_a_step_that_does_not_fit_is_refused_with_what_to_lower_and_one_that_fits_is_not(model, monkeypatch):
    needed = estimate_memory(model, 64)
    monkeypatch.setattr(memory, "available_memory", lambda: needed)
    check()
    monkeypatch.setattr(memory, "available_memory", lambda: needed - 1)
    with pytest.raises(
        UserError, match=r"of 64 examples needs about .* GB, .* free: lower --batch_size .*--nocheck_memory"
    ):
        check()


def test_sentences_have_any_length_and_may_start(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 0)
    check(SENTENCES, network="heinsen_sst", dataset="sst2")


def test_where_the_system_tells_nothing_every_run_may_start(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: None)
    check(B=10_000)


def test_the_control_group_limits_what_is_available(tmp_path, monkeypatch):
    machine = limits.available_memory()
    monkeypatch.setattr(limits, "CGROUP", tmp_path)
    (tmp_path / "memory.stat").write_text("anon 300\nfile 9000\n")
    (tmp_path / "memory.max").write_text("1000\n")
    assert limits.available_memory() == 700
    (tmp_path / "memory.max").write_text("max\n")
    assert limits.available_memory() == pytest.approx(machine, rel=0.5)
