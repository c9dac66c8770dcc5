"""Which child feeds which parent: the receptive fields of convolutional capsules.

A grid of parent positions looks at a grid of child positions through a kernel with a stride, without padding.
`Neighbourhood` gathers the children of each parent, and compares what the parents of the same child have for it.
Nothing is filled in where child and parent are not connected, and no position of one image ever meets another image
of the batch.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

Tensor = Any


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
    def kernel_positions(self) -> int:
        """Number of child positions in a receptive field, k."""
        return math.prod(self.kernel)

    def parents_per_child(self) -> np.ndarray:
        """Number of parent positions that see each child position: int array [h, w]; 0 where none does."""
        counts = []
        for child, kernel, stride, parent in zip(
            self.children, self.kernel, self.strides, self.parents, strict=True
        ):
            starts = np.arange(parent)[:, None] * stride
            positions = np.arange(child)[None, :]
            counts.append(np.sum((starts <= positions) & (positions < starts + kernel), axis=0))
        return np.outer(counts[0], counts[1])

    def gather(self, values: Tensor) -> Tensor:
        """Lays out each parent's children: [b, h, w, ...] to [b, p, q, k, ...], k row by row over the kernel."""
        if self.parents == (1, 1) and self.kernel == self.children:
            shape = ops.shape(values)
            return ops.reshape(values, (shape[0], 1, 1, self.kernel_positions, *shape[3:]))
        slices = [
            values[:, rows : rows + row_span : self.strides[0], columns : columns + column_span : self.strides[1]]
            for rows, row_span, columns, column_span in self._offsets()
        ]
        return ops.stack(slices, axis=3)

    def sum_over_parents(self, values: Tensor) -> Tensor:
        """Sums what all the parents that see a child have for it, and gives each of them the sum.

        Args:
            values: [b, p, q, k, i], a number for each parent position and child that it sees.

        Returns:
            The same shape: the same number wherever the same child is seen.

        Example:
            >>> fields = Neighbourhood(children=(1, 3), kernel=(1, 2))     # the middle child feeds both parents
            >>> np.array(fields.sum_over_parents(np.array([[1.0, 2.0], [3.0, 4.0]]).reshape(1, 1, 2, 2, 1))).ravel()
            array([1., 5., 5., 4.])
        """
        entries, there = _entries_of_the_same_child(self)
        if entries.shape[1] == 1:
            return values

        def total(values):
            summed = ops.sum(self._of_rivals(values, entries) * ops.cast(there[..., None], values.dtype), axis=2)
            return ops.reshape(summed, (-1, *values.shape[1:]))

        # Whoever adds to whose sum also receives from it: the sum is its own adjoint.
        @ops.custom_gradient
        def add(values):
            return total(values), lambda *arguments, upstream=None: total(arguments[0] if upstream is None else upstream)

        return add(ops.convert_to_tensor(values))

    def max_over_parents(self, values: Tensor) -> Tensor:
        """The largest of what the parents that see a child have for it; see `sum_over_parents`. Without gradient.

        Args:
            values: [b, p, q, k, i].

        Returns:
            The same shape.
        """
        values = ops.stop_gradient(ops.convert_to_tensor(values))
        entries, _ = _entries_of_the_same_child(self)
        return ops.reshape(ops.max(self._of_rivals(values, entries), axis=2), (-1, *values.shape[1:]))

    def _offsets(self):
        for row in range(self.kernel[0]):
            for column in range(self.kernel[1]):
                yield (
                    row,
                    (self.parents[0] - 1) * self.strides[0] + 1,
                    column,
                    (self.parents[1] - 1) * self.strides[1] + 1,
                )

    @staticmethod
    def _of_rivals(values: Tensor, entries: np.ndarray) -> Tensor:
        """[b, p, q, k, i] to [b, p q k, r, i], what the r parents of the same child have for it."""
        flat = ops.reshape(values, (-1, len(entries), values.shape[-1]))
        return ops.reshape(ops.take(flat, entries.ravel(), axis=1), (-1, *entries.shape, values.shape[-1]))


@functools.cache
def _entries_of_the_same_child(fields: Neighbourhood) -> tuple[np.ndarray, np.ndarray]:
    """Which of the p q k pairs of a parent position and a child that it sees have the same child, as [p q k, r].

    r is the most parents that any child has. Those of a child with less repeat the pair itself, and the second array,
    bool [p q k, r], is false there.
    """
    (p, q), (rows, columns), strides = fields.parents, fields.kernel, fields.strides
    row = np.arange(p)[:, None] * strides[0] + np.arange(rows)
    column = np.arange(q)[:, None] * strides[1] + np.arange(columns)
    child = (row[:, None, :, None] * fields.children[1] + column[None, :, None, :]).ravel()
    in_order = np.argsort(child, kind="stable")
    counts = np.bincount(child)[child]
    # Where the pairs of a child begin among the pairs in the order of children.
    first = np.searchsorted(child[in_order], child)
    nth = np.arange(counts.max())
    there = nth < counts[:, None]
    entries = in_order[np.where(there, first[:, None] + nth, 0)]
    return np.where(there, entries, np.arange(len(child))[:, None]).astype("int32"), there
