"""Credit that the outputs of several routings assign to the inputs of the first.

Source: Heinsen, "An Algorithm for Routing Vectors in Sequences" (2022, arXiv 2211.11754), section 3.2 and appendix A.
"""

import keras
from keras import ops

from caps_tf.tensors import Tensor


def end_to_end_credit(*credits: Tensor, epsilon: float = 1e-5) -> Tensor:
    """Multiplies the credit matrices phi of routings in sequence.

    The first routing's outputs are the second's inputs, so their credits compose like linear maps. After each factor
    the running product is divided by its standard deviation (unbiased, over the whole tensor, leading axes included)
    plus `epsilon`, which keeps long chains in range. This scale is shared by all examples of a batch: compare credits
    within a call, not between calls.

    Args:
        *credits: phi of each routing, [..., i, j], [..., j, o] and so on, in order. Float.
        epsilon: keeps the division finite where all credit is the same.

    Returns:
        [..., i, o], the credit that each output of the last routing assigns to each input of the first, at least in
        single precision.

    Raises:
        ValueError: without credits, or if one routing does not have as many inputs as the one before has outputs.

    Example:
        >>> credit = end_to_end_credit(np.eye(4), np.array([[1.0, 0], [1, 0], [0, 1], [0, -1]]))
        >>> tuple(credit.shape), np.sign(credit).tolist()
        ((4, 2), [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    """
    if not credits:
        raise ValueError("expected the credit phi of at least one routing")
    factors = map(_at_least_single, credits)
    product = _scaled(next(factors), epsilon)
    for credit in factors:
        if product.shape[-1] != credit.shape[-2]:
            raise ValueError(
                f"a routing with {product.shape[-1]} outputs cannot be followed by one with {credit.shape[-2]} inputs: "
                "give the credits in the order of the routings"
            )
        product = _scaled(ops.einsum("...ij,...jo->...io", product, credit), epsilon)
    return product


def _at_least_single(credit: Tensor) -> Tensor:
    credit = ops.convert_to_tensor(credit)
    return credit if keras.backend.standardize_dtype(credit.dtype) == "float64" else ops.cast(credit, "float32")


def _scaled(product: Tensor, epsilon: float) -> Tensor:
    return product / (_unbiased_deviation(product) + epsilon)


def _unbiased_deviation(values: Tensor) -> Tensor:
    degrees = ops.cast(ops.maximum(ops.size(values) - 1, 1), values.dtype)
    return ops.sqrt(ops.sum(ops.square(values - ops.mean(values))) / degrees)
