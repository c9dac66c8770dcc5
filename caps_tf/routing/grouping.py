"""Votes that exist for a few examples at a time, or for all: what the processor wants."""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
from keras import ops

from caps_tf.processor import Processor
from caps_tf.tensors import Tensor

CACHED_VOTES = {
    "em": 2**22,
    "vb": 2**22,
    "heinsen": 2**23,
    "self": 2**22,
    "attention": 2**24,
    "dynamic": 2**24,
}
"""Bytes of votes that exist at the same time on a CPU, by routing: what suits its caches."""

VOTES_HELD = 10
"""How many times its votes a routing holds during a training step: votes, deviations, their gradients. Measured."""
AT_ONCE = 4
"""A routing may take this part of an accelerator's memory, a quarter, while its votes exist."""
KEPT = 16
"""It keeps them for the gradient, as other layers do, if they take no more than this part, a sixteenth."""


class Groups(NamedTuple):
    """How a layer goes through its examples.

    Attributes:
        examples: how many have their votes at the same time, a divisor of the batch; None for all.
        recompute: whether the gradient makes votes again, instead of keeping them and what was made of them.
    """

    examples: int | None
    recompute: bool


def choose_groups(
    batch: int | None, elements: int, processor: Processor, cached_votes: int, votes_at_a_time: int | None = None
) -> Groups:
    """How a layer goes through its examples on a processor.

    A CPU is fastest where votes stay in its cache: a few examples at a time. An accelerator wants few large operations:
    all at once as long as they fit into its memory, and nothing made twice as long as there is plenty.

    Args:
        batch: examples in the batch; None where it is not known.
        elements: numbers in the votes of one example, of four bytes each.
        processor: what the layer runs on.
        cached_votes: bytes of votes at a time on a CPU.
        votes_at_a_time: bytes that the user wants instead, on any processor.

    Returns:
        `Groups`.

    Example:
        >>> gpu = Processor("gpu", "a GPU", memory=24 * 10**9)
        >>> choose_groups(64, 2_000_000, Processor("cpu", "a CPU"), cached_votes=2**24)
        Groups(examples=2, recompute=True)
        >>> choose_groups(64, 2_000_000, gpu, cached_votes=2**24)   # 5 GB with all that is made of 0.5 GB of votes
        Groups(examples=64, recompute=True)
        >>> choose_groups(64, 100_000, gpu, cached_votes=2**24)
        Groups(examples=64, recompute=False)
    """
    if votes_at_a_time or not processor.is_accelerator:
        examples = images_at_a_time(batch, elements, votes_at_a_time or cached_votes)
        return Groups(examples, recompute=examples != batch)
    if batch is None or processor.memory is None:
        return Groups(None, recompute=True)
    held = VOTES_HELD * 4 * elements * batch
    if held <= processor.memory // AT_ONCE:
        return Groups(batch, recompute=held > processor.memory // KEPT)
    return Groups(images_at_a_time(batch, VOTES_HELD * elements, processor.memory // AT_ONCE), recompute=True)


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
    group: int | None = None,
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
