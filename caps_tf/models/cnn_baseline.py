"""The convolutional baseline that Hinton et al. 2018 compare matrix capsules with."""

import keras

from caps_tf.errors import UserError


def cnn_baseline(
    image_shape: tuple[int, int, int],
    num_classes: int,
    dropout: float = 0.5,
    weight_reg: float = 0.0,
    dtype: str | None = None,
) -> keras.Model:
    """Builds two 5x5 convolutions with 2x2 max pooling, a dense layer of 1024 and a softmax.

    About 4.2 million parameters for 32x32x1 images and 5 classes.

    Args:
        image_shape: rows, columns and channels; at least 4 rows and columns.
        num_classes: number of classes.
        dropout: fraction of the dense layer's units dropped in training.
        weight_reg: L2 penalty on kernels.
        dtype: dtype policy of the layers; Keras's global policy by default. The result is in float32.

    Returns:
        A Keras functional model from images [b, rows, columns, channels] to class probabilities
        [b, num_classes] in float32.

    Raises:
        UserError: if the image is too small to be pooled twice.

    Example:
        >>> cnn_baseline((32, 32, 1), num_classes=5).count_params()
        4252549

    References:
        Hinton, Sabour, Frosst, "Matrix capsules with EM routing", ICLR 2018, section 5.
    """
    if min(image_shape[:2]) < 4:
        raise UserError(
            f"cnn_baseline needs at least 4 pixels in height and width, "
            f"but images are {image_shape[0]}x{image_shape[1]}: give it larger ones (`image_size`)"
        )
    regularizer = keras.regularizers.L2(weight_reg) if weight_reg else None
    images = x = keras.Input(image_shape, name="image")
    for number, channels in enumerate((32, 64), start=1):
        x = keras.layers.Conv2D(
            channels,
            kernel_size=5,
            padding="same",
            activation="relu",
            data_format="channels_last",
            kernel_regularizer=regularizer,
            dtype=dtype,
            name=f"conv{number}",
        )(x)
        x = keras.layers.MaxPooling2D(2, data_format="channels_last", dtype=dtype, name=f"pool{number}")(x)
    x = keras.layers.Flatten(dtype=dtype, name="flatten")(x)
    x = keras.layers.Dense(1024, activation="relu", kernel_regularizer=regularizer, dtype=dtype, name="dense")(x)
    x = keras.layers.Dropout(dropout, dtype=dtype, name="dropout")(x)
    scores = keras.layers.Dense(
        num_classes, activation="softmax", kernel_regularizer=regularizer, name="scores", dtype="float32"
    )(x)
    return keras.Model(images, scores, name="cnn_baseline")
