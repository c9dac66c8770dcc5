"""From parameters to parts: the network, the loss and the optimiser that train_val.py and test.py share."""

from collections.abc import Mapping

import keras
import tensorflow as tf

from caps_tf import models
from caps_tf.errors import UserError
from caps_tf.losses import MarginSchedule, spread_loss
from caps_tf.training.config import RunConfig
from caps_tf.training.steps import LossFunction


def make_model(
    config: RunConfig, input_shapes: Mapping[str, tuple[int | None, ...]], num_classes: int
) -> keras.Model:
    """Builds the network that a run trains.

    Args:
        config: the run's parameters.
        input_shapes: shape of each feature that the input pipeline delivers, by name: an example's, without batch.
        num_classes: number of classes.

    Returns:
        A model to scores [b, num_classes], from inputs that have the names of features.

    Raises:
        UserError: if the data lack what the network reads, or images are too small for it.
    """
    if "image" not in input_shapes:
        raise UserError(
            f"{config.network} reads images, but {config.dataset} holds {', '.join(input_shapes)}: "
            "choose another --network or --dataset"
        )
    image_shape = input_shapes["image"]
    if config.network == "cnn_baseline":
        return models.cnn_baseline(
            image_shape, num_classes, dropout=config.dropout, weight_reg=config.weight_reg, dtype=config.precision
        )
    return models.matrix_capsules(
        image_shape,
        num_classes,
        A=config.A,
        B=config.B,
        C=config.C,
        D=config.D,
        iterations=config.iter_routing,
        final_lambda=config.final_lambda,
        epsilon=config.epsilon,
        weight_reg=config.weight_reg,
        dtype=config.precision,
    )


def make_loss(config: RunConfig) -> LossFunction:
    """Returns the loss of each example as a function of labels, scores and margin.

    Cross-entropy takes the scores divided by their sum as probabilities, which a softmax's already are.
    """
    if config.loss == "cross_entropy" or (config.loss == "auto" and config.network == "cnn_baseline"):
        return lambda labels, scores, margin: keras.losses.sparse_categorical_crossentropy(labels, scores)
    return spread_loss


def make_margin_schedule(config: RunConfig) -> MarginSchedule:
    """The margin of the spread loss as a function of the training step."""
    return MarginSchedule(steps=config.margin_steps)


def make_optimizer(config: RunConfig) -> keras.optimizers.Optimizer:
    """Adam with the published exponential decay; with a loss scale if weights are trained in float16."""
    schedule = keras.optimizers.schedules.ExponentialDecay(config.lrn_rate, config.lrn_decay_steps, config.lrn_decay)
    optimizer = keras.optimizers.Adam(schedule)
    if config.precision == "mixed_float16":
        return keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer


def use_jit(config: RunConfig, strategy: tf.distribute.Strategy) -> bool:
    """Whether XLA compiles the training step."""
    if config.jit_compile == "auto":
        return strategy.num_replicas_in_sync == 1
    return config.jit_compile == "on"


def capsule_outputs(model: keras.Model) -> dict[str, tuple[keras.KerasTensor, keras.KerasTensor]]:
    """Poses and activations of each capsule layer of a model, by layer name, in order; empty for a plain CNN."""
    return {
        layer.name: tuple(layer.output)
        for layer in model.layers
        if isinstance(layer.output, (list, tuple)) and len(layer.output) == 2
    }
