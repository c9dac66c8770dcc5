"""EM routing restated in float64 NumPy, one child and one parent at a time, straight from procedure 1.

No masks, no gathers, no vectors over capsules: parents and children are dictionaries, so that the tensor code is
checked against something it shares no idea with.
"""

import math

import numpy as np


def connections(children, kernel, strides):
    """Yields (parent position, kernel position, child position) for a "valid" moving kernel."""
    rows = (children[0] - kernel[0]) // strides[0] + 1
    columns = (children[1] - kernel[1]) // strides[1] + 1
    for p in range(rows):
        for q in range(columns):
            for k in range(kernel[0] * kernel[1]):
                r, c = divmod(k, kernel[1])
                yield (p, q), k, (p * strides[0] + r, q * strides[1] + c)


def em_routing(votes, activations, beta_u, beta_a, children, kernel, strides, iterations, final_lambda, epsilon=1e-9):
    """Routes one image: votes [p, q, j, k, i, d], activations [h, w, i]; returns poses, activations, weights."""
    votes = np.asarray(votes, np.float64)
    p, q, types, kernel_positions, child_types, _ = votes.shape
    links = list(connections(children, kernel, strides))
    positions_seeing = {}
    for parent, _, child in links:
        positions_seeing.setdefault(child, set()).add(parent)
    routing = np.zeros(votes.shape[:-1])
    for parent, k, child in links:
        routing[parent[0], parent[1], :, k, :] = 1.0 / (len(positions_seeing[child]) * types)
    poses = np.zeros((p, q, types, votes.shape[-1]))
    variances = np.zeros_like(poses)
    parent_activations = np.zeros((p, q, types))
    for t in range(iterations):
        inverse_temperature = final_lambda * (1 - 0.95 ** (t + 1))
        for parent in np.ndindex(p, q):
            for j in range(types):
                data, mean = 0.0, 0.0
                mine = [(k, i, c) for where, k, c in links if where == parent for i in range(child_types)]
                for k, i, child in mine:
                    weight = routing[(*parent, j, k, i)] * activations[(*child, i)]
                    data += weight
                    mean = mean + weight * votes[(*parent, j, k, i)]
                mean = mean / (data + epsilon)
                variance = 0.0
                for k, i, child in mine:
                    weight = routing[(*parent, j, k, i)] * activations[(*child, i)]
                    variance = variance + weight * (votes[(*parent, j, k, i)] - mean) ** 2
                variance = variance / (data + epsilon) + 1e-9
                cost = np.sum(beta_u[j] + 0.5 * np.log(variance)) * data * 100.0 * types
                cost /= kernel_positions * child_types
                poses[(*parent, j)], variances[(*parent, j)] = mean, variance
                parent_activations[(*parent, j)] = 1.0 / (1.0 + math.exp(-inverse_temperature * (beta_a[j] - cost)))
        if t == iterations - 1:
            break
        for child in positions_seeing:
            for i in range(child_types):
                logits = {}
                for parent, k, seen in links:
                    if seen == child:
                        for j in range(types):
                            mean, variance = poses[(*parent, j)], variances[(*parent, j)]
                            distance = np.sum((votes[(*parent, j, k, i)] - mean) ** 2 / (2 * variance))
                            logits[(*parent, j, k, i)] = (
                                math.log(parent_activations[(*parent, j)] + epsilon)
                                - distance
                                - 0.5 * np.sum(np.log(2 * math.pi * variance))
                            )
                largest = max(logits.values())
                total = sum(math.exp(z - largest) for z in logits.values())
                for where, z in logits.items():
                    routing[where] = math.exp(z - largest) / total
    return poses, parent_activations, routing
