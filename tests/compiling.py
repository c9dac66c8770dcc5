"""Which tests wait for the campaign on TensorFlow, where the default suite is short, and which `fit` is compiled."""

import keras
import pytest

ON_TENSORFLOW = keras.config.backend() == "tensorflow"
PLAIN = keras.config.backend() == "jax"
"""For `jit_compile` of a short training: JAX compiles in any case. XLA takes longer to compile it than it takes without."""
IN_CAMPAIGN = [pytest.mark.campaign] * ON_TENSORFLOW
"""Marks of a parameter. The other backends have no campaign."""

both_ways = pytest.mark.parametrize(
    "jit_compile",
    [pytest.param(PLAIN, id="plain")] + [pytest.param(True, id="xla", marks=IN_CAMPAIGN)] * ON_TENSORFLOW,
)
"""For a test with an argument `jit_compile`: with XLA in the campaign."""


def in_campaign(test):
    """Marks a test."""
    return pytest.mark.campaign(test) if ON_TENSORFLOW else test
