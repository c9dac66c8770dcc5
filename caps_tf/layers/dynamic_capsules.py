"""Vector capsules that are routed dynamically: squashed primary, convolutional and class capsules."""

import math

import keras
from keras import ops

from caps_tf.layers.attention_capsules import check_rank
from caps_tf.layers.capsule_layer import CapsuleLayer, LayerCost, RoutingLayer
from caps_tf.layers.convolution import ConvolutionalCapsules
from caps_tf.layers.precision import routing_dtype
from caps_tf.routing.dynamic import dynamic_routing, lengths, squash
from caps_tf.routing.grouping import CACHED_VOTES, map_groups
from caps_tf.routing.health import RoutingStep, RoutingTrace
from caps_tf.routing.neighbourhood import Neighbourhood
from caps_tf.routing.votes import VoteWeights, pose_columns, vote_weights, votes_of_children


@keras.saving.register_keras_serializable(package="caps_tf")
class SquashedCapsules(CapsuleLayer):
    """Reads features as vectors and squashes them: primary capsules, after the convolution that makes their features.

    Args:
        elements: of a vector; the last axis of the features is cut into vectors of so many.
        **kwargs: `keras.layers.Layer` arguments.

    Call arguments:
        features: [b, ..., channels].

    Returns:
        Vectors [b, ..., i, d] in the compute dtype, shorter than 1; d = `elements`, i = channels / d.

    Raises:
        ValueError: if the channels are not a multiple of `elements`.

    Example:
        >>> tuple(SquashedCapsules(8)(np.ones((2, 6, 6, 256), "float32")).shape)
        (2, 6, 6, 32, 8)

    References:
        Sabour, Frosst, Hinton, "Dynamic Routing Between Capsules", NeurIPS 2017, section 4.
    """

    def __init__(self, elements: int = 8, **kwargs):
        super().__init__(**kwargs)
        if elements < 1:
            raise ValueError(f"elements must be at least 1, not {elements}")
        self.elements = elements

    def call(self, features):
        shape = self.compute_output_shape(features.shape)
        vectors = ops.reshape(ops.cast(features, routing_dtype(self)), (-1, *shape[1:]))
        return ops.cast(squash(vectors), self.compute_dtype)

    def compute_output_shape(self, input_shape):
        *outer, channels = input_shape
        if channels is None or channels % self.elements:
            raise ValueError(f"the channels must be a multiple of elements = {self.elements}, not {channels}")
        return (*outer, channels // self.elements, self.elements)

    def capsules_of(self, outputs):
        """The vectors, and their lengths as activations."""
        return outputs, lengths(outputs)

    def layer_cost(self, inputs, outputs) -> LayerCost:
        """Nothing is contracted."""
        return LayerCost(0)

    def get_config(self):
        return {**super().get_config(), "elements": self.elements}


class DynamicCapsules(RoutingLayer):
    """What convolutional and class capsules share: the weights, and dynamic routing in at least single precision.

    Args:
        capsules: number of parent types.
        pose_elements: of a parent's vector.
        iterations: number of routing iterations, at least 1.
        constant_weights: whether the gradient takes routing weights as constants, see `dynamic_routing`.
        votes_at_a_time: bytes of votes that may exist at the same time, whatever the processor; by default what suits
            it, see `choose_groups`. A batch is divided evenly, and one image's votes may be more.
        kernel_initializer: of the weights W; truncated normal (0, 0.1) as in the authors' code.
        kernel_regularizer: regularizer of the weights W.
        **kwargs: `keras.layers.Layer` arguments.

    Raises:
        ValueError: if `capsules`, `pose_elements`, `iterations` or `votes_at_a_time` is less than 1.
    """

    cached_votes = CACHED_VOTES["dynamic"]

    def __init__(
        self,
        capsules: int,
        pose_elements: int = 16,
        iterations: int = 3,
        constant_weights: bool = False,
        votes_at_a_time: int | None = None,
        kernel_initializer: keras.initializers.Initializer | str | None = None,
        kernel_regularizer: keras.regularizers.Regularizer | str | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if min(capsules, pose_elements, iterations, 1 if votes_at_a_time is None else votes_at_a_time) < 1:
            raise ValueError(
                "capsules, pose_elements, iterations and votes_at_a_time must be at least 1, "
                f"not {capsules}, {pose_elements}, {iterations} and {votes_at_a_time}"
            )
        self.capsules = capsules
        self.pose_elements = pose_elements
        self.iterations = iterations
        self.constant_weights = constant_weights
        self.votes_at_a_time = votes_at_a_time
        self.kernel_initializer = keras.initializers.get(
            kernel_initializer or keras.initializers.TruncatedNormal(0.0, 0.1)
        )
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)

    def _add_kernel(self, receptive_field: tuple[int, ...], child_elements: int) -> None:
        self.kernel = self.add_weight(
            shape=(*receptive_field, self.capsules, child_elements, self.pose_elements),
            initializer=self.kernel_initializer,
            regularizer=self.kernel_regularizer,
            name="kernel",
        )

    def _grid(self, shape) -> tuple:
        """Batch, rows, columns, types and elements of children of this shape."""
        return check_rank(shape, (5,))

    def _receptive_fields(self, children_shape) -> Neighbourhood:
        raise NotImplementedError

    def _flat_kernel(self, fields: Neighbourhood):
        """The weights W of the children in a receptive field, [c, j, d, e]."""
        return ops.reshape(ops.convert_to_tensor(self.kernel), (-1, *self.kernel.shape[-3:]))

    def call(self, children):
        routed = self._with_votes(lambda votes, route: (route(self.iterations).poses,), children)[0]
        return ops.cast(ops.reshape(routed, (-1, *self.compute_output_shape(children.shape)[1:])), self.compute_dtype)

    def _with_votes(self, use, children):
        """Calls `use`, to a tuple of tensors, with votes [b, p, q, j, e, k, i] and their routing in so many iterations."""
        shape, precision = self._grid(children.shape), routing_dtype(self)
        fields = self._receptive_fields(children.shape)
        (p, q), k, i, d = fields.parents, fields.kernel_positions, shape[3], shape[4]
        gathered = fields.gather(ops.cast(ops.reshape(children, (-1, *shape[1:])), precision))
        # A vector is a matrix of one row.
        columns = pose_columns(ops.reshape(gathered, (-1, p * q, k * i, 1, d)))
        weights = vote_weights(ops.cast(self._flat_kernel(fields), precision))

        def of_group(columns, weights: VoteWeights):
            columns = [ops.reshape(column, (-1, *column.shape[2:])) for column in columns]
            votes = votes_of_children(columns, weights)
            votes = ops.reshape(votes, (-1, p, q, self.capsules, self.pose_elements, k, i))
            return use(votes, lambda iterations: dynamic_routing(votes, fields, iterations, self.constant_weights))

        elements = p * q * k * i * self.capsules * self.pose_elements
        groups = self.groups(children.shape[0], elements, gathered)
        return map_groups(of_group, (columns,), (weights,), *groups)

    def capsules_of(self, outputs):
        """The poses, and their lengths as activations."""
        return outputs, lengths(outputs)

    def routing_trace(self, children) -> RoutingTrace:
        """What each routing iteration does with children, for gauges of routing health.

        Args:
            children: as in a call, but of a few images only, since all their votes are kept.

        Returns:
            `RoutingTrace` in single precision; n counts parent positions of all images.

        Example:
            >>> layer, children = DynamicConvCapsules(5, kernel_size=3), np.ones((2, 4, 4, 8, 6), "float32")
            >>> _ = layer(children)
            >>> trace = layer.routing_trace(children)
            >>> len(trace.steps), tuple(trace.steps[0].votes.shape)   # 2 x 2 positions in 2 images, 3 x 3 x 8 children
            (3, (8, 5, 16, 72))
        """

        def run_iterations(votes, route):
            found = zip(*(route(iterations) for iterations in range(1, self.iterations + 1)), strict=True)
            return votes, *(ops.stack(value, axis=1) for value in found)

        votes, poses, weights = self._with_votes(run_iterations, children)
        j, d, c = self.capsules, self.pose_elements, math.prod(votes.shape[5:])
        votes = ops.reshape(votes, (-1, j, d, c))
        steps = []
        for iteration in range(self.iterations):
            parents = ops.reshape(poses[:, iteration], (-1, j, d))
            routing_weights = ops.reshape(weights[:, iteration], (-1, j, c))
            steps.append(RoutingStep(routing_weights, votes, parents, activations=lengths(parents)))
        return RoutingTrace(tuple(steps))

    def layer_cost(self, inputs, outputs) -> LayerCost:
        fields = self._receptive_fields(inputs[0])
        votes = math.prod(outputs[0]) * fields.kernel_positions * self._grid(inputs[0])[3]
        # Each iteration weighs all votes, and each but the last compares them with the parents.
        return LayerCost(votes * inputs[0][-1], votes * (2 * self.iterations - 1), (votes,))

    def get_config(self):
        return {
            **super().get_config(),
            "capsules": self.capsules,
            "pose_elements": self.pose_elements,
            "iterations": self.iterations,
            "constant_weights": self.constant_weights,
            "votes_at_a_time": self.votes_at_a_time,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
        }


@keras.saving.register_keras_serializable(package="caps_tf")
class DynamicConvCapsules(ConvolutionalCapsules, DynamicCapsules):
    """Convolutional vector capsules with dynamic routing.

    Each parent position sees a kernel of child positions; a weight for each kernel position, child type and parent
    type turns child vectors into votes. Parents at different positions compete for a child that both see, as in
    `EMConvCapsules`; the paper has no such layer.

    Args:
        capsules: number of parent types.
        kernel_size: side of the receptive field in child positions, or (rows, columns).
        strides: child positions between neighbouring receptive fields, or (rows, columns).
        **kwargs: arguments of `DynamicCapsules` and `keras.layers.Layer`.

    Call arguments:
        children: vectors [b, h, w, i, d]; their lengths say how present they are, see `SquashedCapsules`.

    Returns:
        Vectors [b, p, q, j, e] in the compute dtype, shorter than 1; j = `capsules`, e = `pose_elements`,
        p = (h - kernel) // stride + 1 and q alike.

    Raises:
        ValueError: if the kernel is larger than the grid of children, or children are of another rank.

    Example:
        >>> children = np.ones((2, 14, 10, 8, 4), "float32")
        >>> tuple(DynamicConvCapsules(16, kernel_size=3, strides=2, pose_elements=8)(children).shape)
        (2, 6, 4, 16, 8)

    References:
        Sabour, Frosst, Hinton, "Dynamic Routing Between Capsules", NeurIPS 2017.
    """

    def build(self, children_shape):
        *_, types, elements = self._grid(children_shape)
        self._add_kernel((self._receptive_fields(children_shape).kernel_positions, types), elements)

    def _receptive_fields(self, children_shape) -> Neighbourhood:
        return self._neighbourhood(self._grid(children_shape))

    def compute_output_shape(self, children_shape):
        fields = self._receptive_fields(children_shape)
        return (children_shape[0], *fields.parents, self.capsules, self.pose_elements)


@keras.saving.register_keras_serializable(package="caps_tf")
class DynamicClassCapsules(DynamicCapsules):
    """One vector capsule for each class, routed dynamically from all children of the image.

    Args:
        capsules: number of classes.
        share_positions: whether all positions share their weights, as in `EMClassCapsules`, which suits images of any
            size; otherwise each child has weights of its own, as published.
        **kwargs: arguments of `DynamicCapsules` and `keras.layers.Layer`.

    Call arguments:
        children: vectors [b, h, w, i, d], or [b, i, d] without a grid; their lengths say how present they are, see
            `SquashedCapsules`.

    Returns:
        Vectors [b, j, e] in the compute dtype, shorter than 1; j = `capsules`, e = `pose_elements`. Their lengths
        (`caps_tf.routing.lengths`) are the scores of the classes.

    Raises:
        ValueError: if children are of another rank.

    Example:
        >>> tuple(DynamicClassCapsules(10)(np.ones((2, 6, 6, 32, 8), "float32")).shape)
        (2, 10, 16)

    References:
        Sabour, Frosst, Hinton, "Dynamic Routing Between Capsules", NeurIPS 2017, section 4.
    """

    def __init__(self, capsules: int, share_positions: bool = False, **kwargs):
        super().__init__(capsules, **kwargs)
        self.share_positions = share_positions

    def build(self, children_shape):
        _, rows, columns, types, elements = self._grid(children_shape)
        self._add_kernel((types,) if self.share_positions else (rows * columns, types), elements)

    def _grid(self, shape):
        shape = check_rank(shape, (3, 5))
        return shape if len(shape) == 5 else (shape[0], 1, 1, *shape[1:])

    def _receptive_fields(self, children_shape) -> Neighbourhood:
        _, rows, columns, *_ = self._grid(children_shape)
        return Neighbourhood.whole((rows, columns))

    def _flat_kernel(self, fields: Neighbourhood):
        kernel = super()._flat_kernel(fields)
        return ops.tile(kernel, (fields.kernel_positions, 1, 1, 1)) if self.share_positions else kernel

    def compute_output_shape(self, children_shape):
        return (children_shape[0], self.capsules, self.pose_elements)

    def get_config(self):
        return {**super().get_config(), "share_positions": self.share_positions}
