"""Layers whose votes exist for a few images at a time."""

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
    function: Callable[..., tuple[Tensor, ...]], by_image: tuple[Tensor, ...], shared: tuple[Tensor, ...], images: int
) -> tuple[Tensor, ...]:
    """Calls `function` for one group of images after the other.

    Args:
        function: of a part of each tensor of `by_image` and of all of `shared`, to tensors [images, ...].
        by_image: tensors [b, ...].
        shared: what all groups share.
        images: images in a group, a divisor of b.

    Returns:
        The results of all images, [b, ...].

    Example:
        >>> halves = map_groups(lambda x, factor: (x * factor,), (ops.ones((6, 3)),), (0.5,), images=2)
        >>> tuple(halves[0].shape)
        (6, 3)
    """
    if by_image[0].shape[0] == images:
        return function(*by_image, *shared)
    groups = tuple(ops.reshape(tensor, (-1, images, *tensor.shape[1:])) for tensor in by_image)
    found = ops.map(lambda group: function(*group, *shared), groups)
    return tuple(ops.reshape(value, (-1, *value.shape[2:])) for value in found)
