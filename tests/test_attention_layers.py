"""The layers of inverted dot-product attention: shapes, weights, dropout, precision, arguments."""

import numpy as np
import pytest
from keras import ops

from caps_tf.layers import AttentionConvCapsules, AttentionDenseCapsules, CapsuleStack
from tests.compiling import IN_CAMPAIGN
from tests.layer_checks import run_layer_test


@pytest.mark.parametrize(
    "kernel_size, strides, rows, columns, pose",
    [(3, 2, 2, 2, (4, 4)), ((2, 3), (1, 2), 4, 2, (2, 3)), (3, 1, 3, 4, (5,))],
)
def test_attention_conv_capsules(kernel_size, strides, rows, columns, pose, tmp_path):
    run_layer_test(
        lambda **kwargs: AttentionConvCapsules(4, kernel_size, strides, kernel_regularizer="l2", **kwargs),
        (5, 6, 3, *pose),
        [(rows, columns, 4, *pose)],
        tmp_path,
    )


@pytest.mark.parametrize(
    "arguments, children, parents",
    [
        ({}, (3, 4, 2, 3, 3), (5, 3, 3)),
        ({"pose_columns": 2}, (7, 4, 4), (5, 4, 2)),
        ({"pose_columns": 6}, (2, 3, 2, 4), (5, 6)),
        ({"child_pose": (3, 3), "dropout": 0.0}, (7, 9), (5, 3, 3)),
        ({"child_pose": (9,), "pose_columns": 4}, (2, 2, 2, 3, 3), (5, 4)),
    ],
)
def test_attention_dense_capsules(arguments, children, parents, tmp_path):
    run_layer_test(lambda **kwargs: AttentionDenseCapsules(5, **arguments, **kwargs), children, [parents], tmp_path)


@pytest.mark.parametrize("schedule", ["concurrent", pytest.param("sequential", marks=IN_CAMPAIGN)])
def test_capsule_stack(schedule, tmp_path):
    def make(**kwargs):
        layers = [AttentionConvCapsules(3, **kwargs), AttentionConvCapsules(3, 2, **kwargs)]
        return CapsuleStack([*layers, AttentionDenseCapsules(4, **kwargs)], 3, schedule, **kwargs)

    run_layer_test(make, (5, 6, 2, 3, 3), [(4, 3, 3)], tmp_path)


@pytest.mark.parametrize("pose, variance", [((4, 4), 6 / (4 * 27)), ((5,), 6 / (5 * 27))])
def test_weights_start_with_the_published_deviation(pose, variance):
    layer = AttentionConvCapsules(6, 3)
    layer.build((None, 5, 5, 3, *pose))
    assert np.array(layer.kernel).std() == pytest.approx(variance**0.5, rel=0.05)


def test_dropout_acts_in_training_alone_and_before_the_normalisation():
    layer = AttentionDenseCapsules(50, dropout=0.5)
    children = np.random.default_rng(0).normal(size=(2, 8, 4, 4)).astype("float32")
    plain, dropped = np.array(layer(children)), np.array(layer(children, training=True))
    np.testing.assert_array_equal(plain, layer(children, training=False))
    assert np.abs(plain - dropped).max() > 0.1
    np.testing.assert_allclose(dropped.mean(axis=(-2, -1)), 0.0, atol=1e-5)
    np.testing.assert_allclose(dropped.var(axis=(-2, -1)), 1.0, atol=1e-2)


def test_one_element_is_not_normalised():
    layer = AttentionDenseCapsules(3, pose_columns=1)
    layer.build((None, 4, 6))
    assert len(layer.weights) == 1


def test_routing_stays_in_float32_under_half_precision():
    # Poses, weights and parents that bfloat16 holds exactly, and agreements of about a hundred, where it has steps of
    # a half: only the result may be rounded.
    def rounded(array):
        return np.array(ops.cast(ops.cast(array, "bfloat16"), "float32"))

    rng = np.random.default_rng(0)
    children = rounded(5.0 + rng.normal(size=(2, 6, 16)))
    parents = rounded(5.0 + rng.normal(size=(2, 3, 16)))
    full, half = AttentionDenseCapsules(3), AttentionDenseCapsules(3, dtype="mixed_bfloat16")
    for layer in (full, half):
        layer.build(children.shape)
        kernel = np.eye(16) + 0.05 * np.random.default_rng(1).normal(size=full.kernel.shape)
        layer.set_weights([rounded(kernel.astype("float32")), *full.get_weights()[1:]])
    expected = np.array(full(children, parents))
    np.testing.assert_allclose(ops.cast(half(children, parents), "float32"), expected, rtol=2**-8, atol=1e-3)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: AttentionDenseCapsules(0), "at least 1"),
        (lambda: AttentionDenseCapsules(3, pose_columns=0), "at least 1"),
        (lambda: AttentionDenseCapsules(3, dropout=1.0), "less than 1"),
        (lambda: AttentionDenseCapsules(3)(np.ones((2, 4))), "expected poses"),
        (lambda: AttentionConvCapsules(3)(np.ones((2, 4, 4, 4))), "expected poses"),
        (lambda: AttentionConvCapsules(3, 5)(np.ones((2, 4, 4, 2, 4))), "kernel of 5x5"),
        (lambda: AttentionDenseCapsules(3, child_pose=(2, 2))(np.ones((2, 4, 5))), "cannot be read as"),
        (lambda: CapsuleStack([], 1), "at least 1 layer"),
        (lambda: CapsuleStack([AttentionDenseCapsules(3)], 0), "at least 1"),
        (lambda: CapsuleStack([AttentionDenseCapsules(3)], 1, "random"), "concurrent, sequential"),
    ],
)
def test_bad_arguments_get_one_clear_error(make, message):
    with pytest.raises(ValueError, match=message):
        make()
