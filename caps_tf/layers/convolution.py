"""What convolutional capsule layers share, whichever way they route."""

from typing import Any

from caps_tf.routing.neighbourhood import Neighbourhood


class ConvolutionalCapsules:
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

    def _neighbourhood(self, poses_shape: tuple[int | None, ...]) -> Neighbourhood:
        """Receptive fields over children whose poses have the shape [b, h, w, ...]."""
        return Neighbourhood(tuple(poses_shape[1:3]), self.kernel_size, self.strides)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "kernel_size": self.kernel_size, "strides": self.strides}


def _rows_and_columns(size: int | tuple[int, int]) -> tuple[int, int]:
    rows, columns = (size, size) if isinstance(size, int) else size
    return rows, columns
