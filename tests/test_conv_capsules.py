"""The network of any routing on normalised convolutions, and what its layers have beside the published ones."""

import keras
import numpy as np
import pytest
from keras import ops

from caps_tf.errors import UserError
from caps_tf.initializers import NearIdentity
from caps_tf.layers import AttentionClassCapsules, CapsuleStack, EMClassCapsules, EMConvCapsules, HeinsenRouting
from caps_tf.models import conv_capsules, heinsen_norb, parse_convolutions
from caps_tf.models.class_heads import HEADS
from caps_tf.networks import ROUTINGS
from caps_tf.routing.inverted_attention import first_parents, next_parents, shared_parents
from tests.compiling import IN_CAMPAIGN, both_ways
from tests.gradients import gradients
from tests.layer_checks import run_layer_test

SMALL = {"convolutions": "8k5s2,8s2", "capsules": 3}


def bars(size=16, count=64):
    """Images of two classes: a bar that stands, or one that lies, anywhere."""
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=count)
    images = 0.3 * rng.normal(size=(count, size, size, 1)).astype("float32")
    for image, label, place in zip(images, labels, rng.integers(size - 3, size=count), strict=True):
        strip = slice(place, place + 3)
        image[(strip, slice(None)) if label else (slice(None), strip)] += 2.0
    return images, labels


def test_every_routing_that_flags_offer_has_a_head():
    assert set(HEADS) | {"none"} == set(ROUTINGS)


@both_ways
@pytest.mark.parametrize(
    "routing", [pytest.param(each, marks=[] if each == "attention" else IN_CAMPAIGN) for each in ROUTINGS]
)
def test_every_routing_learns_with_plain_keras_and_reloads(routing, jit_compile, tmp_path):
    images, labels = bars()
    model = conv_capsules((16, 16, 1), 2, routing=routing, **SMALL)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-2), loss, metrics=["accuracy"], jit_compile=jit_compile)
    history = model.fit(images, labels, batch_size=16, epochs=12, verbose=0)
    assert history.history["accuracy"][-1] > 0.9
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(images), model(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("routing", ROUTINGS)
def test_an_image_is_judged_by_itself_at_any_size(routing):
    models = [conv_capsules(shape, 3, routing=routing, **SMALL) for shape in ((16, 16, 1), (13, 22, 1))]
    models[1].set_weights(models[0].get_weights())
    for model in models:
        images = np.random.default_rng(0).normal(size=(4, *model.input_shape[1:])).astype("float32")
        scores = np.array(model(images))
        assert scores.shape == (4, 3) and np.isfinite(scores).all()
        np.testing.assert_allclose(model(images[:1]), scores[:1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("routing", ["em", "vb"])
def test_coordinates_tell_where_a_part_stands(routing):
    images = np.zeros((2, 16, 16, 1), "float32")
    images[0, 2:5, 2:5], images[1, 10:13, 10:13] = 1.0, 1.0  # one part at two places, a multiple of the strides apart
    blind, told = (
        conv_capsules((16, 16, 1), 3, routing, convolutions="8k3s1", capsules=3, coordinates=c) for c in (False, True)
    )
    told.set_weights(blind.get_weights())
    scores = [np.array(model(images)) for model in (blind, told)]
    np.testing.assert_allclose(scores[0][0], scores[0][1], rtol=1e-4, atol=1e-4)
    assert np.abs(scores[1][0] - scores[1][1]).max() > 1e-3


@pytest.mark.parametrize("routing", sorted(set(ROUTINGS) - {"em", "vb"}))
def test_coordinates_are_refused_by_a_routing_that_would_ignore_them(routing):
    with pytest.raises(UserError, match=f"routing={routing} does not read `coordinates`: .* em or vb"):
        conv_capsules((16, 16, 1), 3, routing, coordinates=True)


@pytest.mark.parametrize("text", ["", "16,", "0", "16k", "k3", "16s0", "16k5s2;32", "a"])
def test_convolutions_that_cannot_be_read_are_named(text):
    with pytest.raises(UserError, match="convolutions must be channels"):
        parse_convolutions(text)


def test_an_unknown_routing_is_refused():
    with pytest.raises(UserError, match="routing must be one of .*none, not 'chance'"):
        conv_capsules((16, 16, 1), 2, routing="chance")


# EM routing with learned inverse temperatures


def test_learned_temperatures_are_the_published_function_in_other_units():
    rng = np.random.default_rng(0)
    children = rng.normal(size=(2, 3, 3, 2, 4, 4)).astype("float32"), rng.uniform(size=(2, 3, 3, 2)).astype("float32")
    published = EMConvCapsules(4, 3, iterations=1, final_lambda=0.02)
    learned = EMConvCapsules(4, 3, iterations=1, initial_temperature=1600 * 0.02 * 0.05)
    for layer in (published, learned):
        layer.build([array.shape for array in children])
    kernel, beta_a, beta_u = published.get_weights()
    learned.set_weights([kernel, beta_a / 1600, beta_u, learned.get_weights()[3]])
    for found, expected in zip(learned(children), published(children), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_every_weight_of_learned_temperatures_gets_a_gradient_of_useful_size():
    rng = np.random.default_rng(0)
    poses, activations = rng.normal(size=(4, 3, 3, 2, 4, 4)).astype("float32"), np.full((4, 3, 3, 2), 0.5, "float32")
    layer = EMClassCapsules(3, initial_temperature=2.0, beta_u_initializer="zeros", kernel_initializer=NearIdentity())
    layer.build([poses.shape, activations.shape])

    names = [weight.name for weight in layer.trainable_variables]

    def sum_of_activations(*weights):
        (_, found), _ = layer.stateless_call(weights, [], (poses, activations))
        return ops.sum(found)

    for name, gradient in zip(names, gradients(sum_of_activations, *layer.get_weights()), strict=True):
        assert np.abs(gradient).max() > 1e-2, name


def test_logits_are_what_activations_are_the_sigmoid_of():
    rng = np.random.default_rng(0)
    children = rng.normal(size=(2, 3, 3, 2, 4, 4)).astype("float32"), rng.uniform(size=(2, 3, 3, 2)).astype("float32")
    layers = [EMClassCapsules(4, return_logits=logits, beta_a_initializer="zeros") for logits in (False, True)]
    for layer in layers:
        layer.build([array.shape for array in children])
    layers[1].set_weights(layers[0].get_weights())
    (poses, activations), (same, logits) = (layer(children) for layer in layers)
    np.testing.assert_array_equal(poses, same)
    np.testing.assert_allclose(ops.sigmoid(logits), activations, rtol=1e-6)


@pytest.mark.parametrize(
    "make", [lambda **kwargs: EMClassCapsules(5, **kwargs), lambda **kwargs: EMConvCapsules(5, 2, **kwargs)]
)
def test_em_capsules_with_learned_temperatures(make, tmp_path):
    options = {"initial_temperature": 2.0, "variance_floor": 1e-3, "kernel_initializer": NearIdentity()}
    shape = (5,) if isinstance(make(), EMClassCapsules) else (2, 3, 5)
    run_layer_test(
        lambda **kwargs: make(**options, **kwargs), [(3, 4, 2, 4, 4), (3, 4, 2)], [(*shape, 4, 4), shape], tmp_path
    )


@pytest.mark.parametrize("options", [{"initial_temperature": 0.0}, {"variance_floor": 0.0}])
def test_temperatures_and_floors_that_are_not_positive_are_refused(options):
    with pytest.raises(ValueError, match="must be positive"):
        EMClassCapsules(5, **options)


def test_near_identity_weights_keep_the_scale_of_poses():
    weights = np.array(NearIdentity(stddev=0.1, seed=1)((200, 4, 4)))
    np.testing.assert_allclose(weights.mean(axis=0), np.eye(4), atol=0.03)
    np.testing.assert_allclose(weights.std(axis=0), 0.1, atol=0.02)


# Attention with weights that positions share


@pytest.mark.parametrize("previous", [False, True])
def test_shared_attention_is_attention_with_repeated_weights_in_value_and_gradient(previous):
    rng = np.random.default_rng(0)
    children, weights, parents = (rng.normal(size=size) for size in [(2, 6, 3, 4, 4), (3, 5, 4, 2), (2, 5, 4, 2)])
    cotangent = rng.normal(size=parents.shape)

    arguments = (children, weights, parents) if previous else (children, weights)

    def shared(*arguments):
        return ops.sum(shared_parents(*arguments) * ops.convert_to_tensor(cotangent))

    def repeated(children, weights, *parents):
        children, weights = ops.reshape(children, (2, 18, 4, 4)), ops.tile(weights, (6, 1, 1, 1))
        routed = (next_parents if parents else first_parents)(children, weights, *parents)
        return ops.sum(routed * ops.convert_to_tensor(cotangent))

    # JAX computes in float32.
    np.testing.assert_allclose(float(shared(*arguments)), float(repeated(*arguments)), rtol=1e-4)
    for found, expected in zip(gradients(shared, *arguments), gradients(repeated, *arguments), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pose, parent", [((4, 4), (4, 4)), ((6,), (6,))])
def test_attention_class_capsules(pose, parent, tmp_path):
    run_layer_test(lambda **kwargs: AttentionClassCapsules(5, **kwargs), (3, 4, 2, *pose), [(5, *parent)], tmp_path)


# Heinsen's parts


def test_noise_tells_part_capsules_apart_from_the_start():
    images = np.random.default_rng(0).normal(size=(2, 29, 29, 1)).astype("float32")
    spread = []
    for noise in (0.0, 0.5):
        model = heinsen_norb((29, 29, 1), 5, channels=8, parts=16, part_noise=noise)
        poses = np.array(keras.Model(model.input, model.get_layer("part_capsules").output[1])(images))
        spread.append(poses.std(axis=1).mean())
    assert spread[1] > 2 * spread[0]


def test_the_initial_bias_is_kept_in_the_config():
    layer = HeinsenRouting(4, 4, 4, n_out=3, bias_initializer=keras.initializers.RandomNormal(stddev=0.5, seed=0))
    again = HeinsenRouting.from_config(layer.get_config())
    assert again.bias_initializer.stddev == 0.5


# Gauges


def test_the_trace_of_shared_attention_ends_with_what_the_stack_returns():
    children = np.random.default_rng(0).normal(size=(2, 3, 4, 2, 4, 4)).astype("float32")
    stack = CapsuleStack([AttentionClassCapsules(5, normalize=False, name="classes")], iterations=2)
    parents = stack(children)
    first, last = stack.routing_trace(children)["classes"].steps
    np.testing.assert_allclose(first.routing_weights, np.full((2, 5, 24), 1 / 5), rtol=1e-6)
    weights, votes, found = map(np.array, last[:3])
    np.testing.assert_allclose(weights.sum(axis=1), np.ones((2, 24)), rtol=1e-5)
    np.testing.assert_allclose(found.reshape(parents.shape), parents, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(np.einsum("njc,njdc->njd", weights, votes) * 5 / 24, found, rtol=1e-4, atol=1e-5)


def test_the_trace_of_learned_temperatures_ends_with_what_the_layer_returns():
    rng = np.random.default_rng(0)
    children = rng.normal(size=(2, 3, 3, 2, 4, 4)).astype("float32"), rng.uniform(size=(2, 3, 3, 2)).astype("float32")
    layer = EMClassCapsules(4, initial_temperature=2.0, variance_floor=1e-3)
    poses, activations = layer(children)
    trace = layer.routing_trace(children)
    np.testing.assert_allclose(trace.steps[-1].activations, activations, rtol=1e-5)
    np.testing.assert_allclose(np.array(trace.steps[-1].parents).reshape(poses.shape), poses, rtol=1e-5)
    assert trace.variance_floor == 1e-3
