"""EM routing between matrix capsules, as pure functions of votes and activations.

Source: Hinton, Sabour, Frosst, "Matrix capsules with EM routing" (ICLR 2018), procedure 1, with the three
repairs of Gritzman, "Avoiding Implementation Pitfalls of Matrix Capsules with EM Routing by Hinton et al."
(2019): parents at different positions compete for a child (section 3.2), a parent with a single child stays
finite (section 3.3), and the amount of data that a parent receives is normalised (section 3.4).
"""

from typing import NamedTuple

import numpy as np
from keras import ops

from caps_tf.routing.bounds import bounded_gradient, bounded_values
from caps_tf.routing.competition import begin, softmax_over_parents
from caps_tf.routing.gaussian import mean_and_variance, squared_distance
from caps_tf.routing.neighbourhood import Neighbourhood
from caps_tf.tensors import Tensor

VARIANCE_FLOOR = 1e-9
"""Added to each variance, in squared units of the votes: a parent with a single child has variance zero."""


class Parents(NamedTuple):
    """Parent capsules as EM routing leaves them.

    Attributes:
        poses: [b, p, q, j, d], the mean of each parent's Gaussian.
        activations: [b, p, q, j], between 0 and 1.
        routing_weights: [b, p, q, j, k, i], how much of each child each parent got in the last M-step.
        variances: [b, p, q, j, d], of each parent's Gaussian.
        logits: [b, p, q, j], whose sigmoid the activations are.
    """

    poses: Tensor
    activations: Tensor
    routing_weights: Tensor
    variances: Tensor
    logits: Tensor


def inverse_temperature(iteration: int, final_lambda: float) -> float:
    """Inverse temperature of a routing iteration, final_lambda (1 - 0.95^(t+1)) for t = 0, 1, ...

    Hinton et al. raise it along a schedule that they do not state; these are the published code's values.

    Example:
        >>> round(inverse_temperature(0, final_lambda=0.01), 6)
        0.0005
    """
    return final_lambda * (1.0 - 0.95 ** (iteration + 1))


def m_step(
    weights: Tensor,
    votes: Tensor,
    beta_u: Tensor,
    beta_a: Tensor,
    inverse_temperature: float | Tensor,
    epsilon: float,
    variance_floor: float = VARIANCE_FLOOR,
) -> tuple[Tensor, Tensor, Tensor]:
    """Fits each parent's Gaussian to the votes it got, and activates parents that describe theirs cheaply.

    Procedure 1, M-step: with R' = `weights` and S = sum_i R',
    mu = sum_i R' V / (S + epsilon), variance = sum_i R' (V - mu)^2 / (S + epsilon) + 1e-9,
    cost = sum_d (beta_u + 1/2 ln variance) S 100 J / K, logit = lambda (beta_a - cost); its sigmoid is the activation.

    The factor 100 J / K is Gritzman's third repair: a child shares itself among J parent types and a receptive
    field holds K children, so S grows with K / J, and the cost of a parent with it; scaled, S is about 100 in
    every layer and the same inverse temperature suits them all.

    Args:
        weights: routing weights times child activations, [n, j, c].
        votes: [n, j, d, c].
        beta_u: cost of describing one vote element, [j].
        beta_a: cost of leaving a parent inactive, [j].
        inverse_temperature: lambda of this iteration, for all parents or [j].
        epsilon: keeps the division by S finite where no child is active.
        variance_floor: added to each variance.

    Returns:
        mu [n, j, d], variance [n, j, d] and logits [n, j].
    """
    parent_types, pose_size, children = votes.shape[1:]
    data = ops.sum(weights, axis=-1)
    mu, variance = mean_and_variance(weights / (data + epsilon)[..., None], votes)
    variance = variance + variance_floor
    cost = pose_size * beta_u + 0.5 * ops.sum(ops.log(variance), axis=-1)
    cost = cost * data * (100.0 * parent_types / children)
    return mu, variance, inverse_temperature * (beta_a - cost)


def log_likelihood(votes: Tensor, mu: Tensor, variance: Tensor) -> Tensor:
    """Log density of each vote under its parent's Gaussian (procedure 1, E-step, line 2).

    ln p = -sum_d (V - mu)^2 / (2 variance) - 1/2 sum_d ln(2 pi variance).

    Args:
        votes: [n, j, d, c].
        mu: [n, j, d].
        variance: [n, j, d].

    Returns:
        [n, j, c].
    """
    distance = squared_distance(votes, mu, 0.5 / variance)
    return -distance - 0.5 * ops.sum(ops.log(2.0 * np.pi * variance), axis=-1)[..., None]


def em_routing(
    votes: Tensor,
    activations: Tensor,
    beta_u: Tensor,
    beta_a: Tensor,
    neighbourhood: Neighbourhood,
    iterations: int = 2,
    final_lambda: float = 0.01,
    epsilon: float = 1e-9,
    fixed_temperature: Tensor | None = None,
    variance_floor: float = VARIANCE_FLOOR,
) -> Parents:
    """Routes children to parents by expectation maximisation (Hinton et al. 2018, procedure 1).

    An M-step fits each parent to its votes, an E-step hands each child to the parents that explain its vote;
    `iterations` M-steps with an E-step between two of them. Gradients flow through all iterations.

    Args:
        votes: what each child predicts for each parent's pose, [b, p, q, j, d, k, i] with p, q parent rows and
            columns, j parent types, d pose elements, k kernel positions, i child types. Float. Children come last
            so that every pass over the votes runs along hundreds of them.
        activations: child activations, [b, p, q, k, i], between 0 and 1.
        beta_u: [j], cost of describing one vote element.
        beta_a: [j], cost of leaving a parent inactive.
        neighbourhood: which child feeds which parent.
        iterations: number of M-steps, at least 1.
        final_lambda: inverse temperature that the iterations approach.
        epsilon: keeps divisions and logarithms finite.
        fixed_temperature: an inverse temperature [j] of each parent in all iterations, instead of the schedule.
        variance_floor: added to each variance, in squared units of the votes.

    Returns:
        `Parents`.

    Raises:
        ValueError: if `iterations` is less than 1.

    Example:
        >>> votes = np.random.default_rng(0).normal(size=(2, 1, 1, 5, 16, 16, 3)).astype("float32")
        >>> children = np.ones((2, 1, 1, 16, 3), "float32")
        >>> beta = np.zeros(5, "float32")
        >>> parents = em_routing(votes, children, beta, beta, Neighbourhood.whole((4, 4)))
        >>> tuple(parents.poses.shape), tuple(parents.activations.shape)
        ((2, 1, 1, 5, 16), (2, 1, 1, 5))
    """
    if iterations < 1:
        raise ValueError(f"EM routing needs at least 1 iteration, not {iterations}")
    votes, activations = ops.convert_to_tensor(votes), ops.convert_to_tensor(activations)
    beta_u, beta_a = bounded_values(beta_u), bounded_values(beta_a)
    in_space = (-1, *votes.shape[1:4], *votes.shape[5:])
    votes, routing_weights = begin(votes, neighbourhood)
    _, parent_types, pose_size, children = votes.shape
    activations = ops.reshape(activations, (-1, 1, children))
    for iteration in range(iterations):
        # M-step
        weights = ops.reshape(routing_weights, (-1, parent_types, children)) * activations
        temperature = inverse_temperature(iteration, final_lambda) if fixed_temperature is None else fixed_temperature
        mu, variance, parent_logits = m_step(weights, votes, beta_u, beta_a, temperature, epsilon, variance_floor)
        parent_activations = bounded_gradient(ops.sigmoid(parent_logits))
        if iteration < iterations - 1:
            # E-step
            logits = log_likelihood(votes, mu, variance) + ops.log(parent_activations + epsilon)[..., None]
            routing_weights = softmax_over_parents(ops.reshape(bounded_gradient(logits), in_space), neighbourhood)
    gaussians = (*in_space[:4], pose_size)
    return Parents(
        ops.reshape(mu, gaussians),
        ops.reshape(parent_activations, in_space[:4]),
        routing_weights,
        ops.reshape(variance, gaussians),
        ops.reshape(bounded_gradient(parent_logits), in_space[:4]),
    )
