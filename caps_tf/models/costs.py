"""What a network must at least compute and move: multiplications and bytes, counted from the shapes of its layers.

The count is of the algorithm and not of a program. It knows the layers that contract (convolutions, dense layers and
the capsule layers); what lies between them can be computed on the way and costs nothing here. With n parent positions
of all images, c children of a parent, j parent types, poses of d = x y elements, and T iterations, the forward pass
multiplies

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
Adam's two means and the weights both ways. Nothing that exists only inside a layer counts, the votes least of all.
"""

import math
from typing import NamedTuple

import keras

from caps_tf.layers import AttentionClassCapsules, CapsuleStack, HeinsenRouting, HeinsenVectorRouting, PrimaryCapsules
from caps_tf.layers.attention_capsules import AttentionCapsules
from caps_tf.layers.capsule_stack import SCHEDULES
from caps_tf.layers.em_capsules import EMCapsules
from caps_tf.models.heinsen_sst import DepthFeatures

Shape = tuple[int, ...]

BYTES = 4
WEIGHT_ACCESSES = 10
"""Of each weight in a training step: two reads, its gradient written and read, and Adam's three read and written."""

# Fitted to what networks were measured to hold, rounded up: benchmarks/README.md.
STARTUP = 10**9
"""Bytes that XLA takes to compile a step, threads, and batches that wait, whatever the network."""
LAYERS_HELD = 3
"""How many times what its layers read and write a step holds at the most: activations, gradients, transposed copies."""
VOTES_HELD = 10
"""How many times one example's votes in the largest layer a step holds: votes, deviations, their gradients."""


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
        `Cost`; layers that it does not know count nothing.

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
    reads_no_weights: set[int] = set()
    for layer in model.layers:
        if isinstance(layer, keras.layers.InputLayer):
            reads_no_weights.update(id(tensor) for tensor in keras.tree.flatten(layer.output))
            continue
        inputs, outputs = ([tensor.shape for tensor in keras.tree.flatten(value)] for value in (layer.input, layer.output))
        first = all(id(tensor) in reads_no_weights for tensor in keras.tree.flatten(layer.input))
        counted = _count_layer(layer, inputs, outputs, batch)
        if counted is None:
            if first:
                reads_no_weights.update(id(tensor) for tensor in keras.tree.flatten(layer.output))
            continue
        with_input, within, layer_votes = counted
        read, written = (sum(math.prod(_known(shape, batch, layer)) for shape in shapes) for shapes in (inputs, outputs))
        weights = sum(math.prod(weight.shape) for weight in layer.trainable_weights)
        forward += with_input + within
        step += with_input * (2 if first else 3) + within * 3
        forward_bytes += BYTES * (read + written + weights)
        step_bytes += BYTES * (read * (2 if first else 3) + 2 * written + WEIGHT_ACCESSES * weights)
        votes += layer_votes
    return Cost(forward, step, forward_bytes, step_bytes, sum(votes), max(votes) // batch)


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


def _count_layer(
    layer: keras.Layer, inputs: list[Shape], outputs: list[Shape], batch: int
) -> tuple[int, int, list[int]] | None:
    """What the forward pass multiplies with the layer's input and within the layer, and the elements of all its votes.

    None for a layer that contracts nothing.
    """
    kinds = {
        keras.layers.Conv2D: _convolution,
        keras.layers.Dense: _dense,
        DepthFeatures: _dense,
        PrimaryCapsules: _primary,
        EMCapsules: _em,
        HeinsenRouting: _heinsen,
        HeinsenVectorRouting: _vectors,
        CapsuleStack: _stack,
    }
    for kind, count in kinds.items():
        if isinstance(layer, kind):
            return count(layer, *([_known(shape, batch, layer) for shape in shapes] for shapes in (inputs, outputs)))
    return None


def _known(shape: Shape, batch: int, layer: keras.Layer) -> Shape:
    if None in shape[1:]:
        raise ValueError(f"layer {layer.name} has shape {shape}: build the model with sizes that are all known")
    return (batch, *shape[1:])


def _convolution(layer, inputs, outputs):
    [[*_, channels]], [output] = inputs, outputs
    return math.prod(output) * channels * math.prod(layer.kernel_size), 0, []


def _dense(layer, inputs, outputs):
    return math.prod(inputs[0]) * layer.units, 0, []


def _primary(layer, inputs, outputs):
    [[*_, channels]] = inputs
    return sum(map(math.prod, outputs)) * channels * layer.kernel_size**2, 0, []


def _em(layer, inputs, outputs):
    (*_, columns), (_batch, rows_below, columns_below, child_types) = inputs
    poses, _ = outputs
    # Convolutional capsules have a kernel; class capsules see all children.
    kernel = getattr(layer, "kernel_size", (rows_below, columns_below))
    votes = math.prod(poses) * math.prod(kernel) * child_types
    return votes * columns, votes * _in_routing(layer.iterations), [votes]


def _in_routing(iterations: int) -> int:
    return 1 + 2 * iterations + 2 * (iterations - 1)


def _heinsen(layer, inputs, outputs):
    _, (*batch, children, rows, columns) = inputs
    parents, columns_out = outputs[1][-3], outputs[1][-1]
    pairs = math.prod(batch) * children * parents
    votes = pairs * rows * columns_out
    least = votes * columns, votes * _in_routing(layer.n_iters)
    if layer.n_inp is None:
        moments = columns + columns * (columns + 1) // 2
        least = min(least, (pairs * rows * moments * (2 * layer.n_iters - 1), 0), key=sum)
    return *least, [votes]


def _vectors(layer, inputs, outputs):
    [[*batch, i, d]], [[*_, j, e]] = inputs, outputs
    examples, combined, judged = math.prod(batch), layer.n_iters, layer.n_iters - 1
    with_input = examples * (i * d + (combined + judged) * i * j * d)
    within = examples * (combined * (j * d + j * d * e) + judged * (j * e * d + j * d))
    return with_input, within, []  # the efficient form has no votes


def _stack(stack, inputs, outputs):
    """Runs the schedule on tokens instead of poses, and writes down who routed what."""
    tokens = iter(range(1, 1000))
    steps: list[tuple[int, int, bool]] = []

    def recorder(number: int):
        def route(children: int, parents: int | None) -> int:
            steps.append((number, children, parents is not None))
            return next(tokens)

        return route

    layers = stack.layers
    SCHEDULES[stack.schedule]([recorder(number) for number in range(len(layers))], 0, stack.iterations)
    sizes, weighed, shape = [], [], inputs[0]
    for layer in layers:
        sizes.append(_attention_votes(layer, shape))
        # The weight of a layer turns the y columns of a child's pose into votes, at all positions at once where they
        # share it.
        positions = math.prod(shape[1:3]) if isinstance(layer, AttentionClassCapsules) else 1
        weighed.append(sizes[-1] * layer.kernel.shape[-2] // positions)
        shape = layer.compute_output_shape(shape)
    voted = {(number, children) for number, children, _ in steps}
    with_input = sum(weighed[number] for number, _ in voted)
    within = sum(2 * sizes[number] for number, _, routed in steps if routed)
    return with_input, within, sizes


def _attention_votes(layer: AttentionCapsules, children: Shape) -> int:
    parents = layer.compute_output_shape(children)
    # Children of a parent: kernel positions and types, or all of them.
    field = math.prod(children[1:4] if isinstance(layer, AttentionClassCapsules) else layer.kernel.shape[:-3])
    return math.prod(parents) * field
