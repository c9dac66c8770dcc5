"""Self-routing against a restatement of the paper capsule by capsule, its invariants, its layers and its network."""

import math

import keras
import numpy as np
import pytest
from keras import ops

from caps_tf.errors import UserError
from caps_tf.layers import SelfRoutingCapsules, SelfRoutingClassCapsules, SelfRoutingConvCapsules
from caps_tf.models import conv_capsules, self_routing
from caps_tf.models.self_routing import WideningShortcut
from caps_tf.networks import NETWORKS
from caps_tf.routing import self_routing as route
from caps_tf.routing.bounds import LARGEST
from caps_tf.routing.grouping import Groups
from tests import self_routing_reference
from tests.em_reference import connections
from tests.gradients import gradients
from tests.layer_checks import add_noise, run_layer_test
from tests.precision import within


def random_inputs(seed=0, n=2, k=1, i=6, j=3, d=4, e=5, dtype="float64"):
    """Poses, activations, both kernels of routing, and the kernel of votes, as `route` takes them."""
    rng = np.random.default_rng(seed)
    shapes = (n, k, i, d), (i, j, d), (i, j), (j, i, d, e)
    poses, routing_kernel, bias, pose_kernel = (rng.normal(size=shape) for shape in shapes)
    activations = rng.uniform(0.01, 1.0, size=(n, k, i))
    return [array.astype(dtype) for array in (poses, activations, routing_kernel, bias, pose_kernel)]


def children_of(shape=(2, 4, 5, 3, 2, 2), seed=0):
    """Poses and activations of a grid of children."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape).astype("float32"), rng.uniform(0.01, 1, size=shape[:4]).astype("float32")


def with_random_weights(layer, children, seed=1):
    """Builds a layer; routing starts uniform, which would hide what it does."""
    layer.build([array.shape for array in children])
    rng = np.random.default_rng(seed)
    layer.set_weights([rng.normal(size=weight.shape).astype("float32") for weight in layer.weights])
    return layer


@pytest.mark.parametrize("shared", [1, 4])
def test_agrees_with_the_paper_worked_out_capsule_by_capsule(shared):
    """With weights for each child, and with weights that four positions share."""
    poses, activations, routing_kernel, bias, pose_kernel = random_inputs(k=shared)
    found_poses, log_activations = route(poses, activations, routing_kernel, bias, pose_kernel)
    np.testing.assert_array_equal(route(poses, activations, routing_kernel, bias)[0], log_activations)
    repeated = (
        np.tile(routing_kernel, (shared, 1, 1)),
        np.tile(bias, (shared, 1)),
        np.tile(pose_kernel, (1, shared, 1, 1)),
    )
    for n in range(len(poses)):
        expected_poses, expected, _ = self_routing_reference.self_routing(
            poses[n].reshape(-1, poses.shape[-1]), activations[n].ravel(), *repeated
        )
        np.testing.assert_allclose(found_poses[n], expected_poses, **within(1e-9))
        np.testing.assert_allclose(np.exp(log_activations[n]), expected, **within(1e-9))


def test_parents_share_one_unit_of_activation_and_an_image_does_not_depend_on_its_batch_mates():
    inputs = random_inputs(n=3, dtype="float32")
    inputs[0][1:] *= np.float32(1e3)
    together, alone = route(*inputs), route(*(array[:1] for array in inputs[:2]), *inputs[2:])
    np.testing.assert_allclose(np.exp(together[1]).sum(axis=1), np.ones(3), rtol=1e-5)
    for one, all_of_them in zip(alone, together, strict=True):
        np.testing.assert_allclose(one[0], all_of_them[0], rtol=1e-5, atol=1e-6)


def test_the_order_of_children_and_the_scale_of_their_activations_do_not_matter():
    inputs = random_inputs(dtype="float32")
    poses, activations, routing_kernel, bias, pose_kernel = inputs
    order = np.random.default_rng(0).permutation(poses.shape[2])
    shuffled = poses[:, :, order], activations[:, :, order], routing_kernel[order], bias[order], pose_kernel[:, order]
    smaller = poses, activations * np.float32(1e-4), *inputs[2:]
    for found, *others in zip(route(*inputs), route(*shuffled), route(*smaller), strict=True):
        for other in others:
            np.testing.assert_allclose(other, found, rtol=1e-4, atol=1e-5)


def test_inactive_children_change_nothing_and_if_all_are_inactive_they_count_alike():
    inputs = random_inputs()
    poses, activations, *weights = inputs
    activations[:, :, 2:] = 0.0
    routing_kernel, bias, pose_kernel = weights
    without = route(poses[:, :, :2], activations[:, :, :2], routing_kernel[:2], bias[:2], pose_kernel[:, :2])
    for found, expected in zip(route(*inputs), without, strict=True):
        np.testing.assert_allclose(found, expected, **within(1e-8))
    none, alike = route(poses, activations * 0, *weights), route(poses, activations * 0 + 0.5, *weights)
    for found, expected in zip(none, alike, strict=True):
        np.testing.assert_allclose(found, expected, **within(1e-8))
    for scale in (1.0, 1e4):  # without a bound a child's activation has a gradient of up to 1e12 times what arrives
        found = gradients(
            lambda *inputs, scale=scale: scale * sum(map(ops.sum, route(*inputs))), poses, activations * 0, *weights
        )
        assert all((np.abs(gradient) <= LARGEST).all() for gradient in found)


def test_a_parent_that_hardly_any_child_chooses_keeps_its_mean_vote_and_a_finite_logarithm():
    poses, activations, routing_kernel, bias, pose_kernel = random_inputs(dtype="float32")
    bias[:, 0] = -200.0  # exp of it is zero in float32
    found, log_activations = route(poses, activations, routing_kernel, bias, pose_kernel)
    bias[:, 0] += 190.0  # the same for all children: their shares of the parent's pose stay
    expected, larger = route(poses, activations, routing_kernel, bias, pose_kernel)
    np.testing.assert_allclose(found[:, 0], expected[:, 0], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(log_activations[:, 0], np.array(larger)[:, 0] - 190.0, rtol=1e-4)


@pytest.mark.parametrize("kernel, strides, padding", [((3, 2), (1, 2), 0), ((3, 3), (2, 1), 1)])
def test_each_receptive_field_is_routed_as_the_paper_says(kernel, strides, padding):
    """At any group size; children beyond the border, which padding adds, do not count."""
    poses, activations = children = children_of()
    options = {"strides": strides, "padding": padding, "pose_shape": (3,)}
    layer = with_random_weights(SelfRoutingConvCapsules(4, kernel, **options), children)
    found_poses, found_activations = (np.array(value) for value in layer(children))
    one_at_a_time = SelfRoutingConvCapsules(4, kernel, votes_at_a_time=1, **options)
    one_at_a_time.build([array.shape for array in children])
    one_at_a_time.set_weights(layer.get_weights())
    np.testing.assert_allclose(one_at_a_time(children)[0], found_poses, rtol=1e-4, atol=1e-5)
    routing_kernel, bias, pose_kernel = (weight.astype("float64") for weight in layer.get_weights())
    around = (padding, padding)
    poses = np.pad(poses.reshape(*poses.shape[:4], -1), ((0, 0), around, around, (0, 0), (0, 0)))
    activations = np.pad(activations, ((0, 0), around, around, (0, 0)))
    fields = {}
    for parent, k, child in connections(poses.shape[1:3], kernel, strides):
        fields.setdefault(parent, []).append((k, child))
    assert len(fields) == math.prod(found_activations.shape[1:3])
    for (p, q), links in fields.items():
        for n in range(len(poses)):
            expected = self_routing_reference.self_routing(
                np.concatenate([poses[(n, *child)] for _, child in links]),
                np.concatenate([activations[(n, *child)] for _, child in links]),
                np.concatenate([routing_kernel[k] for k, _ in links]),
                np.concatenate([bias[k] for k, _ in links]),
                np.concatenate([pose_kernel[:, k] for k, _ in links], axis=1),
            )
            np.testing.assert_allclose(found_poses[n, p, q], expected[0], rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(found_activations[n, p, q], expected[1], rtol=1e-4, atol=1e-6)


def test_gradients_do_not_depend_on_how_many_examples_are_routed_at_a_time():
    children = children_of((4, 3, 3, 2, 2, 2))
    layers = [SelfRoutingConvCapsules(3, 2, votes_at_a_time=bytes_) for bytes_ in (None, 1)]
    with_random_weights(layers[0], children)
    layers[1].build([array.shape for array in children])

    def objective_of(layer):
        def objective(poses, activations, *weights):
            (poses, activations), _ = layer.stateless_call(weights, [], (poses, activations))
            return ops.sum(poses * poses) + ops.sum(activations * activations)

        return objective

    inputs = (*children, *layers[0].get_weights())
    for one, all_at_once in zip(*(gradients(objective_of(layer), *inputs) for layer in layers), strict=True):
        np.testing.assert_allclose(one, all_at_once, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("pose_shape", [(1,), (9,)])
def test_groups_and_the_memory_check_take_the_larger_of_a_weighed_child_and_a_vote(pose_shape, monkeypatch):
    """A vote of one element weighs a child of four, which is what exists for each parent."""
    children, asked = children_of(), []
    layer = with_random_weights(SelfRoutingConvCapsules(4, (3, 2), pose_shape=pose_shape), children)
    monkeypatch.setattr(
        SelfRoutingConvCapsules, "groups", lambda _, *arguments: asked.append(arguments[:2]) or Groups(None, False)
    )
    outputs = layer(children)
    pairs = 2 * 4 * (3 * 2 * 3) * 4  # parent positions, children, parent types
    assert asked == [(2, pairs * max(4, *pose_shape))]
    cost = layer.layer_cost([array.shape for array in children], [array.shape for array in outputs])
    assert cost.votes == (2 * pairs * max(4, *pose_shape),)


@pytest.mark.parametrize(
    "options, pose",
    [({"share_positions": False}, (2, 2)), ({"with_poses": False, "return_logits": True}, (4,)), ({}, (4,))],
)
def test_class_capsules_in_all_forms_pass_the_suite_of_layers(options, pose, tmp_path):
    poses = [] if options.get("with_poses") is False else [(2, *pose)]
    run_layer_test(
        lambda **kwargs: SelfRoutingClassCapsules(2, **options, **kwargs),
        [(3, 2, 3, *pose), (3, 2, 3)],
        [*poses, (2,)],
        tmp_path,
    )


def test_class_capsules_that_share_weights_are_those_with_the_weights_repeated_and_logits_are_logarithms():
    children = children_of()
    shared = with_random_weights(SelfRoutingClassCapsules(4), children)
    own = SelfRoutingClassCapsules(4, share_positions=False)
    scores = SelfRoutingClassCapsules(4, with_poses=False, return_logits=True)
    for layer in (own, scores):
        layer.build([array.shape for array in children])
    routing_kernel, bias, kernel = shared.get_weights()
    own.set_weights([np.stack([routing_kernel] * 20), np.stack([bias] * 20), np.stack([kernel] * 20, axis=1)])
    scores.set_weights([routing_kernel, bias])
    poses, activations = shared(children)
    np.testing.assert_allclose(own(children)[0], poses, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(own(children)[1], activations, rtol=1e-4)
    np.testing.assert_allclose(np.exp(scores(children)), activations, rtol=1e-4)
    assert np.ptp(activations, axis=0).max() > 0.01


@pytest.mark.parametrize("share", [True, False])
def test_the_trace_is_what_the_layer_did(share):
    children = children_of()
    layer = with_random_weights(SelfRoutingClassCapsules(4, share_positions=share), children)
    poses, activations = layer(children)
    trace = layer.routing_trace(children)
    weights, votes, parents, _, found = (value if value is None else np.array(value) for value in trace.steps[0])
    np.testing.assert_allclose(weights.sum(axis=1), np.ones((2, 60)), rtol=1e-5)
    np.testing.assert_allclose(parents.reshape(poses.shape), poses, rtol=1e-5)
    np.testing.assert_allclose(found, activations, rtol=1e-5)
    given = weights * np.array(trace.child_activations)[:, None]
    mean = np.einsum("njc,njec->nje", given, votes) / given.sum(axis=2)[..., None]
    np.testing.assert_allclose(mean, parents, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(trace.equal_weights, np.full((2, 4, 60), 0.25))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: SelfRoutingConvCapsules(0), "must be at least 1"),
        (lambda: SelfRoutingCapsules(2, pose_shape=(4, 0)), "must be at least 1"),
        (lambda: SelfRoutingConvCapsules(2, padding=-1), "padding must not be negative"),
        (lambda: SelfRoutingClassCapsules(2).build([(1, 2, 2, 3, 4), (1, 2, 2, 4)]), "expected activations"),
        (lambda: SelfRoutingClassCapsules(2).build((1, 2, 2, 3, 4)), "as a pair"),
        (lambda: self_routing((8, 8, 1), 3, backbone="vgg"), "backbone must be one of resnet, simple"),
        (lambda: self_routing((8, 8, 1), 3, capsule_layers=0), "capsule_layers must be at least 1"),
        (lambda: conv_capsules((16, 16, 1), 3, routing="self", iterations=3), "self-routing has no iterations"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(make, message):
    with pytest.raises((ValueError, UserError), match=message):
        make()


@pytest.mark.parametrize(
    "image_shape, classes, backbone, layers, parameters",
    [
        ((32, 32, 1), 5, "simple", 1, 814_960),
        ((32, 32, 1), 5, "simple", 2, 3_331_952),
        ((32, 32, 3), 10, "resnet", 1, 931_664),
        ((32, 32, 3), 10, "resnet", 2, 3_187_536),
    ],
)
def test_the_networks_have_the_size_of_the_published_codes(image_shape, classes, backbone, layers, parameters):
    """Counted from the shapes of its weights, with its default 32 capsules of 16 elements on 16 channels."""
    model = self_routing(image_shape, classes, backbone, layers)
    assert sum(math.prod(weight.shape) for weight in model.trainable_weights) == parameters


@pytest.mark.parametrize("backbone", ["resnet", "simple"])
def test_any_image_gets_log_probabilities_that_its_batch_mates_do_not_change(backbone):
    model = self_routing((13, 10, 2), 4, backbone, capsule_layers=2, capsules=3, channels=2)
    add_noise(model.trainable_weights)  # routing starts uniform, whatever the image
    images = np.random.default_rng(0).normal(size=(3, 13, 10, 2)).astype("float32")
    scores = np.array(model(images))
    np.testing.assert_allclose(np.exp(scores).sum(axis=1), np.ones(3), rtol=1e-5)
    assert np.ptp(scores, axis=0).max() > 1e-3
    np.testing.assert_allclose(model(images[:1]), scores[:1], rtol=1e-4)


def test_the_loss_of_a_network_is_the_published_one_where_the_true_class_is_almost_ruled_out():
    """Minus the logarithm of its activation. A logarithm of activations that are clipped at 1e-7 would stop to learn."""
    model = self_routing((12, 12, 1), 3, "simple", capsules=3, channels=2)
    layer = model.get_layer("class_capsules")
    layer.bias.assign(np.broadcast_to([-20.0, 0.0, 0.0], layer.bias.shape))
    scores = model(np.random.default_rng(0).normal(size=(2, 12, 12, 1)).astype("float32"))
    loss = keras.losses.sparse_categorical_crossentropy(
        np.zeros(2, int), scores, from_logits=NETWORKS["self_routing"].logits
    )
    np.testing.assert_allclose(loss, [20.0 + math.log(2.0)] * 2, rtol=1e-4)


def test_the_widening_shortcut_takes_every_second_pixel_between_channels_of_zeros(tmp_path):
    features = np.random.default_rng(0).normal(size=(2, 5, 4, 3)).astype("float32")
    layer = WideningShortcut(6)
    expected = np.zeros((2, 3, 2, 6), "float32")
    expected[..., 1:4] = features[:, ::2, ::2]
    assert layer.compute_output_shape(features.shape) == expected.shape
    x = keras.Input(features.shape[1:])
    model = keras.Model(x, layer(x))
    model.save(tmp_path / "model.keras")
    for each in (model, keras.saving.load_model(tmp_path / "model.keras")):
        np.testing.assert_array_equal(each(features), expected)
