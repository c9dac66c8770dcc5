"""What an epoch's steps are made of, from seed and epoch alone: order, draws of augmentation, partners of mixup."""

import importlib
import random
from collections.abc import Callable

import keras
import numpy as np

from caps_tf.any_backend.augmentation import DRAWS
from caps_tf.any_backend.learner import Inputs

_MIXUP = 1
"""Keeps the draws of mixup apart from the others, which come from the same seed and epoch."""


def training_inputs(
    numbers: np.ndarray,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    mixup: float = 0.0,
    margin: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Inputs:
    """All whole batches of an epoch, a function of (seed, epoch); the examples left out are others in every epoch.

    Args:
        numbers: of the training examples.
        batch_size: examples in a step.
        seed: of the run.
        epoch: counted from 0.
        mixup: alpha of mixup, 0 for none.
        margin: of the loss, as a function of the steps taken in this epoch.

    Example:
        >>> inputs = training_inputs(np.arange(10), batch_size=4, seed=0, epoch=0, mixup=0.2)
        >>> {name: (values.shape, str(values.dtype)) for name, values in sorted(inputs.items())}
        {'draws': ((8, 5), 'float32'), 'margin': ((8,), 'float32'), 'number': ((8,), 'int32'),
        'partner': ((8,), 'int32'), 'share': ((8,), 'float32'), 'weight': ((8,), 'float32')}
    """
    rng = np.random.default_rng([seed, epoch])
    steps = len(numbers) // batch_size
    count = steps * batch_size
    margins = np.zeros(steps) if margin is None else margin(np.arange(steps))
    inputs = {
        "number": rng.permutation(numbers)[:count].astype("int32"),
        "weight": np.ones(count, "float32"),
        "margin": np.repeat(margins, batch_size).astype("float32"),
        "draws": rng.random((count, DRAWS), "float32"),
    }
    if mixup:
        rng = np.random.default_rng([seed, epoch, _MIXUP])
        places = np.tile(np.arange(batch_size, dtype="int32"), (steps, 1))
        inputs["partner"] = rng.permuted(places, axis=1).reshape(-1)
        inputs["share"] = rng.beta(mixup, mixup, count).astype("float32")
    return inputs


def part_of(inputs: Inputs, start: int, stop: int, batch_size: int) -> Inputs:
    """The steps of an epoch from `start` to before `stop`."""
    return {name: values[start * batch_size : stop * batch_size] for name, values in inputs.items()}


def set_seed(seed: int, epoch: int | None = None) -> None:
    """Seeds what has no state of its own: initial weights, and PyTorch's dropout, which draws from one generator for all.

    As `keras.utils.set_random_seed`, which would load TensorFlow wherever it is installed.

    Args:
        seed: of the run.
        epoch: that begins; None before the network is built.

    Example:
        >>> set_seed(3)
        >>> first = keras.layers.Dense(2)
        >>> first.build((None, 2))
        >>> set_seed(3)
        >>> second = keras.layers.Dense(2)
        >>> second.build((None, 2))
        >>> bool((np.asarray(first.get_weights()[0]) == second.get_weights()[0]).all())
        True
    """
    if epoch is not None:
        seed = int(np.random.SeedSequence([seed, epoch, 3]).generate_state(1)[0])
    if keras.config.backend() == "tensorflow":
        keras.utils.set_random_seed(seed)
        return
    random.seed(seed)
    np.random.seed(seed)
    if keras.config.backend() == "torch":
        importlib.import_module("torch").manual_seed(seed)


def random_states(seed: int, epoch: int, count: int) -> list[np.ndarray]:
    """States of the generators of dropout in an epoch, two whole numbers below 2^31 each.

    Example:
        >>> len(random_states(0, epoch=3, count=2)), random_states(0, 3, 2)[0].shape
        (2, (2,))
    """
    return [np.random.SeedSequence([seed, epoch, 2, number]).generate_state(2) >> 1 for number in range(count)]
