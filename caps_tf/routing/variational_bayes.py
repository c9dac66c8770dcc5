"""Variational-Bayes routing between matrix capsules, as pure functions of votes and activations.

Source: Ribeiro, Leontidis, Kollias, "Capsule Routing via Variational Bayes" (AAAI 2020, arXiv 1905.11455), algorithm 1.
The votes for a parent are a Gaussian whose mean and precision have a Gaussian-Wishart prior, and a position's parent
types share its children by weights that have a Dirichlet prior. Where EM routing estimates means, variances and
shares, this routing updates their distributions. So no variance collapses, and where few votes leave a parent's mean
and precision uncertain, children choose it and it is activated by averages over what they may be.

As in the published code the prior mean is zero, precisions are diagonal or full, and a child shares itself among all
parents that see it, at all positions. Divisions by the data that a parent got, which may be none, are rearranged into
divisions by kappa, which are the same numbers. Where this departs from the published code:

- In the first iteration too a child shares itself among the parents at all positions; there each position begins with
  1 / J of each child.
- Shares are a softmax; there those of a child whose likelihoods add up to less than 1e-8 add up to less than 1.
- `RIDGE` is added to full scatters.
- The coordinates that votes for classes carry, see `caps_tf.layers.VBClassCapsules`, and the loss, see
  `caps_tf.models.vb_capsules`.
"""

import math
from typing import NamedTuple

from keras import ops

from caps_tf.routing.bounds import bounded_gradient, bounded_values
from caps_tf.routing.competition import begin, softmax_over_parents
from caps_tf.routing.digamma import digamma
from caps_tf.routing.em import Parents
from caps_tf.routing.gaussian import mean_and_variance, squared_distance
from caps_tf.routing.neighbourhood import Neighbourhood
from caps_tf.tensors import Tensor

COVARIANCES = ("diagonal", "full")
LEAST_SURPLUS = 1e-3
"""How much more than D - 1 degrees of freedom must be, so that they still are in float32."""
RIDGE = 1e-5
"""Share of its trace that is added to the diagonal of a full scatter: what float32 needs to factorise any of them."""


class Prior(NamedTuple):
    """What is assumed of every parent before it has seen a vote; the defaults are the published ones.

    Attributes:
        alpha: of the Dirichlet distribution of the shares of parent types.
        kappa: how many votes the prior mean, zero, counts for.
        nu: degrees of freedom of the Wishart distribution, more than D - 1 + 1e-3 for poses of D elements; None for
            D + 1.
        scatter: sum of squares of its votes about their mean in each element, the inverse of the Wishart's scale.
    """

    alpha: float = 1.0
    kappa: float = 1.0
    nu: float | None = None
    scatter: float = 1.0

    def degrees_of_freedom(self, pose_size: int) -> float:
        """nu for poses of so many elements.

        Raises:
            ValueError: if it is too small for them.

        Example:
            >>> Prior().degrees_of_freedom(16)
            17.0
        """
        nu = pose_size + 1.0 if self.nu is None else self.nu
        if not nu > pose_size - 1 + LEAST_SURPLUS:
            least = f"{pose_size - 1 + LEAST_SURPLUS:.3f}"
            raise ValueError(f"nu must be more than {least} for poses of {pose_size} elements, not {nu}")
        return nu


PUBLISHED = Prior()


class Posterior(NamedTuple):
    """The distributions of parents after an update.

    Attributes:
        alpha: [n, j].
        kappa: [n, j].
        nu: [n, j].
        mean: m, [n, j, d].
        scatter: the inverse of the Wishart's scale Psi: its diagonal [n, j, d], or its Cholesky factor [n, j, d, e].
        log_det: ln |Psi|, [n, j].
        variances: 1 / E[precision] where precisions are diagonal, else the diagonal of E[precision]^-1, [n, j, d].
    """

    alpha: Tensor
    kappa: Tensor
    nu: Tensor
    mean: Tensor
    scatter: Tensor
    log_det: Tensor
    variances: Tensor


def update_parents(weights: Tensor, votes: Tensor, prior: Prior = PUBLISHED, covariance: str = "diagonal") -> Posterior:
    """Updates what is believed of each parent by the votes it got.

    With R' = `weights`, R_j = sum_i R', the prior's alpha_0, kappa_0, nu_0 and scatter s_0, and mean 0:
    alpha = alpha_0 + R_j, kappa = kappa_0 + R_j, nu = nu_0 + R_j, m = sum_i R' V / kappa,
    Psi^-1 = s_0 I + sum_i R' (V - m) (V - m)^T + kappa_0 m m^T, of which "diagonal" keeps the diagonal. The last is
    the paper's s_0 I + sum_i R' (V - mu) (V - mu)^T + kappa_0 R_j / kappa mu mu^T with mu = sum_i R' V / R_j.

    Args:
        weights: routing weights times child activations, [n, j, c].
        votes: [n, j, d, c].
        prior: see `Prior`.
        covariance: "diagonal" or "full".

    Returns:
        `Posterior`.
    """
    pose_size = votes.shape[2]
    data = bounded_gradient(ops.sum(weights, axis=-1))
    kappa, nu = prior.kappa + data, prior.degrees_of_freedom(pose_size) + data
    share = weights / kappa[..., None]
    if covariance == "full":
        mean = ops.einsum("njc,njdc->njd", share, votes)
        scatter, log_det, variances = _full_scatter(share, votes, mean, kappa, prior)
    else:
        mean, variance = mean_and_variance(share, votes)
        scatter = prior.scatter + kappa[..., None] * variance + prior.kappa * ops.square(mean)
        log_det, variances = -ops.sum(ops.log(scatter), axis=-1), scatter
    return Posterior(prior.alpha + data, kappa, nu, mean, scatter, log_det, variances / nu[..., None])


def _full_scatter(
    share: Tensor, votes: Tensor, mean: Tensor, kappa: Tensor, prior: Prior
) -> tuple[Tensor, Tensor, Tensor]:
    """The Cholesky factor [n, j, d, e] of Psi^-1, ln |Psi| [n, j], and the diagonal of Psi^-1 [n, j, d]."""
    deviation = votes - mean[..., None]
    scatter = kappa[..., None, None] * ops.einsum("njdc,njec->njde", share[:, :, None] * deviation, deviation)
    scatter = scatter + prior.kappa * ops.einsum("njd,nje->njde", mean, mean)
    identity = ops.eye(votes.shape[2], dtype=votes.dtype)
    diagonal = prior.scatter + ops.einsum("njde,de->njd", scatter, identity)
    ridge = RIDGE * ops.sum(diagonal, axis=-1)[..., None, None]
    factor = ops.cholesky(bounded_gradient(scatter + (prior.scatter + ridge) * identity))
    log_det = -2.0 * ops.sum(ops.log(ops.einsum("njde,de->njd", factor, identity)), axis=-1)
    return factor, log_det, diagonal


def expected_log_shares(alpha: Tensor) -> Tensor:
    """E ln pi = psi(alpha) - psi(sum_j alpha), the share of each parent type at its position, [n, j].

    Example:
        >>> np.array(expected_log_shares(np.ones((1, 2)))).round(6)
        array([[-1., -1.]])
    """
    return digamma(alpha) - digamma(ops.sum(alpha, axis=-1, keepdims=True))


def expected_log_precision(posterior: Posterior) -> Tensor:
    """E ln |Lambda| = sum_d psi((nu - d) / 2) + D ln 2 + ln |Psi|, d = 0 ... D - 1, of each parent, [n, j]."""
    pose_size = posterior.mean.shape[-1]
    nu = posterior.nu[..., None] - ops.arange(pose_size, dtype=posterior.nu.dtype)
    return ops.sum(digamma(0.5 * nu), axis=-1) + pose_size * math.log(2.0) + posterior.log_det


def expected_log_likelihood(votes: Tensor, posterior: Posterior) -> Tensor:
    """E ln p of each vote under its parent, whose mean and precision are uncertain.

    1/2 E ln |Lambda| - D/2 ln 2 pi - 1/2 (D / kappa + nu (V - m)^T Psi (V - m)).

    Args:
        votes: [n, j, d, c].
        posterior: of the parents.

    Returns:
        [n, j, c].
    """
    pose_size = votes.shape[2]
    if len(posterior.scatter.shape) == 4:
        whitened = ops.solve_triangular(posterior.scatter, votes - posterior.mean[..., None], lower=True)
        distance = posterior.nu[..., None] * ops.einsum("njdc,njdc->njc", whitened, whitened)
    else:
        distance = squared_distance(votes, posterior.mean, posterior.nu[..., None] / posterior.scatter)
    constant = expected_log_precision(posterior) - pose_size * (math.log(2.0 * math.pi) + 1.0 / posterior.kappa)
    return 0.5 * (constant[..., None] - distance)


def activation_logits(posterior: Posterior, beta_u: Tensor, beta_a: Tensor) -> Tensor:
    """What parents' activations are the sigmoid of: a parent is active if its votes agree.

    beta_a - (beta_u + exp(E ln pi) H) with the entropy H = D/2 ln(2 pi e) - 1/2 E ln |Lambda| of a parent's Gaussian at
    its expected log precision, as in the published code.

    Args:
        posterior: of the parents.
        beta_u: [j].
        beta_a: [j].

    Returns:
        [n, j].
    """
    pose_size = posterior.mean.shape[-1]
    entropy = 0.5 * (pose_size * math.log(2.0 * math.pi * math.e) - expected_log_precision(posterior))
    return beta_a - (beta_u + ops.exp(expected_log_shares(posterior.alpha)) * entropy)


def vb_routing(
    votes: Tensor,
    activations: Tensor,
    beta_u: Tensor,
    beta_a: Tensor,
    neighbourhood: Neighbourhood,
    iterations: int = 3,
    prior: Prior = PUBLISHED,
    covariance: str = "diagonal",
) -> Parents:
    """Routes children to parents by variational Bayes (Ribeiro et al. 2020, algorithm 1).

    `iterations` updates of the parents (`update_parents`), and between two of them one of the routing weights, the
    softmax of E ln pi + E ln p over all parents that see a child. Gradients flow through all iterations.

    Args:
        votes: what each child predicts for each parent's pose, [b, p, q, j, d, k, i] with p, q parent rows and
            columns, j parent types, d pose elements, k kernel positions, i child types. Float.
        activations: child activations, [b, p, q, k, i], between 0 and 1.
        beta_u: [j]; see `activation_logits`.
        beta_a: [j].
        neighbourhood: which child feeds which parent.
        iterations: number of updates of the parents, at least 1.
        prior: see `Prior`.
        covariance: "diagonal", or "full" for the covariances of pose elements as well, which takes d times the work.

    Returns:
        `Parents`, whose poses are the posterior means and whose variances are those of the expected precisions.

    Raises:
        ValueError: if `iterations` is less than 1, the covariance unknown, or the prior's nu too small for the poses.

    Example:
        >>> votes = np.random.default_rng(0).normal(size=(2, 1, 1, 5, 16, 16, 3)).astype("float32")
        >>> children, beta = np.ones((2, 1, 1, 16, 3), "float32"), np.zeros(5, "float32")
        >>> parents = vb_routing(votes, children, beta, beta, Neighbourhood.whole((4, 4)))
        >>> tuple(parents.poses.shape), tuple(parents.activations.shape)
        ((2, 1, 1, 5, 16), (2, 1, 1, 5))
    """
    if iterations < 1:
        raise ValueError(f"variational-Bayes routing needs at least 1 iteration, not {iterations}")
    if covariance not in COVARIANCES:
        raise ValueError(f"covariance must be one of {', '.join(COVARIANCES)}, not {covariance!r}")
    votes, activations = ops.convert_to_tensor(votes), ops.convert_to_tensor(activations)
    beta_u, beta_a = bounded_values(beta_u), bounded_values(beta_a)
    in_space = (-1, *votes.shape[1:4], *votes.shape[5:])
    votes, routing_weights = begin(votes, neighbourhood)
    _, parent_types, pose_size, children = votes.shape
    activations = ops.reshape(activations, (-1, 1, children))
    for iteration in range(iterations):
        weights = ops.reshape(routing_weights, (-1, parent_types, children)) * activations
        parents = update_parents(weights, votes, prior, covariance)
        if iteration < iterations - 1:
            logits = expected_log_shares(parents.alpha)[..., None] + expected_log_likelihood(votes, parents)
            routing_weights = softmax_over_parents(ops.reshape(bounded_gradient(logits), in_space), neighbourhood)
    logits = bounded_gradient(activation_logits(parents, beta_u, beta_a))
    gaussians = (*in_space[:4], pose_size)
    return Parents(
        ops.reshape(parents.mean, gaussians),
        ops.reshape(ops.sigmoid(logits), in_space[:4]),
        routing_weights,
        ops.reshape(parents.variances, gaussians),
        ops.reshape(logits, in_space[:4]),
    )
