"""Optimisers that Keras lacks, whose momentum may follow a schedule as the learning rate may."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from caps_tf.tensors import Tensor

Schedule = Callable[[Tensor], Tensor]


class _ScheduledMomentum(keras.optimizers.Optimizer):
    """A momentum that may follow a schedule, which is asked once a step: not once for each variable."""

    _present: float | Tensor | None = None

    def _set_momentum(self, value: float | Schedule | dict[str, Any]) -> None:
        restore = keras.optimizers.schedules.deserialize
        self._momentum: float | Schedule = restore(value) if isinstance(value, dict) else value

    def _present_momentum(self) -> float | Tensor:
        present = self._present
        if present is not None:
            return present
        return self._momentum(self.iterations) if callable(self._momentum) else self._momentum

    def _momentum_config(self) -> float | dict[str, Any]:
        serialize = keras.optimizers.schedules.serialize
        return serialize(self._momentum) if callable(self._momentum) else self._momentum

    def apply(self, grads: list, trainable_variables: list | None = None) -> None:
        self._present = self._present_momentum()
        try:
            super().apply(grads, trainable_variables)
        finally:
            self._present = None


@keras.saving.register_keras_serializable(package="caps_tf")
class RectifiedAdam(_ScheduledMomentum):
    """Adam that holds back while it has seen too few gradients to know their variance.

    With gradient g_t at step t = 1, 2, ..., algorithm 2 of the paper:

        m_t = beta_1 m_(t-1) + (1 - beta_1) g_t,   v_t = beta_2 v_(t-1) + (1 - beta_2) g_t^2
        rho_inf = 2 / (1 - beta_2) - 1,            rho_t = rho_inf - 2 t beta_2^t / (1 - beta_2^t)
        rho_t > 4:  theta -= rate r_t (m_t / (1 - beta_1^t)) sqrt(1 - beta_2^t) / (sqrt(v_t) + epsilon),
                    r_t = sqrt((rho_t - 4) (rho_t - 2) rho_inf / ((rho_inf - 4) (rho_inf - 2) rho_t))
        otherwise:  theta -= rate m_t / (1 - beta_1^t)

    The authors' code and PyTorch rectify where rho_t > 5, with the usual beta_2 one step later than the paper.

    Args:
        learning_rate: a number or a schedule.
        beta_1: decay of the mean of gradients, a number or a schedule: a function of the number of steps taken so far.
            1 - beta_1^t then takes the present value.
        beta_2: decay of the mean of squared gradients, more than 0.6 (below, rho_t never exceeds 4).
        epsilon: keeps the division finite.
        **kwargs: `keras.optimizers.Optimizer` arguments, among them `weight_decay`, which is decoupled from the
            gradient.

    Raises:
        ValueError: if `beta_2` is not between 0.6 and 1.

    Example:
        >>> weight = keras.Variable([1.0])
        >>> optimizer = RectifiedAdam(learning_rate=0.1)
        >>> optimizer.apply([ops.convert_to_tensor([2.0])], [weight])
        >>> ops.convert_to_numpy(weight).round(4)    # the first steps go along the gradient, whatever its size
        array([0.8], dtype=float32)

    References:
        Liu, Jiang, He, Chen, Liu, Gao, Han, "On the Variance of the Adaptive Learning Rate and Beyond", ICLR 2020.
    """

    def __init__(
        self,
        learning_rate: float | Schedule = 1e-3,
        beta_1: float | Schedule = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        name: str = "rectified_adam",
        **kwargs,
    ):
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        if not 0.6 < beta_2 < 1:
            raise ValueError(f"beta_2 must be between 0.6 and 1, not {beta_2}")
        self._set_momentum(beta_1)
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self._rho_inf = 2 / (1 - beta_2) - 1
        # Found here, in double precision: rho_t is a difference of large numbers, and 4 is a close call.
        self._first_rectified = next(
            t for t in itertools.count(1) if self._rho_inf - 2 * t * beta_2**t / (1 - beta_2**t) > 4
        )

    @property
    def beta_1(self) -> float | Tensor:
        """At the present step."""
        return self._present_momentum()

    def build(self, variables: list) -> None:
        if self.built:
            return
        super().build(variables)
        self._means, self._squares = self.add_optimizer_variables(variables, ["mean", "square"])

    def update_step(self, gradient: Tensor, variable: Tensor, learning_rate: Tensor) -> None:
        mean, square = (each[self._get_variable_index(variable)] for each in (self._means, self._squares))
        gradient = ops.cast(gradient, variable.dtype)
        rate = ops.cast(learning_rate, variable.dtype)
        beta_1 = ops.cast(self.beta_1, variable.dtype)
        t = ops.cast(self.iterations + 1, variable.dtype)
        self.assign(mean, beta_1 * mean + (1 - beta_1) * gradient)
        self.assign(square, self.beta_2 * square + (1 - self.beta_2) * ops.square(gradient))
        step = rate * mean / (1 - ops.power(beta_1, t))
        self.assign_sub(variable, step * self._adaptation(t, square))

    def _adaptation(self, t: Tensor, square: Tensor) -> Tensor:
        """r_t sqrt(1 - beta_2^t) / (sqrt(v_t) + epsilon), or 1 while the variance is unknown."""
        remembered = -ops.expm1(t * math.log(self.beta_2))  # 1 - beta_2^t, without cancellation
        rho = ops.maximum(self._rho_inf - 2 * t * (1 - remembered) / remembered, 4.0)
        last = (self._rho_inf - 4) * (self._rho_inf - 2) / self._rho_inf
        rectified = ops.sqrt((rho - 4) * (rho - 2) / (rho * last) * remembered) / (ops.sqrt(square) + self.epsilon)
        return ops.where(t >= self._first_rectified, rectified, ops.ones_like(rectified))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "beta_1": self._momentum_config(),
            "beta_2": self.beta_2,
            "epsilon": self.epsilon,
        }


@keras.saving.register_keras_serializable(package="caps_tf")
class Adam(_ScheduledMomentum, keras.optimizers.Adam):
    """Keras's Adam, with a `beta_1` that may be a schedule: a function of the number of steps taken so far.

    The correction 1 - beta_1^t takes the present value.

    Args:
        learning_rate: a number or a schedule.
        beta_1: decay of the mean of gradients, a number or a schedule.
        **kwargs: `keras.optimizers.Adam` arguments.

    Example:
        >>> optimizer = Adam(beta_1=keras.optimizers.schedules.PolynomialDecay(0.95, 100, 0.85))
        >>> round(float(optimizer.beta_1), 4)
        0.95
    """

    def __init__(self, learning_rate: float | Schedule = 1e-3, beta_1: float | Schedule = 0.9, **kwargs):
        super().__init__(learning_rate, beta_1=beta_1, **kwargs)

    @property
    def beta_1(self) -> float | Tensor:
        """At the present step."""
        return self._present_momentum()

    @beta_1.setter
    def beta_1(self, value: float | Schedule) -> None:
        self._set_momentum(value)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "beta_1": self._momentum_config()}


@keras.saving.register_keras_serializable(package="caps_tf")
class MomentumSGD(_ScheduledMomentum):
    """Stochastic gradient descent with momentum and coupled weight decay, as PyTorch's SGD.

    With gradient g of the loss:

        velocity = momentum velocity + g + l2 theta
        theta -= rate velocity

    It differs from `keras.optimizers.SGD` in two ways. Weight decay is the gradient of l2 |theta|^2 / 2 and passes
    through the velocity; and the rate is not part of the velocity, so that where the rate falls, the whole step
    falls with it.

    Args:
        learning_rate: a number or a schedule.
        momentum: a number or a schedule: a function of the number of steps taken so far.
        l2: coupled weight decay, of all variables.
        **kwargs: `keras.optimizers.Optimizer` arguments.

    Example:
        >>> weight = keras.Variable([1.0])
        >>> optimizer = MomentumSGD(learning_rate=0.1, momentum=0.9, l2=0.5)
        >>> optimizer.apply([ops.convert_to_tensor([2.0])], [weight])
        >>> ops.convert_to_numpy(weight).round(4)
        array([0.75], dtype=float32)
    """

    def __init__(
        self,
        learning_rate: float | Schedule = 0.1,
        momentum: float | Schedule = 0.9,
        l2: float = 0.0,
        name: str = "momentum_sgd",
        **kwargs,
    ):
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self._set_momentum(momentum)
        self.l2 = l2

    @property
    def momentum(self) -> float | Tensor:
        """At the present step."""
        return self._present_momentum()

    def build(self, variables: list) -> None:
        if self.built:
            return
        super().build(variables)
        self._velocities = self.add_optimizer_variables(variables, "velocity")

    def update_step(self, gradient: Tensor, variable: Tensor, learning_rate: Tensor) -> None:
        velocity = self._velocities[self._get_variable_index(variable)]
        momentum = ops.cast(self.momentum, variable.dtype)
        self.assign(velocity, momentum * velocity + ops.cast(gradient, variable.dtype) + self.l2 * variable)
        self.assign_sub(variable, ops.cast(learning_rate, variable.dtype) * velocity)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "momentum": self._momentum_config(), "l2": self.l2}
