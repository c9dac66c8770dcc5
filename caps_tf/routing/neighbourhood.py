"""Which child feeds which parent: the receptive fields of convolutional capsules.

A grid of parent positions looks at a grid of child positions through a kernel with a stride, without padding.
`Neighbourhood` gathers the children of each parent, and takes values back to the children by the adjoint of
that gather. Both are plain strided slices and zero padding: nothing is filled in where child and parent are not
connected, and no position of one image ever meets another image of the batch.
"""

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

    def scatter_add(self, values: Tensor) -> Tensor:
        """Sums over the parents that see a child, the adjoint of `gather`: [b, p, q, k, i] to [b, h, w, i]."""
        return self._scatter(values, ops.add, 0.0)

    def scatter_max(self, values: Tensor) -> Tensor:
        """Largest value over the parents that see a child: [b, p, q, k, i] to [b, h, w, i]; -inf where none does."""
        return self._scatter(values, ops.maximum, -np.inf)

    def _offsets(self):
        for row in range(self.kernel[0]):
            for column in range(self.kernel[1]):
                yield (
                    row,
                    (self.parents[0] - 1) * self.strides[0] + 1,
                    column,
                    (self.parents[1] - 1) * self.strides[1] + 1,
                )

    def _scatter(self, values: Tensor, combine, empty: float) -> Tensor:
        if self.parents == (1, 1) and self.kernel == self.children:
            shape = ops.shape(values)
            return ops.reshape(values, (shape[0], *self.children, shape[4]))
        total = None
        for position, (row, row_span, column, column_span) in enumerate(self._offsets()):
            spread = _spread(_spread(values[:, :, :, position], 1, self.strides[0], empty), 2, self.strides[1], empty)
            placed = ops.pad(
                spread,
                (
                    (0, 0),
                    (row, self.children[0] - row - row_span),
                    (column, self.children[1] - column - column_span),
                    (0, 0),
                ),
                constant_values=empty,
            )
            total = placed if total is None else combine(total, placed)
        return total


def _spread(values: Tensor, axis: int, stride: int, empty: float) -> Tensor:
    """Puts stride - 1 `empty` entries between neighbours along `axis` of a [b, p, q, i] tensor."""
    if stride == 1:
        return values
    size = values.shape[axis]
    filler = ops.full_like(values, empty)
    spread = ops.stack([values] + [filler] * (stride - 1), axis=axis + 1)
    shape = list(ops.shape(values))
    shape[axis] = size * stride
    spread = ops.reshape(spread, shape)
    keep = [slice(None)] * 4
    keep[axis] = slice(0, (size - 1) * stride + 1)
    return spread[tuple(keep)]
