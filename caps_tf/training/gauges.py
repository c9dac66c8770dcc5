"""Gauges of a run's health: what its routing does with a few examples, and how far a step moves the weights.

They look at the network from outside, between steps: what is trained, and what is compiled of it, stays as it is.
"""

from collections import defaultdict
from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from caps_tf.layers import RoutingLayer
from caps_tf.routing.health import (
    RoutingTrace,
    activation_deviation,
    activation_mean,
    parents_off,
    parents_on,
    trace_gauges,
    update_ratio,
)
from caps_tf.training.steps import model_inputs

ACTIVATION_GAUGES = (parents_off, parents_on, activation_mean, activation_deviation)

EXAMPLES = 16
"""How many examples routing is looked at with."""


class RunGauges:
    """Reads gauges of a network in training; see docs/GAUGES.md.

    Args:
        model: the network.
        batches: whose first `EXAMPLES` examples routing is looked at with, the same all through the run.

    Example:
        >>> from caps_tf.models import matrix_capsules
        >>> model = matrix_capsules((20, 20, 1), num_classes=2, A=4, B=2, C=2, D=2)
        >>> gauges = RunGauges(model, tf.data.Dataset.from_tensors({"image": np.ones((3, 20, 20, 1), "float32")}))
        >>> gauges.before_step()
        >>> found = gauges.read()
        >>> found["update_ratio/relu_conv1/kernel"], round(found["parents_on/class_capsules"], 3)
        (0.0, 0.0)
    """

    def __init__(self, model: keras.Model, batches: tf.data.Dataset):
        self._model = model
        self._layers = [layer for layer in model.layers if isinstance(layer, RoutingLayer)]
        # One example after the other: votes are large, and of all at once they would be as large as a step's.
        examples = batches.take(1).unbatch().take(EXAMPLES).batch(1, drop_remainder=True)
        self._examples = list(examples) if self._layers else []
        self._measure = tf.function(self._measure_routing, autograph=False)
        self._before: list[np.ndarray] = []

    def before_step(self) -> None:
        """Remembers the weights, which the next step will change."""
        self._before = self._weights()

    def read(self) -> dict[str, float]:
        """The gauges after a step that followed `before_step`, named <gauge>/<layer> and <gauge>/<layer>/<weight>."""
        weights = zip(self._model.trainable_variables, self._before, self._weights(), strict=True)
        ratios = {f"update_ratio/{variable.path}": update_ratio(before, after) for variable, before, after in weights}
        return {name: float(value) for name, value in (self._of_routing() | ratios).items()}

    def _weights(self) -> list[np.ndarray]:
        return [keras.ops.convert_to_numpy(variable) for variable in self._model.trainable_variables]

    def _of_routing(self) -> dict[str, tf.Tensor]:
        found = defaultdict(list)
        for example in self._examples:
            for name, value in self._measure(example).items():
                found[name].append(value)
        gauges: dict[str, tf.Tensor] = {}
        for name, values in found.items():
            gauge, _, layer = name.partition("/")
            values = tf.stack(values)
            if gauge == "activations":
                gauges |= {f"{gauge.__name__}/{layer}": gauge(values) for gauge in ACTIVATION_GAUGES}
            else:
                gauges[name] = tf.reduce_mean(values)
        return gauges

    def _measure_routing(self, example: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Gauges of each routing layer for one example, and the activations of its parents."""
        below = keras.Model(self._model.input, {layer.name: layer.input for layer in self._layers})
        children = below(model_inputs(below, example), training=False)
        gauges: dict[str, tf.Tensor] = {}
        for layer in self._layers:
            traces = layer.routing_trace(children[layer.name])
            for name, trace in ({layer.name: traces} if isinstance(traces, RoutingTrace) else traces).items():
                gauges |= {f"{gauge}/{name}": value for gauge, value in trace_gauges(trace).items()}
                if trace.steps[-1].activations is not None:
                    gauges[f"activations/{name}"] = trace.steps[-1].activations
        return gauges
