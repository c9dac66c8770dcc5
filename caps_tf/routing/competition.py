"""How children share themselves among the parents that see them, whatever routing decides about it.

Source: Gritzman, "Avoiding Implementation Pitfalls of Matrix Capsules with EM Routing by Hinton et al." (2019), section
3.2: parents at different positions compete for a child as those of different types do.
"""

import numpy as np
from keras import ops

from caps_tf.routing.bounds import bounded_values
from caps_tf.routing.neighbourhood import Neighbourhood
from caps_tf.tensors import Tensor


def initial_routing_weights(neighbourhood: Neighbourhood, parent_types: int) -> np.ndarray:
    """Equal shares: 1 / (n J) for a child seen from n parent positions with J parent types each.

    Args:
        neighbourhood: the receptive fields.
        parent_types: J.

    Returns:
        float64 array [1, p, q, 1, k, 1], the same for each image, child type and parent type.

    Example:
        >>> float(initial_routing_weights(Neighbourhood.whole((4, 4)), parent_types=5).sum())   # 16 children / 5
        3.2
    """
    seen = neighbourhood.parents_per_child().ravel()[neighbourhood.child_of_pairs()]
    seen = seen.reshape(1, *neighbourhood.parents, 1, neighbourhood.kernel_positions, 1)
    return 1.0 / (seen * parent_types)


def begin(votes: Tensor, neighbourhood: Neighbourhood) -> tuple[Tensor, Tensor]:
    """Votes as the steps of a routing want them, and the routing weights that they start from.

    A step knows nothing of space: it sees parent positions of all images side by side, and their children in a row.
    Compilers handle four axes far better than seven.

    Args:
        votes: [b, p, q, j, d, k, i], with parent rows and columns, parent types, pose elements, kernel positions and
            child types. Float.
        neighbourhood: which child feeds which parent.

    Returns:
        Votes [n, j, d, c] of bounded size, n = b p q and c = k i, and equal routing weights [b, p, q, j, k, i].

    Example:
        >>> votes, weights = begin(np.ones((2, 1, 1, 5, 16, 9, 3), "float32"), Neighbourhood.whole((3, 3)))
        >>> tuple(votes.shape), tuple(weights.shape)
        ((2, 5, 16, 27), (2, 1, 1, 5, 9, 3))
    """
    _, p, q, j, d, k, i = votes.shape
    votes = bounded_values(ops.reshape(votes, (-1, j, d, k * i)))
    weights = ops.convert_to_tensor(initial_routing_weights(neighbourhood, j), dtype=votes.dtype)
    return votes, ops.broadcast_to(weights, (ops.shape(votes)[0] // (p * q), p, q, j, k, i))


def softmax_over_parents(logits: Tensor, neighbourhood: Neighbourhood) -> Tensor:
    """Softmax over all parents that see a child: all types at all positions jointly.

    Gritzman's first repair: a child that lies in several receptive fields shares itself among all of them, so
    that parents at different positions compete for it. Children are never mixed, and a parent that a child does
    not feed takes no part.

    Args:
        logits: [b, p, q, j, k, i].
        neighbourhood: the receptive fields.

    Returns:
        [b, p, q, j, k, i]; for each child seen by a parent, the entries that belong to it sum to 1.
    """
    logits = ops.convert_to_tensor(logits)
    # The shift cancels in the quotient, so its gradient is zero by construction.
    largest = neighbourhood.gather(neighbourhood.scatter_max(ops.max(logits, axis=3)))
    odds = ops.exp(logits - ops.stop_gradient(largest)[:, :, :, None])
    total = neighbourhood.gather(neighbourhood.scatter_add(ops.sum(odds, axis=3)))
    return odds / total[:, :, :, None]
