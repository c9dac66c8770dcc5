"""Schedules of a training regime run through in another number of steps, which may be chosen once training is compiled."""

from typing import Any

import keras
from keras import ops
from keras.optimizers import schedules

from caps_tf.tensors import Tensor


@keras.saving.register_keras_serializable(package="caps_tf")
class PacedSchedule(schedules.LearningRateSchedule):
    """A schedule whose time runs faster or slower: its value at step s is that of the schedule at `pace` times s.

    Args:
        schedule: a function of the number of steps taken.

    Attributes:
        pace: a variable, one of the optimiser's: a compiled step then reads it anew. None for 1.

    Example:
        >>> paced = PacedSchedule(schedules.PolynomialDecay(1.0, 100, 0.0))
        >>> paced.pace = keras.Variable(10.0, trainable=False)
        >>> [round(float(paced(step)), 3) for step in (0, 5, 10)]
        [1.0, 0.5, 0.0]
    """

    def __init__(self, schedule: schedules.LearningRateSchedule):
        self.schedule = schedule
        self.pace: keras.Variable | None = None

    def __call__(self, step: Tensor | int) -> Tensor:
        if self.pace is None:
            return self.schedule(step)
        return self.schedule(ops.multiply(ops.cast(step, "float32"), ops.convert_to_tensor(self.pace)))

    def get_config(self) -> dict[str, Any]:
        return {"schedule": schedules.serialize(self.schedule)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "PacedSchedule":
        return cls(schedules.deserialize(config["schedule"]))


class Pace:
    """Sets the pace of all schedules of an optimiser at once.

    Example:
        >>> from caps_tf.training.config import RunConfig
        >>> from caps_tf.training.regime import make_optimizer
        >>> pace = Pace()
        >>> config = RunConfig(schedule="steps", lrn_drop_epochs="2", lrn_rate=0.1, optimizer="sgd")
        >>> optimizer = make_optimizer(config, steps_per_epoch=10, timed=pace.of)
        >>> pace.attach(optimizer)
        >>> pace.set(4.0)
        >>> _ = optimizer.iterations.assign(6)
        >>> round(float(optimizer.learning_rate), 3)
        0.01
    """

    def __init__(self):
        self._schedules: list[PacedSchedule] = []
        self._variable: keras.Variable | None = None

    def of(self, schedule: schedules.LearningRateSchedule) -> PacedSchedule:
        """A schedule at this pace."""
        self._schedules.append(PacedSchedule(schedule))
        return self._schedules[-1]

    def attach(self, optimizer: keras.optimizers.Optimizer) -> None:
        """Makes the pace a variable of the optimiser that the schedules are for."""
        inner = getattr(optimizer, "inner_optimizer", optimizer)  # of a loss scale
        self._variable = inner.add_variable((), initializer="ones", dtype="float32", name="pace")
        for schedule in self._schedules:
            schedule.pace = self._variable

    def set(self, value: float) -> None:
        """Steps of the schedules that one step of training takes."""
        assert self._variable is not None, "attach it first"
        self._variable.assign(value)
