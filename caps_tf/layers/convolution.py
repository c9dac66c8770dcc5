"""What convolutional capsule layers share, whichever way they route."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from caps_tf.routing.neighbourhood import Neighbourhood

if TYPE_CHECKING:  # what the layer's other bases have: `get_config`, and an `__init__` of their own
    from caps_tf.layers.capsule_layer import CapsuleLayer as _Host
else:
    _Host = object


class ConvolutionalCapsules(_Host):
    """Mixin for a capsule layer whose parents see a kernel of child positions; put it before the layer's other bases.

    Args:
        capsules: number of parent types.
        kernel_size: side of the receptive field in child positions, or (rows, columns).
        strides: child positions between neighbouring receptive fields, or (rows, columns).
        **kwargs: arguments of the layer's other bases.
    """

    def __init__(
        self, capsules: int, kernel_size: int | tuple[int, int] = 3, strides: int | tuple[int, int] = 1, **kwargs
    ):
        super().__init__(capsules, **kwargs)
        self.kernel_size = _rows_and_columns(kernel_size)
        self.strides = _rows_and_columns(strides)

    def _neighbourhood(self, poses_shape: Sequence[int]) -> Neighbourhood:
        """Receptive fields over children whose poses have the shape [b, h, w, ...]."""
        rows, columns = poses_shape[1:3]
        return Neighbourhood((rows, columns), self.kernel_size, self.strides)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "kernel_size": self.kernel_size, "strides": self.strides}


def _rows_and_columns(size: int | tuple[int, int]) -> tuple[int, int]:
    rows, columns = (size, size) if isinstance(size, int) else size
    return rows, columns
