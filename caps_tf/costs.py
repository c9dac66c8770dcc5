"""What a network must at least compute and move: multiplications and bytes, counted from the shapes of its layers.

The count is that of the algorithm, not of a program. It covers Keras's convolutions and dense layers, and the layers
that count their own contractions (`CountedLayer`); operations between these can be fused with them and count as free.
With n parent positions of all images, c children of a parent, j parent types, poses of d = x y elements, and T
iterations, the forward pass multiplies

    convolution, dense           outputs x inputs of one output
    votes                        n c j d y        pose [x, y] times weight [y, y]
    EM routing                   n c j d (1 + 2 T + 2 (T - 1)): squares of votes once; means and variances in each
                                 M-step; distances in each E-step, as a form in votes and squares
    Heinsen routing (2019)       the same; with weights that children share also b c j x m (2 T - 1), m = y + y (y + 1) / 2
                                 moments of a pose row, which needs no votes; the least of the two
    vector routing               each of T times i j d + j d + j d e, the sum over inputs first; each of T - 1 times
                                 j e d + j d + i j d, predictions and their scores; once i d, the activations
    attention routing            votes once for the same children, and 2 n c j d for each routing step that the
                                 schedule takes: agreement, and the weighted sum; class capsules weigh sums over positions

A training step takes three times as many: the gradient of a product is two products of its size. Products with the
network's input need only one of them, that of the other factor.

A step must move, in elements of 4 bytes, what these layers read and write: their inputs and outputs forward; inputs
again, gradients of outputs, and gradients of inputs backward; weights forward and backward, their gradients twice, and
Adam's two means and the weights both ways. What exists only inside a layer, such as the votes, does not count.
"""

import functools
import math
from typing import NamedTuple

import keras

from caps_tf.layers.capsule_layer import CountedLayer, LayerCost, RoutingLayer
from caps_tf.routing.grouping import VOTES_HELD
from caps_tf.tensors import is_among

Shape = tuple[int, ...]

BYTES = 4
WEIGHT_ACCESSES = 10
"""Of each weight in a training step: two reads, its gradient written and read, and Adam's three read and written."""

# Fitted to what networks were measured to hold, rounded up: benchmarks/README.md.
STARTUP = 10**9
"""Bytes for XLA's compilation of a step, threads, and queued batches; the same for all networks."""
LAYERS_HELD = 3
"""Peak memory of activations, gradients and transposed copies, as a multiple of what the layers read and write."""


class Cost(NamedTuple):
    """What a network costs.

    Attributes:
        forward: multiplications of the forward pass.
        step: multiplications of a training step.
        forward_bytes: bytes that the forward pass must move.
        step_bytes: bytes that a training step must move.
        votes: elements of all votes, were they stored.
        largest_votes: elements of one example's votes in the layer that has most of them.
    """

    forward: int
    step: int
    forward_bytes: int
    step_bytes: int
    votes: int
    largest_votes: int


def count_costs(model: keras.Model, batch: int) -> Cost:
    """Counts what a functional model costs.

    Args:
        model: of this library's and Keras's layers; all shapes but the batch's known.
        batch: examples in a batch.

    Returns:
        `Cost`; layers that are neither Keras's convolutions or dense layers nor a `CountedLayer` count nothing.

    Raises:
        ValueError: if a shape that is needed is not known.

    Example:
        >>> from caps_tf.models import matrix_capsules
        >>> cost = count_costs(matrix_capsules((32, 32, 1), num_classes=5, iterations=2), batch=64)
        >>> cost.votes == 64 * 16 * (6 * 6 * 72 * 16 + 4 * 4 * 144 * 16 + 256 * 5)
        True
        >>> cost.step > 2 * cost.forward
        True
    """
    forward = step = forward_bytes = step_bytes = 0
    votes = [0]
    unweighted: list[keras.KerasTensor] = []  # what no weight has touched: no gradient is wanted of it
    for layer in model.layers:
        if isinstance(layer, keras.layers.InputLayer):
            unweighted += keras.tree.flatten(layer.output)
            continue
        inputs, outputs = _shapes(layer)
        first = all(is_among(tensor, unweighted) for tensor in keras.tree.flatten(layer.input))
        counted = _count_layer(layer, inputs, outputs, batch)
        if counted is None:
            if first:
                unweighted += keras.tree.flatten(layer.output)
            continue
        with_input, within, layer_votes = counted
        read, written = (
            sum(math.prod(_known(shape, batch, layer)) for shape in shapes) for shapes in (inputs, outputs)
        )
        weights = sum(math.prod(weight.shape) for weight in layer.trainable_weights)
        forward += with_input + within
        step += with_input * (2 if first else 3) + within * 3
        forward_bytes += BYTES * (read + written + weights)
        step_bytes += BYTES * (read * (2 if first else 3) + 2 * written + WEIGHT_ACCESSES * weights)
        votes += layer_votes
    return Cost(forward, step, forward_bytes, step_bytes, sum(votes), max(votes) // batch)


def votes_by_layer(model: keras.Model, batch: int) -> dict[RoutingLayer, int]:
    """Elements of the votes of each layer that routes, were they stored; a stack's layers each by themselves.

    Raises:
        ValueError: if a shape is not known.

    Example:
        >>> from caps_tf.models import matrix_capsules
        >>> model = matrix_capsules((32, 32, 1), num_classes=5)
        >>> {layer.name: votes // 64 for layer, votes in votes_by_layer(model, batch=64).items()}
        {'conv_capsules_1': 663552, 'conv_capsules_2': 589824, 'class_capsules': 20480}
    """
    found: dict[RoutingLayer, int] = {}
    for layer in model.layers:
        if isinstance(layer, RoutingLayer):
            counted = _count_layer(layer, *_shapes(layer), batch)
            found |= dict(zip(layer.routing_layers(), counted.votes if counted else (), strict=True))
    return found


def estimate_memory(model: keras.Model, batch_size: int) -> int:
    """Bytes that training needs beyond what the process holds before, roughly.

    Args:
        model: the network; all shapes but the batch's known.
        batch_size: examples in a batch.

    Raises:
        ValueError: if a shape is not known.

    Example:
        >>> from caps_tf.models import matrix_capsules
        >>> model = matrix_capsules((32, 32, 1), num_classes=5)
        >>> estimate_memory(model, 256) > estimate_memory(model, 64) > 10**9
        True
    """
    costs = count_costs(model, batch_size)
    return STARTUP + LAYERS_HELD * costs.forward_bytes + VOTES_HELD * BYTES * costs.largest_votes


def _shapes(layer: keras.Layer) -> tuple[list[Shape], list[Shape]]:
    """Shapes of a layer's inputs and of its outputs, flat."""
    inputs, outputs = ([tensor.shape for tensor in keras.tree.flatten(value)] for value in (layer.input, layer.output))
    return inputs, outputs


def _count_layer(layer: keras.Layer, inputs: list[Shape], outputs: list[Shape], batch: int) -> LayerCost | None:
    """What a layer multiplies in the forward pass; None for a layer that contracts nothing."""
    if isinstance(layer, CountedLayer):
        count = layer.layer_cost
    elif isinstance(layer, keras.layers.Conv2D):
        count = functools.partial(_convolution, layer)
    elif isinstance(layer, keras.layers.Dense):
        count = functools.partial(_dense, layer)
    else:
        return None
    return count(*([_known(shape, batch, layer) for shape in shapes] for shapes in (inputs, outputs)))


def _known(shape: Shape, batch: int, layer: keras.Layer) -> Shape:
    if None in shape[1:]:
        raise ValueError(f"layer {layer.name} has shape {shape}: build the model with sizes that are all known")
    return (batch, *shape[1:])


def _convolution(layer: keras.layers.Conv2D, inputs: list[Shape], outputs: list[Shape]) -> LayerCost:
    [[*_, channels]], [output] = inputs, outputs
    return LayerCost(math.prod(output) * channels * math.prod(layer.kernel_size))


def _dense(layer: keras.layers.Dense, inputs: list[Shape], outputs: list[Shape]) -> LayerCost:
    return LayerCost(math.prod(inputs[0]) * layer.units)
