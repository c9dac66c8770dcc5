"""Initial weights of capsule layers that Keras lacks."""

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="caps_tf")
class NearIdentity(keras.initializers.Initializer):
    """The identity in the last two axes, and normal noise on all elements.

    Votes of a layer that starts so have about the variance of its children's poses, and the parts of an object agree
    on its pose from the first step on.

    Args:
        stddev: of the noise.
        seed: of the noise.

    Example:
        >>> NearIdentity(stddev=0.0)((3, 2, 2))[2].numpy().tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """

    def __init__(self, stddev: float = 0.1, seed: int | None = None):
        self.stddev = stddev
        self._noise = keras.initializers.RandomNormal(0.0, stddev, seed=seed)
        self.seed = seed

    def __call__(self, shape, dtype=None):
        return ops.eye(*shape[-2:], dtype=dtype or "float32") + self._noise(shape, dtype)

    def get_config(self) -> dict[str, Any]:
        return {"stddev": self.stddev, "seed": self.seed}
