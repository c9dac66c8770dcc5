"""Bounds that keep routing finite, in value and in gradient, whatever finite numbers it is given.

Routing squares votes, divides by variances that may be at their floor, and repeats both in each iteration, so that
single precision (up to 3e38) overflows long before its inputs do, and one infinity makes NaN of all weights. Networks
that learn stay far within the bound, where nothing changes.
"""

import keras
from keras import ops

from caps_tf.routing.hand_written_gradient import Gradient, with_gradient
from caps_tf.tensors import Tensor

LARGEST = 1e8
"""Four numbers of this size may be multiplied, and a million such products added up, before float32 overflows."""


def clipped(tensor: Tensor) -> Tensor:
    """Clips to +-`LARGEST`, for gradients that are written by hand; where it clips, its own gradient is zero.

    Args:
        tensor: float, any shape.

    Returns:
        The same shape and dtype.

    Example:
        >>> np.array(clipped(np.array([1.5, -1e30])))
        array([ 1.5e+00, -1.0e+08])
    """
    return ops.clip(tensor, -LARGEST, LARGEST)


def bounded(tensor: Tensor) -> Tensor:
    """Values and gradient within +-`LARGEST`: `bounded_values` and `bounded_gradient`.

    Args:
        tensor: float, any shape.

    Returns:
        The same shape and dtype.

    Example:
        >>> np.array(bounded(np.array([1.5, -1e30])))
        array([ 1.5e+00, -1.0e+08])
    """
    return bounded_gradient(bounded_values(tensor))


def bounded_values(tensor: Tensor) -> Tensor:
    """Clips to +-`LARGEST`; the gradient passes as if it had not, so that a runaway weight finds its way back.

    Args:
        tensor: float, any shape.

    Returns:
        The same shape and dtype.

    Example:
        >>> np.array(bounded_values(np.array([1.5, -1e30])))
        array([ 1.5e+00, -1.0e+08])
    """
    return _clip_values(_read(tensor))


def bounded_gradient(tensor: Tensor) -> Tensor:
    """The tensor itself; its gradient is clipped to +-`LARGEST`.

    Args:
        tensor: float, any shape.

    Returns:
        `tensor`.

    Example:
        >>> np.array(bounded_gradient(np.array([1e30])))
        array([1.e+30])
    """
    return _clip_gradient(_read(tensor))


@with_gradient
def _clip_values(tensor: Tensor) -> tuple[Tensor, Gradient]:
    return clipped(tensor), lambda arriving: arriving


@with_gradient
def _clip_gradient(tensor: Tensor) -> tuple[Tensor, Gradient]:
    # Not `tensor` itself: on PyTorch a function that hands its input through is no step of the graph.
    return tensor * 1, clipped


def _read(tensor: Tensor) -> Tensor:
    """A variable's value: in TensorFlow, a function with a custom gradient must not read variables itself."""
    return ops.cast(tensor, keras.backend.standardize_dtype(tensor.dtype))
