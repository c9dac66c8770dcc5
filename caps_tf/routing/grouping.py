"""Votes that exist for a few images at a time."""

from collections.abc import Callable
from typing import Any

from keras import ops

Tensor = Any


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
    grouped: tuple[Tensor, ...],
    shared: tuple[Tensor, ...],
    group: int | None,
) -> tuple[Tensor, ...]:
    """Calls `function` for one group of images, or of parent positions, after the other.

    Args:
        function: of a part of each tensor of `grouped` and of all of `shared`, to tensors [group, ...].
        grouped: tensors [n, ...].
        shared: what all groups share.
        group: size of a group, a divisor of n; None for all at once.

    Returns:
        The results of all, [n, ...].

    Example:
        >>> halves = map_groups(lambda x, factor: (x * factor,), (ops.ones((6, 3)),), (0.5,), group=2)
        >>> tuple(halves[0].shape)
        (6, 3)
    """
    if group is None or grouped[0].shape[0] == group:
        return function(*grouped, *shared)
    parts = tuple(ops.reshape(tensor, (-1, group, *tensor.shape[1:])) for tensor in grouped)
    found = ops.map(lambda part: function(*part, *shared), parts)
    return tuple(ops.reshape(value, (-1, *value.shape[2:])) for value in found)
