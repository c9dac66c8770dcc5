"""Self-routing restated in float64 NumPy, one child and one parent at a time, straight from the paper's equations."""

import math

import numpy as np


def self_routing(poses, activations, routing_kernel, bias, pose_kernel):
    """Routes the children of one parent position: [c, d], [c], [c, j, d], [c, j] and [j, c, d, e].

    Returns poses [j, e], activations [j] and routing weights [c, j].
    """
    children, parents = len(poses), bias.shape[1]
    weights = np.zeros((children, parents))
    for i in range(children):
        logits = [float(np.dot(routing_kernel[i, j], poses[i])) + bias[i, j] for j in range(parents)]
        total = sum(math.exp(logit - max(logits)) for logit in logits)
        for j in range(parents):
            weights[i, j] = math.exp(logits[j] - max(logits)) / total
    found_poses, found_activations = np.zeros((parents, pose_kernel.shape[-1])), np.zeros(parents)
    for j in range(parents):
        given = 0.0
        for i in range(children):
            vote = poses[i] @ pose_kernel[j, i]
            found_poses[j] += weights[i, j] * activations[i] * vote
            given += weights[i, j] * activations[i]
        found_poses[j] /= given
        found_activations[j] = given / sum(activations)
    return found_poses, found_activations, weights
