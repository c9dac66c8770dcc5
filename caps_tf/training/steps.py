"""One step of training and one of evaluation, under any distribution strategy."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from caps_tf.training.compilation import split_at_routing
from caps_tf.training.devices import distribute
from caps_tf.training.factories import LossFunction
from caps_tf.training.gradients import Labels, make_gradients

Batch = Mapping[str, tf.Tensor]
"""By name: the model's inputs, "label" int [b], where labels are soft or two "target" float [b, classes], where they are
two "label2" int [b], and in evaluation "weight" [b], 0 for padding."""


class StepResult(NamedTuple):
    """What a training step reports, over all replicas.

    Attributes:
        loss: mean loss of the global batch, without reconstruction and penalties on weights.
        correct: number of examples whose true class, or both of them, had the highest score.
        reconstruction: mean squared error of the reconstructions, each summed over its image; 0 for a model without.
        gradient_is_finite: float [trainable variables], 1 where no replica saw NaN, infinity, or what squared is.
        stop: positive if any process asked to stop before this step: all of them learn of it at the same step.
    """

    loss: tf.Tensor
    correct: tf.Tensor
    reconstruction: tf.Tensor
    gradient_is_finite: tf.Tensor
    stop: tf.Tensor


def model_inputs(model: keras.Model, batch: Batch) -> tf.Tensor | dict[str, tf.Tensor]:
    """The features of a batch that a model reads, by the names of its inputs: a tensor for one input, else a dict.

    The "target" of a batch whose labels are not soft is all of the true class.

    Example:
        >>> image, mask = keras.Input((2,), name="image"), keras.Input((2,), name="mask")
        >>> batch = {"image": tf.ones((1, 2)), "mask": tf.zeros((1, 2)), "label": tf.constant([0])}
        >>> sorted(model_inputs(keras.Model({"image": image, "mask": mask}, image * mask), batch))
        ['image', 'mask']
        >>> model_inputs(keras.Model(image, image + 1), batch).shape
        TensorShape([1, 2])
    """
    names = [each.name for each in model.inputs]
    if "target" in names and "target" not in batch:
        classes = model.inputs[names.index("target")].shape[-1]
        batch = {**batch, "target": tf.one_hot(batch["label"], classes)}
    return batch[names[0]] if len(names) == 1 else {name: batch[name] for name in names}


def make_train_step(
    strategy: tf.distribute.Strategy,
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    loss_function: LossFunction,
    batch_size: int,
    jit_compile: bool,
    reconstruction: float = 0.0,
) -> Callable[[Batch, tf.Tensor, tf.Tensor], StepResult]:
    """Makes a compiled function of (batch, margin, stop) that takes one optimisation step.

    Losses are summed over a replica's examples and divided by the global batch, and gradients are summed over
    replicas (the optimiser does that), so the step does not depend on how the batch is split.

    A step whose loss or squared gradient is not finite changes no weight by it: zeros go to the optimiser instead, so
    that the weights can still be asked which layer was the first to fail. Float16 has its own answer to that, the
    loss scale.

    Args:
        strategy: what the model and the optimiser were made under.
        model: to scores, or to scores and the squared error of each reconstruction, from inputs that have the names of
            the batch's features.
        optimizer: a built optimiser.
        loss_function: loss of each example.
        batch_size: examples in the global batch.
        jit_compile: whether XLA compiles the capsules' forward and backward pass.
        reconstruction: weight of the reconstructions' errors beside the loss.
    """
    scales_loss = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    scale = optimizer.scale_loss if scales_loss else lambda loss: loss
    gradients_of = make_gradients(model, loss_function, batch_size, scale, jit_compile, reconstruction)
    # The loss scale wants to see NaN, and on every replica: each would otherwise decide for itself to wait or not.
    instead = np.nan if scales_loss else 0.0

    def replica_step(batch: Batch, margin: tf.Tensor, stop: tf.Tensor) -> StepResult:
        replicas = float(tf.distribute.get_replica_context().num_replicas_in_sync)
        labels = Labels(batch["label"], batch.get("target"), batch.get("label2"))
        loss, correct, error, gradients = gradients_of(model_inputs(model, batch), labels, margin, replicas)
        result = _over_replicas(StepResult(loss, correct, error, _are_finite(gradients), stop), replicas)
        losses_finite = tf.math.is_finite(result.loss + result.reconstruction)
        everything_finite = losses_finite & tf.reduce_all(result.gradient_is_finite >= 1.0)
        gradients = [_where(everything_finite, gradient, instead) for gradient in gradients]
        optimizer.apply(gradients, model.trainable_variables)
        return result

    @tf.function(autograph=False)
    def train_step(batch, margin, stop=0.0):
        result = strategy.run(replica_step, args=(batch, margin, tf.convert_to_tensor(stop)))
        return StepResult(*(strategy.experimental_local_results(value)[0] for value in result))

    return train_step


def _are_finite(gradients: Sequence[tf.Tensor]) -> tf.Tensor:
    """1 for each gradient whose squares are finite: where those overflow, Adam's second moment is infinite."""
    squares = [tf.reduce_sum(tf.square(tf.cast(gradient, tf.float32))) for gradient in gradients]
    return tf.cast(tf.math.is_finite(tf.stack(squares)), tf.float32)


def _over_replicas(result: StepResult, replicas: float) -> StepResult:
    """What all replicas found: sums, and for each gradient the share of replicas on which it is finite."""
    if replicas == 1:
        return result
    finite, stop = result.gradient_is_finite / replicas, tf.identity(result.stop)  # on its device
    local = result._replace(gradient_is_finite=finite, stop=stop)
    context = tf.distribute.get_replica_context()
    return StepResult(*context.all_reduce(tf.distribute.ReduceOp.SUM, list(local)))


def _where(condition: tf.Tensor, gradient: tf.Tensor, instead: float) -> tf.Tensor:
    return tf.where(condition, gradient, tf.fill(tf.shape(gradient), tf.cast(instead, gradient.dtype)))


class Scored(NamedTuple):
    """What evaluation knows of a batch, as NumPy arrays with one row an example, padding already removed.

    Attributes:
        outputs: the model's outputs; scores [n, classes] come first.
        losses: [n].
        batch: what the input pipeline knows of the examples (label, azimuth, ...), without the model's inputs.
        stop: whether any process asked to stop before this batch.
    """

    outputs: list[np.ndarray]
    losses: np.ndarray
    batch: dict[str, np.ndarray]
    stop: bool


def make_scorer(
    strategy: tf.distribute.Strategy,
    model: keras.Model,
    loss_function: LossFunction,
    jit_compile: bool = False,
    stop_requested: Callable[[], bool] = lambda: False,
    prepare: Callable[[Batch], Batch] = lambda batch: batch,
) -> Callable[[tf.data.Dataset, float], Iterator[Scored]]:
    """Makes a function of (batches, margin) that yields what the model makes of each batch.

    Args:
        strategy: what the model was made under.
        model: to scores, or to a list of outputs whose first are scores, from inputs that have the names of the
            batch's features.
        loss_function: loss of each example.
        jit_compile: whether XLA compiles the capsules, for each shape of a batch once.
        stop_requested: whether this process wants to stop; asked before each batch.
        prepare: what is done first to each replica's part of a batch.

    Returns:
        A generator function. Each example of weight 1 comes back once, in order.
    """
    names = {each.name for each in model.inputs}
    features, capsules = split_at_routing(model)

    @tf.function(jit_compile=jit_compile, autograph=False)
    def route(read):
        return capsules(read, training=False)

    def replica_step(batch, margin, stop):
        batch = prepare(batch)
        outputs = route(features(model_inputs(model, batch), training=False))
        outputs = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
        losses = loss_function(batch.get("target", batch["label"]), outputs[0], margin)
        context = tf.distribute.get_replica_context()
        if context.num_replicas_in_sync > 1:
            stop = context.all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(stop))
        return outputs, losses, {name: value for name, value in batch.items() if name not in names}, stop

    @tf.function(autograph=False)
    def step(batch, margin, stop):
        return strategy.run(replica_step, args=(batch, margin, stop))

    def on_host(value) -> np.ndarray:
        if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            return strategy.gather(value, axis=0).numpy()
        return np.concatenate([part.numpy() for part in strategy.experimental_local_results(value)])

    def score(batches: tf.data.Dataset, margin: float) -> Iterator[Scored]:
        for batch in distribute(strategy, batches):
            stop = tf.constant(float(stop_requested()))
            outputs, losses, known, stop = step(batch, tf.constant(margin, tf.float32), stop)
            real = on_host(known["weight"]) > 0
            yield Scored(
                [on_host(output)[real] for output in outputs],
                on_host(losses)[real],
                {name: on_host(value)[real] for name, value in known.items()},
                bool(strategy.experimental_local_results(stop)[0].numpy() > 0),
            )

    return score
