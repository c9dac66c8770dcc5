"""Dynamic routing between vector capsules, as pure functions of votes.

Source: Sabour, Frosst, Hinton, "Dynamic Routing Between Capsules" (NeurIPS 2017), equations 1 to 3 and procedure 1. The
length of a capsule's vector says how present its entity is, and a child goes to the parents that its votes agree with.

Two things that the paper leaves open: convolutional parents at different positions compete for a child, as in this
library's EM routing (in the paper's only routed layer a single position sees all children), and gradients flow through
all iterations, as in the authors' code. That code also adds a bias to each parent's sum, of which the paper says nothing;
here there is none.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import keras
from keras import ops

from caps_tf.routing.bounds import bounded_gradient, bounded_values
from caps_tf.routing.competition import begin, softmax_over_parents
from caps_tf.routing.neighbourhood import Neighbourhood
from caps_tf.tensors import Tensor

TINY = 1e-20
"""Added to squared lengths, so that the root has a gradient at a vector of zeros; lost in those longer than 1e-6.
Half precision would lose it in all."""


def _at_least_single(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Makes a function that takes half precision too, computes in single, and returns what it was given."""

    @functools.wraps(function)
    def widened(vectors: Tensor) -> Tensor:
        dtype = keras.backend.standardize_dtype(vectors.dtype)
        if dtype not in ("float16", "bfloat16"):
            return function(vectors)
        return ops.cast(function(ops.cast(vectors, "float32")), dtype)

    return widened


class DynamicParents(NamedTuple):
    """Parent capsules as dynamic routing leaves them.

    Attributes:
        poses: v, [b, p, q, j, d], shorter than 1.
        routing_weights: c of the last iteration, [b, p, q, j, k, i], how much of each child each parent got.
    """

    poses: Tensor
    routing_weights: Tensor


@_at_least_single
def squash(vectors: Tensor) -> Tensor:
    """Shrinks vectors to less than unit length and keeps their direction: v = |s|^2 / (1 + |s|^2) s / |s| (equation 1).

    Args:
        vectors: s, [..., d], float; half precision is squashed in single.

    Returns:
        v, the same shape and dtype; zero for zeros.

    Example:
        >>> np.array(squash(np.array([[3.0, 4.0], [0.0, 0.0]]))).round(4)   # 25 / 26 of the unit vector
        array([[0.5769, 0.7692],
               [0.    , 0.    ]])
    """
    vectors = bounded_gradient(bounded_values(vectors))
    squared = _squared_length(vectors)
    return vectors * (ops.sqrt(squared) / (1.0 + squared))


@_at_least_single
def lengths(capsules: Tensor) -> Tensor:
    """How present the entities of capsules are: the lengths of their squashed vectors, between 0 and 1.

    Args:
        capsules: v, [..., d], float; half precision is measured in single.

    Returns:
        |v|, [...], in the same dtype; at most 1, though rounding may make vectors longer by a digit.

    Example:
        >>> np.array(lengths(np.array([[0.0, 0.6, 0.0]]))).round(4)
        array([0.6])
    """
    return ops.minimum(ops.sqrt(_squared_length(capsules)[..., 0]), 1.0)


def dynamic_routing(
    votes: Tensor, neighbourhood: Neighbourhood, iterations: int = 3, constant_weights: bool = False
) -> DynamicParents:
    """Routes children to parents by agreement (Sabour et al. 2017, procedure 1).

    With b_ij = 0 at first (line 2), in each iteration

    - c_ij = softmax over parents of b_ij (line 4, equation 3), for all parents that see child i,
    - s_j = sum_i c_ij vote_ij (line 5, equation 2),
    - v_j = squash(s_j) (line 6, equation 1),
    - b_ij = b_ij + <vote_ij, v_j> (line 7), but after the last iteration, where nothing reads it.

    Args:
        votes: u_j|i, what each child predicts for each parent's pose, [b, p, q, j, d, k, i]. Float.
        neighbourhood: which child feeds which parent.
        iterations: r, at least 1.
        constant_weights: whether the gradient takes routing weights as constants, as in many programs that stop it at the
            votes of all iterations but the last. The paper names no such thing, and its code does none.

    Returns:
        `DynamicParents`.

    Raises:
        ValueError: if `iterations` is less than 1.

    Example:
        >>> votes = np.random.default_rng(0).normal(size=(2, 1, 1, 5, 16, 9, 3)).astype("float32")
        >>> parents = dynamic_routing(votes, Neighbourhood.whole((3, 3)))
        >>> tuple(parents.poses.shape), tuple(parents.routing_weights.shape)
        ((2, 1, 1, 5, 16), (2, 1, 1, 5, 9, 3))
    """
    if iterations < 1:
        raise ValueError(f"dynamic routing needs at least 1 iteration, not {iterations}")
    votes = ops.convert_to_tensor(votes)
    in_space = (-1, *votes.shape[1:4], *votes.shape[5:])
    votes, weights = begin(votes, neighbourhood)
    _, parent_types, pose_size, children = votes.shape
    logits = ops.zeros_like(votes[:, :, 0])
    for remaining in reversed(range(iterations)):
        if constant_weights:
            weights = ops.stop_gradient(weights)
        parents = squash(ops.einsum("njdc,njc->njd", votes, ops.reshape(weights, (-1, parent_types, children))))
        if remaining:
            logits = bounded_gradient(logits + ops.einsum("njdc,njd->njc", votes, parents))
            weights = softmax_over_parents(ops.reshape(logits, in_space), neighbourhood)
    return DynamicParents(ops.reshape(parents, (*in_space[:4], pose_size)), weights)


def _squared_length(vectors: Tensor) -> Tensor:
    """|s|^2, [..., 1], and a little more."""
    return ops.sum(ops.square(vectors), axis=-1, keepdims=True) + TINY
