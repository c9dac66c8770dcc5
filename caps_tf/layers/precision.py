"""The precision that routing needs, whatever the dtype policy of its layer."""

import keras


def routing_dtype(layer: keras.layers.Layer) -> str:
    """ "float64" for a layer that computes in float64, else "float32".

    Variances of half-precision votes underflow, so routing is never in less than float32. Not
    `keras.backend.result_type`, which knows no float64 on PyTorch.

    Example:
        >>> [routing_dtype(keras.layers.Layer(dtype=dtype)) for dtype in ("mixed_float16", "float32", "float64")]
        ['float32', 'float32', 'float64']
    """
    return "float64" if layer.compute_dtype == "float64" else "float32"
