"""What matrix capsules share, however they are routed: weights, votes, receptive fields, costs and traces."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops

from caps_tf.layers.capsule_layer import LayerCost, RoutingLayer, multiplications_of_votes
from caps_tf.layers.convolution import ConvolutionalCapsules
from caps_tf.layers.precision import activations_dtype, routing_dtype
from caps_tf.routing.em import Parents
from caps_tf.routing.grouping import map_groups
from caps_tf.routing.health import RoutingStep, RoutingTrace
from caps_tf.routing.neighbourhood import Neighbourhood
from caps_tf.routing.votes import VoteWeights, coordinate_offsets, pose_columns, vote_weights, votes_of_children
from caps_tf.tensors import Tensor


class MatrixCapsules(RoutingLayer):
    """Matrix capsules whose parents are Gaussians over the votes of their children.

    A subclass says how votes are routed, in `_route_votes`, and takes from a mixin below which children a parent sees.

    Args:
        capsules: number of parent types.
        iterations: number of routing iterations, at least 1.
        votes_at_a_time: bytes of votes that may exist at the same time, whatever the processor; by default what suits
            it, see `choose_groups`. A batch is divided evenly, and one image's votes may be more.
        kernel_initializer: of the weights W; None for what the routing was published with.
        kernel_regularizer: regularizer of the weights W.
        **kwargs: `keras.layers.Layer` arguments.

    Raises:
        ValueError: if `capsules`, `iterations` or `votes_at_a_time` is less than 1.
    """

    return_logits = False
    variance_floor: float | None = None

    def __init__(
        self,
        capsules: int,
        iterations: int,
        votes_at_a_time: int | None,
        kernel_initializer: keras.initializers.Initializer | str | None,
        kernel_regularizer: keras.regularizers.Regularizer | str | None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if capsules < 1 or iterations < 1 or (votes_at_a_time is not None and votes_at_a_time < 1):
            raise ValueError(
                f"capsules, iterations and votes_at_a_time must be at least 1, "
                f"not {capsules}, {iterations} and {votes_at_a_time}"
            )
        self.capsules = capsules
        self.iterations = iterations
        self.votes_at_a_time = votes_at_a_time
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)

    def _add_weights(self, kernel_shape: tuple[int, ...]) -> None:
        """Adds the weights W, [..., i, j, y, z], and what else the routing learns."""
        self.kernel = self.add_weight(
            shape=kernel_shape,
            initializer=self.kernel_initializer or self._published_initializer(kernel_shape),
            regularizer=self.kernel_regularizer,
            name="kernel",
        )

    def _published_initializer(self, kernel_shape: tuple[int, ...]) -> keras.initializers.Initializer:
        """Of the weights W, for a `kernel_initializer` of None."""
        raise NotImplementedError

    def _learned(self, pose_elements: int, dtype: str) -> list[Tensor]:
        """What the routing learns besides W, for votes of so many elements."""
        raise NotImplementedError

    def _route_votes(
        self, votes: Tensor, activations: Tensor, neighbourhood: Neighbourhood, iterations: int, learned: list[Tensor]
    ) -> Parents:
        """Routes votes [b, p, q, j, d, k, i] of children with activations [b, p, q, k, i]."""
        raise NotImplementedError

    def _receptive_fields(self, children) -> tuple[Tensor, Neighbourhood, np.ndarray | None]:
        """Weights [c, j, y, z], which child feeds which parent, and what is added to votes, [d, c] or None."""
        raise NotImplementedError

    def routing_trace(self, children) -> RoutingTrace:
        """What each routing iteration does with children, for gauges of routing health.

        Args:
            children: as in a call, but of a few images only, since all their votes are kept.

        Returns:
            `RoutingTrace` in single precision; n counts parent positions of all images.

        Example:
            >>> from caps_tf.layers import EMConvCapsules
            >>> layer = EMConvCapsules(5, kernel_size=3, iterations=3)
            >>> children = np.ones((2, 4, 4, 8, 4, 4), "float32"), np.ones((2, 4, 4, 8), "float32")
            >>> _ = layer(children)
            >>> trace = layer.routing_trace(children)
            >>> len(trace.steps), tuple(trace.steps[0].votes.shape)   # 2 x 2 positions in 2 images, 3 x 3 x 8 children
            (3, (8, 5, 16, 72))
        """

        def run_iterations(votes, activations, routed):
            found = zip(*(routed(iterations) for iterations in range(1, self.iterations + 1)), strict=True)
            return votes, activations, *(ops.stack(value, axis=1) for value in found)

        votes, active, *found = self._with_votes(run_iterations, children)
        j, d, c = self.capsules, votes.shape[4], math.prod(votes.shape[5:])
        votes = ops.reshape(votes, (-1, j, d, c))
        steps = []
        for iteration in range(self.iterations):
            poses, activations, routing_weights, variances, _ = (value[:, iteration] for value in found)
            steps.append(
                RoutingStep(
                    ops.reshape(routing_weights, (-1, j, c)),
                    votes,
                    ops.reshape(poses, (-1, j, d)),
                    ops.reshape(variances, (-1, j, d)),
                    ops.reshape(activations, (-1, j)),
                )
            )
        return RoutingTrace(tuple(steps), ops.reshape(active, (-1, c)), self.variance_floor)

    def layer_cost(self, inputs, outputs) -> LayerCost:
        (*_, columns), (_, *grid, child_types) = inputs
        # Convolutional capsules have a kernel; class capsules see all children.
        votes = math.prod(outputs[0]) * math.prod(getattr(self, "kernel_size", grid)) * child_types
        return LayerCost(votes * columns, votes * multiplications_of_votes(self.iterations), (votes,))

    def _route(self, children) -> tuple[Tensor, Tensor]:
        """Poses [b, h, w, i, x, y] and activations to those of the parents, [b, p, q, j, d] and [b, p, q, j]."""

        def run(votes, activations, routed):
            parents = routed(self.iterations)
            return parents.poses, parents.logits if self.return_logits else parents.activations

        poses, activations = self._with_votes(run, children)
        return ops.cast(poses, self.compute_dtype), ops.cast(activations, activations_dtype(self))

    def compute_output_spec(self, *args, **kwargs):
        poses, activations = super().compute_output_spec(*args, **kwargs)
        return poses, keras.KerasTensor(activations.shape, activations_dtype(self))

    def _with_votes(self, use: Callable[..., tuple[Tensor, ...]], children) -> tuple[Tensor, ...]:
        """What `use` makes of votes, activations and the parents after so many iterations.

        Nothing needs the votes of two images at once: they are made, routed and, for the gradient, made again for a
        few images at a time, so that they stay in the processor's cache.
        """
        kernel, neighbourhood, offsets = self._receptive_fields(children)
        precision = routing_dtype(self)
        poses, activations = (ops.cast(neighbourhood.gather(tensor), precision) for tensor in children)
        b, p, q, k, i = ops.shape(activations)
        pose_shape, capsules = poses.shape[-2:], self.capsules
        columns = pose_columns(ops.reshape(poses, (b, p * q, k * i, *pose_shape)))
        weights = vote_weights(ops.cast(kernel, precision))
        learned = self._learned(pose_shape[0] * kernel.shape[-1], precision)

        def route(columns, activations, weights: VoteWeights, learned):
            columns = [ops.reshape(column, (-1, *column.shape[2:])) for column in columns]
            votes = votes_of_children(columns, weights)
            if offsets is not None:
                votes = votes + ops.cast(offsets, precision)
            votes = ops.reshape(votes, (-1, p, q, capsules, votes.shape[2], k, i))

            def routed(iterations: int) -> Parents:
                return self._route_votes(votes, activations, neighbourhood, iterations, learned)

            return use(votes, activations, routed)

        elements = p * q * k * i * capsules * pose_shape[0] * kernel.shape[-1]
        groups = self.groups(poses.shape[0], elements, poses)
        return map_groups(route, (columns, activations), (weights, learned), *groups)

    def get_config(self):
        return {
            **super().get_config(),
            "capsules": self.capsules,
            "iterations": self.iterations,
            "votes_at_a_time": self.votes_at_a_time,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
        }


if TYPE_CHECKING:  # what the mixins are put before
    _Host = MatrixCapsules
else:
    _Host = object


class KernelOfChildren(ConvolutionalCapsules, _Host):
    """Mixin for `MatrixCapsules` whose parents see a kernel of child positions; put it before them.

    Args:
        capsules: number of parent types.
        kernel_size: side of the receptive field in child positions, or (rows, columns).
        strides: child positions between neighbouring receptive fields, or (rows, columns).
        **kwargs: arguments of the layer's other bases.
    """

    def build(self, input_shape):
        poses_shape = check_children(input_shape)
        child_types, pose_size = poses_shape[3], poses_shape[5]
        kernel_positions = self.kernel_size[0] * self.kernel_size[1]
        self._add_weights((kernel_positions, child_types, self.capsules, pose_size, pose_size))

    def call(self, children):
        pose_shape = children[0].shape[-2:]
        poses, activations = self._route(children)
        return ops.reshape(poses, (*ops.shape(activations), *pose_shape)), activations

    def _receptive_fields(self, children):
        kernel = ops.reshape(ops.convert_to_tensor(self.kernel), (-1, *self.kernel.shape[2:]))
        return kernel, self._neighbourhood(children[0].shape), None

    def compute_output_shape(self, input_shape):
        poses_shape = check_children(input_shape)
        activations = (poses_shape[0], *self._neighbourhood(poses_shape).parents, self.capsules)
        return (*activations, *poses_shape[-2:]), activations


class AllChildren(_Host):
    """Mixin for `MatrixCapsules` with one parent position that sees all children; put it before them.

    All positions share their weights; with coordinate addition the scaled position of a child is added to its vote.

    Args:
        capsules: number of parent types.
        coordinate_addition: whether votes carry the position of their child.
        **kwargs: arguments of the layer's other bases.
    """

    coordinate_scale = 1.0
    """Coordinates run from 0 to this."""

    def __init__(self, capsules: int, coordinate_addition: bool = True, **kwargs):
        super().__init__(capsules, **kwargs)
        self.coordinate_addition = coordinate_addition

    def build(self, input_shape):
        poses_shape = check_children(input_shape)
        child_types, pose_size = poses_shape[3], poses_shape[5]
        self._add_weights((child_types, self.capsules, pose_size, pose_size))

    def call(self, children):
        pose_shape = tuple(children[0].shape[-2:])
        poses, activations = self._route(children)
        return ops.reshape(poses, (-1, self.capsules, *pose_shape)), ops.reshape(activations, (-1, self.capsules))

    def _receptive_fields(self, children):
        pose_shape = tuple(children[0].shape[-2:])
        neighbourhood = Neighbourhood.whole(tuple(children[0].shape[1:3]))
        kernel = ops.convert_to_tensor(self.kernel)
        kernel = ops.tile(kernel, (neighbourhood.kernel_positions, 1, 1, 1))
        offsets = None
        if self.coordinate_addition:
            # The same for all child types of a position: [k, d] to [d, k i].
            offsets = self.coordinate_scale * coordinate_offsets(neighbourhood.children, pose_shape).T
            offsets = np.repeat(offsets, self.kernel.shape[0], axis=1)
        return kernel, neighbourhood, offsets

    def compute_output_shape(self, input_shape):
        poses_shape = check_children(input_shape)
        activations = (poses_shape[0], self.capsules)
        return (*activations, *poses_shape[-2:]), activations

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "coordinate_addition": self.coordinate_addition}


def check_children(input_shape) -> tuple:
    """Returns the shape of the poses, after checking both shapes of [poses, activations].

    Raises:
        ValueError: unless there are two, of square matrices and of their activations.

    Example:
        >>> check_children([(2, 7, 7, 8, 4, 4), (2, 7, 7, 8)])
        (2, 7, 7, 8, 4, 4)
    """
    try:
        poses, activations = (tuple(shape) for shape in input_shape)
    except (TypeError, ValueError):
        raise ValueError(f"expected poses and activations as a pair, not an input of shape {input_shape}") from None
    if len(poses) != 6 or poses[:4] != activations or poses[4] != poses[5] or None in poses[1:]:
        raise ValueError(
            "expected poses [batch, rows, columns, types, n, n] of known size and activations "
            f"[batch, rows, columns, types], not {poses} and {activations}"
        )
    return poses
