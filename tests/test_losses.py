"""Spread loss and its margin; the margin loss."""

import keras
import numpy as np
import pytest

from caps_tf.losses import MarginLoss, MarginSchedule, MarginScheduler, SpreadLoss, margin_loss, spread_loss


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


def test_the_margin_loss_is_equation_4_for_one_class_and_for_several():
    lengths = np.array([[0.6, 0.3, 0.05], [0.95, 0.2, 0.0], [0.0, 1.0, 0.9]])
    # (0.9 - 0.6)^2 + 0.5 (0.3 - 0.1)^2; 0.5 (0.2 - 0.1)^2; 0.9^2 + 0.5 (0.9^2 + 0.8^2)
    expected = [0.11, 0.005, 1.535]
    one_hot = np.eye(3)[[0, 0, 0]]
    for labels in (np.array([0, 0, 0]), one_hot):
        np.testing.assert_allclose(margin_loss(labels, lengths), expected, rtol=1e-6)
    for labels in (np.array([0, 0, 0]), np.array([[0], [0], [0]]), one_hot):
        np.testing.assert_allclose(MarginLoss()(labels, lengths), 0.55, rtol=1e-6)
    both, none, shares = [1, 1, 0], [0, 0, 0], [0.5, 0, 0]
    # (0.3)^2 + (0.6)^2; 0.5 (0.85^2 + 0.1^2); half of 0.9^2, and 0.5 (0.9^2 + 0.8^2)
    np.testing.assert_allclose(margin_loss(np.array([both, none, shares]), lengths), [0.45, 0.36625, 1.13], rtol=1e-6)
    # m+ 0.7, m- 0.2 and lambda 1: (0.7 - 0.6)^2 + (0.3 - 0.2)^2
    np.testing.assert_allclose(MarginLoss(0.7, 0.2, 1.0)(np.array([0]), lengths[:1]), 0.02, rtol=1e-5)


@pytest.mark.parametrize("make, function", [(MarginLoss, margin_loss), (SpreadLoss, spread_loss)])
def test_labels_of_any_form_mean_the_same_and_a_column_is_not_taken_for_targets(make, function):
    scores, labels = np.random.default_rng(0).uniform(size=(4, 3)), np.array([2, 0, 1, 0])
    losses = [float(make()(each, scores)) for each in (labels, labels[:, None], np.eye(3)[labels])]
    expected = np.array(function(labels, scores, 0.2 if make is SpreadLoss else 0.9)).mean()
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    for wrong in (labels[:, None], np.ones((4, 2))):
        with pytest.raises(ValueError, match=r"classes \[batch\] or targets \[batch, 3\] for 3 classes, not .*4, "):
            function(wrong, scores, 0.9)
    with pytest.raises(ValueError, match="not of shape"):
        make()(np.ones((4, 2)), scores)


def test_loss_and_schedule_come_back_from_their_config():
    margin = MarginLoss(0.8, 0.2, 0.25)
    assert keras.losses.deserialize(keras.losses.serialize(margin)).get_config() == margin.get_config()
    loss = keras.losses.deserialize(keras.losses.serialize(SpreadLoss(0.4)))
    assert loss.get_config() == SpreadLoss(0.4).get_config()
    schedule = MarginSchedule(0.1, 0.5, 100.0)
    again = keras.optimizers.schedules.deserialize(keras.optimizers.schedules.serialize(schedule))
    assert again.get_config() == schedule.get_config()


def test_the_margin_of_a_fit_is_that_of_the_step():
    scores = keras.Input((2,))
    model = keras.Model(scores, keras.layers.Dense(2, "sigmoid", kernel_initializer="zeros")(scores))
    loss, schedule = SpreadLoss(), MarginSchedule(steps=2)
    # The network stays the same: the loss of each epoch, of one step, is that of the step's margin.
    model.compile(keras.optimizers.SGD(0.0), loss, jit_compile=False)
    x, labels = np.array([[0.3, 0.5]]), np.array([0])
    history = model.fit(x, labels, epochs=3, verbose=0, callbacks=[MarginScheduler(loss, schedule)])
    expected = [float(spread_loss(labels, model(x), schedule(step))[0]) for step in range(3)]
    np.testing.assert_allclose(history.history["loss"], expected, rtol=1e-5)
    assert len(set(expected)) == 3


def test_a_schedule_without_steps_is_refused():
    with pytest.raises(ValueError, match="must be positive"):
        MarginSchedule(steps=0)
