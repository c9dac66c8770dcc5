"""Matrix capsules that are routed by expectation maximisation: convolutional and class capsules."""

import math

import keras
import numpy as np
from keras import ops

from caps_tf.layers.capsule_layer import LayerCost, RoutingLayer, multiplications_of_votes
from caps_tf.layers.convolution import ConvolutionalCapsules
from caps_tf.layers.precision import routing_dtype
from caps_tf.routing.em import VARIANCE_FLOOR, Parents, em_routing
from caps_tf.routing.grouping import VOTES_AT_A_TIME, images_at_a_time, map_groups
from caps_tf.routing.health import RoutingStep, RoutingTrace
from caps_tf.routing.neighbourhood import Neighbourhood
from caps_tf.routing.votes import VoteWeights, coordinate_offsets, pose_columns, vote_weights, votes_of_children


class EMCapsules(RoutingLayer):
    """What convolutional and class capsules share: the weights, and EM routing in at least single precision.

    Args:
        capsules: number of parent types.
        iterations: number of routing iterations, at least 1.
        final_lambda: inverse temperature that the iterations approach.
        epsilon: keeps the divisions and logarithms of the routing finite.
        votes_at_a_time: bytes of votes that may exist at the same time, if the batch divides so and one image's
            votes are no more; less costs time, and so does more than the processor's cache holds.
        kernel_initializer: of the weights W; truncated normal (0, 1) as in the published code.
        beta_a_initializer: of the cost of an inactive parent.
        beta_u_initializer: of the cost of a vote element.
        kernel_regularizer: regularizer of the weights W.
        initial_temperature: None for the published schedule of the inverse temperature. A number: each parent learns
            its own inverse temperature s from there, the same in all iterations, and costs are counted in its units:
            activation = sigmoid(s (beta_a - mean_d(beta_u + 1/2 ln variance) S J / K)). The function is that of the
            published betas and temperature, beta_a = `beta_a` / (100 d) and s = 100 d lambda for d pose elements, but
            an optimiser that moves each weight by its rate a step, as Adam does, can learn it: `beta_a` starts at zero
            instead of near -1000.
        variance_floor: added to each variance, in squared units of the votes.
        **kwargs: `keras.layers.Layer` arguments.

    Raises:
        ValueError: if `capsules`, `iterations` or `votes_at_a_time` is less than 1, or `initial_temperature` or
            `variance_floor` is not positive.
    """

    return_logits = False

    def __init__(
        self,
        capsules: int,
        iterations: int = 2,
        final_lambda: float = 0.01,
        epsilon: float = 1e-9,
        votes_at_a_time: int = VOTES_AT_A_TIME["em"],
        kernel_initializer: keras.initializers.Initializer | str | None = None,
        beta_a_initializer: keras.initializers.Initializer | str | None = None,
        beta_u_initializer: keras.initializers.Initializer | str = "glorot_uniform",
        kernel_regularizer: keras.regularizers.Regularizer | str | None = None,
        initial_temperature: float | None = None,
        variance_floor: float = VARIANCE_FLOOR,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if capsules < 1 or iterations < 1 or votes_at_a_time < 1:
            raise ValueError(
                f"capsules, iterations and votes_at_a_time must be at least 1, "
                f"not {capsules}, {iterations} and {votes_at_a_time}"
            )
        if not variance_floor > 0 or (initial_temperature is not None and not initial_temperature > 0):
            raise ValueError(
                f"variance_floor and initial_temperature must be positive, not {variance_floor} and {initial_temperature}"
            )
        self.capsules = capsules
        self.iterations = iterations
        self.final_lambda = final_lambda
        self.epsilon = epsilon
        self.votes_at_a_time = votes_at_a_time
        self.initial_temperature = initial_temperature
        self.variance_floor = variance_floor
        self.kernel_initializer = keras.initializers.get(
            kernel_initializer or keras.initializers.TruncatedNormal(0.0, 1.0)
        )
        published = keras.initializers.TruncatedNormal(-1000.0, 500.0)
        self.beta_a_initializer = keras.initializers.get(
            beta_a_initializer or (published if initial_temperature is None else "zeros")
        )
        self.beta_u_initializer = keras.initializers.get(beta_u_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)

    def _add_weights(self, kernel_shape: tuple[int, ...]) -> None:
        self.kernel = self.add_weight(
            shape=kernel_shape, initializer=self.kernel_initializer, regularizer=self.kernel_regularizer, name="kernel"
        )
        # A trailing axis of 1 makes Glorot's fan-in and fan-out the published ones, parent types and 1.
        self.beta_a = self.add_weight(shape=(self.capsules, 1), initializer=self.beta_a_initializer, name="beta_a")
        self.beta_u = self.add_weight(shape=(self.capsules, 1), initializer=self.beta_u_initializer, name="beta_u")
        if self.initial_temperature is not None:
            self.log_temperature = self.add_weight(
                shape=(self.capsules, 1),
                initializer=keras.initializers.Constant(math.log(self.initial_temperature)),
                name="log_temperature",
            )

    def _costs(self, pose_elements: int, dtype: str) -> list:
        """beta_u and beta_a [j] in the units of `em_routing`, and the inverse temperature [j] if it is learned."""
        beta_u, beta_a = (ops.cast(beta, dtype)[:, 0] for beta in (self.beta_u, self.beta_a))
        if self.initial_temperature is None:
            return [beta_u, beta_a]
        unit = 100.0 * pose_elements
        return [beta_u, beta_a * unit, ops.exp(ops.cast(self.log_temperature, dtype)[:, 0]) / unit]

    def routing_trace(self, children) -> RoutingTrace:
        """What each routing iteration does with children, for gauges of routing health.

        Args:
            children: as in a call, but of a few images only, since all their votes are kept.

        Returns:
            `RoutingTrace` in single precision; n counts parent positions of all images.

        Example:
            >>> layer = EMConvCapsules(5, kernel_size=3, iterations=3)
            >>> children = np.ones((2, 4, 4, 8, 4, 4), "float32"), np.ones((2, 4, 4, 8), "float32")
            >>> _ = layer(children)
            >>> trace = layer.routing_trace(children)
            >>> len(trace.steps), tuple(trace.steps[0].votes.shape)   # 2 x 2 positions in 2 images, 3 x 3 x 8 children
            (3, (8, 5, 16, 72))
        """

        def run_iterations(votes, activations, em):
            found = zip(*(em(iterations) for iterations in range(1, self.iterations + 1)), strict=True)
            return votes, activations, *(ops.stack(value, axis=1) for value in found)

        votes, active, *found = self._with_votes(run_iterations, children, *self._receptive_fields(children))
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

    def _route(self, children, kernel, neighbourhood: Neighbourhood, offsets: np.ndarray | None = None):
        """Poses [b, h, w, i, x, y] and activations to those of the parents, [b, p, q, j, d] and [b, p, q, j]."""

        def run(votes, activations, em):
            parents = em(self.iterations)
            return parents.poses, parents.logits if self.return_logits else parents.activations

        found = self._with_votes(run, children, kernel, neighbourhood, offsets)
        return tuple(ops.cast(value, self.compute_dtype) for value in found)

    def _with_votes(self, use, children, kernel, neighbourhood: Neighbourhood, offsets: np.ndarray | None = None):
        """What `use` makes of votes, activations and EM for so many iterations, with weights `kernel` [c, j, y, z].

        Nothing needs the votes of two images at once: they are made, routed and, for the gradient, made again for a
        few images at a time, so that they stay in the processor's cache.
        """
        precision = routing_dtype(self)
        poses, activations = (ops.cast(neighbourhood.gather(tensor), precision) for tensor in children)
        b, p, q, k, i = ops.shape(activations)
        pose_shape, capsules = poses.shape[-2:], self.capsules
        columns = pose_columns(ops.reshape(poses, (b, p * q, k * i, *pose_shape)))
        weights = vote_weights(ops.cast(kernel, precision))
        costs = self._costs(pose_shape[0] * kernel.shape[-1], precision)

        def route(columns, activations, weights: VoteWeights, costs):
            beta_u, beta_a, *temperature = costs
            columns = [ops.reshape(column, (-1, *column.shape[2:])) for column in columns]
            votes = votes_of_children(columns, weights)
            if offsets is not None:
                votes = votes + ops.cast(offsets, precision)
            votes = ops.reshape(votes, (-1, p, q, capsules, votes.shape[2], k, i))

            def em(iterations: int) -> Parents:
                return em_routing(
                    votes,
                    activations,
                    beta_u=beta_u,
                    beta_a=beta_a,
                    neighbourhood=neighbourhood,
                    iterations=iterations,
                    final_lambda=self.final_lambda,
                    epsilon=self.epsilon,
                    fixed_temperature=temperature[0] if temperature else None,
                    variance_floor=self.variance_floor,
                )

            return use(votes, activations, em)

        elements = p * q * k * i * capsules * pose_shape[0] * kernel.shape[-1]
        images = images_at_a_time(poses.shape[0], elements, self.votes_at_a_time)
        return map_groups(route, (columns, activations), (weights, costs), images, recompute=True)

    def get_config(self):
        return {
            **super().get_config(),
            "capsules": self.capsules,
            "iterations": self.iterations,
            "final_lambda": self.final_lambda,
            "epsilon": self.epsilon,
            "votes_at_a_time": self.votes_at_a_time,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "beta_a_initializer": keras.initializers.serialize(self.beta_a_initializer),
            "beta_u_initializer": keras.initializers.serialize(self.beta_u_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
            "initial_temperature": self.initial_temperature,
            "variance_floor": self.variance_floor,
        }


@keras.saving.register_keras_serializable(package="caps_tf")
class EMConvCapsules(ConvolutionalCapsules, EMCapsules):
    """Convolutional matrix capsules with EM routing.

    Each parent position sees a kernel of child positions; a weight for each kernel position, child type and parent
    type turns child poses into votes. Parents at different positions compete for a child that both see.

    Args:
        capsules: number of parent types.
        kernel_size: side of the receptive field in child positions, or (rows, columns).
        strides: child positions between neighbouring receptive fields, or (rows, columns).
        **kwargs: arguments of `EMCapsules` and `keras.layers.Layer`.

    Call arguments:
        children: poses [b, h, w, i, x, y] and activations [b, h, w, i].

    Returns:
        poses [b, p, q, j, x, y] and activations [b, p, q, j] in the compute dtype; j = `capsules`,
        p = (h - kernel) // stride + 1 and q alike.

    Raises:
        ValueError: if the kernel is larger than the grid of children, or poses are not square matrices.

    Example:
        >>> children = np.ones((2, 14, 14, 8, 4, 4), "float32"), np.ones((2, 14, 14, 8), "float32")
        >>> poses, activations = EMConvCapsules(16, kernel_size=3, strides=2)(children)
        >>> tuple(poses.shape), tuple(activations.shape)
        ((2, 6, 6, 16, 4, 4), (2, 6, 6, 16))

    References:
        Hinton, Sabour, Frosst, "Matrix capsules with EM routing", ICLR 2018.
        Gritzman, "Avoiding Implementation Pitfalls of Matrix Capsules with EM Routing by Hinton et al.", 2019.
    """

    def build(self, input_shape):
        poses_shape = _check_children(input_shape)
        child_types, pose_size = poses_shape[3], poses_shape[5]
        kernel_positions = self.kernel_size[0] * self.kernel_size[1]
        self._add_weights((kernel_positions, child_types, self.capsules, pose_size, pose_size))

    def call(self, children):
        pose_shape = children[0].shape[-2:]
        poses, activations = self._route(children, *self._receptive_fields(children))
        return ops.reshape(poses, (*ops.shape(activations), *pose_shape)), activations

    def _receptive_fields(self, children):
        """Weights [c, j, y, z], and which child feeds which parent."""
        kernel = ops.reshape(ops.convert_to_tensor(self.kernel), (-1, *self.kernel.shape[2:]))
        return kernel, self._neighbourhood(children[0].shape)

    def compute_output_shape(self, input_shape):
        poses_shape = _check_children(input_shape)
        activations = (poses_shape[0], *self._neighbourhood(poses_shape).parents, self.capsules)
        return (*activations, *poses_shape[-2:]), activations


@keras.saving.register_keras_serializable(package="caps_tf")
class EMClassCapsules(EMCapsules):
    """One matrix capsule for each class, routed by EM from all children of the image.

    All positions share their weights; with coordinate addition the scaled position of a child is added to its
    vote, so that where a part stands is not lost.

    Args:
        capsules: number of classes.
        coordinate_addition: whether votes carry the position of their child.
        return_logits: whether to return what the activations are the sigmoid of, for a loss on logits.
        **kwargs: arguments of `EMCapsules` and `keras.layers.Layer`.

    Call arguments:
        children: poses [b, h, w, i, x, y] and activations [b, h, w, i].

    Returns:
        poses [b, j, x, y] and activations [b, j] in the compute dtype, j = `capsules`.

    Raises:
        ValueError: if poses are not square matrices, or have one row and coordinates are to be added.

    Example:
        >>> children = np.ones((2, 4, 4, 16, 4, 4), "float32"), np.ones((2, 4, 4, 16), "float32")
        >>> poses, activations = EMClassCapsules(5)(children)
        >>> tuple(poses.shape), tuple(activations.shape)
        ((2, 5, 4, 4), (2, 5))

    References:
        Hinton, Sabour, Frosst, "Matrix capsules with EM routing", ICLR 2018, section 4.
    """

    def __init__(self, capsules: int, coordinate_addition: bool = True, return_logits: bool = False, **kwargs):
        super().__init__(capsules, **kwargs)
        self.coordinate_addition = coordinate_addition
        self.return_logits = return_logits

    def build(self, input_shape):
        poses_shape = _check_children(input_shape)
        child_types, pose_size = poses_shape[3], poses_shape[5]
        self._add_weights((child_types, self.capsules, pose_size, pose_size))

    def call(self, children):
        pose_shape = tuple(children[0].shape[-2:])
        poses, activations = self._route(children, *self._receptive_fields(children))
        return ops.reshape(poses, (-1, self.capsules, *pose_shape)), ops.reshape(activations, (-1, self.capsules))

    def _receptive_fields(self, children):
        """Weights [c, j, y, z], which child feeds which parent, and what is added to votes, [d, c] or None."""
        pose_shape = tuple(children[0].shape[-2:])
        neighbourhood = Neighbourhood.whole(tuple(children[0].shape[1:3]))
        kernel = ops.convert_to_tensor(self.kernel)
        kernel = ops.tile(kernel, (neighbourhood.kernel_positions, 1, 1, 1))
        offsets = None
        if self.coordinate_addition:
            # The same for all child types of a position: [k, d] to [d, k i].
            offsets = coordinate_offsets(neighbourhood.children, pose_shape).T
            offsets = np.repeat(offsets, self.kernel.shape[0], axis=1)
        return kernel, neighbourhood, offsets

    def compute_output_shape(self, input_shape):
        poses_shape = _check_children(input_shape)
        activations = (poses_shape[0], self.capsules)
        return (*activations, *poses_shape[-2:]), activations

    def get_config(self):
        own = {"coordinate_addition": self.coordinate_addition, "return_logits": self.return_logits}
        return {**super().get_config(), **own}


def _check_children(input_shape) -> tuple:
    """Returns the shape of the poses, after checking both shapes of [poses, activations]."""
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
