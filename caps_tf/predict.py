"""What a trained network says of images: classes, scores and poses, and a picture of how it routed.

    python -m caps_tf.predict --model=NAME_OR_DIR toy.png photograph.jpg
    python -m caps_tf.predict --model=NAME_OR_DIR --format=json --picture=pictures *.png

NAME_OR_DIR is a trained network's name, or a directory that `python -m caps_tf.export` wrote. Images may be of any kind,
size and colours; what is done to make them fit is said beside the answer. `share` is the softmax of the scores where
they are logits, else a score's part of their sum; neither is calibrated.
"""

from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from caps_tf.errors import UserError
from caps_tf.layers import RoutingLayer
from caps_tf.models.from_preset import network_of
from caps_tf.routing.health import RoutingTrace


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
    outputs = {"scores": network.output, **_class_poses(network, len(model.class_names))}
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
    for layer in reversed(layers):
        weights = _final_weights(layer, children[layer.name])
        if weights is None or (routed is not None and routed.shape[1] != weights.shape[0]):
            break
        routed = weights if routed is None else np.einsum("oj,jc->oc", routed, weights)
        if (grid := _grid_below(network, layer, routed.shape[1])) is not None:
            routed = routed.reshape(len(routed), *grid, -1).sum(axis=-1)
            return np.moveaxis(routed - routed.mean(axis=0), 0, -1)
    raise UserError(f"the parts of {model.card.name} have no positions to draw a `picture` of: leave that out")


def _prepared(model: keras.Model, pixels: np.ndarray):
    return model.get_layer("preparation")(ops.convert_to_tensor(np.asarray(pixels, "float32")))


def _class_poses(network: keras.Model, num_classes: int) -> dict[str, keras.KerasTensor]:
    """The poses of the last routing layer's parents, if these are the classes."""
    layers = [layer for layer in network.layers if isinstance(layer, RoutingLayer)]
    if not layers:
        return {}
    output = layers[-1].output
    capsules = layers[-1].capsules_of(output)
    poses = capsules[0] if capsules else output
    of_classes = hasattr(poses, "shape") and len(poses.shape) >= 3 and poses.shape[1] == num_classes
    return {"poses": poses} if of_classes else {}


def _final_weights(layer: RoutingLayer, children) -> np.ndarray | None:
    """Routing weights [j, c] of a layer's last iteration, times activations; None for parents at several positions."""
    traces = layer.routing_trace(children)
    trace = traces if isinstance(traces, RoutingTrace) else list(traces.values())[-1]
    weights = np.asarray(ops.convert_to_numpy(trace.steps[-1].routing_weights), "float64")
    if trace.child_activations is not None:
        weights = weights * np.asarray(ops.convert_to_numpy(trace.child_activations), "float64")[:, None]
    return weights[0] if len(weights) == 1 else None


def _grid_below(network: keras.Model, layer: RoutingLayer, children: int) -> tuple[int, int] | None:
    """Rows and columns of the last features below a layer whose positions divide its children, up to the routing before."""
    for below in reversed(network.layers[: network.layers.index(layer)]):
        output = below.output[0] if isinstance(below.output, (list, tuple)) else below.output
        if len(output.shape) >= 4:
            rows, columns = output.shape[1:3]
            if rows * columns > 1 and children % (rows * columns) == 0:
                return rows, columns
        if isinstance(below, RoutingLayer):
            return None
    return None


if __name__ == "__main__":
    from caps_tf.commands.predict import run

    run()
