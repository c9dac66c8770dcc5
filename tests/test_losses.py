"""Spread loss and its margin."""

import keras
import numpy as np
import pytest

from caps_tf.losses import MarginSchedule, SpreadLoss, spread_loss


@pytest.mark.parametrize("margin", [0.2, 0.9])
def test_spread_loss_is_equation_3(margin):
    rng = np.random.default_rng(0)
    activations, labels = rng.uniform(size=(6, 5)), rng.integers(5, size=6)
    expected = [
        sum(max(0.0, margin - (row[label] - wrong)) ** 2 for index, wrong in enumerate(row) if index != label)
        for row, label in zip(activations, labels, strict=True)
    ]
    np.testing.assert_allclose(spread_loss(labels, activations, margin), expected, rtol=1e-6)
    np.testing.assert_allclose(SpreadLoss(margin)(labels, activations), np.mean(expected), rtol=1e-5)


def test_a_sure_and_right_answer_costs_nothing():
    assert float(SpreadLoss(0.9)(np.array([1]), np.array([[0.0, 1.0, 0.0]]))) == 0.0


def test_the_default_margin_schedule_is_the_published_one():
    schedule = MarginSchedule()
    for step in (0, 50_000, 200_000, 700_000, 10_000_000):
        expected = 0.2 + 0.79 / (1 + np.exp(-min(10.0, step / 50_000 - 4)))
        np.testing.assert_allclose(schedule(step), expected, rtol=1e-6)


def test_loss_and_schedule_come_back_from_their_config():
    loss = keras.losses.deserialize(keras.losses.serialize(SpreadLoss(0.4)))
    assert loss.get_config() == SpreadLoss(0.4).get_config()
    schedule = MarginSchedule(0.1, 0.5, 100.0)
    again = keras.optimizers.schedules.deserialize(keras.optimizers.schedules.serialize(schedule))
    assert again.get_config() == schedule.get_config()


def test_a_schedule_without_steps_is_refused():
    with pytest.raises(ValueError, match="must be positive"):
        MarginSchedule(steps=0)
