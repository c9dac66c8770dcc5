"""Batch normalisation as the networks of this library use it, on one replica or on many."""

import keras


def batch_normalization(name: str, dtype: str | None = None, **options) -> keras.layers.BatchNormalization:
    """Makes a layer that normalises by the statistics of the whole batch, on every replica.

    Args:
        name: of the layer.
        dtype: its dtype policy; Keras's global policy by default.
        **options: `keras.layers.BatchNormalization` arguments.

    Example:
        >>> batch_normalization("norm", momentum=0.9).momentum
        0.9
    """
    # Backends other than TensorFlow have no replicas to agree with.
    synchronized = keras.config.backend() == "tensorflow"
    return keras.layers.BatchNormalization(synchronized=synchronized, dtype=dtype, name=name, **options)
