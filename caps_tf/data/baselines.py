"""Plain classifiers, whose accuracy shows how much of a data set can be classified without capsules."""

from collections.abc import Callable

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

_TRAIN_CHUNK, _TEST_CHUNK = 1024, 4096  # bound the memory: about 200 MB for 96 x 96 pixels


def nearest_neighbours(
    train: np.ndarray, test: np.ndarray, report: Callable[[int], None] = lambda count: None
) -> np.ndarray:
    """Finds the nearest training row of each test row, by Euclidean distance.

    Args:
        train: uint8 [n, d].
        test: uint8 [m, d].
        report: called with how many more of the n x m distances are done.

    Returns:
        Row numbers int64 [m].

    Example:
        >>> nearest_neighbours(np.uint8([[0, 0], [9, 9]]), np.uint8([[7, 8]])).tolist()
        [1]
    """
    index = np.zeros(len(test), np.int64)
    for test_start in range(0, len(test), _TEST_CHUNK):
        # Centred, so that float32 keeps its digits for the differences.
        b = test[test_start : test_start + _TEST_CHUNK].astype(np.float32) - 128
        best = np.full(len(b), np.inf, np.float32)
        for train_start in range(0, len(train), _TRAIN_CHUNK):
            a = train[train_start : train_start + _TRAIN_CHUNK].astype(np.float32) - 128
            # |a - b|^2 without |b|^2, which is the same for every a
            distance = np.einsum("nd,nd->n", a, a) - 2 * (b @ a.T)
            closest = distance.argmin(axis=1)
            value = distance[np.arange(len(b)), closest]
            better = np.flatnonzero(value < best)
            best[better] = value[better]
            index[test_start + better] = train_start + closest[better]
            report(len(a) * len(b))
    return index


def nearest_centroids(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Gives each test row [m, d] the label whose training rows [n, d] have the nearest mean, in standard deviations.

    Example:
        >>> nearest_centroids(np.array([[1.0], [2.0], [9.0]]), np.array([0, 0, 1]), np.array([[4.0], [7.0]])).tolist()
        [0, 1]
    """
    classes = np.unique(labels)
    centroids = np.stack([train[labels == label].mean(axis=0) for label in classes])
    distance = (((test[:, None] - centroids) / train.std(axis=0)) ** 2).sum(axis=-1)
    return classes[distance.argmin(axis=1)]


def brightness(images: np.ndarray) -> np.ndarray:
    """Mean and standard deviation [n, 2] of the pixels of each image [n, h, w]."""
    return np.stack([(image.mean(), image.std()) for image in images])


def halved(images: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 pixels: uint8 [n, h, w] to uint8 [n, h // 2, w // 2].

    Example:
        >>> halved(np.uint8([[[0, 4, 9], [8, 4, 9]]])).tolist()
        [[[4]]]
    """
    n, height, width = images.shape
    blocks = images[:, : height // 2 * 2, : width // 2 * 2].reshape(n, height // 2, 2, width // 2, 2)
    return (np.einsum("nyaxb->nyx", blocks, dtype=np.uint16) // 4).astype(np.uint8)


def logistic_regression(
    features: np.ndarray, labels: np.ndarray, num_classes: int, penalty: float, max_iterations: int = 200
) -> Callable[[np.ndarray], np.ndarray]:
    """Fits multinomial logistic regression by L-BFGS, on features standardised by their own mean and deviation.

    Minimises the mean cross-entropy plus penalty / 2 times the sum of the squared weights, biases left out.

    Args:
        features: [n, d].
        labels: [n] int.
        num_classes: number of classes.
        penalty: strength of the L2 penalty, positive.
        max_iterations: of L-BFGS.

    Returns:
        A function from features [m, d] to classes int64 [m].

    Example:
        >>> predict = logistic_regression(np.array([[1.0], [2.0], [8.0], [9.0]]), np.array([0, 0, 1, 1]), 2, 0.01)
        >>> predict(np.array([[3.0], [7.0]])).tolist()
        [0, 1]
    """
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    deviation = np.where(deviation > 0, deviation, 1.0)

    def standardized(values: np.ndarray) -> np.ndarray:
        values = ((values - mean) / deviation).astype(np.float32)  # half the memory to stream through
        return np.pad(values, ((0, 0), (0, 1)), constant_values=1.0)  # the last for biases

    inputs, targets = standardized(features), np.eye(num_classes, dtype=np.float32)[labels]

    def cost(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(-1, num_classes).astype(np.float32)
        scores = inputs @ weights
        shrunk = weights * (np.arange(len(weights)) < len(weights) - 1)[:, None]
        loss = -np.mean(np.sum(targets * log_softmax(scores, axis=1), axis=1)) + penalty / 2 * np.sum(shrunk**2)
        gradient = inputs.T @ (softmax(scores, axis=1) - targets) / len(inputs) + penalty * shrunk
        return float(loss), gradient.ravel().astype(np.float64)

    start = np.zeros(inputs.shape[1] * num_classes)
    found = minimize(cost, start, jac=True, method="L-BFGS-B", options={"maxiter": max_iterations, "gtol": 1e-4})
    weights = found.x.reshape(-1, num_classes)
    return lambda values: (standardized(values) @ weights).argmax(axis=1)
