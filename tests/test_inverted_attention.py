"""Inverted dot-product attention against the published implementation's values, a NumPy restatement, and itself."""

from pathlib import Path

import numpy as np
import pytest
from keras import ops

from caps_tf.layers import AttentionConvCapsules, AttentionDenseCapsules, CapsuleStack
from caps_tf.routing.inverted_attention import (
    first_parents,
    next_parents,
    route_concurrently,
    route_sequentially,
    routing_weights,
)
from tests import attention_reference
from tests.gradients import gradients
from tests.precision import IN_FLOAT64, within

GOLDEN = np.load(Path(__file__).parent / "golden" / "attention_routing.npz")
TOLERANCE = {"float32": 5e-5, "float64": 1e-10 if IN_FLOAT64 else 5e-5}
DENSE = ("fc_vector", "fc_vector_dout1_no_layernorm", "fc_matrix_5d_input", "fc_vector_5d_input")
CONVOLUTIONAL = {"conv_matrix_s1": 1, "conv_matrix_s2": 2}


def golden(case, name, dtype="float64"):
    return GOLDEN[f"{case}/{name}"].astype(dtype)


def assert_close(found, expected, dtype, name=""):
    found, expected = np.array(found).reshape(expected.shape), np.asarray(expected)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE[dtype] * np.abs(expected).max(), err_msg=name)


def types_last(poses, matrix):
    """The published layout of poses on a grid, [b, i, h, w, d], as ours."""
    if poses.ndim == 5:
        poses = poses.transpose(0, 2, 3, 1, 4)
    side = int(poses.shape[-1] ** 0.5)
    return poses.reshape(*poses.shape[:-1], side, side) if matrix else poses


def kernel_order(case, array):
    """The published order of weights as ours, [.., i, j, y, z]."""
    if case in CONVOLUTIONAL:
        return array.reshape(-1, *array.shape[2:]).transpose(0, 1, 4, 2, 3)
    return array.transpose(0, 3, 1, 2) if "matrix" in case else array.transpose(0, 2, 1, 3)


def golden_layer(case, dtype):
    """The layer of a reference case, and its children."""
    matrix = "matrix" in case
    children = types_last(golden(case, "in.x", dtype), matrix)
    kernel = kernel_order(case, golden(case, "param.w", dtype))
    if case in CONVOLUTIONAL:
        layer = AttentionConvCapsules(kernel.shape[2], 3, CONVOLUTIONAL[case], dtype=dtype)
    else:
        layer = AttentionDenseCapsules(kernel.shape[1], pose_columns=kernel.shape[-1], dtype=dtype)
    layer.build(children.shape)
    shapes = [weight.shape for weight in layer.weights[1:]]
    norm = [
        golden(case, f"param.nonlinear_act.{name}").reshape(shape) for name, shape in zip(("weight", "bias"), shapes)
    ]
    layer.set_weights([kernel, *norm])
    return layer, children


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", [*DENSE, *CONVOLUTIONAL])
def test_values_of_the_published_implementation_are_reproduced(case, dtype):
    layer, children = golden_layer(case, dtype)
    outputs = "unscrambled64" if case in CONVOLUTIONAL else "out64"
    parents = None
    for iteration in (1, 2, 3):
        parents = layer(children, parents)
        assert_close(parents, types_last(golden(case, f"{outputs}_{iteration}"), "matrix" in case), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", DENSE)
def test_a_step_from_given_parents_is_that_of_the_published_implementation(case, dtype):
    layer, children = golden_layer(case, dtype)
    parents = types_last(golden(case, "in.prev", dtype), "matrix" in case)
    assert_close(layer(children, parents), golden(case, "out64_refeed"), dtype)


def norm_over_poses(poses, gain, bias):
    mean = ops.mean(poses, axis=(-2, -1), keepdims=True)
    variance = ops.mean(ops.square(poses - mean), axis=(-2, -1), keepdims=True)
    return (poses - mean) / ops.sqrt(variance + 1e-5) * gain + bias


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", CONVOLUTIONAL)
def test_convolutional_gradients_of_the_published_implementation_are_reproduced(case, dtype):
    # Its patches are scrambled, so the functions get the very patches that it routed; where an element of a patch came
    # from is found by value.
    source, patches = golden(case, "in.x"), golden(case, "mid.expanded")
    order = np.argsort(source, axis=None)
    origin = order[np.searchsorted(source.ravel()[order], patches)]
    np.testing.assert_array_equal(source.ravel()[origin], patches)
    batch, types, side, _, p, q, _ = patches.shape
    # [b, i, rows of kernel, columns of kernel, p, q, d] to [n, c, x, y]
    patches = patches.transpose(0, 4, 5, 2, 3, 1, 6).reshape(batch * p * q, side * side * types, 4, 4).astype(dtype)
    kernel = kernel_order(case, golden(case, "param.w", dtype))
    kernel = kernel.reshape(-1, *kernel.shape[2:])
    gain, bias = (golden(case, f"param.nonlinear_act.{name}", dtype).reshape(4, 4) for name in ("weight", "bias"))
    cotangent = golden(case, "cot", dtype).transpose(0, 2, 3, 1, 4).reshape(batch * p * q, -1, 4, 4)

    def route(iterations, patches, kernel, gain, bias):
        parents = norm_over_poses(first_parents(patches, kernel), gain, bias)
        for _ in range(iterations - 1):
            parents = norm_over_poses(next_parents(patches, kernel, parents, group=p * q), gain, bias)
        return parents

    for iterations in (1, 2, 3):
        expected = golden(case, f"out64_{iterations}").transpose(0, 2, 3, 1, 4)
        assert_close(route(iterations, patches, kernel, gain, bias), expected, dtype)
    found = gradients(lambda *inputs: ops.sum(ops.multiply(route(3, *inputs), cotangent)), patches, kernel, gain, bias)
    from_patches = found[0].reshape(batch, p, q, side, side, types, 16).transpose(0, 5, 3, 4, 1, 2, 6)
    source_gradient = np.zeros(source.size)
    np.add.at(source_gradient, origin, from_patches)
    # The published gradients are in float32.
    assert_close(source_gradient, golden(case, "grad.in.x"), "float32", "poses")
    assert_close(found[1], kernel_order(case, golden(case, "grad.w")).reshape(kernel.shape), "float32", "weights")
    assert_close(found[2], golden(case, "grad.nonlinear_act.weight").reshape(4, 4), "float32", "gain")
    assert_close(found[3], golden(case, "grad.nonlinear_act.bias").reshape(4, 4), "float32", "bias")


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", DENSE)
def test_dense_gradients_of_the_published_implementation_are_reproduced(case, dtype):
    layer, children = golden_layer(case, dtype)
    matrix = "matrix" in case
    cotangent = types_last(golden(case, "cot", dtype), matrix)

    def objective(children, *weights):
        parents = None
        for _ in range(3):
            parents, _ = layer.stateless_call(weights, non_trainable_state(layer), children, parents)
        return ops.sum(ops.multiply(parents, cotangent))

    found = gradients(objective, children, *layer.get_weights())
    expected = [
        types_last(golden(case, "grad.in.x"), matrix),
        kernel_order(case, golden(case, "grad.w")),
        *(golden(case, f"grad.nonlinear_act.{name}") for name in ("weight", "bias") if len(layer.weights) > 1),
    ]
    for gradient, reference in zip(found, expected, strict=True):
        assert_close(gradient, reference, "float32")


def non_trainable_state(layer):
    return [variable.value for variable in layer.non_trainable_variables]


# A stack of two convolutional layers and two dense ones on a grid that is not square, its restatement, and values.


def random_stack(iterations, schedule="concurrent", pose=(3, 3), **options):
    stack = CapsuleStack(
        [
            AttentionConvCapsules(3, (3, 2), (2, 1), dtype="float64", **options),
            AttentionConvCapsules(4, 2, dtype="float64", **options),
            AttentionDenseCapsules(3, dtype="float64", **options),
            AttentionDenseCapsules(2, dtype="float64", **options),
        ],
        iterations,
        schedule,
        dtype="float64",
    )
    rng = np.random.default_rng(0)
    children = rng.normal(size=(2, 6, 5, 2, *pose))
    stack.build(children.shape)
    stack.set_weights([rng.normal(size=weight.shape) for weight in stack.weights])
    return stack, children


def reference_steps(stack):
    def step(layer):
        kernel, gain, bias = (np.array(weight) for weight in layer.weights)
        if isinstance(layer, AttentionConvCapsules):
            return lambda children, parents: attention_reference.conv_step(
                children, parents, kernel, gain, bias, layer.kernel_size, layer.strides
            )
        return lambda children, parents: attention_reference.dense_step(children, parents, kernel, gain, bias)

    return [step(layer) for layer in stack.layers]


@pytest.mark.parametrize("iterations", [1, 2, 3, 5])
@pytest.mark.parametrize("schedule", ["concurrent", "sequential"])
def test_a_stack_agrees_with_its_restatement_capsule_by_capsule(schedule, iterations):
    stack, children = random_stack(iterations, schedule)
    restated = {"concurrent": attention_reference.concurrent, "sequential": attention_reference.sequential}[schedule]
    parents = np.array(stack(children))
    for image, found in zip(children, parents, strict=True):
        expected = restated(reference_steps(stack), image, iterations)[-1]
        np.testing.assert_allclose(found, expected, **within(1e-9))


def test_the_schedules_differ_from_two_iterations_on():
    for iterations in (1, 2, 3):
        concurrent, children = random_stack(iterations, "concurrent")
        sequential, _ = random_stack(iterations, "sequential")
        gap = np.abs(np.array(concurrent(children)) - np.array(sequential(children))).max()
        assert (gap > 1e-3) == (iterations > 1), iterations


def counting_layers(depth, calls):
    def layer(number):
        def step(children, parents):
            calls.append(number)
            return np.tanh(0.7 * children + number) if parents is None else np.tanh(children - 0.9 * parents)

        return step

    return [layer(number) for number in range(depth)]


@pytest.mark.parametrize("iterations", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_concurrent_routing_skips_what_cannot_reach_the_result_and_nothing_else(depth, iterations):
    calls = []
    layers = counting_layers(depth, calls)
    expected = attention_reference.concurrent(layers, 0.3, iterations)[-1]
    calls.clear()
    assert route_concurrently(layers, 0.3, iterations) == expected
    needed = [max(1, iterations - above) for above in reversed(range(depth))]
    assert [calls.count(number) for number in range(depth)] == needed


@pytest.mark.parametrize("schedule", [route_concurrently, route_sequentially])
def test_zero_iterations_are_refused(schedule):
    with pytest.raises(ValueError, match="at least 1 iteration"):
        schedule(counting_layers(1, []), 0.0, 0)


# Invariants


def random_routing(seed=0, n=6, c=7, j=4, pose=(3, 2, 5), dtype="float64", scale=1.0):
    x, y, z = pose
    rng = np.random.default_rng(seed)
    shapes = (n, c, x, y), (c, j, y, z), (n, j, x, z)
    return [(scale * rng.normal(size=shape)).astype(dtype) for shape in shapes]


@pytest.mark.parametrize("scale", [0.01, 1.0, 1e3])
def test_each_child_shares_itself_out_completely(scale):
    weights = np.array(routing_weights(*random_routing(scale=scale)))
    assert weights.shape == (6, 7, 4) and np.all(weights >= 0)
    np.testing.assert_allclose(weights.sum(axis=-1), 1.0, atol=1e-9 if IN_FLOAT64 else 1e-6)
    assert np.ptp(weights) > 1e-8


@pytest.mark.parametrize("group", [1, 2, 3, 6, None])
def test_values_and_gradients_do_not_depend_on_how_many_votes_exist_at_a_time(group):
    inputs = random_routing()
    cotangent = np.random.default_rng(1).normal(size=inputs[2].shape)

    def naive(children, weights, parents):
        votes = ops.einsum("ncxy,cjyz->ncjxz", children, weights)
        agreement = ops.einsum("ncjxz,njxz->ncj", votes, parents) / 15**0.5
        return ops.einsum("ncj,ncjxz->njxz", ops.softmax(agreement, axis=-1) / (1 + 1e-10), votes)

    np.testing.assert_allclose(next_parents(*inputs, group), naive(*inputs), **within(1e-12))
    found = gradients(lambda *inputs: ops.sum(ops.multiply(next_parents(*inputs, group), cotangent)), *inputs)
    expected = gradients(lambda *inputs: ops.sum(ops.multiply(naive(*inputs), cotangent)), *inputs)
    for gradient, reference in zip(found, expected, strict=True):
        np.testing.assert_allclose(gradient, reference, **within(1e-11))


def test_layers_group_positions_by_whole_images_and_the_result_stays():
    all_at_once, children = random_stack(3, votes_at_a_time=2**40)
    one_by_one, _ = random_stack(3, votes_at_a_time=1)
    np.testing.assert_allclose(all_at_once(children), one_by_one(children), **within(1e-11))
    layer = one_by_one.layers[0]
    shape = (30, 12, 3, 3)  # 5 images of 6 positions, 12 children of 3x3
    sizes = {}
    for budget in (1, 6 * 12 * 3 * 9 * 4 * 4, 10**9):
        layer.votes_at_a_time = budget
        sizes[budget] = layer._group(shape, positions=6)
    assert list(sizes.values()) == [6, 6, 30]  # 4 images would fit the second, but only 1 and 5 divide 5


def test_an_image_does_not_depend_on_its_batch_mates():
    stack, children = random_stack(3)
    wild = children.copy()
    wild[1:] *= 1e6
    np.testing.assert_allclose(stack(wild)[0], stack(children[:1])[0], **within(1e-10))


def test_the_order_of_children_does_not_matter():
    children, weights, parents = random_routing()
    order = np.random.default_rng(0).permutation(children.shape[1])
    shuffled = next_parents(children[:, order], weights[order], parents)
    np.testing.assert_allclose(shuffled, next_parents(children, weights, parents), **within(1e-10))


def test_children_of_a_dense_layer_are_taken_by_type_row_and_column():
    # One parent, and weights that pick a single child: child number (1 * 2 + 1) * 3 + 2 is type 1, row 1, column 2.
    layer = AttentionDenseCapsules(1, pose_columns=1)
    children = np.random.default_rng(0).normal(size=(1, 2, 3, 4, 1)).astype("float32")
    layer.build(children.shape)
    kernel = np.zeros((24, 1, 1, 1), "float32")
    kernel[11] = 1.0
    layer.set_weights([kernel])
    assert float(layer(children)[0, 0, 0]) == children[0, 1, 2, 1, 0]


def test_parents_compete_only_at_their_own_position():
    # What the child at column 1 gives to the parents of the left field does not depend on those of the right field.
    layer = AttentionConvCapsules(2, (1, 2), dtype="float64")
    rng = np.random.default_rng(0)
    children, parents = rng.normal(size=(1, 1, 3, 2, 2, 2)), rng.normal(size=(1, 1, 2, 2, 2, 2))
    layer.build(children.shape)
    other = parents.copy()
    other[:, :, 1] = rng.normal(size=other[:, :, 1].shape)
    before, after = np.array(layer(children, parents)), np.array(layer(children, other))
    np.testing.assert_array_equal(before[:, :, 0], after[:, :, 0])
    assert np.abs(before[:, :, 1] - after[:, :, 1]).max() > 1e-3


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_extreme_poses_give_finite_values_and_gradients(scale):
    inputs = random_routing(dtype="float32")
    inputs[0] *= np.float32(scale)
    values = next_parents(*inputs, group=2)
    for value in (values, *gradients(lambda *inputs: ops.sum(next_parents(*inputs, group=2)), *inputs)):
        assert np.all(np.isfinite(np.array(value)))
