"""Spread loss with the schedule of its margin, and the margin loss."""

import keras
from keras import ops

from caps_tf.tensors import Tensor


@keras.saving.register_keras_serializable(package="caps_tf")
class MarginSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """Margin of the spread loss over training: low + span sigmoid(min(10, step / steps - 4)).

    The defaults are the published ones (Hinton et al. 2018, section 3, name only its start 0.2 and end 0.9;
    the published code of Gritzman 2019 has this curve): half way at step 200,000. A shorter run needs smaller
    `steps`, otherwise the margin never leaves its start.

    Args:
        low: margin that the schedule starts from (0.2 + 0.79 sigmoid(-4) = 0.214 at step 0).
        span: how much is added in the end.
        steps: training steps in one unit of the sigmoid's argument.

    Example:
        >>> schedule = MarginSchedule(steps=100)
        >>> [round(float(schedule(step)), 3) for step in (0, 400, 2000)]
        [0.214, 0.595, 0.99]
    """

    def __init__(self, low: float = 0.2, span: float = 0.79, steps: float = 50_000.0):
        if steps <= 0:
            raise ValueError(f"steps must be positive, not {steps}")
        self.low = low
        self.span = span
        self.steps = steps

    def __call__(self, step: Tensor | int) -> Tensor:
        """Margin at a training step, a float32 scalar."""
        units = ops.cast(step, "float32") / self.steps - 4.0
        return self.low + self.span * ops.sigmoid(ops.minimum(units, 10.0))

    def get_config(self) -> dict[str, float]:
        return {"low": self.low, "span": self.span, "steps": self.steps}


def spread_loss(labels: Tensor, activations: Tensor, margin: Tensor | float) -> Tensor:
    """Spread loss of each example: sum over wrong classes of max(0, m - (a_t - a_i))^2.

    Hinton, Sabour, Frosst, "Matrix capsules with EM routing" (ICLR 2018), equation 3.

    Args:
        labels: int [b], the true classes t; or [b, classes], 1 for each of several true classes, whose losses add up.
        activations: float [b, classes], between 0 and 1.
        margin: m, how far the true class must be ahead.

    Returns:
        [b], in the dtype of `activations`.

    Raises:
        ValueError: if `labels` have a second axis that is not that of classes.

    Example:
        >>> import numpy as np
        >>> spread_loss(np.array([0]), np.array([[0.5, 0.4, 0.1]]), 0.2).numpy().round(4)
        array([0.01])
    """
    if _are_targets(labels, activations):
        return _spread_loss_of_several(ops.cast(labels, activations.dtype), activations, margin)
    is_target = ops.one_hot(labels, activations.shape[-1], dtype=activations.dtype)
    target = ops.sum(is_target * activations, axis=-1, keepdims=True)
    shortfall = ops.relu(ops.cast(margin, activations.dtype) - (target - activations))
    return ops.sum((1.0 - is_target) * ops.square(shortfall), axis=-1)


def _spread_loss_of_several(is_target: Tensor, activations: Tensor, margin: Tensor | float) -> Tensor:
    ahead = activations[:, :, None] - activations[:, None, :]
    shortfall = ops.square(ops.relu(ops.cast(margin, activations.dtype) - ahead))
    return ops.einsum("bt,bj,btj->b", is_target, 1.0 - is_target, shortfall)


@keras.saving.register_keras_serializable(package="caps_tf")
class SpreadLoss(keras.losses.Loss):
    """Spread loss as a Keras loss, for `model.compile`. Labels are classes [b] or [b, 1], or targets [b, classes].

    Args:
        margin: m. Between steps a callback may assign another value to the `margin` variable; see
            `MarginScheduler`.
        **kwargs: `keras.losses.Loss` arguments.

    Example:
        >>> import numpy as np
        >>> round(float(SpreadLoss(margin=0.2)(np.array([0]), np.array([[0.5, 0.4, 0.1]]))), 4)
        0.01
    """

    def __init__(self, margin: float = 0.2, name: str = "spread_loss", **kwargs):
        super().__init__(name=name, **kwargs)
        self.margin = keras.Variable(margin, trainable=False, dtype="float32", name="margin")

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return spread_loss(_labels(y_true, y_pred), y_pred, self.margin)

    def get_config(self) -> dict:
        return {**super().get_config(), "margin": float(ops.convert_to_numpy(self.margin))}


class MarginScheduler(keras.callbacks.Callback):
    """Moves the margin of a compiled `SpreadLoss` along a schedule, one step a batch.

    On Keras's JAX backend a compiled step keeps the margin that it was traced with: there, pass
    `run_eagerly=True` to `model.compile`, or a fixed margin.

    Args:
        loss: the loss given to `model.compile`.
        schedule: a `MarginSchedule`.

    Example:
        >>> loss = SpreadLoss()
        >>> callback = MarginScheduler(loss, MarginSchedule(steps=100))   # model.fit(..., callbacks=[callback])
    """

    def __init__(self, loss: SpreadLoss, schedule: MarginSchedule):
        super().__init__()
        self.loss = loss
        self.schedule = schedule

    def on_train_batch_begin(self, batch, logs=None):
        self.loss.margin.assign(self.schedule(self.model.optimizer.iterations))


def margin_loss(
    labels: Tensor, lengths: Tensor, present: float = 0.9, absent: float = 0.1, down_weighting: float = 0.5
) -> Tensor:
    """Margin loss of each example: sum_k T_k max(0, m+ - |v_k|)^2 + lambda (1 - T_k) max(0, |v_k| - m-)^2.

    Sabour, Frosst, Hinton, "Dynamic Routing Between Capsules" (NeurIPS 2017), equation 4. Each class is judged by itself,
    so that an example may be of several classes. The authors' code takes half of it.

    Args:
        labels: int [b], the true classes, or targets [b, classes] that say which classes are there: T_k is 1 or 0, or a
            share of a blended example.
        lengths: |v_k|, float [b, classes], between 0 and 1.
        present: m+, length from which on a class that is there costs nothing.
        absent: m-, length up to which a class that is not there costs nothing.
        down_weighting: lambda, of classes that are not there.

    Returns:
        [b], in the dtype of `lengths`.

    Raises:
        ValueError: if `labels` have a second axis that is not that of classes.

    Example:
        >>> import numpy as np
        >>> lengths = np.array([[0.7, 0.5, 0.1]])   # (0.9 - 0.7)^2 + 0.5 (0.5 - 0.1)^2, and (0.9 - 0.5)^2 with both
        >>> [margin_loss(labels, lengths).numpy().round(4).item() for labels in (np.array([0]), np.array([[1, 1, 0]]))]
        [0.12, 0.2]
    """
    labels, lengths = ops.convert_to_tensor(labels), ops.convert_to_tensor(lengths)
    if not _are_targets(labels, lengths):
        labels = ops.one_hot(labels, lengths.shape[-1])
    there = ops.cast(labels, lengths.dtype)
    missing = ops.square(ops.relu(present - lengths))
    excess = ops.square(ops.relu(lengths - absent))
    return ops.sum(there * missing + down_weighting * (1.0 - there) * excess, axis=-1)


@keras.saving.register_keras_serializable(package="caps_tf")
class MarginLoss(keras.losses.Loss):
    """Margin loss as a Keras loss, for `model.compile`. Labels are classes [b] or [b, 1], or targets [b, classes].

    Args:
        present: m+.
        absent: m-.
        down_weighting: lambda.
        **kwargs: `keras.losses.Loss` arguments.

    Example:
        >>> import numpy as np
        >>> round(float(MarginLoss()(np.array([0]), np.array([[0.7, 0.5, 0.1]]))), 4)
        0.12
    """

    def __init__(
        self,
        present: float = 0.9,
        absent: float = 0.1,
        down_weighting: float = 0.5,
        name: str = "margin_loss",
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        self.present = present
        self.absent = absent
        self.down_weighting = down_weighting

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return margin_loss(_labels(y_true, y_pred), y_pred, self.present, self.absent, self.down_weighting)

    def get_config(self) -> dict:
        own = {"present": self.present, "absent": self.absent, "down_weighting": self.down_weighting}
        return {**super().get_config(), **own}


def _are_targets(labels: Tensor, scores: Tensor) -> bool:
    """Whether labels are targets [b, classes], rather than classes [b]."""
    if len(labels.shape) == 1:
        return False
    if len(labels.shape) != 2 or labels.shape[1] not in (None, scores.shape[1]):
        raise ValueError(
            f"labels must be classes [batch] or targets [batch, {scores.shape[-1]}] for {scores.shape[-1]} classes, "
            f"not of shape {tuple(labels.shape)}"
        )
    return True


def _labels(y_true: Tensor, y_pred: Tensor) -> Tensor:
    """Keras's labels as the functions take them: classes [b] of [b] and [b, 1], anything else as it is."""
    if len(y_true.shape) == 1 or (y_true.shape[-1] == 1 and y_pred.shape[-1] != 1):
        return ops.cast(ops.reshape(y_true, (-1,)), "int32")
    return y_true
