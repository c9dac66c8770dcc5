"""Heinsen routing restated in float64 NumPy, one child and one parent at a time, straight from algorithm 1 (2019)."""

import math

import numpy as np


def sigmoid(x):
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x))


def softmax(logits):
    largest = max(logits)
    odds = [math.exp(logit - largest) for logit in logits]
    return [odd / sum(odds) for odd in odds]


def route(scores, poses, W, B, beta_use, beta_ign, n_iters, p_model="gaussian", eps=1e-5):
    """Routes one example: scores [n_inp], poses [n_inp, d_cov, d_inp], weights for each child and parent.

    Returns a_out, mu_out, sig2_out and R [n_inp, n_out].
    """
    children, parents = W.shape[:2]
    votes = [[poses[i] @ W[i, j] + B[i, j] for j in range(parents)] for i in range(children)]
    R = np.full((children, parents), 1.0 / parents)
    a_out, mean, variance = [], {}, {}
    for iteration in range(n_iters):
        if iteration > 0:
            for i in range(children):
                distances = [
                    np.sum((votes[i][j] - mean[j]) ** 2 / (2 * variance[j] if p_model == "gaussian" else 1.0))
                    for j in range(parents)
                ]
                if p_model == "gaussian":
                    log_p = [-distances[j] - 0.5 * np.sum(np.log(variance[j])) for j in range(parents)]
                else:
                    log_p = np.log(softmax([-distance for distance in distances]))
                R[i] = softmax([math.log(sigmoid(a_out[j])) + log_p[j] for j in range(parents)])
        a_out, mean, variance = np.zeros(parents), {}, {}
        for j in range(parents):
            used = [sigmoid(scores[i]) * R[i, j] for i in range(children)]
            for i in range(children):
                a_out[j] += beta_use[i, j] * used[i] - beta_ign[i, j] * (sigmoid(scores[i]) - used[i])
            share = [use / (sum(used) + eps) for use in used]
            mean[j] = sum(share[i] * votes[i][j] for i in range(children))
            variance[j] = sum(share[i] * (votes[i][j] - mean[j]) ** 2 for i in range(children)) + eps
    return a_out, np.stack([mean[j] for j in range(parents)]), np.stack([variance[j] for j in range(parents)]), R
