"""Class capsules that are routed by inverted dot-product attention, with weights that all positions share."""

import math

import keras
from keras import ops

from caps_tf.layers.attention_capsules import AttentionCapsules, as_matrix, check_rank
from caps_tf.routing.inverted_attention import shared_parents


@keras.saving.register_keras_serializable(package="caps_tf")
class AttentionClassCapsules(AttentionCapsules):
    """One capsule for each class, routed by inverted dot-product attention from all children of the image.

    All positions share their weights, as in `EMClassCapsules`: what a part says of a class does not depend on where it
    stands. The paper's dense capsules have a weight for each child instead (`AttentionDenseCapsules`). Without
    normalisation a parent is J / K times the sum of its weighed votes, K children: uniformly routed, their mean.

    Args:
        capsules: number of classes.
        **kwargs: arguments of `AttentionCapsules` and `keras.layers.Layer`. No votes are made, so that
            `votes_at_a_time` has no effect.

    Call arguments:
        children: poses, matrices [b, h, w, i, x, y] or vectors [b, h, w, i, y].
        parents: poses of this layer so far, as it returned them; None to route uniformly.

    Returns:
        Poses [b, j, x, z] or [b, j, z] in the compute dtype, j = `capsules`.

    Raises:
        ValueError: if children are of another rank.

    Example:
        >>> layer = AttentionClassCapsules(10)
        >>> children = np.ones((2, 5, 7, 8, 4, 4), "float32")
        >>> parents = layer(children)
        >>> tuple(layer(children, parents).shape)
        (2, 10, 4, 4)

    References:
        Tsai, Srivastava, Goh, Salakhutdinov, "Capsules with Inverted Dot-Product Attention Routing", ICLR 2020.
    """

    cached_votes = None

    def build(self, children_shape):
        shape = check_rank(children_shape, (5, 6))
        self._add_weights((shape[3],), as_matrix(self._child_pose(shape[4:])))

    def _children_of_parents(self, children):
        """All children of an image, position by position, [n, k i, x, y], and a single parent position."""
        shape = check_rank(children.shape, (5, 6))
        return ops.reshape(children, (-1, math.prod(shape[1:4]), *as_matrix(self._child_pose(shape[4:])))), 1

    def _route(self, children, parents, positions: int):
        """As in the base class, but without votes."""
        by_position = ops.reshape(children, (-1, *self._grid(children), *children.shape[2:]))
        tensors = (by_position, self.kernel) + (() if parents is None else (parents,))
        routed = shared_parents(*(ops.cast(tensor, self._precision) for tensor in tensors))
        if not self.normalize:
            routed = routed * (self.capsules / children.shape[1])
        return self._finish(routed)

    def votes_cost(self, children: tuple[int, ...]) -> tuple[int, int]:
        # The weights turn sums over positions, which share them, into votes.
        with_input, votes = super().votes_cost(children)
        return with_input, votes * math.prod(children[1:3])

    def _grid(self, children) -> tuple[int, int]:
        """Child positions k and types i of children [n, k i, x, y]."""
        types = self.kernel.shape[0]
        return children.shape[1] // types, types

    def _flat_kernel(self, children):
        """The weights W of children [n, k i, x, y], the same at each position: [k i, j, y, z]."""
        return ops.tile(ops.convert_to_tensor(self.kernel), (self._grid(children)[0], 1, 1, 1))

    def compute_output_shape(self, children_shape, parents_shape=None):
        shape = check_rank(children_shape, (5, 6))
        return (shape[0], *self._parent_shape(self._child_pose(shape[4:])))
