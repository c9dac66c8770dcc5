"""Dynamic routing, its layers and its network, against procedure 1 restated one capsule at a time."""

import itertools
import math

import keras
import numpy as np
import pytest
from keras import ops

from caps_tf.errors import UserError
from caps_tf.layers import DynamicClassCapsules, DynamicConvCapsules, SquashedCapsules
from caps_tf.losses import MarginLoss
from caps_tf.models import capsnet
from caps_tf.routing import Neighbourhood, dynamic_routing, lengths, squash
from tests.compiling import PLAIN, in_campaign
from tests.em_reference import connections
from tests.gradients import gradients
from tests.layer_checks import run_layer_test
from tests.precision import within
from tests.test_conv_capsules import bars

# Children, kernel, strides: parents that share children, and a single one that sees all.
GEOMETRIES = [((4, 5), (3, 2), (1, 2)), ((2, 2), (2, 2), (1, 1))]


def squashed(s):
    length = math.sqrt(sum(element**2 for element in s))
    return [length**2 / (1 + length**2) * element / length for element in s]


def restated(votes, children, kernel, strides, iterations):
    """Routes one image: votes [p, q, j, d, k, i]; returns v [p, q, j, d] and c [p, q, j, k, i]."""
    p, q, types, elements, k, child_types = votes.shape
    pairs = {}  # of a child: parent, kernel position and parent type of each of its votes
    for parent, position, child in connections(children, kernel, strides):
        for i in range(child_types):
            pairs.setdefault((child, i), []).extend((parent, position, j) for j in range(types))
    logits = {(child, *pair): 0.0 for child, parents in pairs.items() for pair in parents}
    v, c = np.zeros((p, q, types, elements)), np.zeros((p, q, types, k, child_types))
    for _ in range(iterations):
        for child, parents in pairs.items():
            total = sum(math.exp(logits[(child, *pair)]) for pair in parents)
            for parent, position, j in parents:
                c[(*parent, j, position, child[1])] = math.exp(logits[(child, parent, position, j)]) / total
        for row, column, j in itertools.product(range(p), range(q), range(types)):
            s = np.zeros(elements)
            for position, i in itertools.product(range(k), range(child_types)):
                s += c[row, column, j, position, i] * votes[row, column, j, :, position, i]
            v[row, column, j] = squashed(s)
        for child, parents in pairs.items():
            for parent, position, j in parents:
                vote = votes[(*parent, j, slice(None), position, child[1])]
                logits[(child, parent, position, j)] += float(vote @ v[(*parent, j)])
    return v, c


def some_votes(geometry, images=2, scale=1.0, seed=0):
    fields = Neighbourhood(*geometry)
    shape = (images, *fields.parents, 3, 4, fields.kernel_positions, 2)
    return scale * np.random.default_rng(seed).normal(size=shape), fields


# The mathematics


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_dynamic_routing_is_procedure_1(geometry, iterations):
    votes, fields = some_votes(geometry)
    found = dynamic_routing(votes, fields, iterations)
    for image in range(2):
        poses, weights = restated(votes[image], *geometry, iterations)
        np.testing.assert_allclose(found.poses[image], poses, **within(1e-9))
        np.testing.assert_allclose(found.routing_weights[image], weights, **within(1e-9))


def test_squash_is_equation_1_and_has_a_gradient_at_zero():
    vectors = np.array([[0.3, -0.4], [30.0, 40.0], [0.0, 0.0], [3e-9, 4e-9]])
    expected = [squashed(vector) if any(vector) else vector for vector in vectors]
    np.testing.assert_allclose(squash(vectors), expected, **within(1e-9))
    np.testing.assert_allclose(lengths(squash(vectors))[:3], [0.2, 2500 / 2501, 0.0], **within(1e-9))
    # Along itself d|v|/d|s| = 2 |s| / (1 + |s|^2)^2.
    [gradient] = gradients(lambda s: ops.sum(lengths(squash(s))), vectors)
    np.testing.assert_allclose(gradient[0], np.array([0.6, -0.8]) / 1.25**2, **within(1e-6))
    np.testing.assert_allclose(gradient[2], 0.0, atol=1e-8)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_squashed_and_measured_in_single(dtype):
    """Squares of 1e-4 and 300 are none in float16; nor is what is added under the root, nor the bound."""
    vectors = np.array([[0.0, 0.0], [6e-5, -8e-5], [0.3, -0.4], [300.0, 400.0]], "float32")
    directions = np.array([[0.0, 0.0], [0.6, -0.8], [0.6, -0.8], [0.6, 0.8]])
    size = np.linalg.norm(vectors, axis=-1, keepdims=True)

    def of_half(function):
        return lambda vectors: ops.cast(function(ops.cast(vectors, dtype)), "float32")

    close = {"rtol": 1e-2, "atol": 1e-6}
    assert keras.backend.standardize_dtype(squash(ops.cast(vectors, dtype)).dtype) == dtype
    np.testing.assert_allclose(of_half(squash)(vectors), size**2 / (1 + size**2) * directions, **close)
    np.testing.assert_allclose(of_half(lengths)(vectors), np.minimum(size[:, 0], 1.0), **close)
    [gradient] = gradients(lambda vectors: ops.sum(of_half(lengths)(vectors)), vectors)
    np.testing.assert_allclose(gradient[:3], directions[:3], **close)
    [gradient] = gradients(lambda vectors: ops.sum(of_half(lambda v: lengths(squash(v)))(vectors)), vectors)
    # Of 1e-4 the squashed vector is 1e-8, which is zero in float16.
    np.testing.assert_allclose(gradient, 2 * size / (1 + size**2) ** 2 * directions, rtol=2e-2, atol=2e-4)


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e-3])
def test_lengths_of_half_precision_class_capsules_of_small_children_have_a_finite_gradient(scale):
    children = scale * np.random.default_rng(0).normal(size=(2, 3, 3, 4, 8)).astype("float32")
    layer = DynamicClassCapsules(10, dtype="mixed_float16")
    layer.build(children.shape)

    def sum_of_lengths(kernel):
        vectors, _ = layer.stateless_call([kernel], [], children)
        return ops.sum(ops.cast(lengths(vectors), "float32"))

    [gradient] = gradients(sum_of_lengths, *layer.get_weights())
    assert np.isfinite(gradient).all() and bool(gradient.any()) is (scale == 1e-3)


def test_gradients_flow_through_all_iterations():
    votes, fields = some_votes(GEOMETRIES[0], images=1)
    cotangent = np.random.default_rng(1).normal(size=(1, *fields.parents, 3, 4))

    def objective(votes):
        return ops.sum(dynamic_routing(votes, fields, 3).poses * ops.convert_to_tensor(cotangent, dtype=votes.dtype))

    [found] = gradients(objective, votes)
    for index in [(0, 0, 0, 0, 0, 0, 0), (0, 1, 1, 2, 3, 4, 1), (0, 0, 1, 1, 2, 5, 0)]:
        sides = []
        for change in (1e-5, -1e-5):
            moved = votes.copy()
            moved[index] += change
            sides.append((restated(moved[0], *GEOMETRIES[0], 3)[0] * cotangent).sum())
        np.testing.assert_allclose(found[index], (sides[0] - sides[1]) / 2e-5, **within(1e-6))


def test_constant_weights_change_the_gradient_and_not_the_value():
    votes, fields = some_votes(GEOMETRIES[0])
    cotangent = np.random.default_rng(1).normal(size=(2, *fields.parents, 3, 4))
    constant = np.array(dynamic_routing(votes, fields, 3).routing_weights)

    def objective(poses):
        return ops.sum(poses * ops.convert_to_tensor(cotangent, dtype=poses.dtype))

    def with_given_weights(votes):
        weights = ops.convert_to_tensor(constant, dtype=votes.dtype)
        return objective(squash(ops.einsum("bpqjdki,bpqjki->bpqjd", votes, weights)))

    def routed(constant_weights):
        return lambda votes: objective(dynamic_routing(votes, fields, 3, constant_weights).poses)

    [expected], [found], [through] = (
        gradients(function, votes) for function in (with_given_weights, routed(True), routed(False))
    )
    np.testing.assert_allclose(found, expected, **within(1e-9))
    assert np.abs(through - expected).max() > 1e-3
    np.testing.assert_allclose(routed(True)(votes), routed(False)(votes), **within(1e-12))


def test_a_child_gives_itself_away_whole_and_the_order_of_children_means_nothing():
    votes, fields = some_votes(GEOMETRIES[0], scale=3.0)
    weights = dynamic_routing(votes, fields).routing_weights
    of_children = np.array(fields.scatter_add(ops.sum(weights, axis=3)))
    seen = fields.parents_per_child() > 0
    np.testing.assert_allclose(of_children[:, seen], 1.0, rtol=1e-5)
    assert (np.array(weights) >= 0).all() and np.array(weights).max() > 2 * np.array(weights).mean()

    votes, fields = some_votes(GEOMETRIES[1], scale=3.0)
    order = np.array([2, 0, 3, 1])
    found, permuted = (dynamic_routing(each, fields) for each in (votes, votes[..., order, :]))
    np.testing.assert_allclose(permuted.poses, found.poses, **within(1e-9))
    np.testing.assert_allclose(permuted.routing_weights, np.array(found.routing_weights)[..., order, :], **within(1e-9))


def test_routing_without_iterations_is_refused():
    votes, fields = some_votes(GEOMETRIES[1])
    with pytest.raises(ValueError, match="at least 1 iteration, not 0"):
        dynamic_routing(votes, fields, 0)


# The layers


def votes_of(children, kernel, geometry):
    """Votes [p, q, j, e, k, i] of one image's children [h, w, i, d] with weights [k, i, j, d, e], or k = 1 for all."""
    fields = Neighbourhood(*geometry)
    _, types, parent_types, _, e = kernel.shape
    votes = np.zeros((*fields.parents, parent_types, e, fields.kernel_positions, types))
    for parent, position, child in connections(*geometry):
        for i, j in itertools.product(range(types), range(parent_types)):
            weight = kernel[position % len(kernel), i, j].astype("float64")
            votes[(*parent, j, slice(None), position, i)] = children[child][i].astype("float64") @ weight
    return votes


@pytest.mark.parametrize(
    "make, geometry",
    [
        (lambda **options: DynamicConvCapsules(3, (3, 2), (1, 2), **options), GEOMETRIES[0]),
        (lambda **options: DynamicConvCapsules(3, 1, 2, **options), ((3, 4), (1, 1), (2, 2))),
        (lambda **options: DynamicClassCapsules(3, **options), ((3, 2), (3, 2), (1, 1))),
        (lambda **options: DynamicClassCapsules(3, share_positions=True, **options), ((3, 2), (3, 2), (1, 1))),
    ],
    ids=["conv", "conv 1x1", "class", "class, shared"],
)
def test_a_layer_is_procedure_1_in_every_receptive_field(make, geometry):
    children = np.random.default_rng(0).normal(size=(4, *geometry[0], 2, 6)).astype("float32")
    layer = make(pose_elements=5, votes_at_a_time=2 * 4 * 6 * 60, kernel_initializer="random_normal")
    layer.build(children.shape)
    layer.set_weights([20 * layer.get_weights()[0]])
    found = np.array(layer(children))
    assert found.shape == layer.compute_output_shape(children.shape)
    kernel = layer.get_weights()[0]
    kernel = kernel[None] if kernel.ndim == 4 else kernel
    steps = layer.routing_trace(children).steps
    assert len(steps) == layer.iterations
    for image in range(len(children)):
        poses, weights = restated(votes_of(children[image], kernel, geometry), *geometry, layer.iterations)
        np.testing.assert_allclose(found[image], poses.reshape(found[image].shape), rtol=1e-4, atol=1e-5)
        traced = np.array(steps[-1].routing_weights).reshape(len(children), *weights.shape)
        np.testing.assert_allclose(traced[image], weights, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(np.array(steps[-1].parents).reshape(found.shape), found, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(steps[-1].activations, np.linalg.norm(steps[-1].parents, axis=-1), rtol=1e-5, atol=1e-8)


def test_class_capsules_take_children_without_a_grid():
    children = np.random.default_rng(0).normal(size=(2, 3, 4, 2, 6)).astype("float32")
    layer, flat = (DynamicClassCapsules(5, iterations=2) for _ in range(2))
    found = layer(children)
    flat.build((2, 24, 6))
    flat.set_weights([layer.get_weights()[0].reshape(1, 24, 5, 6, 16)])
    np.testing.assert_allclose(flat(children.reshape(2, 24, 6)), found, rtol=1e-5, atol=1e-7)


def test_squashed_capsules(tmp_path):
    x = keras.Input((3, 4, 6))
    features = np.random.default_rng(0).normal(size=(2, 3, 4, 6)).astype("float32")
    layer = SquashedCapsules(2)
    vectors, activations = layer.capsules_of(layer(x))
    model = keras.Model(x, [vectors, activations])
    model.save(tmp_path / "model.keras")
    for each in (model, keras.saving.load_model(tmp_path / "model.keras")):
        vectors, activations = map(np.array, each(features))
        np.testing.assert_allclose(vectors[1, 2, 3, 1], squashed(features[1, 2, 3, 2:4]), rtol=1e-5)
        np.testing.assert_allclose(activations, np.linalg.norm(vectors, axis=-1), rtol=1e-5)
    half = SquashedCapsules(2, dtype="mixed_float16")(1e4 * features)  # whose squares float16 does not hold
    np.testing.assert_allclose(np.array(ops.cast(lengths(half), "float32")), 1.0, rtol=1e-3)
    with pytest.raises(ValueError, match="multiple of elements = 4, not 6"):
        SquashedCapsules(4)(features)


def test_shared_class_capsules_pass_the_suite_of_all_layers(tmp_path):
    run_layer_test(
        lambda **options: DynamicClassCapsules(3, share_positions=True, constant_weights=True, **options),
        (3, 4, 2, 6),
        [(3, 16)],
        tmp_path,
    )


@pytest.mark.parametrize("option", ["capsules", "pose_elements", "iterations", "votes_at_a_time"])
def test_sizes_below_one_are_refused(option):
    with pytest.raises(ValueError, match="at least 1"):
        DynamicClassCapsules(**{"capsules": 2, option: 0})


# The network


def test_capsnet_has_the_published_size():
    model = capsnet((28, 28, 1), 10)
    layers = {layer.name: layer.count_params() for layer in model.layers if layer.count_params()}
    assert layers == {"relu_conv1": 20_992, "primary_conv": 5_308_672, "class_capsules": 1_474_560}
    assert model.get_layer("primary_capsules").output.shape == (None, 6, 6, 32, 8)
    assert model.get_layer("class_capsules").output.shape == (None, 10, 16)
    decoder = sum(inputs * outputs + outputs for inputs, outputs in [(160, 512), (512, 1024), (1024, 784)])
    assert model.count_params() + decoder == 8_215_568


@in_campaign
def test_capsnet_learns_with_the_margin_loss():
    images, labels = bars(size=18)
    keras.utils.set_random_seed(0)
    model = capsnet((18, 18, 1), 2, channels=16)
    model.compile(keras.optimizers.Adam(3e-3), MarginLoss(), metrics=["sparse_categorical_accuracy"], jit_compile=PLAIN)
    history = model.fit(images, labels, batch_size=16, epochs=8, verbose=0)
    assert history.history["sparse_categorical_accuracy"][-1] > 0.9


@pytest.mark.parametrize(
    "shape, channels, words", [((16, 40, 1), 16, "at least 17 pixels"), ((20, 20, 1), 12, "multiple of 8")]
)
def test_sizes_that_capsnet_cannot_have_are_refused(shape, channels, words):
    with pytest.raises(UserError, match=words):
        capsnet(shape, 2, channels=channels)
