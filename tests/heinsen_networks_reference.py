"""Heinsen's two networks of 2019 restated in NumPy on the names and layouts of their published weights.

One example at a time, channels first, in the type of the weights: what an import must reproduce.
"""

import numpy as np


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def swish(x):
    return x * sigmoid(x)


def log_sigmoid(x):
    return -np.logaddexp(0.0, -x)


def routing(scores, poses, state, prefix, n_iters=3, eps=1e-5):
    """Scores [i] and poses [i, x, y] to parents' scores [j] and poses [j, x, z]."""
    W, B = state[f"{prefix}.W"], state[f"{prefix}.B"]
    beta_use, beta_ign = state[f"{prefix}.beta_use"], state[f"{prefix}.beta_ign"]
    V = np.einsum("ixy,ijyz->ijxz", poses, np.broadcast_to(W, (len(poses), *W.shape[1:]))) + B
    active = sigmoid(scores)[:, None]
    parents = mean = variance = None
    for iteration in range(n_iters):
        if iteration == 0:
            R = np.full(V.shape[:2], 1.0 / V.shape[1], V.dtype)
        else:
            log_p = -np.sum((V - mean) ** 2 / (2 * variance), axis=(2, 3)) - 0.5 * np.sum(np.log(variance), axis=(1, 2))
            logits = log_sigmoid(parents) + log_p
            R = np.exp(logits - logits.max(axis=1, keepdims=True))
            R = R / R.sum(axis=1, keepdims=True)
        use = active * R
        parents = np.sum(beta_use * use - beta_ign * (active - use), axis=0)
        share = (use / (use.sum(axis=0) + eps))[:, :, None, None]
        mean = np.sum(share * V, axis=0)
        variance = np.sum(share * (V - mean) ** 2, axis=0) + eps
    return parents, mean


def batch_norm(x, state, prefix):
    """[c, h, w], with the moving statistics."""
    scale = state[f"{prefix}.weight"] / np.sqrt(state[f"{prefix}.running_var"] + 1e-5)
    return (x - state[f"{prefix}.running_mean"][:, None, None]) * scale[:, None, None] + state[f"{prefix}.bias"][
        :, None, None
    ]


def convolution(x, state, prefix, stride=1):
    """[c, h, w] with a kernel [o, c, m, n], without padding."""
    kernel = state[f"{prefix}.weight"]
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[2:], axis=(1, 2))[:, ::stride, ::stride]
    return np.einsum("chwmn,ocmn->ohw", windows, kernel, optimize=True) + state[f"{prefix}.bias"][:, None, None]


def heinsen_norb(image, state):
    """Class scores of one image [h, w, 2]."""
    x = np.moveaxis(image, -1, 0)
    rows, columns = (np.linspace(-1, 1, size, dtype=x.dtype) for size in x.shape[1:])
    grid = np.stack(np.broadcast_arrays(rows[:, None], columns[None, :]))
    x = np.concatenate([x, grid])
    for layer, stride in enumerate((1, 2, 1, 2, 1, 2)):
        x = batch_norm(x, state, f"convolve.{3 * layer}")
        x = swish(convolution(x, state, f"convolve.{3 * layer + 1}", stride))
    scores = convolution(batch_norm(x, state, "compute_a.0"), state, "compute_a.1")
    poses = convolution(batch_norm(x, state, "compute_mu.0"), state, "compute_mu.1")
    size = state["routings.0.W"].shape[-1]
    poses = poses.reshape(-1, size, size, *x.shape[1:]).transpose(0, 3, 4, 1, 2).reshape(-1, size, size)
    capsules = routing(scores.reshape(-1), poses, state, "routings.0")
    return routing(*capsules, state, "routings.1")[0]


def heinsen_sst(embedding, mask, state):
    """Class scores of one sentence [tokens, depth, width] with its mask [tokens]."""
    with np.errstate(divide="ignore"):
        scores = np.log(mask) - np.log(1 - mask)  # minus and plus infinity for 0 and 1
    x = (embedding + state["depth_emb"]) @ state["detect_parts.0.weight"].T + state["detect_parts.0.bias"]
    x = swish(x)
    x = x - x.mean(axis=-1, keepdims=True)
    x = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-5)
    x = x * state["detect_parts.2.weight"] + state["detect_parts.2.bias"]
    with np.errstate(over="ignore"):
        capsules = routing(np.repeat(scores, embedding.shape[1]), x.reshape(-1, 1, x.shape[-1]), state, "routings.0")
    return routing(*capsules, state, "routings.1")[0]
