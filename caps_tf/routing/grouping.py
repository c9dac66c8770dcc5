"""Votes that exist for a few images at a time."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from caps_tf.tensors import Tensor

VOTES_AT_A_TIME = {"em": 2**22, "heinsen": 2**22, "sentences": 2**21, "attention": 2**24}
"""Default bound on the bytes of votes that exist at the same time, by routing; "sentences" is for Heinsen's SST
network. They suit the caches of processors. Give an accelerator 2**30 or more: it has more
memory to fill, and wants few large kernels."""


def images_at_a_time(batch: int | None, elements: int, votes_at_a_time: int) -> int:
    """How many images have their votes at the same time: the largest divisor of the batch within the bound.

    Args:
        batch: images in the batch; None where it is not known, which means one at a time.
        elements: numbers in the votes of one image, of four bytes each.
        votes_at_a_time: bytes; a single image may need more.

    Example:
        >>> images_at_a_time(64, elements=100_000, votes_at_a_time=2**22)   # ten would fit, but do not divide 64
        8
    """
    fitting = max(1, votes_at_a_time // (4 * elements))
    batch = batch or 1
    return max(size for size in range(1, min(fitting, batch) + 1) if batch % size == 0)


def map_groups(
    function: Callable[..., tuple[Tensor, ...]],
    grouped: tuple[Any, ...],
    shared: tuple[Any, ...],
    group: int | None,
    recompute: bool = False,
) -> tuple[Tensor, ...]:
    """Calls `function` for one group of images, or of parent positions, after the other.

    Args:
        function: of a part of each argument of `grouped` and of all of `shared`, to tensors [group, ...].
        grouped: tensors [n, ...], or tuples and named tuples of them.
        shared: what all groups share, tensors or tuples of them.
        group: size of a group, a divisor of n; None for all at once.
        recompute: whether the gradient calls `function` again instead of keeping what it made.

    Returns:
        The results of all, [n, ...].

    Example:
        >>> pair = ops.ones((6, 3)), ops.ones((6, 2))
        >>> found = map_groups(lambda pair, factor: (factor * pair[0], pair[1]), (pair,), (0.5,), group=2)
        >>> [tuple(tensor.shape) for tensor in found]
        [(6, 3), (6, 2)]
    """
    flat, flat_shared = keras.tree.flatten(grouped), keras.tree.flatten(shared)

    def call(*tensors):
        parts = keras.tree.pack_sequence_as(grouped, tensors[: len(flat)])
        return function(*parts, *keras.tree.pack_sequence_as(shared, tensors[len(flat) :]))

    if recompute:
        call = keras.remat(call)
    if group is None or flat[0].shape[0] == group:
        return call(*flat, *flat_shared)
    parts = tuple(ops.reshape(tensor, (-1, group, *tensor.shape[1:])) for tensor in flat)
    found = ops.map(lambda part: call(*part, *flat_shared), parts)
    return tuple(ops.reshape(value, (-1, *value.shape[2:])) for value in found)
