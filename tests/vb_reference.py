"""Variational-Bayes routing restated in float64 NumPy, one child and one parent at a time, straight from the paper.

The paper's own formulas, with the mean of the data mu and divisions by R_j, so that what the library rearranges is
checked too.
"""

import math

import numpy as np
from scipy.special import digamma

from tests.em_reference import connections

RIDGE = 1e-5


def vb_routing(
    votes, activations, beta_u, beta_a, children, kernel, strides, iterations, full=False, prior=(1, 1, None, 1)
):
    """Routes one image: votes [p, q, j, k, i, d], activations [h, w, i]; returns poses, activations, weights, variances."""
    votes = np.asarray(votes, np.float64)
    p, q, types, kernel_positions, child_types, size = votes.shape
    alpha0, kappa0, nu0, scatter0 = prior
    nu0 = size + 1 if nu0 is None else nu0
    links = list(connections(children, kernel, strides))
    parents_of = {}
    for parent, k, child in links:
        for i in range(child_types):
            parents_of.setdefault((*child, i), []).append((parent, k))
    routing = np.zeros(votes.shape[:-1])
    for (*_, i), seen_by in parents_of.items():
        for parent, k in seen_by:
            routing[(*parent, slice(None), k, i)] = 1.0 / (len(seen_by) * types)
    for iteration in range(iterations):
        found = {}
        for parent in np.ndindex(p, q):
            alphas = np.full(types, float(alpha0))
            for j in range(types):
                mine = [(k, i, child) for where, k, child in links if where == parent for i in range(child_types)]
                weights = np.array([routing[(*parent, j, k, i)] * activations[(*child, i)] for k, i, child in mine])
                data = np.array([votes[(*parent, j, k, i)] for k, i, _ in mine])
                total = weights.sum()
                mu = weights @ data / total
                kappa, nu = kappa0 + total, nu0 + total
                mean = total * mu / kappa
                scatter = scatter0 * np.eye(size) + kappa0 * total / kappa * np.outer(mu, mu)
                for weight, vote in zip(weights, data, strict=True):
                    scatter += weight * np.outer(vote - mu, vote - mu)
                variances = np.diag(scatter) / nu
                scatter = scatter + RIDGE * np.trace(scatter) * np.eye(size) if full else np.diag(np.diag(scatter))
                alphas[j] += total
                log_precision = sum(digamma((nu - d) / 2) for d in range(size))
                log_precision += size * math.log(2) - np.linalg.slogdet(scatter)[1]
                found[(*parent, j)] = mean, kappa, nu, np.linalg.inv(scatter), log_precision, variances
            for j in range(types):
                found[(*parent, j)] += (digamma(alphas[j]) - digamma(alphas.sum()),)
        if iteration == iterations - 1:
            break
        for (*_, i), seen_by in parents_of.items():
            logits = {}
            for parent, k in seen_by:
                for j in range(types):
                    mean, kappa, nu, scale, log_precision, _, log_share = found[(*parent, j)]
                    deviation = votes[(*parent, j, k, i)] - mean
                    log_likelihood = log_precision - size * math.log(2 * math.pi)
                    log_likelihood -= size / kappa + nu * deviation @ scale @ deviation
                    logits[(*parent, j, k, i)] = log_share + log_likelihood / 2
            largest = max(logits.values())
            total = sum(math.exp(logit - largest) for logit in logits.values())
            for where, logit in logits.items():
                routing[where] = math.exp(logit - largest) / total
    poses, variances = np.zeros((2, p, q, types, size))
    parent_activations = np.zeros((p, q, types))
    for where, (mean, _, _, _, log_precision, variance, log_share) in found.items():
        poses[where], variances[where] = mean, variance
        entropy = size / 2 * math.log(2 * math.pi * math.e) - log_precision / 2
        logit = beta_a[where[-1]] - (beta_u[where[-1]] + math.exp(log_share) * entropy)
        parent_activations[where] = 1 / (1 + math.exp(-logit))
    return poses, parent_activations, routing, variances
