"""Heinsen's routing of scored matrix capsules, as pure functions of scores and poses.

Source: Heinsen, "An Algorithm for Routing Capsules in All Domains" (2019, arXiv 1911.00792), algorithm 1. An E-step
shares each child among the parents by how well they predict its vote, a D-step divides its data into used and
ignored, an M-step computes each parent's score from the net benefit of using rather than ignoring, and fits a
Gaussian to the used votes.
"""

from typing import NamedTuple

from keras import ops

from caps_tf.routing.bounds import bounded_gradient, bounded_values
from caps_tf.routing.heinsen_votes import Votes
from caps_tf.tensors import Tensor

P_MODELS = ("gaussian", "skm")


class HeinsenParents(NamedTuple):
    """Parent capsules as Heinsen routing leaves them.

    Attributes:
        scores: [b, j], real numbers; sigmoid(score) is how active a parent is.
        poses: [b, j, x, z], the mean of the votes each parent used.
        variances: [b, j, x, z], their variance.
        routing_weights: R of the last E-step, [b, j, i]; they sum to 1 over the parents j.
        log_likelihoods: log p of the last E-step, [b, j, i]; zero after a single iteration, which judges no vote.
        used: share of each child's data that each parent used, D_use, [b, j, i].
        ignored: share that it ignored, D_ign, [b, j, i].
    """

    scores: Tensor
    poses: Tensor
    variances: Tensor
    routing_weights: Tensor
    log_likelihoods: Tensor
    used: Tensor
    ignored: Tensor


def heinsen_routing(
    scores: Tensor,
    votes: Votes,
    beta_use: Tensor,
    beta_ign: Tensor,
    iterations: int = 3,
    p_model: str = "gaussian",
    eps: float = 1e-5,
) -> HeinsenParents:
    """Routes scored children to scored parents (Heinsen 2019, algorithm 1).

    With f = sigmoid, in each iteration

    - E-step: R = 1/J at first, then softmax over parents of ln f(a_out) + ln p, where for "gaussian"
      ln p = -sum (V - mu)^2 / (2 var) - 1/2 sum ln var (the constant ln 2 pi is the same for all parents), and for
      "skm" (soft k-means) ln p is the log-softmax over parents of -sum (V - mu)^2;
    - D-step: D_use = f(a_inp) R, D_ign = f(a_inp) - D_use;
    - M-step: a_out = sum_i (beta_use D_use - beta_ign D_ign), w = D_use / (sum_i D_use + eps),
      mu = sum_i w V, var = sum_i w (V - mu)^2 + eps.

    Args:
        scores: a_inp, child scores, [b, i], any real number; minus infinity hides a child.
        votes: what each child predicts for each parent.
        beta_use: benefit of using a child's data, [j or 1, i or 1].
        beta_ign: cost of ignoring it, [j or 1, i or 1].
        iterations: iterations, at least 1.
        p_model: "gaussian" or "skm".
        eps: keeps divisions and variances above zero.

    Returns:
        `HeinsenParents`.

    Raises:
        ValueError: if `iterations` is less than 1 or `p_model` is unknown.

    Example:
        >>> from caps_tf.routing import StoredVotes
        >>> votes = StoredVotes.of(np.ones((2, 7, 4, 4)), np.ones((7, 5, 4, 4)), np.zeros((7, 5, 4, 4)))
        >>> parents = heinsen_routing(np.zeros((2, 7)), votes, np.ones((5, 7)), np.ones((5, 7)))
        >>> tuple(parents.scores.shape), tuple(parents.poses.shape)
        ((2, 5), (2, 5, 4, 4))
    """
    if iterations < 1:
        raise ValueError(f"Heinsen routing needs at least 1 iteration, not {iterations}")
    if p_model not in P_MODELS:
        raise ValueError(f"p_model must be one of {', '.join(P_MODELS)}, not {p_model!r}")
    active = ops.sigmoid(scores)[:, None]
    votes = votes.about_mean_of(active[:, 0])
    # What ignoring everything would cost; using data turns their cost into benefit.
    beta_use, beta_ign = bounded_values(beta_use), bounded_values(beta_ign)
    benefit = beta_use + beta_ign
    cost_of_ignoring_all = ops.sum(active * beta_ign, axis=-1)
    log_likelihoods = ops.zeros_like(active) + ops.zeros((1, votes.parents, 1), dtype=active.dtype)
    routing_weights = ops.ones_like(log_likelihoods) / ops.cast(votes.parents, active.dtype)
    for iteration in range(iterations):
        # D-step: what each parent uses of each child, and ignores
        used = active * routing_weights
        # M-step: scores, means and variances
        parent_scores = ops.sum(benefit * used, axis=-1) - cost_of_ignoring_all
        mean, variance = votes.fit(used / (ops.sum(used, axis=-1, keepdims=True) + eps))
        variance = variance + eps
        if iteration < iterations - 1:
            # E-step of the next iteration
            log_likelihoods = _log_likelihoods(votes, mean, variance, p_model)
            logits = ops.log_sigmoid(parent_scores)[..., None] + log_likelihoods
            routing_weights = ops.softmax(bounded_gradient(logits), axis=1)
    return HeinsenParents(parent_scores, mean, variance, routing_weights, log_likelihoods, used, active - used)


def _log_likelihoods(votes: Votes, mean: Tensor, variance: Tensor, p_model: str) -> Tensor:
    if p_model == "skm":
        return ops.log_softmax(-votes.squared_distance(mean, ops.ones_like(mean)), axis=1)
    log_volume = 0.5 * ops.sum(ops.log(variance), axis=(-2, -1))
    return -votes.squared_distance(mean, 0.5 / variance) - log_volume[..., None]
