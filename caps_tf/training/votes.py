"""What layers choose on the processor that a run computes on, for its log."""

import keras

from caps_tf.costs import votes_by_layer
from caps_tf.layers import RoutingLayer
from caps_tf.processor import Processor


def describe_votes(model: keras.Model, batch_size: int, processor: Processor) -> str:
    """How the layers of a network go through a batch on a processor, for the log; empty without layers that choose.

    Args:
        model: the network.
        batch_size: examples in the batch of one device.
        processor: what it runs on.

    Example:
        >>> from caps_tf.models import matrix_capsules
        >>> describe_votes(matrix_capsules((32, 32, 1), num_classes=5), 64, Processor("cpu", "CPU"))
        'votes of 64 examples: conv_capsules_1 1 at a time, conv_capsules_2 1 at a time, class_capsules 32 at a time'
    """
    try:
        votes = votes_by_layer(model, batch_size)
    except ValueError:  # sentences have any length
        return ""
    chosen = {layer: _choice(layer, batch_size, votes[layer] // batch_size, processor) for layer in votes}
    described = ", ".join(f"{layer.name} {choice}" for layer, choice in chosen.items() if choice)
    return described and f"votes of {batch_size} examples: {described}"


def _choice(layer: RoutingLayer, batch: int, elements: int, processor: Processor) -> str:
    if layer.cached_votes is None:
        return ""
    examples, recompute = layer.groups_on(processor, batch, elements)
    at_a_time = "all at once" if examples in (None, batch) else f"{examples} at a time"
    return at_a_time + (", made again for the gradient" if recompute and examples in (None, batch) else "")
