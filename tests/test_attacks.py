"""Adversarial images on any backend: signs and steps by hand, and no pixel further than epsilon or out of its range."""

import numpy as np
import pytest
from keras import ops

from caps_tf.attacks import basic_iterative, fgsm
from tests.gradients import gradients


@pytest.fixture
def linear():
    """Two images of 2x3 pixels, labels, and the weights of three classes."""
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(2, 2, 3, 1)).astype("float32")
    images[0, 0, 0], images[0, 0, 1] = 0.0, 1.0
    return images, np.array([2, 0]), rng.normal(size=(6, 3)).astype("float32")


def cross_entropy(images, labels, weights):
    logits = ops.einsum("bp,pc->bc", ops.reshape(images, (len(labels), -1)), weights)
    return -ops.sum(ops.one_hot(labels, 3) * ops.log_softmax(logits))


def test_fgsm_of_a_linear_network_moves_each_pixel_by_the_known_sign(linear):
    images, labels, weights = linear
    [slope] = gradients(lambda x: cross_entropy(x, labels, weights), images)
    # Of a softmax of x W the gradient is W (p - y), here in float64 and by hand.
    logits = images.reshape(2, 6).astype(np.float64) @ weights
    wrongness = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True) - np.eye(3)[labels]
    expected = np.clip(images + 0.1 * np.sign(wrongness @ weights.T).reshape(images.shape), 0, 1)
    attacked = ops.convert_to_numpy(fgsm(images, lambda _: slope, 0.1))
    np.testing.assert_allclose(attacked, expected, atol=1e-6)
    assert float(cross_entropy(attacked, labels, weights)) > float(cross_entropy(images, labels, weights)) + 0.1
    targets = (labels + 1) % 3
    [slope] = gradients(lambda x: -cross_entropy(x, targets, weights), images)
    towards = ops.convert_to_numpy(fgsm(images, lambda _: slope, 0.1))
    assert float(cross_entropy(towards, targets, weights)) < float(cross_entropy(images, targets, weights)) - 0.1


def test_each_step_of_the_basic_iterative_method_asks_for_the_gradient_anew(linear):
    images, _, _ = linear
    epsilons = np.array([0.05, 0.4], "float32")[:, None, None, None]
    peak = np.full(images.shape, 0.45, "float32")

    def gradient(x):
        return ops.convert_to_tensor(peak) - x

    attacked = ops.convert_to_numpy(basic_iterative(images, gradient, epsilons, steps=7))
    expected = images.astype(np.float64)
    for _ in range(7):
        expected = expected + 1.25 * epsilons / 7 * np.sign(peak - expected)
        expected = np.clip(np.clip(expected, images - epsilons, images + epsilons), 0, 1)
    np.testing.assert_allclose(attacked, expected, atol=1e-6)
    assert np.abs(attacked[0] - images[0]).max() > 0.049
    single, sign = basic_iterative(images, gradient, epsilons, steps=1), fgsm(images, gradient, epsilons)
    np.testing.assert_allclose(ops.convert_to_numpy(single), ops.convert_to_numpy(sign), atol=1e-6)


@pytest.mark.parametrize("epsilon", [0.0, 0.03, 1.0])
def test_pixels_stay_within_epsilon_and_between_0_and_1(linear, epsilon):
    images, _, weights = linear
    slope = (weights @ weights.T)[:2].reshape(images.shape)
    for attack in (fgsm, basic_iterative):
        attacked = ops.convert_to_numpy(attack(images, lambda x: slope, epsilon))
        assert attacked.min() >= 0 and attacked.max() <= 1
        assert np.abs(attacked - images).max() <= epsilon + 1e-6
        if epsilon == 0:
            np.testing.assert_array_equal(attacked, images)
