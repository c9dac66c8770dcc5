"""Starts a network from the weights of a trained one: fine-tuning, on other data or other classes."""

import os
from contextlib import AbstractContextManager, nullcontext

import keras
from keras import ops

from caps_tf.errors import UserError
from caps_tf.models import from_preset
from caps_tf.models.from_preset import network_of


def start_from(
    network: keras.Model, source: str | os.PathLike[str], scope: AbstractContextManager | None = None
) -> str:
    """Gives a network the weights of a trained one, wherever their names and shapes are the same.

    Layers whose shape depends on the number of classes stay as they were initialised if that number is another.

    Args:
        network: whose weights are set.
        source: see `caps_tf.models.from_preset`.
        scope: in which weights are set: a distribution strategy's.

    Returns:
        What was done, in one line.

    Raises:
        UserError: nothing fits, or there is no such network.

    Example:
        >>> start_from(network, "mine")  # doctest: +SKIP
        'starting from mine: 20 of 22 weights; new are score/kernel, score/bias'
    """
    model = from_preset(source)
    found = {weight.path: weight for weight in network_of(model, model.card).weights}
    fitting: list[keras.Variable] = []
    new: list[keras.Variable] = []
    for weight in network.weights:
        known = found.get(weight.path)
        (new if known is None or tuple(known.shape) != tuple(weight.shape) else fitting).append(weight)
    if not any(weight.trainable for weight in fitting):
        raise UserError(
            f"{source}: no weight of this {model.card.network} fits a {network.name}: give its network's name and sizes "
            "as flags, or another `init_from`"
        )
    with scope or nullcontext():
        for weight in fitting:
            weight.assign(ops.convert_to_numpy(found[weight.path]))
    said = f"starting from {source}: {len(fitting)} of {len(network.weights)} weights"
    return f"{said}; new are {', '.join(weight.path for weight in new)}" if new else said
