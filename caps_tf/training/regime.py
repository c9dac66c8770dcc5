"""From parameters to the training regime: learning rate, momentum, margin and optimiser, as functions of the step."""

from collections.abc import Callable

import keras
from keras.optimizers import schedules

from caps_tf.losses import MarginSchedule
from caps_tf.networks import NETWORKS
from caps_tf.optimizers import Adam, MomentumSGD, RectifiedAdam
from caps_tf.routing.em import inverse_temperature
from caps_tf.training.config import RunConfig

ONE_CYCLE_WARM_UP = 0.1
ONE_CYCLE_ENDS = 1e-5
ONE_CYCLE_MOMENTUM = 0.9


def one_cycle(start: float, peak: float, total_steps: int) -> schedules.CosineDecay:
    """A line from `start` to `peak` over the first tenth of the steps, then half a cosine back to `start`.

    The cycle of L. N. Smith ("A disciplined approach to neural network hyper-parameters: Part 1", 2018), with a
    cosine for its second half.

    Example:
        >>> schedule = one_cycle(0.0, 1.0, total_steps=100)
        >>> [round(float(schedule(step)), 3) for step in (0, 5, 10, 55, 100)]
        [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    warm_up = round(ONE_CYCLE_WARM_UP * total_steps)
    return schedules.CosineDecay(
        start, total_steps - warm_up, alpha=start / peak, warmup_target=peak, warmup_steps=warm_up
    )


def make_learning_rate(config: RunConfig, steps_per_epoch: int) -> schedules.LearningRateSchedule:
    """The learning rate as a function of the number of steps taken.

    Example:
        >>> schedule = make_learning_rate(RunConfig(schedule="steps", lrn_rate=0.1, lrn_drop_epochs="2,3"), 10)
        >>> [round(float(schedule(step)), 4) for step in (0, 19, 20, 29, 30)]
        [0.1, 0.1, 0.01, 0.01, 0.001]
    """
    rate, drops = config.lrn_rate, config.drop_epochs()
    if config.schedule == "one_cycle":
        return one_cycle(ONE_CYCLE_ENDS, rate, config.epoch * steps_per_epoch)
    if config.schedule == "steps" and drops:
        # Keras's boundaries are the last steps before a change.
        boundaries = [epoch * steps_per_epoch - 1 for epoch in drops]
        return schedules.PiecewiseConstantDecay(boundaries, [rate / 10**drop for drop in range(len(drops) + 1)])
    if config.schedule == "exponential":
        return schedules.ExponentialDecay(rate, config.lrn_decay_steps, config.lrn_decay)
    # A constant schedule and not a number, which a checkpoint would bring back in spite of another --lrn_rate.
    return schedules.ExponentialDecay(rate, decay_steps=1, decay_rate=1.0)


def make_momentum(config: RunConfig, steps_per_epoch: int) -> float | schedules.LearningRateSchedule:
    """The momentum: a number, or with one_cycle a function of the number of steps taken.

    Example:
        >>> schedule = make_momentum(RunConfig(schedule="one_cycle", epoch=10), steps_per_epoch=10)
        >>> [round(float(schedule(step)), 3) for step in (0, 10, 55, 100)]
        [0.9, 0.81, 0.855, 0.9]
    """
    if config.schedule == "one_cycle" and config.momentum:
        return one_cycle(config.momentum, ONE_CYCLE_MOMENTUM * config.momentum, config.epoch * steps_per_epoch)
    return config.momentum


def make_optimizer(
    config: RunConfig,
    steps_per_epoch: int,
    timed: Callable[[schedules.LearningRateSchedule], schedules.LearningRateSchedule] = lambda schedule: schedule,
) -> keras.optimizers.Optimizer:
    """The optimiser of a run; with a loss scale if weights are trained in float16.

    Args:
        config: the run's parameters.
        steps_per_epoch: steps in an epoch.
        timed: what is made of each schedule, to run it at another pace.

    Example:
        >>> make_optimizer(RunConfig(optimizer="radam", schedule="one_cycle"), steps_per_epoch=100).name
        'rectified_adam'
    """
    rate, momentum = timed(make_learning_rate(config, steps_per_epoch)), make_momentum(config, steps_per_epoch)
    if callable(momentum):
        momentum = timed(momentum)
    if config.optimizer == "sgd":
        optimizer = MomentumSGD(rate, momentum, l2=config.weight_decay)
    else:
        kinds = {"adam": Adam if callable(momentum) else keras.optimizers.Adam, "radam": RectifiedAdam}
        optimizer = kinds[config.optimizer](rate, beta_1=momentum, weight_decay=config.weight_decay or None)
    if config.precision == "mixed_float16":
        return keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer


def make_margin_schedule(config: RunConfig) -> MarginSchedule:
    """The margin of the spread loss as a function of the training step."""
    return MarginSchedule(steps=config.margin_steps)


def make_gauges(config: RunConfig, steps_per_epoch: int) -> dict[str, Callable[[int], float]]:
    """The quantities of the regime that a run logs, as functions of the step; only those that this run has.

    Example:
        >>> sorted(make_gauges(RunConfig(), steps_per_epoch=10))
        ['inverse_temperature', 'learning_rate', 'margin']
        >>> sorted(make_gauges(RunConfig(network="cnn_baseline", schedule="one_cycle"), steps_per_epoch=10))
        ['learning_rate', 'momentum']
    """
    gauges = {"learning_rate": make_learning_rate(config, steps_per_epoch)}
    momentum = make_momentum(config, steps_per_epoch)
    if callable(momentum):
        gauges["momentum"] = momentum
    if config.uses_spread_loss:
        gauges["margin"] = make_margin_schedule(config)
    if "final_lambda" in NETWORKS[config.network].flags:
        final = inverse_temperature(config.routing_iterations - 1, config.final_lambda)
        gauges["inverse_temperature"] = lambda step: final
    return gauges
