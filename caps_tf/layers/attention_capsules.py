"""Capsules that are routed by inverted dot-product attention: convolutional and dense capsules."""

import math

import keras
from keras import ops

from caps_tf.layers.capsule_layer import LayerCost, RoutingLayer
from caps_tf.layers.convolution import ConvolutionalCapsules
from caps_tf.layers.precision import routing_dtype
from caps_tf.routing.grouping import VOTES_AT_A_TIME, images_at_a_time
from caps_tf.routing.health import RoutingStep, RoutingTrace
from caps_tf.routing.inverted_attention import first_parents, next_parents, routing_weights


class AttentionCapsules(RoutingLayer):
    """What convolutional and dense attention capsules share: the weights, and one routing step.

    Called with children alone, a layer routes them uniformly; called with children and the parents so far, it
    routes by how well votes agree with those parents. `CapsuleStack` calls the layers of a network as often as its
    schedule wants.

    A pose is a matrix of x rows and y columns, and a vote pose W, with W of y rows and z columns; or a vector of d
    elements, which is treated as a matrix of one row. Parents are of the kind that their children are of.

    Args:
        capsules: number of parent types, or of parents in a dense layer.
        pose_columns: columns z of a parent's pose, for a vector all its elements; as many as a child's by default.
        child_pose: what the pose of a child is read as, (x, y) or (y,); as it comes by default. Routes matrices as
            vectors, and vectors as matrices.
        dropout: share of the elements of parents' poses dropped in training, before they are normalised.
        votes_at_a_time: bytes of votes that may exist at the same time if the batch divides so; less costs time
            where memory is fast, more does where it is slow. The default suits the caches of processors; give an
            accelerator 2**30 or more.
        kernel_initializer: of the weights W; normal with variance J / (y K) by default, where a parent sees K
            children.
        kernel_regularizer: regularizer of the weights W.
        seed: of the dropout.
        normalize: whether the poses of parents are normalised, as published. Without it their length says how much
            evidence they got.
        **kwargs: `keras.layers.Layer` arguments.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        capsules: int,
        pose_columns: int | None = None,
        child_pose: tuple[int, ...] | None = None,
        dropout: float = 0.0,
        votes_at_a_time: int = VOTES_AT_A_TIME["attention"],
        kernel_initializer: keras.initializers.Initializer | str | None = None,
        kernel_regularizer: keras.regularizers.Regularizer | str | None = None,
        seed: int | None = None,
        normalize: bool = True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if capsules < 1 or (pose_columns is not None and pose_columns < 1) or votes_at_a_time < 1:
            raise ValueError(
                f"capsules, pose_columns and votes_at_a_time must be at least 1, "
                f"not {capsules}, {pose_columns} and {votes_at_a_time}"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be at least 0 and less than 1, not {dropout}")
        self.capsules = capsules
        self.pose_columns = pose_columns
        self.child_pose = child_pose and tuple(child_pose)
        self.dropout = dropout
        self.votes_at_a_time = votes_at_a_time
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.seed = seed
        self.normalize = normalize
        # What poses are routed and normalised in.
        self._precision = routing_dtype(self)
        self._drop = keras.layers.Dropout(dropout, seed=seed, dtype=self._precision, name="dropout")
        self._norm: keras.layers.LayerNormalization | None = None

    def _add_weights(self, receptive_field: tuple[int, ...], pose_shape: tuple[int, int]) -> None:
        rows, child_columns = pose_shape
        columns = self.pose_columns or child_columns
        variance = self.capsules / (child_columns * math.prod(receptive_field))
        self.kernel = self.add_weight(
            shape=(*receptive_field, self.capsules, child_columns, columns),
            initializer=self.kernel_initializer or keras.initializers.RandomNormal(stddev=math.sqrt(variance)),
            regularizer=self.kernel_regularizer,
            name="kernel",
        )
        if self.normalize and rows * columns > 1:  # a single element less its mean would be zero
            self._norm = keras.layers.LayerNormalization(
                axis=[-2, -1], epsilon=1e-5, dtype=self._precision, name="norm"
            )
            self._norm.build((None, self.capsules, rows, columns))

    def call(self, children, parents=None):
        routed = self._route(*self._lay_out(children, parents))
        return ops.reshape(routed, (-1, *self.compute_output_shape(children.shape)[1:]))

    def _lay_out(self, children, parents):
        """Children and parents as `_route` takes them, and the number of positions."""
        children, positions = self._children_of_parents(children)
        if parents is not None:
            parents = ops.reshape(parents, (-1, self.capsules, children.shape[2], self.kernel.shape[-1]))
        return children, parents, positions

    def capsules_of(self, outputs) -> None:
        """Nothing: attention has poses without activations."""

    def votes_cost(self, children: tuple[int, ...]) -> tuple[int, int]:
        """Multiplications that make the votes for all parents of children of this shape, and how many elements they have.

        `CapsuleStack` knows how often its schedule weighs these votes.
        """
        field = math.prod(self.kernel.shape[:-3])
        votes = math.prod(self.compute_output_shape(children)) * field
        return votes * self.kernel.shape[-2], votes

    def layer_cost(self, inputs, outputs) -> LayerCost:
        """Of one call with children: uniformly routed, so that votes are made and not weighed."""
        with_input, votes = self.votes_cost(inputs[0])
        within = 2 * votes if len(inputs) > 1 else 0  # with parents: agreement, and the weighted sum
        return LayerCost(with_input, within, (votes,))

    def routing_trace(self, children) -> RoutingTrace:
        """What routing children uniformly does; `CapsuleStack.routing_trace` knows the iterations after that.

        Args:
            children: as in a call, but of a few images only, since all their votes are computed.

        Returns:
            `RoutingTrace` of one step; n counts parent positions of all images.
        """
        return RoutingTrace((self.routing_step(children, None, self(children)),))

    def routing_step(self, children, before, after) -> RoutingStep:
        """What one call of the layer did.

        Args:
            children: what it was called with; a few images, for all their votes are made.
            before: the parents that it was called with, or None.
            after: the parents that it returned.

        Returns:
            `RoutingStep` in single precision; n counts parent positions of all images.

        Example:
            >>> layer, children = AttentionConvCapsules(5, kernel_size=3), np.ones((2, 4, 4, 8, 4, 4), "float32")
            >>> step = layer.routing_step(children, None, layer(children))
            >>> tuple(step.votes.shape), tuple(step.parents.shape)     # 2 x 2 positions in 2 images, 3 x 3 x 8 children
            ((8, 5, 16, 72), (8, 5, 16))
        """
        children, before, _ = self._lay_out(children, before)
        kernel = self._flat_kernel(children)
        tensors = (children, kernel) if before is None else (children, kernel, before)
        children, kernel, *before = (ops.cast(tensor, self._precision) for tensor in tensors)
        votes = ops.einsum("ncxy,cjyz->njxzc", children, kernel)
        n, j, x, z, c = ops.shape(votes)
        equal = ops.full((n, j, c), 1.0 / j, dtype=votes.dtype)
        weights = ops.swapaxes(routing_weights(children, kernel, *before), 1, 2) if before else equal
        after = ops.reshape(ops.cast(after, self._precision), (n, j, x * z))
        return RoutingStep(weights, ops.reshape(votes, (n, j, x * z, c)), after)

    def _flat_kernel(self, children):
        """The weights W of children [n, c, x, y], [c, j, y, z]."""
        return ops.reshape(ops.convert_to_tensor(self.kernel), (-1, *self.kernel.shape[-3:]))

    def _route(self, children, parents, positions: int):
        """Children [n, c, x, y] and parents [n, j, x, z] or None to parents; n = images times `positions`."""
        kernel = self._flat_kernel(children)
        if parents is None:
            routed = ops.cast(first_parents(children, ops.cast(kernel, children.dtype)), self._precision)
        else:
            children, kernel, parents = (ops.cast(tensor, self._precision) for tensor in (children, kernel, parents))
            routed = next_parents(children, kernel, parents, self._group(children.shape, positions))
        return self._finish(routed)

    def _finish(self, routed):
        """Drops elements of the parents' poses, and normalises the poses."""
        routed = self._drop(routed)
        return ops.cast(self._norm(routed) if self._norm else routed, self.compute_dtype)

    def _group(self, children_shape: tuple, positions: int) -> int:
        """How many positions have their votes at the same time: whole images, a divisor of the batch."""
        batch = children_shape[0] and children_shape[0] // positions
        elements = positions * children_shape[1] * self.capsules * children_shape[2] * self.kernel.shape[-1]
        return positions * images_at_a_time(batch, elements, self.votes_at_a_time)

    def _child_pose(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        pose = self.child_pose or shape
        if math.prod(pose) != math.prod(shape):
            raise ValueError(f"a pose of shape {shape} cannot be read as {pose}: set child_pose to fit it")
        return pose

    def _parent_shape(self, child_pose: tuple[int, ...]) -> tuple[int, ...]:
        return (self.capsules, *child_pose[:-1], self.pose_columns or child_pose[-1])

    def get_config(self):
        return {
            **super().get_config(),
            "capsules": self.capsules,
            "pose_columns": self.pose_columns,
            "child_pose": self.child_pose,
            "dropout": self.dropout,
            "votes_at_a_time": self.votes_at_a_time,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
            "seed": self.seed,
            "normalize": self.normalize,
        }


@keras.saving.register_keras_serializable(package="caps_tf")
class AttentionConvCapsules(ConvolutionalCapsules, AttentionCapsules):
    """Convolutional capsules with inverted dot-product attention.

    Each parent position sees a kernel of child positions; a weight for each kernel position, child type and parent
    type turns child poses into votes. Children choose among the parent types at a position, and choose anew for
    each position that sees them.

    A parent's children are the poses under its kernel. The published code reads its patches in another memory order
    than it wrote them, which mixes positions and pose elements; this layer departs from it there.

    Args:
        capsules: number of parent types.
        kernel_size: side of the receptive field in child positions, or (rows, columns).
        strides: child positions between neighbouring receptive fields, or (rows, columns).
        **kwargs: arguments of `AttentionCapsules` and `keras.layers.Layer`.

    Call arguments:
        children: poses, matrices [b, h, w, i, x, y] or vectors [b, h, w, i, y].
        parents: poses of this layer so far, as it returned them; None to route uniformly.

    Returns:
        Poses [b, p, q, j, x, z] or [b, p, q, j, z] in the compute dtype; j = `capsules`,
        p = (h - kernel) // stride + 1 and q alike.

    Raises:
        ValueError: if the kernel is larger than the grid of children, or children are of another rank.

    Example:
        >>> layer = AttentionConvCapsules(32, kernel_size=3, strides=2)
        >>> children = np.ones((2, 16, 12, 8, 4, 4), "float32")
        >>> parents = layer(children)
        >>> tuple(layer(children, parents).shape)
        (2, 7, 5, 32, 4, 4)

    References:
        Tsai, Srivastava, Goh, Salakhutdinov, "Capsules with Inverted Dot-Product Attention Routing", ICLR 2020.
    """

    def build(self, children_shape):
        shape = check_rank(children_shape, (5, 6))
        positions = self._neighbourhood(shape).kernel_positions
        self._add_weights((positions, shape[3]), as_matrix(self._child_pose(shape[4:])))

    def _children_of_parents(self, children):
        """The children of each parent position, [n, c, x, y], and the number of these positions in an image."""
        shape = check_rank(children.shape, (5, 6))
        neighbourhood = self._neighbourhood(shape)
        field, pose = neighbourhood.kernel_positions * shape[3], as_matrix(self._child_pose(shape[4:]))
        return ops.reshape(neighbourhood.gather(children), (-1, field, *pose)), math.prod(neighbourhood.parents)

    def compute_output_shape(self, children_shape, parents_shape=None):
        shape = check_rank(children_shape, (5, 6))
        return (shape[0], *self._neighbourhood(shape).parents, *self._parent_shape(self._child_pose(shape[4:])))


@keras.saving.register_keras_serializable(package="caps_tf")
class AttentionDenseCapsules(AttentionCapsules):
    """Dense capsules with inverted dot-product attention: each parent sees every child, with a weight of its own.

    Children on a grid are taken in the order type, row, column.

    Args:
        capsules: number of parents.
        **kwargs: arguments of `AttentionCapsules` and `keras.layers.Layer`.

    Call arguments:
        children: poses, matrices [b, i, x, y] or [b, h, w, i, x, y], or vectors [b, i, y] or [b, h, w, i, y].
        parents: poses of this layer so far, as it returned them; None to route uniformly.

    Returns:
        Poses [b, j, x, z] or [b, j, z] in the compute dtype, j = `capsules`.

    Raises:
        ValueError: if children are of another rank.

    Example:
        >>> layer = AttentionDenseCapsules(10)
        >>> children = np.ones((2, 5, 5, 32, 4, 4), "float32")
        >>> parents = layer(children)
        >>> tuple(layer(children, parents).shape)
        (2, 10, 4, 4)

    References:
        Tsai, Srivastava, Goh, Salakhutdinov, "Capsules with Inverted Dot-Product Attention Routing", ICLR 2020.
    """

    def build(self, children_shape):
        count, pose = self._count(children_shape)
        self._add_weights((count,), as_matrix(pose))

    def _children_of_parents(self, children):
        """All children of an image, [n, c, x, y], and a single parent position."""
        count, pose = self._count(children.shape)
        if len(children.shape) > 4:
            children = ops.transpose(children, (0, 3, 1, 2, *range(4, len(children.shape))))
        return ops.reshape(children, (-1, count, *as_matrix(pose))), 1

    def compute_output_shape(self, children_shape, parents_shape=None):
        _, pose = self._count(children_shape)
        return (children_shape[0], *self._parent_shape(pose))

    def _count(self, children_shape) -> tuple[int, tuple[int, ...]]:
        """Number of children and the shape that their poses are read as."""
        shape = check_rank(children_shape, (3, 4, 5, 6))
        first = 4 if len(shape) > 4 else 2
        return math.prod(shape[1:first]), self._child_pose(shape[first:])


def as_matrix(pose_shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a pose, for a vector a single row."""
    rows, columns = (1, *pose_shape)[-2:]
    return rows, columns


def check_rank(shape, ranks: tuple[int, ...]) -> tuple:
    """The shape of poses, of one of these ranks and known but for the batch.

    Raises:
        ValueError: if it is not.
    """
    shape = tuple(shape)
    if len(shape) not in ranks or None in shape[1:]:
        kinds = {
            3: "[batch, capsules, elements]",
            4: "[batch, capsules, x, y]",
            5: "[batch, rows, columns, types, elements]",
            6: "[batch, rows, columns, types, x, y]",
        }
        raise ValueError(f"expected poses {' or '.join(kinds[rank] for rank in ranks)} of known size, not {shape}")
    return shape
