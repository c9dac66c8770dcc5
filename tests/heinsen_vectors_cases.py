"""Inputs, masks and comparisons for the tests of vector routing and its layers."""

import keras
import numpy as np
import pytest
from keras import ops
from keras.ops import convert_to_numpy as numpy

from caps_tf.routing.heinsen_vectors import VectorRoutingWeights

WITHOUT_FLOAT64 = keras.config.backend() == "jax"  # unless it was started with jax_enable_x64


needs_float64 = pytest.mark.skipif(WITHOUT_FLOAT64, reason="no float64")


FLOAT64 = pytest.param("float64", marks=needs_float64)


@keras.saving.register_keras_serializable(package="caps_tf_tests")
def agreement(x, predictions):
    x = ops.cast(x, predictions.dtype)  # a network of one's own may compute in another precision
    return ops.einsum("...id,...jd->...ij", x, predictions) * x.shape[-1] ** -0.5


def values(outputs):
    """The outputs of a layer or function as NumPy arrays."""
    return keras.tree.map_structure(numpy, outputs)


def assert_near(found, expected, tolerance, scale=0.0, name=""):
    """Within `tolerance` of the largest expected value, or of `scale` if that is larger."""
    atol = tolerance * max(np.abs(expected).max(), scale)
    np.testing.assert_allclose(numpy(found), expected, rtol=0, atol=atol, err_msg=name)


def random_case(n_inp=7, n_out=4, d_inp=5, d_out=3, batch=2, fixed=True, seed=0, scale=1.0):
    """x, weights and betas in float64; masks come from `random_mask`."""
    rng = np.random.default_rng(seed)
    own = n_inp if fixed else 1
    shapes = {
        "W_A": (own, d_inp), "B_A": (own,), "W_F1": (n_out, d_inp), "W_F2": (d_inp, d_out), "B_F2": (n_out, d_out),
        "W_G1": (d_out, d_inp), "W_G2": (n_out, d_inp), "B_G2": (n_out, d_inp), "W_S": (own, n_out),
        "B_S": (own, n_out),
    }  # fmt: skip
    weights = VectorRoutingWeights(**{name: rng.normal(size=shape) for name, shape in shapes.items()})
    betas = rng.normal(size=(2, n_inp, n_out))
    return scale * rng.normal(size=(batch, n_inp, d_inp)), weights, betas[0], betas[1]


def random_mask(n_inp=7, n_out=4, seed=1):
    """About half ignored; the first input goes to a single output, and every input somewhere."""
    mask = np.random.default_rng(seed).uniform(size=(n_inp, n_out)) < 0.5
    mask[np.arange(n_inp), np.arange(n_inp) % n_out] = False
    mask[0] = np.arange(n_out) != 0
    return mask
