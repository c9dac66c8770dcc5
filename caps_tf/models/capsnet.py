"""The network of Sabour et al. 2017 (figure 1): two convolutions and class capsules that are routed dynamically."""

import keras

from caps_tf.errors import UserError
from caps_tf.layers import DynamicClassCapsules, SquashedCapsules
from caps_tf.routing import lengths

KERNEL = 9
"""Side of both convolutions' kernels."""
PRIMARY, CLASS = 8, 16
"""Elements of the vectors of primary and class capsules."""


def capsnet(
    image_shape: tuple[int, int, int],
    num_classes: int,
    channels: int = 256,
    iterations: int = 3,
    votes_at_a_time: int | None = None,
    dtype: str | None = None,
) -> keras.Model:
    """Builds ReLU Conv1, PrimaryCaps and DigitCaps.

    6,804,224 parameters for 28x28x1 images and 10 classes as published; the paper's decoder has 1,411,344 more, together
    the 8.2 million that the paper names.

    Args:
        image_shape: rows, columns and channels; at least 17 rows and columns.
        num_classes: number of classes.
        channels: of both convolutions, a multiple of 8; the second's are read as `channels` / 8 types of primary
            capsules, 32 as published.
        iterations: routing iterations.
        votes_at_a_time: bytes of votes that exist at the same time; see `DynamicCapsules`.
        dtype: dtype policy of the layers, such as "mixed_bfloat16"; Keras's global policy by default. Routing and the
            result stay in float32.

    Returns:
        A Keras functional model from images [b, rows, columns, channels] to the lengths of the class capsules
        [b, num_classes] in float32, between 0 and 1. Layers `primary_capsules` and `class_capsules` put out vectors.

    Raises:
        UserError: if the image is too small for the kernels, or `channels` is not a multiple of 8.

    Example:
        >>> capsnet((28, 28, 1), num_classes=10).count_params()
        6804224

    References:
        Sabour, Frosst, Hinton, "Dynamic Routing Between Capsules", NeurIPS 2017.
    """
    smallest = 2 * KERNEL - 1  # of 9x9 what the first convolution leaves must still hold one position of the second
    if min(image_shape[:2]) < smallest:
        raise UserError(
            f"capsnet needs at least {smallest} pixels in height and width, "
            f"but images are {image_shape[0]}x{image_shape[1]}: give it larger ones (`image_size`)"
        )
    if channels < 1 or channels % PRIMARY:
        raise UserError(f"channels must be a multiple of {PRIMARY}, the elements of a primary capsule, not {channels}")
    convolution = {"kernel_size": KERNEL, "data_format": "channels_last", "dtype": dtype}
    images = keras.Input(image_shape, name="image")
    x = keras.layers.Conv2D(channels, activation="relu", **convolution, name="relu_conv1")(images)
    x = keras.layers.Conv2D(channels, strides=2, **convolution, name="primary_conv")(x)
    x = SquashedCapsules(PRIMARY, dtype=dtype, name="primary_capsules")(x)
    x = DynamicClassCapsules(
        num_classes,
        pose_elements=CLASS,
        iterations=iterations,
        votes_at_a_time=votes_at_a_time,
        dtype="float32",
        name="class_capsules",
    )(x)
    return keras.Model(images, lengths(x), name="capsnet")
