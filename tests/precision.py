"""How exactly the Keras backend that runs the tests can be compared with float64 values."""

import keras

IN_FLOAT64 = keras.config.backend() == "tensorflow"
"""Whether float64 stays float64: elsewhere Keras's own operations turn it into float32."""


def within(tolerance: float) -> dict[str, float]:
    """Tolerances of `numpy.testing.assert_allclose` for float64 values; those of float32 where there are none."""
    return {"rtol": tolerance, "atol": tolerance} if IN_FLOAT64 else {"rtol": 1e-3, "atol": 1e-4}
