"""The capsule layers as Keras layers."""

import keras
import numpy as np
import pytest
from keras import ops

from caps_tf.layers import EMClassCapsules, EMConvCapsules, HeinsenRouting, PrimaryCapsules
from tests.compiling import IN_CAMPAIGN
from tests.gradients import gradients
from tests.layer_checks import run_layer_test


def children(rows, columns, types, pose=4):
    return [(rows, columns, types, pose, pose), (rows, columns, types)]


@pytest.mark.parametrize(
    "arguments, rows, columns, pose_shape",
    [({}, 5, 4, (4, 4)), ({"kernel_size": 3, "strides": 2, "pose_shape": (2, 3)}, 2, 1, (2, 3))],
)
def test_primary_capsules(arguments, rows, columns, pose_shape, tmp_path):
    run_layer_test(
        lambda **kwargs: PrimaryCapsules(3, kernel_regularizer="l2", **arguments, **kwargs),
        (5, 4, 6),
        [(rows, columns, 3, *pose_shape), (rows, columns, 3)],
        tmp_path,
    )


@pytest.mark.parametrize(
    "kernel_size, strides, rows, columns, pose, iterations",
    [
        (3, 1, 3, 4, 4, 1),
        (3, 2, 2, 2, 4, 1),
        ((2, 3), (1, 2), 4, 2, 3, 3),
        *(pytest.param(*case, marks=IN_CAMPAIGN) for case in ((3, 1, 3, 4, 4, 3), (3, 2, 2, 2, 4, 3))),
    ],
)
def test_em_conv_capsules(kernel_size, strides, rows, columns, pose, iterations, tmp_path):
    run_layer_test(
        lambda **kwargs: EMConvCapsules(
            4, kernel_size, strides, iterations=iterations, beta_a_initializer="zeros", **kwargs
        ),
        children(5, 6, 3, pose),
        [(rows, columns, 4, pose, pose), (rows, columns, 4)],
        tmp_path,
    )


@pytest.mark.parametrize("coordinate_addition", [True, False])
def test_em_class_capsules(coordinate_addition, tmp_path):
    run_layer_test(
        lambda **kwargs: EMClassCapsules(
            5,
            coordinate_addition=coordinate_addition,
            beta_a_initializer="zeros",
            kernel_regularizer=keras.regularizers.L2(1e-4),
            **kwargs,
        ),
        children(3, 4, 2),
        [(5, 4, 4), (5,)],
        tmp_path,
    )


def test_coordinate_addition_tells_positions_apart():
    poses = np.ones((1, 2, 3, 1, 4, 4), "float32")
    for row, column in [(0, 0), (1, 2)]:
        activations = np.zeros((1, 2, 3, 1), "float32")
        activations[0, row, column] = 1.0
        layer = EMClassCapsules(1, iterations=1, kernel_initializer="zeros")
        pose = np.array(layer((poses, activations))[0])[0, 0]
        expected = np.zeros((4, 4))
        expected[0, 3], expected[1, 3] = (column + 0.5) / 3, (row + 0.5) / 2
        np.testing.assert_allclose(pose, expected, atol=1e-6)


@pytest.mark.parametrize(
    "make, images",
    [
        (lambda **bound: EMConvCapsules(4, 2, beta_a_initializer="zeros", **bound), True),
        (lambda **bound: EMClassCapsules(4, beta_a_initializer="zeros", **bound), True),
        (lambda **bound: HeinsenRouting(3, 3, 3, n_inp=24, n_out=4, **bound), False),
        pytest.param(lambda **bound: HeinsenRouting(3, 3, 3, n_out=4, **bound), False, marks=IN_CAMPAIGN),
    ],
)
def test_values_and_gradients_do_not_depend_on_how_many_images_have_their_votes_at_once(make, images):
    rng = np.random.default_rng(0)
    poses, activations = rng.normal(size=(6, 3, 4, 2, 3, 3)), rng.uniform(size=(6, 3, 4, 2))
    if not images:
        poses, activations = poses.reshape(6, 24, 3, 3), activations.reshape(6, 24)
    inputs = [poses.astype("float32"), activations.astype("float32")]
    order = slice(None) if images else slice(None, None, -1)  # Heinsen's layer takes scores first
    layers = [make(votes_at_a_time=1), make(votes_at_a_time=2**30)]
    for layer in layers:
        layer.build([value.shape for value in inputs[order]])
    layers[1].set_weights(layers[0].get_weights())

    def objective(layer):
        def of(*inputs):
            outputs = layer(inputs[order])[:2]
            return sum(
                ops.sum(ops.sin(ops.cast(ops.arange(ops.size(v)), v.dtype)) * ops.reshape(v, (-1,))) for v in outputs
            )

        return of

    grouped, at_once = ((layer(tuple(inputs[order])), gradients(objective(layer), *inputs)) for layer in layers)
    for found, expected in zip((*grouped[0], *grouped[1]), (*at_once[0], *at_once[1]), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_routing_stays_in_float32_under_half_precision():
    # Variances of about 1e-6 are below what float16 resolves next to 1; they must not collapse to the floor.
    rng = np.random.default_rng(0)
    poses = (1.0 + 1e-3 * rng.normal(size=(1, 3, 3, 4, 4, 4))).astype("float32")
    activations = np.ones((1, 3, 3, 4), "float32")
    full = EMClassCapsules(2, final_lambda=0.1, beta_a_initializer="zeros")
    half = EMClassCapsules(2, final_lambda=0.1, beta_a_initializer="zeros", dtype="mixed_bfloat16")
    for layer in (full, half):
        layer.build((poses.shape, activations.shape))
    half.set_weights(full.get_weights())
    np.testing.assert_allclose(
        np.array(keras.ops.cast(half((poses, activations))[1], "float32")), full((poses, activations))[1], atol=0.02
    )


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: EMConvCapsules(0), "at least 1"),
        (lambda: EMConvCapsules(4, iterations=0), "at least 1"),
        (lambda: PrimaryCapsules(4, kernel_size=0), "must be positive"),
        (lambda: EMConvCapsules(4, 5)([np.ones((1, 3, 3, 2, 4, 4)), np.ones((1, 3, 3, 2))]), "kernel of 5x5"),
        (lambda: EMConvCapsules(4)([np.ones((1, 3, 3, 2, 4, 3)), np.ones((1, 3, 3, 2))]), "expected poses"),
        (lambda: EMConvCapsules(4)([np.ones((1, 3, 3, 2, 4, 4)), np.ones((1, 3, 4, 2))]), "expected poses"),
        (lambda: EMConvCapsules(4)(np.ones((1, 3, 3, 2, 4, 4))), "expected poses"),
        (lambda: EMClassCapsules(4)([np.ones((1, 3, 3, 2, 1, 1)), np.ones((1, 3, 3, 2))]), "two rows"),
    ],
)
def test_bad_arguments_get_one_clear_error(make, message):
    with pytest.raises(ValueError, match=message):
        make()
