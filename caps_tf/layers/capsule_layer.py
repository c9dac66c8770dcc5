"""What the library asks of its layers: what they compute, the capsules that they put out, and how they route."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras

from caps_tf.processor import Processor, processor_of
from caps_tf.routing.grouping import Groups, choose_groups
from caps_tf.routing.health import RoutingTrace

Shape = tuple[int, ...]


class LayerCost(NamedTuple):
    """What a layer multiplies in a forward pass, counted from its shapes and not from its code.

    Attributes:
        with_input: multiplications whose one factor is the layer's input. Where that input needs no gradient, a
            training step takes twice as many instead of three times.
        within: all other multiplications.
        votes: elements of the votes, were they stored; one number for each routing in the layer.
    """

    with_input: int
    within: int = 0
    votes: tuple[int, ...] = ()


def multiplications_of_votes(iterations: int) -> int:
    """How often Gaussian routing multiplies each element of the votes.

    Squares of votes once; means and variances in each M-step; distances in each E-step, of which there is one less, as
    a form in votes and squares: 1 + 2 T + 2 (T - 1).

    Example:
        >>> [multiplications_of_votes(iterations) for iterations in (1, 2, 3)]
        [3, 7, 11]
    """
    return 1 + 2 * iterations + 2 * (iterations - 1)


class CountedLayer(keras.layers.Layer):
    """A layer that counts the multiplications of its contractions; `caps_tf.costs` adds them up."""

    def layer_cost(self, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> LayerCost:
        """Counts the multiplications of a forward pass.

        Args:
            inputs: shapes of the layer's inputs, batch included, all sizes known.
            outputs: shapes of its outputs alike.

        Raises:
            NotImplementedError: unless the class says how.
        """
        raise NotImplementedError(f"{type(self).__name__} does not count its multiplications: define layer_cost")


class CapsuleLayer(CountedLayer):
    """A layer that puts out capsules. Derive from `RoutingLayer` if it routes."""

    def capsules_of(self, outputs) -> tuple | None:
        """Poses [b, ..., x, y] and activations or scores [b, ...] among what a call returned; None without activations.

        Args:
            outputs: what a call returned, tensors or symbolic ones.
        """
        poses, activations = outputs
        return poses, activations


class RoutingLayer(CapsuleLayer):
    """Base class of all layers that route.

    XLA compiles a network from its first routing layer on, the memory check takes the largest votes of one of them, and
    `--routing_gauges` reads their traces. A subclass defines, in addition to what a Keras layer needs,
    `layer_cost`, `routing_trace`, and `capsules_of` if its calls return anything but poses and activations.

    Example:
        >>> from caps_tf.layers import EMConvCapsules, PrimaryCapsules
        >>> isinstance(EMConvCapsules(16), RoutingLayer), isinstance(PrimaryCapsules(8), RoutingLayer)
        (True, False)
    """

    cached_votes: int | None = None
    """Bytes of votes that exist at the same time on a CPU; None for a layer that makes them all, or none."""
    votes_at_a_time: int | None = None
    """What the user wants instead, on any processor."""

    def routing_layers(self) -> Sequence["RoutingLayer"]:
        """The layers that make votes: this one, unless it is made of others."""
        return (self,)

    def groups(self, batch: int | None, elements: int, tensor: Any = None) -> Groups:
        """How the layer goes through its examples on the processor that it runs on, see `choose_groups`.

        Args:
            batch: examples in the batch; None where it is not known.
            elements: numbers in the votes of one example.
            tensor: one that the layer computes with, which may say where it is.
        """
        return self.groups_on(processor_of(tensor), batch, elements)

    def groups_on(self, processor: Processor, batch: int | None, elements: int) -> Groups:
        """How the layer would go through its examples on a processor."""
        assert self.cached_votes is not None, "only layers with a bound go through their examples in groups"
        return choose_groups(batch, elements, processor, self.cached_votes, self.votes_at_a_time)

    def routing_trace(self, *children) -> RoutingTrace | Mapping[str, RoutingTrace]:
        """What each routing iteration does with children, for `caps_tf.routing.health`.

        Args:
            *children: as in a call, but of a few examples only, since all their votes may be computed.

        Raises:
            NotImplementedError: unless the class says how.
        """
        raise NotImplementedError(f"{type(self).__name__} does not trace its routing: define routing_trace")
