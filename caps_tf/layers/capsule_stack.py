"""Several capsule layers routed together, one after the other or all at once."""

import itertools
from collections.abc import Sequence

import keras

from caps_tf.layers.capsule_layer import LayerCost, RoutingLayer
from caps_tf.routing.health import RoutingStep, RoutingTrace
from caps_tf.routing.inverted_attention import route_concurrently, route_sequentially

SCHEDULES = {"concurrent": route_concurrently, "sequential": route_sequentially}


@keras.saving.register_keras_serializable(package="caps_tf")
class CapsuleStack(RoutingLayer):
    """Routes a stack of capsule layers under the concurrent or the sequential schedule.

    Concurrently, a first pass gives each layer its first parents, and iterations - 1 sweeps update all layers at
    once, each from what the sweep before left of it and of the layer below. What cannot reach the result any more is
    not computed: with two iterations only the highest layer routes twice. Sequentially, each layer finishes its
    iterations before the next begins.

    Args:
        layers: capsule layers from the lowest to the highest; each is called with children, and with children and its
            parents so far, and returns parents (`AttentionConvCapsules`, `AttentionDenseCapsules`, or your own).
        iterations: number of routing iterations, at least 1.
        schedule: "concurrent" or "sequential".
        **kwargs: `keras.layers.Layer` arguments.

    Call arguments:
        children: what the lowest layer routes.

    Returns:
        The parents of the highest layer.

    Raises:
        ValueError: if there are no layers, `iterations` is less than 1, or the schedule is another.

    Example:
        >>> from caps_tf.layers import AttentionConvCapsules, AttentionDenseCapsules
        >>> stack = CapsuleStack([AttentionConvCapsules(8), AttentionDenseCapsules(10)], iterations=2)
        >>> tuple(stack(np.ones((2, 5, 6, 3, 4, 4), "float32")).shape)
        (2, 10, 4, 4)

    References:
        Tsai, Srivastava, Goh, Salakhutdinov, "Capsules with Inverted Dot-Product Attention Routing", ICLR 2020,
        section 3.2.
    """

    def __init__(
        self,
        layers: Sequence[keras.layers.Layer],
        iterations: int = 2,
        schedule: str = "concurrent",
        **kwargs,
    ):
        super().__init__(**kwargs)
        if not layers or iterations < 1:
            raise ValueError(f"a stack needs at least 1 layer and 1 iteration, not {len(layers)} and {iterations}")
        if schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, not {schedule!r}")
        self.layers = list(layers)
        for number, layer in enumerate(layers):  # tf.train.Checkpoint does not look into Keras's lists
            setattr(self, f"layer_{number}", layer)
        self.iterations = iterations
        self.schedule = schedule

    def build(self, input_shape):
        for layer in self.layers:
            if not layer.built:
                layer.build(input_shape)
            input_shape = layer.compute_output_shape(input_shape)

    def call(self, children):
        return SCHEDULES[self.schedule](self.layers, children, self.iterations)

    def routing_trace(self, children) -> dict[str, RoutingTrace]:
        """What each call of each layer does with its children, for gauges of routing health.

        Args:
            children: as in a call, but of a few images only, since all their votes are computed.

        Returns:
            `RoutingTrace` by layer name, for the layers that can trace their steps (`AttentionCapsules`). There is one
            step for each call of a layer by the schedule, with the children of that call.

        Example:
            >>> from caps_tf.layers import AttentionConvCapsules, AttentionDenseCapsules
            >>> layers = [AttentionConvCapsules(8, name="low"), AttentionDenseCapsules(10, name="high")]
            >>> stack, children = CapsuleStack(layers, iterations=2), np.ones((2, 5, 6, 3, 4, 4), "float32")
            >>> _ = stack(children)
            >>> {name: len(trace.steps) for name, trace in stack.routing_trace(children).items()}
            {'low': 1, 'high': 2}
        """
        steps: dict[str, list[RoutingStep]] = {
            layer.name: [] for layer in self.layers if hasattr(layer, "routing_step")
        }

        def recorded(layer):
            def route(children, parents):
                found = layer(children, parents)
                if layer.name in steps:
                    steps[layer.name].append(layer.routing_step(children, parents, found))
                return found

            return route

        SCHEDULES[self.schedule]([recorded(layer) for layer in self.layers], children, self.iterations)
        return {name: RoutingTrace(tuple(found)) for name, found in steps.items()}

    def capsules_of(self, outputs) -> None:
        """Nothing: the stack puts out poses without activations."""

    def layer_cost(self, inputs, outputs) -> LayerCost:
        """Runs the schedule on tokens instead of poses, and writes down who routed what."""
        tokens = itertools.count(1)
        steps: list[tuple[int, int, bool]] = []

        def recorder(number: int):
            def route(children: int, parents: int | None) -> int:
                steps.append((number, children, parents is not None))
                return next(tokens)

            return route

        SCHEDULES[self.schedule]([recorder(number) for number in range(len(self.layers))], 0, self.iterations)
        making, votes, shape = [], [], tuple(inputs[0])
        for layer in self.layers:
            multiplied, elements = layer.votes_cost(shape)
            making.append(multiplied)
            votes.append(elements)
            shape = layer.compute_output_shape(shape)
        # The votes of the same children are made once, and each routing step takes their agreement and weighted sum.
        with_input = sum(making[number] for number, _ in {(number, children) for number, children, _ in steps})
        within = sum(2 * votes[number] for number, _, routed in steps if routed)
        return LayerCost(with_input, within, tuple(votes))

    def compute_output_shape(self, input_shape):
        for layer in self.layers:
            input_shape = layer.compute_output_shape(input_shape)
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "layers": [keras.saving.serialize_keras_object(layer) for layer in self.layers],
            "iterations": self.iterations,
            "schedule": self.schedule,
        }

    @classmethod
    def from_config(cls, config):
        layers = [keras.saving.deserialize_keras_object(layer) for layer in config["layers"]]
        return cls(**{**config, "layers": layers})
