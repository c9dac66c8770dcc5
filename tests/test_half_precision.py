"""Every network trains in half precision, and what is not finite is dealt with or reported."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from caps_tf.errors import UserError
from caps_tf.networks import NETWORKS
from caps_tf.training import trainer as trainer_module
from caps_tf.training.data import TrainingData
from caps_tf.training.trainer import Trainer
from tests.networks import CLASSES, input_shapes, random_batch, tiny_config

BATCH, STEPS = 8, 6


def make_trainer(directory, network, precision, **options):
    more = {"batch_size": BATCH, "epoch": 1, "log_every": 1, "margin_steps": 1.0}
    config = tiny_config(network, precision=precision, **more, **options)
    features = input_shapes(network, tokens=None)

    def training(epoch, skipped):
        first = random_batch(network, BATCH)
        return tf.data.Dataset.from_generator(
            lambda: (random_batch(network, BATCH, step) for step in range(skipped, STEPS)),
            output_signature={
                name: tf.TensorSpec((BATCH, *features.get(name, ())), value.dtype) for name, value in first.items()
            },
        )

    keras.utils.set_random_seed(0)
    return Trainer(
        config,
        TrainingData(features, CLASSES, STEPS, training, None),
        directory / "train",
        tf.distribute.get_strategy(),
    )


@pytest.mark.campaign
@pytest.mark.parametrize("precision", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_trains_in_half_precision_near_what_float32_does(tmp_path, network, precision):
    losses = {}
    for policy in ("float32", precision):
        (tmp_path / policy).mkdir()
        trainer = make_trainer(tmp_path / policy, network, policy)
        before = [weight.numpy() for weight in trainer.model.trainable_variables]
        trainer.run()
        after = [weight.numpy() for weight in trainer.model.trainable_variables]
        assert all(np.isfinite(value).all() for value in after)
        assert sum(not np.array_equal(old, new) for old, new in zip(before, after, strict=True)) > len(after) // 2
        lines = (tmp_path / policy / "train" / "log.jsonl").read_text().splitlines()
        losses[policy] = [json.loads(line)["loss"] for line in lines]
    assert len(losses[precision]) == STEPS
    np.testing.assert_allclose(losses[precision][0], losses["float32"][0], rtol=0.1)


def test_gradients_that_no_loss_scale_makes_finite_stop_the_run_instead_of_training_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_module, "LOWEST_LOSS_SCALE", 2.0**13)
    trainer = make_trainer(tmp_path, "cnn_baseline", "mixed_float16")
    kernel = trainer.model.get_layer("dense").kernel
    kernel.assign(keras.ops.full(kernel.shape, 60_000.0))  # finite in float16, what follows from it is not
    with pytest.raises(UserError, match=r"step \d: the loss or its gradient is NaN or infinite"):
        trainer.run()
