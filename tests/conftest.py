"""Settings that must be in place before TensorFlow starts: quiet logs, two logical devices for distribution."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import pytest


@pytest.fixture(autouse=True)
def _same_seed_and_policy_for_each_test():
    keras.utils.set_random_seed(0)
    yield
    keras.mixed_precision.set_global_policy("float32")
