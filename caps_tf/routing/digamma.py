"""The digamma function, which Keras's operations lack."""

from keras import ops

from caps_tf.tensors import Tensor

_STEPS = 8
_COEFFICIENTS = (1 / 12, -1 / 120, 1 / 252, -1 / 240, 1 / 132)
"""B_2n / 2n with the Bernoulli numbers B_2, B_4, ..."""


def digamma(x: Tensor) -> Tensor:
    """psi(x), the derivative of ln gamma(x), for positive numbers.

    The recurrence psi(x) = psi(x + 8) - sum_k 1 / (x + k), k = 0 ... 7, and there the asymptotic series
    psi(x) = ln x - 1 / 2x - sum_n B_2n / (2n x^2n), whose first term left out is below 1e-12. Its gradient is that of
    the formula, the trigamma function.

    Args:
        x: positive floats, any shape.

    Returns:
        The same shape and dtype.

    Example:
        >>> np.array(digamma(np.array([1.0, 2.0]))).round(6)     # minus Euler's constant, and one more
        array([-0.577216,  0.422784])
    """
    x = ops.convert_to_tensor(x)
    below = sum(1.0 / (x + k) for k in range(_STEPS))
    x = x + _STEPS
    inverse_square = 1.0 / ops.square(x)
    series = ops.zeros_like(x)
    for coefficient in reversed(_COEFFICIENTS):
        series = (series + coefficient) * inverse_square
    return ops.log(x) - 0.5 / x - series - below
