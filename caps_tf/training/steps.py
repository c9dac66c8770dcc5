"""One step of training and one of evaluation, under any distribution strategy."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from caps_tf.training.devices import distribute

LossFunction = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]
"""Labels [b], scores [b, classes] and margin to the loss of each example [b]."""


class StepResult(NamedTuple):
    """What a training step reports, over all replicas.

    Attributes:
        loss: mean loss of the global batch, without penalties on weights.
        correct: number of examples whose true class had the highest score.
        gradient_is_finite: float [trainable variables], 1 where no replica saw NaN or infinity.
    """

    loss: tf.Tensor
    correct: tf.Tensor
    gradient_is_finite: tf.Tensor


def make_train_step(
    strategy: tf.distribute.Strategy,
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    loss_function: LossFunction,
    batch_size: int,
    jit_compile: bool,
) -> Callable[[tf.Tensor, tf.Tensor, tf.Tensor], StepResult]:
    """Makes a compiled function of (images, labels, margin) that takes one optimisation step.

    Losses are summed over a replica's examples and divided by the global batch, and gradients are summed over
    replicas (the optimiser does that), so the step does not depend on how the batch is split.

    A step whose loss or gradient is not finite changes no weight by it: zeros go to the optimiser instead, so that
    the weights can still be asked which layer was the first to fail. Float16 has its own answer to that, the loss
    scale.

    Args:
        strategy: what the model and the optimiser were made under.
        model: from images to scores.
        optimizer: a built optimiser.
        loss_function: loss of each example.
        batch_size: examples in the global batch.
        jit_compile: whether XLA compiles the forward and backward pass. XLA cannot wait for other replicas in the
            middle of a pass, as synchronised batch norm must, so it is for single-replica strategies.
    """
    variables = model.trainable_variables
    scales_loss = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)

    def compute_gradients(images, labels, margin, replicas):
        with tf.GradientTape() as tape:
            scores = model(images, training=True)
            loss = tf.reduce_sum(loss_function(labels, scores, margin)) / batch_size
            penalty = tf.add_n(model.losses) / replicas if model.losses else 0.0
            objective = loss + penalty
            scaled = optimizer.scale_loss(objective) if scales_loss else objective
        gradients = tape.gradient(scaled, variables)
        finite = tf.stack([tf.reduce_all(tf.math.is_finite(gradient)) for gradient in gradients])
        is_correct = tf.equal(tf.argmax(scores, axis=-1, output_type=labels.dtype), labels)
        return loss, tf.reduce_sum(tf.cast(is_correct, tf.float32)), tf.cast(finite, tf.float32), gradients

    if jit_compile:
        compute_gradients = tf.function(compute_gradients, jit_compile=True, autograph=False)

    def replica_step(images, labels, margin):
        context = tf.distribute.get_replica_context()
        replicas = float(context.num_replicas_in_sync)
        loss, correct, finite, gradients = compute_gradients(images, labels, margin, replicas)
        if context.num_replicas_in_sync > 1:
            loss, correct, finite = context.all_reduce(tf.distribute.ReduceOp.SUM, [loss, correct, finite / replicas])
        if not scales_loss:
            everything_finite = tf.math.is_finite(loss) & tf.reduce_all(finite >= 1.0)
            gradients = [tf.where(everything_finite, gradient, tf.zeros_like(gradient)) for gradient in gradients]
        optimizer.apply(gradients, variables)
        return StepResult(loss, correct, finite)

    @tf.function(autograph=False)
    def train_step(images, labels, margin):
        result = strategy.run(replica_step, args=(images, labels, margin))
        return StepResult(*(strategy.experimental_local_results(value)[0] for value in result))

    return train_step


class Scored(NamedTuple):
    """What evaluation knows of a batch, as NumPy arrays with one row an example, padding already removed.

    Attributes:
        outputs: the model's outputs; scores [n, classes] come first.
        losses: [n].
        batch: what the input pipeline told of the examples (label, azimuth, ...), without the images.
    """

    outputs: list[np.ndarray]
    losses: np.ndarray
    batch: dict[str, np.ndarray]


def make_scorer(
    strategy: tf.distribute.Strategy, model: keras.Model, loss_function: LossFunction
) -> Callable[[tf.data.Dataset, float], Iterator[Scored]]:
    """Makes a function of (batches, margin) that yields what the model makes of each batch.

    Args:
        strategy: what the model was made under.
        model: from images to scores, or to a list of outputs whose first are scores.
        loss_function: loss of each example.

    Returns:
        A generator function. Batches hold "image", "label" and "weight" (0 for padding) among others; each example
        of weight 1 comes back once, in order.
    """

    def replica_step(batch, margin):
        outputs = model(batch["image"], training=False)
        outputs = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
        losses = loss_function(batch["label"], outputs[0], margin)
        return outputs, losses, {name: value for name, value in batch.items() if name != "image"}

    @tf.function(autograph=False)
    def step(batch, margin):
        return strategy.run(replica_step, args=(batch, margin))

    def on_host(value) -> np.ndarray:
        if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            return strategy.gather(value, axis=0).numpy()
        return np.concatenate([part.numpy() for part in strategy.experimental_local_results(value)])

    def score(batches: tf.data.Dataset, margin: float) -> Iterator[Scored]:
        for batch in distribute(strategy, batches):
            outputs, losses, told = step(batch, tf.constant(margin, tf.float32))
            real = on_host(told["weight"]) > 0
            yield Scored(
                [on_host(output)[real] for output in outputs],
                on_host(losses)[real],
                {name: on_host(value)[real] for name, value in told.items()},
            )

    return score

