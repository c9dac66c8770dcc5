"""Routing of vectors in sequences restated in float64 NumPy, one capsule at a time, straight from algorithm 1.

No batches, no masks as arrays of numbers, no matrix products over capsules: each input's proposal for each output is
made by itself, and an input keeps a dictionary of the outputs it goes to.
"""

import math

import numpy as np


def sigmoid(z):
    return 1.0 / (1.0 + math.exp(-z))


def normalized(vector):
    if len(vector) == 1:
        return vector
    mean = sum(vector) / len(vector)
    variance = sum((element - mean) ** 2 for element in vector) / len(vector)
    return np.array([(element - mean) / math.sqrt(variance + 1e-5) for element in vector])


def route(x, parameters, beta_use, beta_ign, n_iters, normalize, mask):
    """Routes one sequence x [n_inp, d_inp] with parameters by name; returns vectors, credit, routing weights."""
    n_inp, n_out = mask.shape
    p = {name: np.asarray(value, np.float64) for name, value in parameters.items()}
    own = {name: np.broadcast_to(p[name], (n_inp, *p[name].shape[1:])) for name in ("W_A", "B_A", "W_S", "B_S")}
    scaled = [vector / math.sqrt(n_inp) for vector in np.asarray(x, np.float64)]
    activations = [sigmoid(own["W_A"][i] @ scaled[i] + own["B_A"][i]) for i in range(n_inp)]
    goes_to = [[j for j in range(n_out) if not mask[i, j]] for i in range(n_inp)]
    outputs = []
    share = [{j: 1.0 / len(goes_to[i]) for j in goes_to[i]} for i in range(n_inp)]
    for iteration in range(n_iters):
        if iteration > 0:
            for i in range(n_inp):
                odds = {}
                for j in goes_to[i]:
                    prediction = (normalized(outputs[j]) @ p["W_G1"]) * p["W_G2"][j] + p["B_G2"][j]
                    odds[j] = sigmoid((x[i] @ prediction) * own["W_S"][i, j] + own["B_S"][i, j])
                share[i] = {j: odds[j] / sum(odds.values()) for j in goes_to[i]}
        outputs = [np.zeros(p["W_F2"].shape[1]) for _ in range(n_out)]
        credit = np.zeros((n_inp, n_out))
        for i in range(n_inp):
            for j in goes_to[i]:
                used = activations[i] * share[i][j]
                ignored = activations[i] - used
                credit[i, j] = beta_use[i, j] * used - beta_ign[i, j] * ignored
                proposal = (scaled[i] * p["W_F1"][j]) @ p["W_F2"] + p["B_F2"][j]
                outputs[j] = outputs[j] + credit[i, j] * proposal
    if normalize:
        outputs = [normalized(output) for output in outputs]
    weights = np.array([[share[i].get(j, 0.0) for j in range(n_out)] for i in range(n_inp)])
    return np.array(outputs), credit, weights
