import keras
import numpy as np
import pytest
import tensorflow as tf

from caps_tf import models
from caps_tf.layers import HeinsenRouting
from caps_tf.training.compilation import split_at_routing
from caps_tf.training.factories import capsule_outputs, cross_entropy
from caps_tf.training.steps import make_train_step, model_inputs

NETWORKS = {
    "matrix_capsules": lambda: models.matrix_capsules((20, 24, 1), 3, A=4, B=2, C=3, D=3, weight_reg=0.01),
    "heinsen_sst": lambda: models.heinsen_sst(depth=3, width=8, num_classes=3, features=6, parts=5, weight_reg=0.01),
    "heinsen_norb, 1 iteration": lambda: models.heinsen_norb((29, 33, 2), 3, channels=4, parts=5, iterations=1),
    "conv_capsules, em": lambda: models.conv_capsules((16, 20, 1), 3, convolutions="4k5s2,4s2", capsules=2),
    "conv_capsules, attention": lambda: models.conv_capsules(
        (16, 20, 1), 3, routing="attention", convolutions="4k5s2,4s2", capsules=2, weight_reg=0.01
    ),
    "conv_capsules, none": lambda: models.conv_capsules((16, 20, 1), 3, routing="none", convolutions="4k5s2,4s2"),
    "cnn_baseline": lambda: models.cnn_baseline((8, 8, 1), 3, dropout=0.0, weight_reg=0.01),
}


def random_batch(model, examples=4, tokens=5):
    generator = np.random.default_rng(0)
    features = {
        each.name: tf.constant(
            generator.uniform(size=(examples, *(size or tokens for size in each.shape[1:]))), tf.float32
        )
        for each in model.inputs
    }
    return {**features, "label": tf.constant([0, 1, 2, 1])}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_of_a_network_cut_at_its_routing_is_a_step_of_the_whole_network(name):
    model = NETWORKS[name]()
    batch = random_batch(model)
    inputs = {each.name: batch[each.name] for each in model.inputs}
    with tf.GradientTape() as tape:
        scores = model(inputs if len(inputs) > 1 else inputs["image"], training=True)
        loss = tf.reduce_mean(cross_entropy(batch["label"], scores, 0.0))
        objective = loss + sum(model.losses)
    gradients = tape.gradient(objective, model.trainable_variables)
    wanted = [
        np.asarray(variable) - (0.0 if gradient is None else np.asarray(gradient))
        for variable, gradient in zip(model.trainable_variables, gradients)
    ]
    optimizer = keras.optimizers.SGD(1.0)
    optimizer.build(model.trainable_variables)
    step = make_train_step(tf.distribute.get_strategy(), model, optimizer, cross_entropy, 4, jit_compile=False)
    result = step(batch, tf.constant(0.0))
    np.testing.assert_allclose(float(result.loss), float(loss), rtol=1e-5)
    for variable, value in zip(model.trainable_variables, wanted, strict=True):
        np.testing.assert_allclose(np.asarray(variable), value, rtol=1e-4, atol=1e-5, err_msg=variable.path)


def test_a_network_can_be_cut_many_times_and_is_still_saved_whole(tmp_path):
    model = NETWORKS["matrix_capsules"]()
    for _ in range(2):
        features, capsules = split_at_routing(model)
    images = random_batch(model)["image"]
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(capsules(features(images)), again(images), rtol=1e-5, atol=1e-7)
    assert {layer.name for layer in again.layers} == {layer.name for layer in model.layers}


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "cnn_baseline"])
def test_capsules_that_routing_reads_may_be_outputs_too(name):
    model = NETWORKS[name]()
    watched = [tensor for capsules in capsule_outputs(model).values() for tensor in capsules]
    watching = keras.Model(model.input, [model.output, *watched])
    features, capsules = split_at_routing(watching)
    inputs = model_inputs(model, random_batch(model))
    for found, wanted in zip(capsules(features(inputs)), watching(inputs), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_features_that_go_around_the_routing_are_not_lost():
    scores, poses = keras.Input((6,), name="scores"), keras.Input((6, 2, 2), name="poses")
    seen = keras.layers.Dense(3)(scores)
    routed, _, _ = HeinsenRouting(n_inp=6, n_out=3, d_cov=2, d_inp=2, d_out=2)((seen[:, :1] + scores, poses))
    model = keras.Model({"scores": scores, "poses": poses}, {"routed": routed, "sum": routed + seen})
    features, capsules = split_at_routing(model)
    inputs = {"scores": tf.ones((2, 6)), "poses": tf.ones((2, 6, 2, 2))}
    found, wanted = capsules(features(inputs)), model(inputs)
    assert set(found) == {"routed", "sum"}
    for name in found:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-6)
