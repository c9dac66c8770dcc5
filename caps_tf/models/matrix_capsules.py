"""Matrix capsules with EM routing, the network of Hinton et al. 2018 (figure 1)."""

from typing import Any

import keras

from caps_tf.errors import UserError
from caps_tf.layers import EMClassCapsules, EMConvCapsules, PrimaryCapsules
from caps_tf.models.normalization import batch_normalization


def matrix_capsules(
    image_shape: tuple[int, int, int],
    num_classes: int,
    A: int = 64,  # noqa: N803 (the paper's names)
    B: int = 8,  # noqa: N803
    C: int = 16,  # noqa: N803
    D: int = 16,  # noqa: N803
    iterations: int = 2,
    final_lambda: float = 0.01,
    epsilon: float = 1e-9,
    weight_reg: float = 2e-7,
    votes_at_a_time: int | None = None,
    dtype: str | None = None,
) -> keras.Model:
    """Builds ReLU Conv1, PrimaryCaps, ConvCaps1, ConvCaps2 and Class Capsules.

    67,154 trainable parameters for 32x32x1 images and 5 classes with the published A, B, C, D.

    Args:
        image_shape: rows, columns and channels; at least 17 rows and columns.
        num_classes: number of classes.
        A: channels of the first convolution.
        B: types of primary capsules.
        C: types of the first convolutional capsules.
        D: types of the second convolutional capsules.
        iterations: EM routing iterations in each capsule layer.
        final_lambda: inverse temperature that the iterations approach.
        epsilon: keeps the routing's divisions and logarithms finite.
        weight_reg: L2 penalty on kernels and capsule weights.
        votes_at_a_time: bytes of votes that a layer holds at the same time; see `EMCapsules`.
        dtype: dtype policy of the layers, such as "mixed_bfloat16"; Keras's global policy by default. Routing and
            the result stay in float32.

    Returns:
        A Keras functional model from images [b, rows, columns, channels] to class activations [b, num_classes]
        in float32, between 0 and 1. Layers `primary_capsules`, `conv_capsules_1`, `conv_capsules_2` and
        `class_capsules` each put out poses and activations.

    Raises:
        UserError: if the image is too small for the kernels.

    Example:
        >>> matrix_capsules((32, 32, 1), num_classes=5).output_shape
        (None, 5)

    References:
        Hinton, Sabour, Frosst, "Matrix capsules with EM routing", ICLR 2018.
    """
    smallest = 17  # what a 5x5 stride 2, a 3x3 stride 2 and a 3x3 kernel need for one parent
    if min(image_shape[:2]) < smallest:
        raise UserError(
            f"matrix_capsules needs at least {smallest} pixels in height and width, "
            f"but images are {image_shape[0]}x{image_shape[1]}: give it larger ones (`image_size`)"
        )
    regularizer = keras.regularizers.L2(weight_reg) if weight_reg else None
    routing: dict[str, Any] = {
        "iterations": iterations,
        "final_lambda": final_lambda,
        "epsilon": epsilon,
        "votes_at_a_time": votes_at_a_time,
        "kernel_regularizer": regularizer,
        "dtype": dtype,
    }
    images = keras.Input(image_shape, name="image")
    x = batch_normalization("input_norm", dtype, center=False, scale=False)(images)
    x = keras.layers.Conv2D(
        A,
        kernel_size=5,
        strides=2,
        activation="relu",
        data_format="channels_last",
        kernel_regularizer=regularizer,
        dtype=dtype,
        name="relu_conv1",
    )(x)
    capsules = PrimaryCapsules(B, kernel_regularizer=regularizer, dtype=dtype, name="primary_capsules")(x)
    capsules = EMConvCapsules(C, kernel_size=3, strides=2, **routing, name="conv_capsules_1")(capsules)
    capsules = EMConvCapsules(D, kernel_size=3, strides=1, **routing, name="conv_capsules_2")(capsules)
    poses, activations = EMClassCapsules(num_classes, **{**routing, "dtype": "float32"}, name="class_capsules")(
        capsules
    )
    return keras.Model(images, activations, name="matrix_capsules")
