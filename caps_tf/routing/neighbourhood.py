"""Which child feeds which parent: the receptive fields of convolutional capsules.

A grid of parent positions looks at a grid of child positions through a kernel with a stride, without padding.
`Neighbourhood` gathers the children of each parent, and takes values back to the children by the adjoint of that
gather. Nothing is filled in where child and parent are not connected, and no position of one image ever meets another
image of the batch.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from keras import ops

from caps_tf.routing.hand_written_gradient import with_gradient
from caps_tf.tensors import Tensor


@dataclass(frozen=True)
class Neighbourhood:
    """Receptive fields of a `kernel` moved with `strides` over `children` rows and columns ("valid" padding).

    Args:
        children: rows and columns of child capsules, (h, w).
        kernel: rows and columns of a receptive field.
        strides: rows and columns between neighbouring receptive fields.

    Raises:
        ValueError: if a number is not positive or the kernel is larger than the grid of children.

    Example:
        >>> fields = Neighbourhood(children=(6, 6), kernel=(3, 3), strides=(2, 2))
        >>> fields.parents
        (2, 2)
        >>> fields.parents_per_child()[0]   # the last column feeds no parent
        array([1, 1, 2, 1, 1, 0])
    """

    children: tuple[int, int]
    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)

    def __post_init__(self):
        for name, sizes in (("children", self.children), ("kernel", self.kernel), ("strides", self.strides)):
            if min(sizes) < 1:
                raise ValueError(f"{name} must be positive rows and columns, not {sizes}")
        if self.kernel[0] > self.children[0] or self.kernel[1] > self.children[1]:
            raise ValueError(
                f"a kernel of {self.kernel[0]}x{self.kernel[1]} needs at least as many child capsules, "
                f"but the layer below has only {self.children[0]}x{self.children[1]}"
            )

    @classmethod
    def whole(cls, children: tuple[int, int]) -> "Neighbourhood":
        """One parent position that sees every child: the receptive field of class capsules."""
        return cls(children=children, kernel=children)

    @property
    def parents(self) -> tuple[int, int]:
        """Rows and columns of parent capsules, (p, q)."""
        rows, columns = (
            (child - kernel) // stride + 1
            for child, kernel, stride in zip(self.children, self.kernel, self.strides, strict=True)
        )
        return rows, columns

    @property
    def sees_all(self) -> bool:
        """Whether a single parent position sees every child."""
        return self.kernel == self.children

    @property
    def kernel_positions(self) -> int:
        """Number of child positions in a receptive field, k."""
        return math.prod(self.kernel)

    def parents_per_child(self) -> np.ndarray:
        """Number of parent positions that see each child position: int array [h, w]; 0 where none does."""
        return np.bincount(self.child_of_pairs(), minlength=math.prod(self.children)).reshape(self.children)

    def child_of_pairs(self) -> np.ndarray:
        """The child of each pair of a parent position and a child that it sees: int array [p q k].

        Children are counted row by row.

        Example:
            >>> Neighbourhood(children=(1, 3), kernel=(1, 2)).child_of_pairs()     # the middle child feeds both parents
            array([0, 1, 1, 2])
        """
        row, column = (
            np.arange(parent)[:, None] * stride + np.arange(kernel)
            for parent, stride, kernel in zip(self.parents, self.strides, self.kernel, strict=True)
        )
        return (row[:, None, :, None] * self.children[1] + column[None, :, None, :]).ravel()

    def gather(self, values: Tensor) -> Tensor:
        """Lays out each parent's children: [b, h, w, ...] to [b, p, q, k, ...], k row by row over the kernel."""
        values = ops.convert_to_tensor(values)
        gathered = _linear(_take, _add, self, _flat(values, 2))
        return ops.reshape(gathered, (-1, *self.parents, self.kernel_positions, *values.shape[3:]))

    def scatter_add(self, values: Tensor) -> Tensor:
        """Sums over the parents that see a child, the adjoint of `gather`: [b, p, q, k, ...] to [b, h, w, ...]."""
        values = ops.convert_to_tensor(values)
        summed = _linear(_add, _take, self, _flat(values, 3))
        return ops.reshape(summed, (-1, *self.children, *values.shape[4:]))

    def scatter_max(self, values: Tensor) -> Tensor:
        """Largest value over the parents that see a child: [b, p, q, k, ...] to [b, h, w, ...]; -inf where none does.

        Without gradient.
        """
        values = ops.stop_gradient(ops.convert_to_tensor(values))
        largest = _over_parents(self, _flat(values, 3), ops.maximum, -np.inf)
        return ops.reshape(largest, (-1, *self.children, *values.shape[4:]))


def _flat(values: Tensor, axes: int) -> Tensor:
    """Merges the `axes` axes after the first, and those after them: [b, ..., ...] to [b, n, m]."""
    shape = values.shape[1:]
    return ops.reshape(values, (-1, math.prod(shape[:axes]), math.prod(shape[axes:])))


def _linear(function: Callable, adjoint: Callable, fields: Neighbourhood, values: Tensor) -> Tensor:
    """A linear function of values, with its gradient."""

    @with_gradient
    def linear(values):
        return function(fields, values), lambda arriving: adjoint(fields, arriving)

    return linear(values)


# By index, each is a single loop over its result; slices and pads of each kernel position are a loop each, and nine
# tensors to write.


def _take(fields: Neighbourhood, values: Tensor) -> Tensor:
    """[b, h w, m] to [b, p q k, m]."""
    return values if fields.sees_all else ops.take(values, fields.child_of_pairs(), axis=1)


def _add(fields: Neighbourhood, values: Tensor) -> Tensor:
    """[b, p q k, m] to [b, h w, m]."""
    return _over_parents(fields, values, ops.add, 0.0)


def _over_parents(fields: Neighbourhood, values: Tensor, combine: Callable, empty: float) -> Tensor:
    """Combines what the parents of a child have for it: [b, p q k, m] to [b, h w, m]; `empty` where there is none."""
    if fields.sees_all:
        return values
    found = [
        ops.where(there[:, None], ops.take(values, pairs, axis=1), empty) for pairs, there in _pairs_of_children(fields)
    ]
    return functools.reduce(combine, found)


@functools.cache
def _pairs_of_children(fields: Neighbourhood) -> list[tuple[np.ndarray, np.ndarray]]:
    """The first pair of each child, int [h w], and whether there is one, bool [h w]; the second, and so on."""
    in_order, counts = np.argsort(fields.child_of_pairs(), kind="stable"), fields.parents_per_child().ravel()
    # Where the pairs of a child begin among the pairs in the order of children.
    first = np.cumsum(counts) - counts
    return [(in_order[np.where(nth < counts, first + nth, 0)], nth < counts) for nth in range(counts.max())]
