"""Optimisers and schedules: the papers' formulas step by step, and what the flags make of them."""

import itertools
import math
from fractions import Fraction

import keras
import numpy as np
import pytest

from caps_tf.optimizers import Adam, MomentumSGD, RectifiedAdam
from caps_tf.training.config import OPTIMIZERS, SCHEDULES, RunConfig
from caps_tf.training.regime import make_gauges, make_learning_rate, make_momentum, make_optimizer

GRADIENTS = np.random.default_rng(0).normal(size=(12, 3))
START = np.array([1.0, -2.0, 0.5])


def falling(step):
    """A momentum that differs at every step."""
    return 0.9 - 0.02 * keras.ops.cast(step, "float32")


def walk(optimizer, gradients=GRADIENTS, start=START):
    """Where an optimiser takes a weight, after each gradient."""
    weight = keras.Variable(start.astype("float32"))
    path = []
    for gradient in gradients:
        optimizer.apply([keras.ops.convert_to_tensor(gradient.astype("float32"))], [weight])
        path.append(keras.ops.convert_to_numpy(weight))
    return np.array(path)


# Optimisers


def rectified_adam(gradients, start, rate, beta_1, beta_2=0.999, epsilon=1e-8):
    """Algorithm 2 of Liu et al. 2020 in float64, as written; beta_1 is a function of the step, counted from 0."""
    theta, m, v, path = start.copy(), 0.0, 0.0, []
    rho_inf = 2 / (1 - beta_2) - 1
    for t, gradient in enumerate(gradients, start=1):
        beta = beta_1(t - 1)
        m = beta * m + (1 - beta) * gradient
        v = beta_2 * v + (1 - beta_2) * gradient**2
        corrected = m / (1 - beta**t)
        rho = rho_inf - 2 * t * beta_2**t / (1 - beta_2**t)
        if rho > 4:
            adaptive = math.sqrt(1 - beta_2**t) / (np.sqrt(v) + epsilon)
            r = math.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
            theta = theta - rate * r * corrected * adaptive
        else:
            theta = theta - rate * corrected
        path.append(theta)
    return np.array(path)


@pytest.mark.parametrize("beta_2", [0.999, 0.9, 0.65])
def test_rectified_adam_follows_the_papers_algorithm(beta_2):
    expected = rectified_adam(GRADIENTS, START, 0.1, lambda step: 0.9, beta_2)
    np.testing.assert_allclose(walk(RectifiedAdam(0.1, beta_2=beta_2)), expected, rtol=2e-5, atol=1e-6)


def test_rectified_adam_first_goes_along_the_gradient_and_then_adapts():
    # A constant gradient 2 makes the corrected mean 2 and the corrected variance 4. At rate 0.1 each of the first
    # four steps is 0.2; the fifth is 0.1 r_5, for rho_5 is the first to exceed 4.
    path = walk(RectifiedAdam(0.1), gradients=np.full((5, 1), 2.0), start=np.array([3.0]))[:, 0]
    np.testing.assert_allclose(path[:4], [2.8, 2.6, 2.4, 2.2], rtol=1e-6)
    beta_2, rho_inf = Fraction(999, 1000), Fraction(1999)
    rho_4, rho_5 = (rho_inf - 2 * t * beta_2**t / (1 - beta_2**t) for t in (4, 5))
    assert rho_4 < 4 < rho_5 < 5
    r_5 = math.sqrt((rho_5 - 4) * (rho_5 - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho_5))
    assert r_5 == pytest.approx(0.0173, abs=1e-4)
    np.testing.assert_allclose(path[3] - path[4], 0.1 * r_5, rtol=5e-3)


def test_adam_with_a_fixed_momentum_is_kerass():
    np.testing.assert_array_equal(walk(Adam(0.1, beta_1=0.8)), walk(keras.optimizers.Adam(0.1, beta_1=0.8)))


def momentum_sgd(gradients, start, rate, momentum, l2):
    theta, velocity, path = start.copy(), 0.0, []
    for step, gradient in enumerate(gradients):
        velocity = momentum(step) * velocity + gradient + l2 * theta
        theta = theta - rate(step) * velocity
        path.append(theta)
    return np.array(path)


def test_sgd_couples_weight_decay_to_the_gradient_and_a_lower_rate_shortens_the_whole_step():
    # By hand: velocity 2 + 0.5 * 1 = 2.5, theta 1 - 0.25 = 0.75; velocity 0.9 * 2.5 + 2 + 0.375 = 4.625 at a tenth of
    # the rate, theta 0.75 - 0.04625.
    rate = keras.optimizers.schedules.PiecewiseConstantDecay([0], [0.1, 0.01])
    path = walk(MomentumSGD(rate, 0.9, l2=0.5), gradients=np.full((2, 1), 2.0), start=np.array([1.0]))
    np.testing.assert_allclose(path[:, 0], [0.75, 0.70375], rtol=1e-6)


def test_the_momentum_may_be_a_function_of_the_step():
    def momentum(step):
        return 0.9 - 0.02 * step

    expected = rectified_adam(GRADIENTS, START, 0.1, momentum)
    np.testing.assert_allclose(walk(RectifiedAdam(0.1, beta_1=falling)), expected, rtol=2e-5, atol=1e-6)
    expected = momentum_sgd(GRADIENTS, START, lambda step: 0.1, momentum, 0.01)
    np.testing.assert_allclose(walk(MomentumSGD(0.1, falling, l2=0.01)), expected, rtol=2e-5, atol=1e-6)
    theta, m, v, expected = START.copy(), 0.0, 0.0, []
    for t, gradient in enumerate(GRADIENTS, start=1):
        beta = momentum(t - 1)
        m, v = beta * m + (1 - beta) * gradient, 0.999 * v + 0.001 * gradient**2
        theta = theta - 0.1 * math.sqrt(1 - 0.999**t) / (1 - beta**t) * m / (np.sqrt(v) + 1e-7)
        expected.append(theta)
    np.testing.assert_allclose(walk(Adam(0.1, beta_1=falling)), expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("kind, name", [(RectifiedAdam, "beta_1"), (Adam, "beta_1"), (MomentumSGD, "momentum")])
def test_a_saved_model_goes_on_with_the_same_optimiser(tmp_path, kind, name):
    schedule = keras.optimizers.schedules.PolynomialDecay(0.9, 10, 0.5)
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Dense(1)(inputs))
    model.compile(kind(0.05, **{name: schedule}), "mse")
    x, y = GRADIENTS, GRADIENTS[:, :1]
    model.fit(x, y, batch_size=4, epochs=2, verbose=0, shuffle=False)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for each in (model, loaded):
        each.fit(x, y, batch_size=4, epochs=2, verbose=0, shuffle=False)
    for left, right in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("kind, name", [(RectifiedAdam, "beta_1"), (Adam, "beta_1"), (MomentumSGD, "momentum")])
def test_a_schedule_is_asked_once_a_step_not_for_each_variable(kind, name):
    asked = []
    optimizer = kind(0.1, **{name: lambda step: asked.append(step) or 0.9})
    variables = [keras.Variable([1.0]) for _ in range(3)]
    optimizer.build(variables)
    asked.clear()
    optimizer.apply([keras.ops.ones(1)] * 3, variables)
    assert len(asked) == 1 and float(getattr(optimizer, name)) == 0.9


def test_a_beta_that_would_never_be_rectified_is_refused():
    with pytest.raises(ValueError, match="beta_2 must be between 0.6 and 1"):
        RectifiedAdam(beta_2=0.5)


# Schedules


def test_the_defaults_are_adam_with_an_exponential_decay():
    optimizer = make_optimizer(RunConfig(), steps_per_epoch=10)
    assert type(optimizer) is keras.optimizers.Adam and optimizer.beta_1 == 0.9 and optimizer.weight_decay is None
    schedule = make_learning_rate(RunConfig(lrn_rate=0.1, lrn_decay=0.5, lrn_decay_steps=10), steps_per_epoch=10)
    np.testing.assert_allclose([float(schedule(step)) for step in (0, 10, 15)], [0.1, 0.05, 0.1 * 0.5**1.5], rtol=1e-6)


def test_one_cycle_warms_up_a_tenth_of_the_run_and_mirrors_the_momentum():
    config = RunConfig(schedule="one_cycle", lrn_rate=5e-4, momentum=0.9, epoch=20)
    rate, momentum = make_learning_rate(config, 50), make_momentum(config, 50)
    steps = np.array([0, 1, 50, 99, 100, 101, 325, 550, 775, 999, 1000])
    up = steps / 100
    down = 0.5 * (1 + np.cos(np.pi * (steps - 100) / 900))
    expected = np.where(steps < 100, 1e-5 + up * (5e-4 - 1e-5), 1e-5 + down * (5e-4 - 1e-5))
    np.testing.assert_allclose([float(rate(step)) for step in steps], expected, rtol=1e-3, atol=1e-9)
    expected = np.where(steps < 100, 0.9 - 0.09 * up, 0.9 - 0.09 * down)
    np.testing.assert_allclose([float(momentum(step)) for step in steps], expected, rtol=1e-5)


def test_constant_and_steps_without_a_drop_never_change():
    for name in ("constant", "steps"):
        schedule = make_learning_rate(RunConfig(schedule=name, lrn_drop_epochs="", lrn_rate=0.1), steps_per_epoch=10)
        assert {float(schedule(step)) for step in (0, 5, 10**6)} == {float(np.float32(0.1))}


@pytest.mark.parametrize("optimizer, schedule", itertools.product(OPTIMIZERS, SCHEDULES))
def test_every_optimiser_takes_every_schedule(optimizer, schedule):
    common = {"lrn_rate": 0.1, "epoch": 2, "lrn_drop_epochs": "1", "weight_decay": 1e-3}
    config = RunConfig(optimizer=optimizer, schedule=schedule, **common)
    made = make_optimizer(config, steps_per_epoch=6)
    path = walk(made)
    assert np.isfinite(path).all() and (np.abs(path[-1] - START) > 1e-3).all()
    rate = make_gauges(config, 6)["learning_rate"]
    assert float(rate(12)) == pytest.approx(float(keras.ops.convert_to_numpy(made.learning_rate)))


def test_weight_decay_shrinks_weights_without_a_gradient():
    still = np.zeros((1, 3))
    for optimizer in OPTIMIZERS:
        config = RunConfig(optimizer=optimizer, schedule="constant", lrn_rate=0.1, weight_decay=0.01)
        np.testing.assert_allclose(walk(make_optimizer(config, 1), still)[0], START * (1 - 0.1 * 0.01), rtol=1e-6)
