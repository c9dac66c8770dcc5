"""Inverted dot-product attention: children choose their parents by how well their votes agree with them.

Source: Tsai, Srivastava, Goh, Salakhutdinov, "Capsules with Inverted Dot-Product Attention Routing" (ICLR 2020,
arXiv 2002.04764), section 3, equations 1 to 5 and algorithms 1 and 2.

Poses are matrices [x, y] and a vote is pose times weight, [x, y] [y, z]. A pose that is a vector is a matrix of one
row. As everywhere in this library, n counts parent positions of all images and c the children that a parent sees.

Votes are sixteen and more times larger than all else here, and nothing needs all of them at once: a child's routing
weights depend on that child's votes alone. So on a CPU routing goes through the parent positions in groups whose votes
stay in its cache, in the forward pass and again in the backward pass, which recomputes them. The first iteration needs no
votes at all: with uniform routing weights it is one matrix product.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

from keras import ops

from caps_tf.routing.bounds import bounded, bounded_values, clipped
from caps_tf.routing.grouping import map_groups
from caps_tf.routing.hand_written_gradient import Gradient, with_gradient
from caps_tf.tensors import Tensor

EPSILON = 1e-10
"""Added to the sum of a child's routing weights before they are divided by it; the sum itself is 1."""

Capsules = TypeVar("Capsules")
"""What the schedules hand from layer to layer without looking at it: poses, or what stands for them."""

CapsuleLayer = Callable[[Capsules, Capsules | None], Capsules]
"""One routing step: children and the parents so far (None: route uniformly) to new parents."""


def first_parents(children: Tensor, weights: Tensor) -> Tensor:
    """Parents under uniform routing weights, 1 / J for each of J parents: sum_c 1/J pose_c W_cj.

    Args:
        children: poses, [n, c, x, y].
        weights: [c, j, y, z].

    Returns:
        Parents before normalisation, [n, j, x, z].

    Example:
        >>> children, weights = np.ones((2, 10, 4, 4), "float32"), np.ones((10, 5, 4, 4), "float32")
        >>> float(first_parents(children, weights)[0, 0, 0, 0])   # 10 children with votes of 4, shared by 5 parents
        8.0
    """
    children, weights = bounded_values(children), bounded_values(weights)
    return bounded_values(ops.einsum("ncxy,cjyz->njxz", children, weights) / weights.shape[1])


def routing_weights(children: Tensor, weights: Tensor, parents: Tensor) -> Tensor:
    """How much of itself each child gives to each parent (equations 2 and 3).

    The agreement of a vote with a parent is their dot product over the square root of its length; a softmax over
    the parents, at their position, makes it routing weights.

    Args:
        children: poses, [n, c, x, y].
        weights: [c, j, y, z].
        parents: poses as they are before this routing iteration, [n, j, x, z].

    Returns:
        [n, c, j]; sums to 1 over j.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> children, weights, parents = (rng.normal(size=s) for s in [(2, 9, 4, 4), (9, 5, 4, 4), (2, 5, 4, 4)])
        >>> np.allclose(np.sum(routing_weights(children, weights, parents), axis=-1), 1.0)
        True
    """
    children, weights, parents = map(bounded_values, (children, weights, parents))
    weights, parents = _parents_last(weights), _parents_last(parents)
    return ops.transpose(_share_out(_votes(children, weights, parents), parents), (1, 0, 2))


def next_parents(
    children: Tensor, weights: Tensor, parents: Tensor, group: int | None = None, recompute: bool = True
) -> Tensor:
    """One routing iteration: each child's votes, weighed by their agreement with the parents so far (equation 4).

    Args:
        children: poses, [n, c, x, y].
        weights: [c, j, y, z], in the precision of the children. That may be bfloat16 where the processor adds up its
            products in float32: votes are then as exact as their factors, and all else is computed in the
            parents' precision.
        parents: poses as they are before this routing iteration, [n, j, x, z]. Float32 or float64.
        group: number of positions n whose votes exist at the same time, a divisor of n; all by default.
        recompute: whether the gradient makes the votes again instead of keeping them.

    Returns:
        Parents before normalisation, [n, j, x, z].

    Example:
        >>> rng = np.random.default_rng(0)
        >>> children, weights, parents = (rng.normal(size=s) for s in [(6, 9, 4, 4), (9, 5, 4, 4), (6, 5, 4, 4)])
        >>> np.allclose(next_parents(children, weights, parents), next_parents(children, weights, parents, group=2))
        True
    """
    children, weights, parents = map(bounded_values, (children, weights, parents))
    weights, parents = _parents_last(weights), _parents_last(parents)
    route = _route_again if recompute else _route
    (routed,) = map_groups(
        lambda children, parents, weights: (route(children, weights, parents),), (children, parents), (weights,), group
    )
    return bounded(ops.transpose(routed, (0, 3, 1, 2)))


def shared_parents(children: Tensor, weights: Tensor, parents: Tensor | None = None) -> Tensor:
    """One routing iteration of children that share their weights over positions, without making a vote.

    What all positions of a type have in common moves out of the sums: the agreement of a vote with a parent is that of
    the pose with the parent turned back by the weights, <pose W, parent> = <pose, parent W^T>, and the sum of weighed
    votes is the sum of weighed poses, times W. The result is that of `first_parents` and `next_parents` with the
    weights repeated at every position.

    Args:
        children: poses, [n, k, i, x, y] with k positions and i child types. Float32 or float64, as all three.
        weights: [i, j, y, z].
        parents: poses as they are before this routing iteration, [n, j, x, z]; None to route uniformly.

    Returns:
        Parents before normalisation, [n, j, x, z].

    Example:
        >>> rng = np.random.default_rng(0)
        >>> children, weights, parents = (rng.normal(size=s) for s in [(2, 9, 3, 4, 4), (3, 5, 4, 4), (2, 5, 4, 4)])
        >>> repeated = np.tile(weights, (9, 1, 1, 1))
        >>> expected = next_parents(children.reshape(2, 27, 4, 4), repeated, parents)
        >>> np.allclose(shared_parents(children, weights, parents), expected)
        True
    """
    children, weights = bounded_values(children), bounded_values(weights)
    if parents is None:
        pooled = ops.sum(children, axis=1) / weights.shape[1]
        return bounded(ops.einsum("nixy,ijyz->njxz", pooled, weights))
    parents = bounded_values(parents)
    turned_back = ops.einsum("njxz,ijyz->nijxy", parents, weights)
    agreement = ops.einsum("nkixy,nijxy->nkij", children, turned_back) / math.sqrt(math.prod(parents.shape[-2:]))
    shares = ops.softmax(bounded(agreement), axis=-1) / (1.0 + EPSILON)
    pooled = ops.einsum("nkij,nkixy->nijxy", shares, children)
    return bounded(ops.einsum("nijxy,ijyz->njxz", pooled, weights))


def route_concurrently(layers: Sequence[CapsuleLayer[Capsules]], children: Capsules, iterations: int) -> Capsules:
    """Routes all layers of a stack at once (algorithm 2): each reads what the sweep before left of it and below it.

    A first pass from below gives every layer its first parents, and iterations - 1 sweeps follow. The last layer
    needs of the one below it what the last sweep but one left, and so on down, so a sweep updates only what can
    still reach the result: with two iterations the last layer alone. The result is that of full sweeps.

    Args:
        layers: from the lowest to the highest.
        children: what the lowest layer routes.
        iterations: at least 1.

    Returns:
        The parents that the highest layer ends with.

    Raises:
        ValueError: if `iterations` is less than 1.

    Example:
        >>> halfway = lambda children, parents: children if parents is None else (children + parents) / 2
        >>> route_concurrently([halfway, lambda c, p: halfway(c, p) + 1], 1.0, iterations=2)
        2.5
    """
    _check_iterations(iterations)
    values = [children]
    for layer in layers:
        values.append(layer(values[-1], None))
    for remaining in reversed(range(iterations - 1)):
        lowest = max(1, len(layers) - remaining)
        values[lowest:] = [layers[k - 1](values[k - 1], values[k]) for k in range(lowest, len(values))]
    return values[-1]


def route_sequentially(layers: Sequence[CapsuleLayer[Capsules]], children: Capsules, iterations: int) -> Capsules:
    """Routes a stack layer by layer: each finishes all its iterations before the next begins.

    Args:
        layers: from the lowest to the highest.
        children: what the lowest layer routes.
        iterations: at least 1.

    Returns:
        The parents that the highest layer ends with.

    Raises:
        ValueError: if `iterations` is less than 1.

    Example:
        >>> halfway = lambda children, parents: children if parents is None else (children + parents) / 2
        >>> route_sequentially([halfway, lambda c, p: halfway(c, p) + 1], 1.0, iterations=2)
        2.5
    """
    _check_iterations(iterations)
    for layer in layers:
        parents = layer(children, None)
        for _ in range(iterations - 1):
            parents = layer(children, parents)
        children = parents
    return children


def _routed(children: Tensor, weights: Tensor, parents: Tensor, recompute: bool = False) -> tuple[Tensor, Gradient]:
    """[n, c, x, y], [c, y, z, j] and [n, x, z, j] to [n, x, z, j], with a gradient that keeps votes or makes them again.

    Let V be the votes, R the routing weights, s = 1 / sqrt(x z) and D the gradient that arrives. The gradient of
    the agreement is A_cj = s R_cj (<V_cj, D_j> - sum_j R_cj <V_cj, D_j>), of the parents sum_c A_cj V_cj, and of
    the votes R_cj D_j + A_cj parent_j, which goes on to poses and weights.
    """

    def make() -> tuple[Tensor, Tensor]:
        votes = _votes(children, weights, parents)
        return votes, _share_out(votes, parents)

    votes, shares = make()
    routed = _sum_over_children(shares, votes)
    kept = None if recompute else (votes, shares)

    def gradient(arriving):
        votes, shares = kept or make()
        change = _dot(votes, arriving)
        change = change - ops.sum(shares * change, axis=-1, keepdims=True) * (1.0 + EPSILON)
        agreement = clipped(_scale(parents) * shares * change)
        votes_gradient = _outer(shares, arriving) + _outer(agreement, parents)
        votes_gradient = ops.cast(votes_gradient, children.dtype)
        return (
            ops.einsum("cnxzj,cyzj->ncxy", votes_gradient, weights),
            ops.einsum("ncxy,cnxzj->cyzj", children, votes_gradient),
            _sum_over_children(agreement, votes),
        )

    return routed, gradient


_route = with_gradient(_routed)
_route_again = with_gradient(functools.partial(_routed, recompute=True))


# Votes are [c, n, x, z, j]: a matrix product puts them out in this order, and all that follows runs along j. They are
# multiplied and summed rather than contracted by einsum, which would transpose them first; compilers fuse the two.


def _votes(children: Tensor, weights: Tensor, parents: Tensor) -> Tensor:
    """In the precision of the parents; factors in half precision are multiplied as they are."""
    return ops.cast(ops.einsum("ncxy,cyzj->cnxzj", children, weights), parents.dtype)


def _dot(votes: Tensor, parents: Tensor) -> Tensor:
    return ops.sum(votes * parents, axis=(2, 3))


def _outer(shares: Tensor, parents: Tensor) -> Tensor:
    return shares[:, :, None, None] * parents


def _sum_over_children(shares: Tensor, votes: Tensor) -> Tensor:
    return ops.sum(shares[:, :, None, None] * votes, axis=0)


def _scale(parents: Tensor) -> float:
    return 1.0 / math.sqrt(parents.shape[1] * parents.shape[2])


def _share_out(votes: Tensor, parents: Tensor) -> Tensor:
    """Routing weights [c, n, j]."""
    return ops.softmax(_dot(votes, parents) * _scale(parents), axis=-1) / (1.0 + EPSILON)


def _parents_last(tensor: Tensor) -> Tensor:
    return ops.transpose(tensor, (0, 2, 3, 1))


def _check_iterations(iterations: int) -> None:
    if iterations < 1:
        raise ValueError(f"routing needs at least 1 iteration, not {iterations}")
