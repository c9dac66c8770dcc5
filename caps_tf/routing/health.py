"""Gauges of routing health: numbers that show whether routing decides anything, and whether its parents can learn.

Pure functions of what routing leaves behind. A routing layer's `routing_trace` runs it once more for a few examples and
keeps that: one `RoutingStep` an iteration. Letters are those of `caps_tf.routing`: n parent positions, j parents at a
position, c the children that they see, d elements of a vote.
"""

from collections.abc import Sequence
from typing import NamedTuple

from keras import ops

from caps_tf.tensors import Tensor

OFF, ON = 0.05, 0.95
"""Activations below and above which a parent counts as off and on in an example."""

NEARLY_ALL = 0.9
"""Share of the examples in which a parent is off (or on) that makes it off (or on) altogether."""

NEAR_FLOOR = 2.0
"""Variances up to this many times their floor count as being at the floor."""

_INACTIVE, _TINY = 1e-12, 1e-20
"""Smallest weight of an inactive child; bound that keeps divisions and logarithms finite."""


class RoutingStep(NamedTuple):
    """One iteration of routing.

    Attributes:
        routing_weights: R, [n, j, c], from which this iteration makes its parents. They sum to 1 over all parents that
            a child competes over, and are equal in the first iteration.
        votes: V, [n, j, d, c], or None where the algorithm makes none.
        parents: what the iteration leaves, the means of Gaussians or poses, [n, j, d]; or None.
        variances: of Gaussians, [n, j, d], or None.
        activations: of the parents, [n, j], between 0 and 1, or None.
    """

    routing_weights: Tensor
    votes: Tensor | None = None
    parents: Tensor | None = None
    variances: Tensor | None = None
    activations: Tensor | None = None


class RoutingTrace(NamedTuple):
    """What a routing layer did, iteration by iteration.

    Attributes:
        steps: the iterations, the first to the last.
        child_activations: [n, c], between 0 and 1, or None where children have none.
        variance_floor: what the algorithm adds to every variance, or None where it adds nothing to them or has none.
        equal_weights: routing weights if children routed uniformly, [n, j, c]; None where those of the first step are.
    """

    steps: tuple[RoutingStep, ...]
    child_activations: Tensor | None = None
    variance_floor: float | None = None
    equal_weights: Tensor | None = None


def routing_entropy(routing_weights: Tensor, equal_weights: Tensor, child_activations: Tensor | None = None) -> Tensor:
    """Mean entropy of a child's routing weights, as a share of the largest: 1 routes uniformly, 0 to a single parent.

    With U = 1 / N for a child that competes over N parents, and a the child's activation (1 without),
    entropy = sum_njc a (-R ln R) / ln N / sum_njc a R. As R sums to 1 over a child's parents, this is the mean over
    children, weighted by their activations, of -sum R ln R / ln N. A child with a single parent has nothing to decide
    and is left out; where no child is active, all count alike.

    Args:
        routing_weights: R, [n, j, c].
        equal_weights: U, the weights of uniform routing, [n, j, c] or broadcast to it; 0 where a parent takes no part.
        child_activations: a, [n, c], or None.

    Returns:
        A scalar between 0 and 1; 0 if no child has a choice.

    Example:
        >>> equal, some = np.full((1, 4, 2), 0.25), np.array([[1.0, 0.5], [0.0, 0.5], [0.0, 0.0], [0.0, 0.0]])
        >>> float(routing_entropy(equal, equal)), float(routing_entropy(some[None], equal))   # (0 + ln 2 / ln 4) / 2
        (1.0, 0.25)
    """
    routing_weights, equal_weights = ops.convert_to_tensor(routing_weights), ops.convert_to_tensor(equal_weights)
    most = -_log(equal_weights)
    counted = ops.cast((equal_weights > 0) & (equal_weights < 1), routing_weights.dtype)
    if child_activations is not None:
        counted = counted * ops.maximum(ops.convert_to_tensor(child_activations), _INACTIVE)[:, None]
    entropy = -routing_weights * _log(routing_weights) / ops.maximum(most, _TINY)
    return ops.sum(counted * entropy) / ops.maximum(ops.sum(counted * routing_weights), _TINY)


def parents_off(activations: Tensor) -> Tensor:
    """Share of parents whose activation is below 0.05 in at least 90 % of the examples.

    Args:
        activations: [b, ...], between 0 and 1: of each parent, at each position, in each example.

    Returns:
        A scalar between 0 and 1.

    Example:
        >>> float(parents_off(np.array([[0.01, 0.01, 0.5, 0.99], [0.02, 0.5, 0.5, 0.99]])))   # the first of four
        0.25
    """
    return _share_of_parents(ops.convert_to_tensor(activations) < OFF)


def parents_on(activations: Tensor) -> Tensor:
    """Share of parents whose activation is above 0.95 in at least 90 % of the examples.

    Args:
        activations: [b, ...], between 0 and 1: of each parent, at each position, in each example.

    Returns:
        A scalar between 0 and 1.

    Example:
        >>> float(parents_on(np.array([[0.01, 0.01, 0.5, 0.99], [0.02, 0.5, 0.5, 0.99]])))
        0.25
    """
    return _share_of_parents(ops.convert_to_tensor(activations) > ON)


def activation_mean(activations: Tensor) -> Tensor:
    """Mean activation of all parents in all examples.

    Args:
        activations: any shape.

    Returns:
        A scalar between 0 and 1.

    Example:
        >>> float(activation_mean(np.array([[0.0, 0.25], [1.0, 0.75]])))
        0.5
    """
    return ops.mean(ops.convert_to_tensor(activations))


def activation_deviation(activations: Tensor) -> Tensor:
    """Mean over parents of the standard deviation of a parent's activation over examples: 0 if it says always the same.

    Args:
        activations: [b, ...], between 0 and 1: of each parent, at each position, in each example.

    Returns:
        A scalar between 0 and 1/2.

    Example:
        >>> float(activation_deviation(np.array([[0.0, 0.3], [1.0, 0.3]])))   # of 1/2 and 0
        0.25
    """
    return ops.mean(ops.std(ops.convert_to_tensor(activations), axis=0))


def variance_floor(variances: Tensor, floor: float) -> Tensor:
    """Share of variances that are at most twice their floor: of parents that fit one child, or no data at all.

    Args:
        variances: with the floor added, any shape.
        floor: what the algorithm adds to each, in squared units of the votes.

    Returns:
        A scalar between 0 and 1.

    Example:
        >>> float(variance_floor(np.array([1e-9, 1.5e-9, 1e-6, 1.0]), floor=1e-9))
        0.5
    """
    return _mean(ops.convert_to_tensor(variances) <= NEAR_FLOOR * floor)


def vote_scale(votes: Tensor) -> Tensor:
    """Root mean square of all elements of all votes, sqrt(mean V^2).

    Args:
        votes: any shape.

    Returns:
        A scalar.

    Example:
        >>> float(vote_scale(np.array([3.0, -3.0])))
        3.0
    """
    return ops.sqrt(ops.mean(ops.square(ops.convert_to_tensor(votes))))


def vote_spread(votes: Tensor, means: Tensor, weights: Tensor) -> Tensor:
    """Mean squared distance of votes to the mean of their parent, an element of a vote.

    spread = sum_njc w sum_d (V - mu)^2 / (D sum_njc w), with w = R a, what each parent got of each child.

    Args:
        votes: V, [n, j, d, c].
        means: mu, [n, j, d].
        weights: w, routing weights times activations of the children, [n, j, c].

    Returns:
        A scalar, in squared units of the votes.

    Example:
        >>> votes = np.array([0.0, 2.0, 9.0]).reshape(1, 1, 1, 3)
        >>> float(vote_spread(votes, np.ones((1, 1, 1)), np.array([[[0.5, 0.5, 0.0]]])))
        1.0
    """
    votes, means, weights = map(ops.convert_to_tensor, (votes, means, weights))
    weights = weights / ops.maximum(ops.max(weights), _TINY)
    distances = ops.mean(ops.square(votes - means[..., None]), axis=2)
    return ops.sum(weights * distances) / ops.maximum(ops.sum(weights), _TINY)


def vote_agreement(votes: Tensor, parents: Tensor, routing_weights: Tensor) -> Tensor:
    """Mean dot product of votes with their parents, what inverted attention routes by.

    agreement = sum_njc R <V, P> / sqrt(D) / sum_njc R.

    Args:
        votes: V, [n, j, d, c].
        parents: P, [n, j, d].
        routing_weights: R, [n, j, c].

    Returns:
        A scalar, in squared units of the poses.

    Example:
        >>> votes = np.array([[1.0, 1.0], [2.0, 0.0], [0.0, 0.0], [0.0, 0.0]]).reshape(1, 1, 4, 2)
        >>> float(vote_agreement(votes, np.ones((1, 1, 4)), np.ones((1, 1, 2))))   # (3 / 2 + 1 / 2) / 2
        1.0
    """
    votes, parents, routing_weights = map(ops.convert_to_tensor, (votes, parents, routing_weights))
    agreement = ops.einsum("njdc,njd->njc", votes, parents) / votes.shape[2] ** 0.5
    return ops.sum(routing_weights * agreement) / ops.maximum(ops.sum(routing_weights), _TINY)


def update_ratio(before: Tensor, after: Tensor) -> Tensor:
    """Size of an update relative to that of the weights, rms(after - before) / rms(after); 0 where both are zero.

    Args:
        before: weights before a step of training, any shape.
        after: the same weights after it.

    Returns:
        A scalar.

    Example:
        >>> round(float(update_ratio(np.array([1.0, -1.0]), np.array([1.01, -0.99]))), 4)
        0.01
    """
    before, after = ops.convert_to_tensor(before), ops.convert_to_tensor(after)
    return vote_scale(after - before) / ops.maximum(vote_scale(after), _TINY)


def trace_gauges(trace: RoutingTrace) -> dict[str, Tensor]:
    """The gauges that a trace allows, by name; those of activations over several examples are not among them.

    Args:
        trace: of a routing layer.

    Returns:
        Scalars: "routing_entropy" of the last iteration and, where the algorithm has what they are made of,
        "variance_floor" of the last, "vote_scale" of the last, and what each iteration gained: "vote_spread_<t>"
        relative to that of the first iteration, for t = 2, 3, ... where parents are Gaussians, or
        "vote_agreement_<t>" for t = 1, 2, ... where they are poses that votes are compared with.

    Example:
        >>> equal = RoutingStep(routing_weights=np.full((1, 2, 3), 0.5), votes=np.ones((1, 2, 4, 3)))
        >>> {name: float(value) for name, value in trace_gauges(RoutingTrace((equal,))).items()}
        {'routing_entropy': 1.0, 'vote_scale': 1.0}
    """
    first, last = trace.steps[0], trace.steps[-1]
    active = trace.child_activations
    equal = first.routing_weights if trace.equal_weights is None else trace.equal_weights
    gauges = {"routing_entropy": routing_entropy(last.routing_weights, equal, active)}
    if last.votes is None:
        return gauges
    gauges["vote_scale"] = vote_scale(last.votes)
    if last.variances is not None:
        if trace.variance_floor is not None:
            gauges["variance_floor"] = variance_floor(last.variances, trace.variance_floor)
        gauges |= _relative_spreads(trace.steps, active)
    elif last.parents is not None:
        for number, step in enumerate(trace.steps, start=1):
            gauges[f"vote_agreement_{number}"] = vote_agreement(*_votes_and_parents(step), step.routing_weights)
    return gauges


def _votes_and_parents(step: RoutingStep) -> tuple[Tensor, Tensor]:
    """Of any step of a trace, once one of its steps has them."""
    assert step.votes is not None and step.parents is not None, "all steps of a trace are alike"
    return step.votes, step.parents


def _relative_spreads(steps: Sequence[RoutingStep], child_activations: Tensor | None) -> dict[str, Tensor]:
    def spread(step: RoutingStep) -> Tensor:
        active = 1.0 if child_activations is None else child_activations[:, None]
        return vote_spread(*_votes_and_parents(step), step.routing_weights * active)

    first = ops.maximum(spread(steps[0]), _TINY)
    return {f"vote_spread_{number}": spread(step) / first for number, step in enumerate(steps[1:], start=2)}


def _share_of_parents(states: Tensor) -> Tensor:
    """Share of parents that are in a state, bool [b, ...], in nearly all examples."""
    in_examples = ops.mean(ops.cast(states, "float32"), axis=0)
    return _mean(in_examples > NEARLY_ALL - 1e-6)


def _mean(condition: Tensor) -> Tensor:
    return ops.mean(ops.cast(condition, "float32"))


def _log(tensor: Tensor) -> Tensor:
    """ln x, and a number at 0."""
    return ops.log(ops.maximum(tensor, _TINY))
