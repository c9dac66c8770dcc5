"""Capsules with variational-Bayes routing, the network of Ribeiro et al. 2020."""

from typing import Any

import keras

from caps_tf.errors import UserError
from caps_tf.layers import CapsuleNormalization, VBClassCapsules, VBConvCapsules
from caps_tf.models.normalization import batch_normalization

POSE = (4, 4)


def vb_capsules(
    image_shape: tuple[int, int, int],
    num_classes: int,
    A: int = 64,  # noqa: N803 (the paper's names)
    B: int = 8,  # noqa: N803
    C: int = 16,  # noqa: N803
    D: int = 16,  # noqa: N803
    extra_convolutions: int = 0,
    iterations: int = 3,
    covariance: str = "diagonal",
    weight_reg: float = 0.0,
    votes_at_a_time: int | None = None,
    dtype: str | None = None,
) -> keras.Model:
    """Builds Conv1, PrimaryCaps, ConvCaps1, ConvCaps2 and Class Capsules, all of them batch-normalised.

    The network of the published code: 68,714 trainable parameters for 32x32x2 images and 5 classes with its A, B, C, D.
    74 of them, the betas of the routings, are there and here without effect, because normalisation takes them away.
    Trained with cross-entropy it departs from that code: Keras divides the activations by their sum, the code takes
    their softmax.

    Args:
        image_shape: rows, columns and channels; at least 17 rows and columns.
        num_classes: number of classes.
        A: channels of the first convolution.
        B: types of primary capsules.
        C: types of the first convolutional capsules.
        D: types of the second convolutional capsules.
        extra_convolutions: normalised 3x3 convolutions of A channels after the first. The published code has none; with
            two, networks have the numbers of parameters that are reported for the paper's on CIFAR-10: 145 K, and 323 K
            for B, C, D = 16, 32, 32. How the paper's are connected is not known here.
        iterations: routing iterations in each capsule layer.
        covariance: of the votes for a parent, "diagonal" or "full".
        weight_reg: L2 penalty on kernels and capsule weights.
        votes_at_a_time: bytes of votes that a layer holds at the same time; see `VBCapsules`.
        dtype: dtype policy of the layers, such as "mixed_bfloat16"; Keras's global policy by default. Routing and
            the result stay in float32.

    Returns:
        A Keras functional model from images [b, rows, columns, channels] to class activations [b, num_classes]
        in float32, between 0 and 1. Layers `primary_capsules`, `conv_capsules_1`, `conv_capsules_2` and
        `class_capsules` each put out poses and activations.

    Raises:
        UserError: if the image is too small for the kernels.

    Example:
        >>> vb_capsules((32, 32, 2), num_classes=5).output_shape
        (None, 5)

    References:
        Ribeiro, Leontidis, Kollias, "Capsule Routing via Variational Bayes", AAAI 2020.
    """
    smallest = 17  # what a 5x5 stride 2, a 3x3 stride 2 and a 3x3 kernel need for one parent
    if min(image_shape[:2]) < smallest:
        raise UserError(
            f"vb_capsules needs at least {smallest} pixels in height and width, "
            f"but images are {image_shape[0]}x{image_shape[1]}: give it larger ones (`image_size`)"
        )
    regularizer = keras.regularizers.L2(weight_reg) if weight_reg else None
    routing: dict[str, Any] = {
        "iterations": iterations,
        "covariance": covariance,
        "return_logits": True,
        "votes_at_a_time": votes_at_a_time,
        "kernel_regularizer": regularizer,
    }
    images = keras.Input(image_shape, name="image")
    x = images
    for number in range(1, 2 + extra_convolutions):
        size = {"kernel_size": 3, "padding": "same"} if number > 1 else {"kernel_size": 5, "strides": 2}
        x = _convolution(f"conv{number}", A, regularizer, dtype, kernel_initializer="he_uniform", **size)(x)
        x = batch_normalization(f"conv{number}_norm", dtype, momentum=0.9, epsilon=1e-5)(x)
        x = keras.layers.ReLU(dtype=dtype, name=f"relu{number}")(x)
    poses = _convolution("primary_pose", B * POSE[0] * POSE[1], regularizer, dtype)(x)
    poses = keras.layers.Reshape((*poses.shape[1:3], B, *POSE), dtype=dtype, name="primary_matrices")(poses)
    logits = _convolution("primary_activation", B, regularizer, dtype)(x)
    capsules = CapsuleNormalization(affine=True, dtype=dtype, name="primary_capsules")((poses, logits))
    layers = {
        "conv_capsules_1": VBConvCapsules(C, 3, strides=2, **routing, dtype=dtype, name="conv_routing_1"),
        "conv_capsules_2": VBConvCapsules(D, 3, strides=1, **routing, dtype=dtype, name="conv_routing_2"),
        "class_capsules": VBClassCapsules(num_classes, **routing, dtype="float32", name="class_routing"),
    }
    for name, layer in layers.items():
        capsules = CapsuleNormalization(dtype=layer.dtype_policy, name=name)(layer(capsules))
    _, activations = capsules
    return keras.Model(images, activations, name="vb_capsules")


def _convolution(name: str, channels: int, regularizer, dtype: str | None, **options) -> keras.layers.Conv2D:
    """A convolution without bias, for a normalisation to follow."""
    return keras.layers.Conv2D(
        channels,
        **{"kernel_size": 1, **options},
        use_bias=False,
        data_format="channels_last",
        kernel_regularizer=regularizer,
        dtype=dtype,
        name=name,
    )
