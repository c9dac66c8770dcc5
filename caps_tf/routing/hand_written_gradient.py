"""Gradients written by hand, where the derivative of a formula moves fewer bytes than the one a backend finds."""

import functools
from collections.abc import Callable
from typing import Any

from keras import ops

from caps_tf.tensors import Tensor

Gradient = Callable[[Tensor], Tensor | tuple[Tensor, ...]]
"""From the gradient of the result to that of each argument."""


def with_gradient(function: Callable[..., tuple[Tensor, Gradient]]) -> Callable[..., Tensor]:
    """Makes a function that is differentiated by the gradient that it returns beside its result.

    Keras's backends call such a gradient differently: TensorFlow and JAX with the arriving gradient as the first
    argument, PyTorch by the name `upstream`.

    Args:
        function: of tensors, to the result, one tensor, and a function from the gradient that arrives at the result to
            the gradients of all arguments.

    Returns:
        A function of the same tensors to the result. Variables must be read before: in TensorFlow, a function
        with a custom gradient must not read variables itself.

    Example:
        >>> double = with_gradient(lambda tensor: (2.0 * tensor, lambda arriving: 2.0 * arriving))
        >>> np.array(double(ops.ones((2,))))
        array([2., 2.], dtype=float32)
    """

    @ops.custom_gradient
    @functools.wraps(function)
    def differentiated(*tensors: Tensor) -> tuple[Tensor, Callable[..., Any]]:
        result, gradient = function(*tensors)

        def of_backend(*arguments, upstream=None):
            return gradient(arguments[0] if upstream is None else upstream)

        return result, of_backend

    return differentiated
