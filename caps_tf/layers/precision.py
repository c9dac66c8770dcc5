"""The precision that routing and its logits need, whatever the dtype policy of their layer."""

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


def activations_dtype(layer: keras.layers.Layer) -> str:
    """Of the activations that a layer returns: its compute dtype, and `routing_dtype` for logits (`return_logits`).

    Logits may be large and hardly differ, and half precision would round the difference away.

    Example:
        >>> from caps_tf.layers import VBClassCapsules
        >>> [activations_dtype(VBClassCapsules(5, return_logits=l, dtype="mixed_float16")) for l in (False, True)]
        ['float16', 'float32']
    """
    return routing_dtype(layer) if getattr(layer, "return_logits", False) else layer.compute_dtype
