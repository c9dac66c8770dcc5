"""What a trained network says of images: classes, scores and poses, and a picture of how it routed.

    python -m caps_tf.predict --model=NAME_OR_DIR toy.png photograph.jpg
    python -m caps_tf.predict --model=NAME_OR_DIR --format=json --picture=pictures *.png

NAME_OR_DIR is a trained network's name, or a directory that `python -m caps_tf.export` wrote. Images may be of any kind,
size and colours; what is done to make them fit is said beside the answer. `share` is the softmax of the scores where
they are logits, else a score's part of their sum; neither is calibrated.
"""

if __name__ == "__main__":  # before Keras is imported, which --model=list does without
    from caps_tf.commands.predict import run

    run()

from collections.abc import Iterator
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from caps_tf.errors import UserError
from caps_tf.layers import RoutingLayer
from caps_tf.models.from_preset import network_of
from caps_tf.routing.health import RoutingTrace
from caps_tf.training.factories import class_poses


class Judgement(NamedTuple):
    """What a network says of images.

    Attributes:
        scores: [n, classes].
        shares: [n, classes], positive, of sum 1.
        poses: [n, classes, elements] of the class capsules; None where there are none.
    """

    scores: np.ndarray
    shares: np.ndarray
    poses: np.ndarray | None


def judge(model: keras.Model, pixels: np.ndarray) -> Judgement:
    """Has a model of `from_preset` judge images that `model.preprocess` has made fit, [n, h, w, c]."""
    network = network_of(model, model.card)
    poses_of_classes = class_poses(network)
    outputs = {"scores": network.output, **({} if poses_of_classes is None else {"poses": poses_of_classes})}
    found = keras.Model(network.input, outputs)(_prepared(model, pixels), training=False)
    found = {name: np.asarray(ops.convert_to_numpy(value), "float64") for name, value in found.items()}
    scores, poses = found["scores"], found.get("poses")
    exponential = (
        np.exp(scores - scores.max(axis=-1, keepdims=True)) if model.card.logits else np.maximum(scores, 1e-12)
    )
    shares = exponential / exponential.sum(axis=-1, keepdims=True)
    return Judgement(scores, shares, None if poses is None else poses.reshape(*scores.shape, -1))


def routing_map(model: keras.Model, pixels: np.ndarray) -> np.ndarray:
    """Where the parts are that a network routes to each class rather than to the others.

    A part's routing weight towards a class times its activation, summed over the parts at a position; of routings in
    sequence the products, summed over all paths. The mean over the classes is taken off, so that positive numbers are
    where more goes to this class than to an average one.

    Args:
        model: of `from_preset`.
        pixels: of one image, [h, w, c], as `model.preprocess` makes them.

    Returns:
        [rows, columns, classes] of the positions of parts.

    Raises:
        UserError: the network routes nothing, or its parts have no positions.
    """
    network = network_of(model, model.card)
    layers = [layer for layer in network.layers if isinstance(layer, RoutingLayer)]
    if not layers:
        raise UserError(f"{model.card.name} routes nothing, so that there is no `picture` of it: leave that out")
    below = keras.Model(network.input, {layer.name: layer.input for layer in layers})
    children = below(_prepared(model, pixels[None]), training=False)
    routed = None
    no_positions = f"the parts of {model.card.name} have no positions to draw a `picture` of: leave that out"
    for layer in reversed(layers):
        for trace, shape in _traces(layer, children[layer.name]):
            weights = _final_weights(trace)
            if weights is None or (routed is not None and routed.shape[1] != weights.shape[0]):
                raise UserError(no_positions)
            routed = weights if routed is None else np.einsum("oj,jc->oc", routed, weights)
            parts = routed.shape[1]
            grid = _grid_below(network, layer, parts) if shape is None else _grid(shape, parts)
            if grid is not None:
                routed = routed.reshape(len(routed), *grid, -1).sum(axis=-1)
                return np.moveaxis(routed - routed.mean(axis=0), 0, -1)
    raise UserError(no_positions)


def _prepared(model: keras.Model, pixels: np.ndarray):
    return model.get_layer("preparation")(ops.convert_to_tensor(np.asarray(pixels, "float32")))


def _traces(layer: RoutingLayer, children) -> Iterator[tuple[RoutingTrace, tuple[int, ...] | None]]:
    """How a layer routes, and None; of a stack each of its layers, the highest first, and the shape of its children."""
    traces = layer.routing_trace(children)
    if isinstance(traces, RoutingTrace):
        yield traces, None
        return
    shapes, shape = {}, tuple(children.shape)
    for each in layer.routing_layers():
        shapes[each.name] = shape
        shape = each.compute_output_shape(shape)
    for name, trace in reversed(list(traces.items())):
        yield trace, shapes[name]


def _final_weights(trace: RoutingTrace) -> np.ndarray | None:
    """Routing weights [j, c] of the last iteration, times activations; None for parents at several positions."""
    weights = np.asarray(ops.convert_to_numpy(trace.steps[-1].routing_weights), "float64")
    if trace.child_activations is not None:
        weights = weights * np.asarray(ops.convert_to_numpy(trace.child_activations), "float64")[:, None]
    return weights[0] if len(weights) == 1 else None


def _grid(shape: tuple[int, ...], children: int) -> tuple[int, int] | None:
    """Rows and columns of features [b, rows, columns, ...] if their positions divide so many children."""
    if len(shape) < 4 or shape[1] * shape[2] == 1 or children % (shape[1] * shape[2]):
        return None
    return shape[1], shape[2]


def _grid_below(network: keras.Model, layer: RoutingLayer, children: int) -> tuple[int, int] | None:
    """Rows and columns of the last features below a layer whose positions divide its children, up to the routing before."""
    for below in reversed(network.layers[: network.layers.index(layer)]):
        output = below.output[0] if isinstance(below.output, (list, tuple)) else below.output
        if (grid := _grid(output.shape, children)) is not None:
            return grid
        if isinstance(below, RoutingLayer):
            return None
    return None
