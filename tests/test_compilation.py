import keras
import numpy as np
import pytest
import tensorflow as tf

from caps_tf.layers import HeinsenRouting, RoutingLayer
from caps_tf.networks import NETWORKS
from caps_tf.training.compilation import split_at_routing
from caps_tf.training.factories import capsule_outputs, cross_entropy
from caps_tf.training.steps import make_train_step
from tests.networks import inputs_of, random_batch, tiny
from tests.small_norb import run_script


@pytest.mark.parametrize(
    "name, arguments",
    [
        pytest.param("matrix_capsules", {"weight_reg": 0.01}, marks=pytest.mark.campaign),
        ("heinsen_sst", {"weight_reg": 0.01}),
        pytest.param("heinsen_norb", {"iterations": 1}, marks=pytest.mark.campaign),
        ("conv_capsules", {"routing": "em"}),
        pytest.param("conv_capsules", {"routing": "attention", "weight_reg": 0.01}, marks=pytest.mark.campaign),
        pytest.param("conv_capsules", {"routing": "none"}, marks=pytest.mark.campaign),
        ("cnn_baseline", {"dropout": 0.0, "weight_reg": 0.01}),
    ],
)
def test_a_step_of_a_network_cut_at_its_routing_is_a_step_of_the_whole_network(name, arguments):
    model = tiny(name, **arguments)
    batch = {key: tf.constant(value) for key, value in random_batch(name, 4).items()}
    with tf.GradientTape() as tape:
        scores = model(inputs_of(model, batch), training=True)
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
    model = tiny("matrix_capsules")
    for _ in range(2):
        features, capsules = split_at_routing(model)
    images = random_batch("matrix_capsules", 4)["image"]
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(capsules(features(images)), again(images), rtol=1e-5, atol=1e-7)
    assert {layer.name for layer in again.layers} == {layer.name for layer in model.layers}


@pytest.mark.parametrize("name", [name for name, network in NETWORKS.items() if network.routes])
def test_capsules_that_routing_reads_may_be_outputs_too(name):
    model = tiny(name)
    watched = [tensor for capsules in capsule_outputs(model).values() for tensor in capsules]
    watching = keras.Model(model.input, [model.output, *watched])
    features, capsules = split_at_routing(watching)
    inputs = inputs_of(model, random_batch(name, 4))
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
    assert not any(isinstance(layer, RoutingLayer) for layer in features.layers)  # it would run a second time
    for name in found:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-6)


@pytest.mark.campaign
def test_replicas_agree_on_the_statistics_of_a_batch_behind_a_routing():
    program = """
import keras, numpy as np, tensorflow as tf
from caps_tf.layers import CapsuleNormalization, EMClassCapsules, PrimaryCapsules
from caps_tf.training.devices import make_strategy
from caps_tf.training.factories import cross_entropy
from caps_tf.training.steps import make_train_step
two, one = make_strategy(2), tf.distribute.get_strategy()
images = np.random.default_rng(0).normal(size=(4, 3, 3, 1)).astype("float32")
batches = tf.data.Dataset.from_tensor_slices({"image": images, "label": np.arange(4) % 3}).batch(4)
for strategy in (one, two):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        x = keras.Input((3, 3, 1), name="image")
        capsules = EMClassCapsules(3, iterations=1, initial_temperature=1.0, return_logits=True)(PrimaryCapsules(2)(x))
        normalization = CapsuleNormalization()
        model = keras.Model(x, normalization(capsules)[1])
        optimizer = keras.optimizers.SGD(1.0)
        optimizer.build(model.trainable_variables)
    step = make_train_step(strategy, model, optimizer, cross_entropy, 4, jit_compile=False)
    [batch] = strategy.experimental_distribute_dataset(batches)
    loss = float(step(batch, tf.constant(0.5), tf.constant(0.0)).loss)
    print(loss, *(number for weight in normalization.weights for number in np.ravel(weight)))
"""
    found = run_script("-c", program, start="forked")
    one, two = (np.array(line.split(), "float64") for line in found.stdout.splitlines()[-2:])
    np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-6)
