"""Capsules that route themselves: convolutional and class capsules."""

import math

import keras
from keras import ops

from caps_tf.layers.attention_capsules import check_rank
from caps_tf.layers.capsule_layer import LayerCost, RoutingLayer
from caps_tf.layers.convolution import ConvolutionalCapsules
from caps_tf.layers.precision import routing_dtype
from caps_tf.routing.grouping import CACHED_VOTES, map_groups
from caps_tf.routing.health import RoutingStep, RoutingTrace
from caps_tf.routing.neighbourhood import Neighbourhood
from caps_tf.routing.self_routing import log_routing_weights, self_routing


class SelfRoutingCapsules(RoutingLayer):
    """What convolutional and class capsules share: the weights, and self-routing in at least single precision.

    Weights act on a pose as the vector of its elements, row by row, as published: a vote of a 4x4 pose is a 16x16
    matrix times its 16 elements, where the matrix capsules of other routings have a 4x4 matrix.

    Args:
        capsules: number of parent types.
        pose_shape: of a parent's pose, (x, y) or (d,); as the children's by default.
        votes_at_a_time: bytes of children, weighed for each parent, that may exist at the same time, whatever the
            processor; by default what suits it, see `choose_groups`. A batch is divided evenly.
        kernel_initializer: of the weights of votes; normal with variance 1 / d by default, d elements of a child's
            pose, so that votes have the scale of poses.
        routing_initializer: of the weights that children choose parents by. Zeros, as in the published code, start
            with uniform routing.
        kernel_regularizer: regularizer of both kernels.
        **kwargs: `keras.layers.Layer` arguments.

    Raises:
        ValueError: if `capsules`, `votes_at_a_time` or a size in `pose_shape` is less than 1.
    """

    with_poses = True
    return_logits = False
    cached_votes: int | None = CACHED_VOTES["self"]

    def __init__(
        self,
        capsules: int,
        pose_shape: tuple[int, ...] | None = None,
        votes_at_a_time: int | None = None,
        kernel_initializer: keras.initializers.Initializer | str | None = None,
        routing_initializer: keras.initializers.Initializer | str = "zeros",
        kernel_regularizer: keras.regularizers.Regularizer | str | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if capsules < 1 or min(pose_shape or (1,)) < 1 or (votes_at_a_time is not None and votes_at_a_time < 1):
            raise ValueError(
                f"capsules, pose_shape and votes_at_a_time must be at least 1, "
                f"not {capsules}, {pose_shape} and {votes_at_a_time}"
            )
        self.capsules = capsules
        self.pose_shape = pose_shape and tuple(pose_shape)
        self.votes_at_a_time = votes_at_a_time
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.routing_initializer = keras.initializers.get(routing_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)

    def _add_weights(self, field: tuple[int, ...], child_pose: tuple[int, ...]) -> None:
        elements = math.prod(child_pose)
        self.routing_kernel = self.add_weight(
            shape=(*field, self.capsules, elements),
            initializer=self.routing_initializer,
            regularizer=self.kernel_regularizer,
            name="routing_kernel",
        )
        self.bias = self.add_weight(shape=(*field, self.capsules), initializer="zeros", name="bias")
        if self.with_poses:
            self.kernel = self.add_weight(
                shape=(self.capsules, *field, elements, math.prod(self._parent_pose(child_pose))),
                initializer=self.kernel_initializer or keras.initializers.RandomNormal(stddev=elements**-0.5),
                regularizer=self.kernel_regularizer,
                name="kernel",
            )

    def _weights(self) -> tuple:
        """Kernel [i, j, d] and bias [i, j] of routing and, if there are poses, the kernel of votes [j, i, d, e]."""
        precision, (j, d) = routing_dtype(self), self.routing_kernel.shape[-2:]
        kernel, bias = (ops.cast(weight, precision) for weight in (self.routing_kernel, self.bias))
        found = (ops.reshape(kernel, (-1, j, d)), ops.reshape(bias, (-1, j)))
        if not self.with_poses:
            return found
        return *found, ops.reshape(ops.cast(self.kernel, precision), (j, -1, d, self.kernel.shape[-1]))

    def _children_of_parents(self, children) -> tuple:
        """Poses [n, k, i, d] and activations [n, k, i] of the children of each parent position, see `self_routing`.

        And the number of these positions in an image.
        """
        raise NotImplementedError

    def _route(self, children) -> tuple:
        """Poses [n, j, e], if there are any, and activations or their logarithm [n, j], in the compute dtype."""
        poses, activations, positions = self._children_of_parents(children)
        weights = self._weights()
        if self.cached_votes is None:
            found = self_routing(poses, activations, *weights)
        else:
            n, k, i, _ = poses.shape
            elements = positions * k * i * self.capsules * self._elements_held()
            groups = self.groups(n and n // positions, elements, poses)
            groups = groups._replace(examples=groups.examples and positions * groups.examples)
            found = map_groups(self_routing, (poses, activations), weights, *groups)
        *poses, log_activations = found
        scores = log_activations if self.return_logits else ops.exp(log_activations)
        return tuple(ops.cast(value, self.compute_dtype) for value in (*poses, scores))

    def routing_trace(self, children) -> RoutingTrace:
        """What the only step of the routing does with children, for gauges of routing health.

        Args:
            children: as in a call, but of a few images only, since all their votes are made.

        Returns:
            `RoutingTrace` of one step in single precision; n counts parent positions of all images. Without poses it
            has neither votes nor parents.

        Example:
            >>> layer = SelfRoutingConvCapsules(5, kernel_size=3)
            >>> children = np.ones((2, 4, 4, 8, 4, 4), "float32"), np.ones((2, 4, 4, 8), "float32")
            >>> _ = layer(children)
            >>> [step] = layer.routing_trace(children).steps
            >>> tuple(step.votes.shape), tuple(step.routing_weights.shape)   # 2 x 2 positions in 2 images
            ((8, 5, 16, 72), (8, 5, 72))
        """
        poses, activations, _ = self._children_of_parents(children)
        weights = self._weights()
        n, k, i, _ = ops.shape(poses)
        *parents, log_activations = self_routing(poses, activations, *weights)
        given = ops.transpose(ops.exp(log_routing_weights(poses, *weights[:2])), (0, 3, 1, 2))
        step = RoutingStep(ops.reshape(given, (n, self.capsules, k * i)), activations=ops.exp(log_activations))
        if parents:
            votes = ops.einsum("nkid,jide->njeki", poses, weights[2])
            step = step._replace(votes=ops.reshape(votes, (*votes.shape[:3], k * i)), parents=parents[0])
        equal = ops.full_like(step.routing_weights, 1.0 / self.capsules)
        return RoutingTrace((step,), ops.reshape(activations, (n, k * i)), equal_weights=equal)

    def _parent_pose(self, child_pose: tuple[int, ...]) -> tuple[int, ...]:
        return self.pose_shape or child_pose

    def _elements_held(self) -> int:
        """Of each child for each parent: those of its weighed pose, or of a vote if that has more."""
        return max(self.kernel.shape[-2:])

    def layer_cost(self, inputs, outputs) -> LayerCost:
        poses, _ = inputs
        # Of each position the children that share no weights, and how many share them: a receptive field, or all.
        *field, j, d = self.routing_kernel.shape
        seen = math.prod(getattr(self, "kernel_size", poses[1:3])) * poses[3]
        pairs = math.prod(outputs[-1]) * seen
        if not self.with_poses:
            return LayerCost(pairs * d, 0, (pairs,))
        e = self.kernel.shape[-1]
        return LayerCost(2 * pairs * d, pairs // seen * math.prod(field) * d * e, (pairs * self._elements_held(),))

    def get_config(self):
        return {
            **super().get_config(),
            "capsules": self.capsules,
            "pose_shape": self.pose_shape,
            "votes_at_a_time": self.votes_at_a_time,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "routing_initializer": keras.initializers.serialize(self.routing_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
        }


@keras.saving.register_keras_serializable(package="caps_tf")
class SelfRoutingConvCapsules(ConvolutionalCapsules, SelfRoutingCapsules):
    """Convolutional capsules that route themselves.

    Each parent position sees a kernel of child positions, with weights for each kernel position and child type that
    all parent positions share, as published. Children choose among the parent types at a position, and choose anew
    for each position that sees them.

    Args:
        capsules: number of parent types.
        kernel_size: side of the receptive field in child positions, or (rows, columns).
        strides: child positions between neighbouring receptive fields, or (rows, columns).
        padding: rows and columns of inactive capsules around the grid of children. They change no mean.
        **kwargs: arguments of `SelfRoutingCapsules` and `keras.layers.Layer`.

    Call arguments:
        children: poses, matrices [b, h, w, i, x, y] or vectors [b, h, w, i, d], and activations [b, h, w, i].

    Returns:
        Poses [b, p, q, j, ...], of the children's shape or `pose_shape`, and activations [b, p, q, j] in the compute
        dtype, which sum to 1 over j; j = `capsules`, p = (h + 2 padding - kernel) // stride + 1 and q alike.

    Raises:
        ValueError: if the kernel is larger than the padded grid of children, or their shapes do not fit.

    Example:
        >>> children = np.ones((2, 14, 14, 8, 4, 4), "float32"), np.ones((2, 14, 14, 8), "float32")
        >>> poses, activations = SelfRoutingConvCapsules(16, kernel_size=3, strides=2, padding=1)(children)
        >>> tuple(poses.shape), tuple(activations.shape)
        ((2, 7, 7, 16, 4, 4), (2, 7, 7, 16))

    References:
        Hahn, Pyeon, Kim, "Self-Routing Capsule Networks", NeurIPS 2019.
    """

    def __init__(
        self,
        capsules: int,
        kernel_size: int | tuple[int, int] = 3,
        strides: int | tuple[int, int] = 1,
        padding: int = 0,
        **kwargs,
    ):
        super().__init__(capsules, kernel_size, strides, **kwargs)
        if padding < 0:
            raise ValueError(f"padding must not be negative, it is {padding}")
        self.padding = padding

    def build(self, input_shape):
        poses_shape = _check_children(input_shape)
        self._add_weights((math.prod(self.kernel_size), poses_shape[3]), poses_shape[4:])

    def call(self, children):
        poses_shape = children[0].shape
        poses, activations = self._route(children)
        shape = (-1, *self._neighbourhood(poses_shape).parents, self.capsules)
        return ops.reshape(poses, (*shape, *self._parent_pose(poses_shape[4:]))), ops.reshape(activations, shape)

    def _neighbourhood(self, poses_shape) -> Neighbourhood:
        rows, columns = (size + 2 * self.padding for size in poses_shape[1:3])
        return super()._neighbourhood((poses_shape[0], rows, columns))

    def _children_of_parents(self, children):
        fields, around = self._neighbourhood(children[0].shape), (self.padding, self.padding)
        poses, activations = (ops.cast(tensor, routing_dtype(self)) for tensor in children)
        poses = ops.reshape(poses, (-1, *poses.shape[1:4], math.prod(poses.shape[4:])))
        if self.padding:
            poses = ops.pad(poses, ((0, 0), around, around, (0, 0), (0, 0)))
            activations = ops.pad(activations, ((0, 0), around, around, (0, 0)))
        field = fields.kernel_positions * poses.shape[3]
        poses = ops.reshape(fields.gather(poses), (-1, 1, field, poses.shape[4]))
        return poses, ops.reshape(fields.gather(activations), (-1, 1, field)), math.prod(fields.parents)

    def compute_output_shape(self, input_shape):
        poses_shape = _check_children(input_shape)
        activations = (poses_shape[0], *self._neighbourhood(poses_shape).parents, self.capsules)
        return (*activations, *self._parent_pose(poses_shape[4:])), activations

    def get_config(self):
        return {**super().get_config(), "padding": self.padding}


@keras.saving.register_keras_serializable(package="caps_tf")
class SelfRoutingClassCapsules(SelfRoutingCapsules):
    """One capsule for each class, to which all children of the image route themselves.

    By default all positions share their weights, as in the library's other class capsules: what a part says of a class
    does not depend on where it stands. The published class capsules have weights of their own for each child, and
    activations without poses: `share_positions=False, with_poses=False`.

    Args:
        capsules: number of classes.
        share_positions: whether all positions share their weights; otherwise the grid of children has a fixed size.
        with_poses: whether class capsules have poses, and weights that make them.
        return_logits: whether to return the logarithms of the activations, which are their own softmax, for a loss on
            logits.
        **kwargs: arguments of `SelfRoutingCapsules` and `keras.layers.Layer`. `votes_at_a_time` has no effect on
            weights that positions share.

    Call arguments:
        children: poses, matrices [b, h, w, i, x, y] or vectors [b, h, w, i, d], and activations [b, h, w, i].

    Returns:
        Poses [b, j, ...], of the children's shape or `pose_shape`, and activations [b, j] in the compute dtype, which
        sum to 1 over j; j = `capsules`. Activations alone if there are no poses.

    Raises:
        ValueError: if the shapes of poses and activations do not fit.

    Example:
        >>> children = np.ones((2, 4, 4, 16, 4, 4), "float32"), np.ones((2, 4, 4, 16), "float32")
        >>> poses, activations = SelfRoutingClassCapsules(5)(children)
        >>> tuple(poses.shape), tuple(activations.shape)
        ((2, 5, 4, 4), (2, 5))

    References:
        Hahn, Pyeon, Kim, "Self-Routing Capsule Networks", NeurIPS 2019.
    """

    def __init__(
        self,
        capsules: int,
        share_positions: bool = True,
        with_poses: bool = True,
        return_logits: bool = False,
        **kwargs,
    ):
        super().__init__(capsules, **kwargs)
        self.share_positions = share_positions
        self.with_poses = with_poses
        self.return_logits = return_logits
        if share_positions or not with_poses:  # nothing is as large as votes
            self.cached_votes = None

    def build(self, input_shape):
        _, rows, columns, types, *pose = _check_children(input_shape)
        self._add_weights((types,) if self.share_positions else (rows * columns, types), tuple(pose))

    def call(self, children):
        *poses, activations = self._route(children)
        if not poses:
            return activations
        return ops.reshape(poses[0], (-1, self.capsules, *self._parent_pose(children[0].shape[4:]))), activations

    def _children_of_parents(self, children):
        poses, activations = (ops.cast(tensor, routing_dtype(self)) for tensor in children)
        _, rows, columns, types, *pose = poses.shape
        shared, own = (rows * columns, types) if self.share_positions else (1, rows * columns * types)
        return ops.reshape(poses, (-1, shared, own, math.prod(pose))), ops.reshape(activations, (-1, shared, own)), 1

    def capsules_of(self, outputs) -> tuple | None:
        return super().capsules_of(outputs) if self.with_poses else None

    def compute_output_shape(self, input_shape):
        poses_shape = _check_children(input_shape)
        activations = (poses_shape[0], self.capsules)
        return ((*activations, *self._parent_pose(poses_shape[4:])), activations) if self.with_poses else activations

    def get_config(self):
        own = ("share_positions", "with_poses", "return_logits")
        return {**super().get_config(), **{name: getattr(self, name) for name in own}}


def _check_children(input_shape) -> tuple:
    """Returns the shape of the poses, after checking both shapes of [poses, activations]."""
    try:
        poses, activations = (tuple(shape) for shape in input_shape)
    except (TypeError, ValueError):
        raise ValueError(f"expected poses and activations as a pair, not an input of shape {input_shape}") from None
    check_rank(poses, (5, 6))
    if poses[:4] != activations:
        raise ValueError(
            f"expected activations [batch, rows, columns, types] of poses {poses}, not of shape {activations}"
        )
    return poses
