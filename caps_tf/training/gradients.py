"""Loss and gradients of a network in two halves: features as TensorFlow runs them, capsules as XLA compiles them."""

from collections.abc import Callable, Sequence
from functools import reduce
from operator import add
from typing import NamedTuple

import keras
import tensorflow as tf

from caps_tf.training.compilation import split_at_routing
from caps_tf.training.factories import LossFunction

Scale = Callable[[tf.Tensor], tf.Tensor]
"""The optimiser's scaling of the loss before the gradient is taken; the identity without a loss scale."""


class Labels(NamedTuple):
    """What scores are compared with.

    Attributes:
        label: int [b], the true classes.
        target: float [b, classes] where labels are soft or two, else None.
        label2: int [b], the other true class where an example has two, else None.
    """

    label: tf.Tensor
    target: tf.Tensor | None
    label2: tf.Tensor | None = None


class LossAndGradients(NamedTuple):
    """What a replica finds out about its part of a batch.

    Attributes:
        loss: sum over its examples, divided by the size of the global batch; without reconstruction and penalties, not
            scaled.
        correct: number of its examples whose true class, or both of them, had the highest score.
        reconstruction: squared error of its examples' reconstructions, as the loss; 0 for a model without.
        gradients: of the scaled loss, weighted reconstruction and penalties, in the order of the model's trainable
            variables.
    """

    loss: tf.Tensor
    correct: tf.Tensor
    reconstruction: tf.Tensor
    gradients: list[tf.Tensor]


def make_gradients(
    model: keras.Model,
    loss_function: LossFunction,
    batch_size: int,
    scale: Scale,
    jit_compile: bool,
    reconstruction: float = 0.0,
) -> Callable[..., LossAndGradients]:
    """Makes a function of a model's inputs, `Labels`, margin and number of replicas to `LossAndGradients`.

    Args:
        model: to scores, or to scores and the squared error of each reconstruction.
        loss_function: loss of each example.
        batch_size: examples in the global batch.
        scale: of the loss.
        jit_compile: whether XLA compiles the capsules' forward and backward pass.
        reconstruction: weight of those errors beside the loss.

    Returns:
        The function; it takes the gradient of features, a penalty on weights among them, by the chain rule.
    """
    features, capsules = split_at_routing(model)
    gradients_of_capsules = _make_gradients_of_capsules(
        capsules, loss_function, batch_size, scale, jit_compile, reconstruction
    )

    def compute(inputs, labels: Labels, margin: tf.Tensor, replicas: float) -> LossAndGradients:
        with tf.GradientTape() as tape:
            made = keras.tree.flatten(features(inputs, training=True))
            penalty = scale(_penalty(features, replicas))
        loss, correct, error, of_capsules, of_made = gradients_of_capsules(made, *labels, margin, replicas)
        of_features = tape.gradient([made, penalty], features.trainable_variables, [of_made, tf.ones_like(penalty)])
        of_features = _or_zeros(of_features, features.trainable_variables)
        variables = features.trainable_variables + capsules.trainable_variables
        gradients = _in_order(model.trainable_variables, variables, of_features + of_capsules)
        return LossAndGradients(loss, correct, error, gradients)

    return compute


def _make_gradients_of_capsules(
    capsules: keras.Model,
    loss_function: LossFunction,
    batch_size: int,
    scale: Scale,
    jit_compile: bool,
    reconstruction: float,
) -> Callable[..., tuple]:
    """The gradient is taken inside, where nothing of the forward pass has to leave what XLA compiles."""

    def route(made, label, target, label2, margin, replicas):
        with tf.GradientTape() as tape:
            tape.watch(made)
            scores, *errors = keras.tree.flatten(capsules(made, training=True))
            losses = loss_function(label if target is None else target, scores, margin)
            loss = tf.reduce_sum(losses) / batch_size
            error = tf.reduce_sum(errors) / batch_size
            objective = scale(loss + reconstruction * error + _penalty(capsules, replicas))
        gradients, of_made = tape.gradient(objective, (capsules.trainable_variables, made))
        correct = tf.reduce_sum(tf.cast(_are_correct(Labels(label, target, label2), scores), tf.float32))
        return loss, correct, error, _or_zeros(gradients, capsules.trainable_variables), _or_zeros(of_made, made)

    compiled = tf.function(route, jit_compile=jit_compile, autograph=False)

    def route_on_replica(*arguments):
        # Replicas cannot agree on the statistics of a batch from inside a function of their own.
        agree = capsules.non_trainable_weights and tf.distribute.has_strategy()
        return (route if agree else compiled)(*arguments)

    return route_on_replica


def _are_correct(labels: Labels, scores: tf.Tensor) -> tf.Tensor:
    """Whether each example's true class had the highest score; of two, whether the two highest are theirs.

    Of equal scores the first counts as the highest, as in `evaluation.predictions.are_right`.
    """
    label, target, label2 = labels
    if target is not None and label2 is not None:
        highest = tf.math.top_k(scores, 2).indices
        return tf.reduce_all(tf.gather(target, highest, batch_dims=1) > 0, axis=-1)
    answer = label if target is None else tf.argmax(target, axis=-1, output_type=label.dtype)
    return tf.equal(tf.argmax(scores, axis=-1, output_type=label.dtype), answer)


def _penalty(half: keras.Model, replicas: float) -> tf.Tensor:
    """A replica's share of the penalties on weights."""
    return tf.add_n(half.losses) / replicas if half.losses else tf.constant(0.0)


def _or_zeros(gradients: Sequence[tf.Tensor | None], sources: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Zero is the gradient of what is not used: Heinsen's betas, with a single iteration."""
    pairs = zip(gradients, sources, strict=True)
    return [tf.zeros_like(source) if gradient is None else gradient for gradient, source in pairs]


def _in_order(wanted: Sequence, variables: Sequence, gradients: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """The gradient of each wanted variable, the sum of both halves where both have it."""
    pairs = list(zip(variables, gradients, strict=True))
    return [reduce(add, [gradient for variable, gradient in pairs if variable is each]) for each in wanted]
