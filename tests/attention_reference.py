"""Inverted dot-product attention restated in float64 NumPy: one parent, one child and one sweep at a time.

Votes are formed in full, nothing is skipped, and the neighbourhoods come from `em_reference.connections`, so that the
tensor code is checked against something it shares no idea with.
"""

import math

import numpy as np

from tests.em_reference import connections


def layer_norm(pose, gain, bias, epsilon=1e-5):
    """Normalises one pose over all its elements; a single element is left alone."""
    if pose.size == 1:
        return pose
    return (pose - pose.mean()) / math.sqrt(pose.var() + epsilon) * gain + bias


def route(votes, parents, gain, bias):
    """One step for the parents at one position: votes [children, parents, x, z]; parents [parents, x, z] or None."""
    children, types = votes.shape[:2]
    new = np.zeros(votes.shape[1:])
    for child in range(children):
        if parents is None:
            shares = [1.0 / types] * types
        else:
            agreements = [np.sum(votes[child, j] * parents[j]) / math.sqrt(parents[j].size) for j in range(types)]
            odds = [math.exp(agreement - max(agreements)) for agreement in agreements]
            shares = [odd / sum(odds) for odd in odds]
            shares = [share / (sum(shares) + 1e-10) for share in shares]
        for j in range(types):
            new[j] += shares[j] * votes[child, j]
    return np.stack([layer_norm(pose, gain, bias) for pose in new])


def conv_step(children, parents, kernel, gain, bias, kernel_size, strides):
    """One image: children [h, w, i, x, y], kernel [k, i, j, y, z], parents [p, q, j, x, z] or None."""
    grid = [(size - side) // stride + 1 for size, side, stride in zip(children.shape, kernel_size, strides)]
    votes = {}
    for parent, k, child in connections(children.shape[:2], kernel_size, strides):
        for i, pose in enumerate(children[child]):
            votes.setdefault(parent, []).append([pose @ weight for weight in kernel[k, i]])
    rows = [
        [route(np.array(votes[p, q]), None if parents is None else parents[p, q], gain, bias) for q in range(grid[1])]
        for p in range(grid[0])
    ]
    return np.array(rows)


def dense_step(children, parents, kernel, gain, bias):
    """One image: children [i, x, y] or [h, w, i, x, y], kernel [i, j, y, z], parents [j, x, z] or None."""
    if children.ndim == 5:
        h, w, types = children.shape[:3]
        children = [children[row, column, i] for i in range(types) for row in range(h) for column in range(w)]
    votes = np.array([[pose @ weight for weight in weights] for pose, weights in zip(children, kernel, strict=True)])
    return route(votes, parents, gain, bias)


def concurrent(steps, children, iterations):
    """All layers in every sweep, each from the values of the sweep before; returns the values of all layers."""
    values = []
    below = children
    for step in steps:
        below = step(below, None)
        values.append(below)
    for _ in range(iterations - 1):
        old = list(values)
        for number, step in enumerate(steps):
            values[number] = step(old[number - 1] if number else children, old[number])
    return values


def sequential(steps, children, iterations):
    """Each layer to its end before the next; returns the values of all layers."""
    values = []
    for step in steps:
        parents = None
        for _ in range(iterations):
            parents = step(children, parents)
        values.append(parents)
        children = parents
    return values
