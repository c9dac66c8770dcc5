"""What XLA compiles of a network: everything from its first routing on.

XLA fuses what routing does between its contractions. Of convolutions and dense layers it makes one call each, as
TensorFlow does without it, but to slower code on CPUs: compiled as a whole, a training step of the convolutional
baseline took 1.5 times as long on two cores, and one of the attention network 1.15 times.
"""

from typing import NamedTuple

import keras

from caps_tf.layers import RoutingLayer
from caps_tf.tensors import is_among


class Halves(NamedTuple):
    """A network cut in two.

    Attributes:
        features: from the network's inputs to what its first routing reads, a list of tensors.
        capsules: from those tensors to the network's outputs.
    """

    features: keras.Model
    capsules: keras.Model


def split_at_routing(model: keras.Model) -> Halves:
    """Cuts a functional model before its first routing: what depends on routing is capsules, all else features.

    Both halves share the model's layers. A model without routing is all features.

    Example:
        >>> from caps_tf.models import matrix_capsules
        >>> model = matrix_capsules((32, 32, 1), num_classes=5)
        >>> features, capsules = split_at_routing(model)
        >>> [layer.name for layer in features.layers][1:], [layer.name for layer in capsules.layers][2:]
        (['input_norm', 'relu_conv1', 'primary_capsules'], ['conv_capsules_1', 'conv_capsules_2', 'class_capsules'])
    """
    outputs = keras.tree.flatten(model.output)
    routed: list[keras.KerasTensor] = []
    read: list[keras.KerasTensor] = []
    for operation in model.operations:  # layers and functions of tensors, in the order in which they are called
        inputs = keras.tree.flatten(operation.input)
        if isinstance(operation, RoutingLayer) or any(is_among(tensor, routed) for tensor in inputs):
            read += [tensor for tensor in inputs if not is_among(tensor, routed + read)]
            routed += keras.tree.flatten(operation.output)
    if routed:
        read += [tensor for tensor in outputs if not is_among(tensor, routed + read)]
        # Keras wants something between a model's input and its output, and each output once.
        distinct: list[keras.KerasTensor] = []
        for tensor in outputs:
            distinct.append(tensor if is_among(tensor, routed) and not is_among(tensor, distinct) else _same(tensor))
        capsules = keras.Model(read, keras.tree.pack_sequence_as(model.output, distinct))
        return Halves(keras.Model(model.input, read), capsules)
    same = [keras.Input(batch_shape=output.shape, dtype=output.dtype) for output in outputs]
    return Halves(keras.Model(model.input, outputs), keras.Model(same, keras.tree.pack_sequence_as(model.output, same)))


def _same(tensor: keras.KerasTensor) -> keras.KerasTensor:
    return keras.layers.Identity(dtype=tensor.dtype)(tensor)
