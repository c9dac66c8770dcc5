"""Capsules that route themselves on a residual or a plain backbone, the networks of Hahn, Pyeon and Kim 2019.

What the paper leaves open is that of its published code, github.com/coder3000/SR-CapsNet: kernel sizes, strides, padding
and initial weights, batch normalisation of primary and convolutional capsules, biases of the routing, and class capsules
without poses.
"""

import math
from typing import Any

import keras
from keras import ops

from caps_tf.errors import UserError
from caps_tf.layers import SelfRoutingClassCapsules, SelfRoutingConvCapsules
from caps_tf.models.normalization import batch_normalization
from caps_tf.networks import BACKBONES

POSE = (4, 4)
"""16 elements, which weights of 16x16 act on."""
RESIDUAL_BLOCKS = 3
"""With the same number of channels; there are three such numbers."""


def self_routing(
    image_shape: tuple[int, int, int],
    num_classes: int,
    backbone: str = "resnet",
    capsule_layers: int = 1,
    capsules: int = 32,
    channels: int = 16,
    votes_at_a_time: int | None = None,
    dtype: str | None = None,
) -> keras.Model:
    """Builds a backbone, primary capsules, convolutional capsules and class capsules.

    The backbone "resnet" is ResNet-20 without its last layer, the paper's for CIFAR-10 and SVHN; "simple" six 3x3
    convolutions, the paper's for smallNORB. With the published sizes it has 931,664 trainable parameters for CIFAR-10
    (3,187,536 with two capsule layers), and the simple one 814,960 for smallNORB (3,331,952), all as in the published
    code. Images may have any size.

    Args:
        image_shape: rows, columns and channels; 32x32 is published.
        num_classes: number of classes.
        backbone: "resnet" or "simple".
        capsule_layers: layers that route; the last are the class capsules, all others convolutional ones.
        capsules: types of primary and of convolutional capsules.
        channels: of the first convolution.
        votes_at_a_time: bytes of votes that a layer holds at the same time; see `SelfRoutingCapsules`.
        dtype: dtype policy of the layers, such as "mixed_bfloat16"; Keras's global policy by default. Routing and
            the result stay in float32.

    Returns:
        A Keras functional model from "image" [b, rows, columns, channels] to logits [b, num_classes] in float32: the
        logarithms of the class activations, which are their own softmax and sum to 1. The published loss is their
        cross-entropy, that is minus the true class's logit.

    Raises:
        UserError: if the backbone is none of these, or `capsule_layers` is less than 1.

    Example:
        >>> model = self_routing((32, 32, 1), num_classes=5, backbone="simple")
        >>> sum(math.prod(weight.shape) for weight in model.trainable_weights)
        814960

    References:
        Hahn, Pyeon, Kim, "Self-Routing Capsule Networks", NeurIPS 2019.
    """
    if backbone not in BACKBONES:
        raise UserError(f"backbone must be one of {', '.join(BACKBONES)}, not {backbone!r}")
    if capsule_layers < 1:
        raise UserError(f"capsule_layers must be at least 1, the class capsules, not {capsule_layers}")
    images = keras.Input(image_shape, name="image")
    x = _resnet(images, channels, dtype) if backbone == "resnet" else _simple(images, channels, dtype)
    elements = math.prod(POSE)
    activations = _normalized_convolution(x, capsules, 1, dtype, "primary_activation")
    activations = keras.layers.Activation("sigmoid", dtype=dtype, name="primary_activations")(activations)
    poses = _normalized_convolution(x, capsules * elements, 1, dtype, "primary_pose")
    poses = keras.layers.Reshape((*x.shape[1:3], capsules, *POSE), dtype=dtype, name="primary_poses")(poses)
    # PyTorch's He initialisation, which takes all but the first axis of a weight for its fan-in.
    limit = math.sqrt(6 / (capsules * elements * elements))
    options: dict[str, Any] = {"kernel_initializer": keras.initializers.RandomUniform(-limit, limit), "dtype": dtype}
    for number in range(1, capsule_layers):
        strides = 2 if backbone == "resnet" and number == 1 else 1
        name = f"capsules_{number}"
        layer = SelfRoutingConvCapsules(
            capsules, 3, strides, padding=1, votes_at_a_time=votes_at_a_time, name=name, **options
        )
        poses, activations = layer((poses, activations))
        poses = _normalized_poses(poses, dtype, name)
    scores = SelfRoutingClassCapsules(
        num_classes,
        share_positions=False,
        with_poses=False,
        return_logits=True,
        dtype="float32",
        name="class_capsules",
    )((poses, activations))
    return keras.Model(images, scores, name="self_routing")


def _normalized_poses(poses, dtype: str | None, name: str):
    """Normalises each element of each type of capsule over all positions of all images."""
    shape = poses.shape[1:]
    x = keras.layers.Reshape((*shape[:2], math.prod(shape[2:])), dtype=dtype, name=f"{name}_elements")(poses)
    x = batch_normalization(f"{name}_norm", dtype, epsilon=1e-5, momentum=0.9)(x)
    return keras.layers.Reshape(shape, dtype=dtype, name=f"{name}_poses")(x)


def _normalized_convolution(x, channels: int, strides: int, dtype: str | None, name: str):
    """A 3x3 convolution of padded images, and batch normalisation."""
    x = keras.layers.ZeroPadding2D(1, data_format="channels_last", dtype=dtype, name=f"{name}_pad")(x)
    x = keras.layers.Conv2D(
        channels,
        3,
        strides,
        use_bias=False,
        kernel_initializer="he_uniform",
        data_format="channels_last",
        dtype=dtype,
        name=name,
    )(x)
    # PyTorch's momentum of 0.1 is Keras's of 0.9.
    return batch_normalization(f"{name}_norm", dtype, epsilon=1e-5, momentum=0.9)(x)


def _simple(x, channels: int, dtype: str | None):
    for number, (factor, strides) in enumerate(((1, 1), (2, 2), (2, 1), (4, 2), (4, 1), (8, 2)), start=1):
        x = _normalized_convolution(x, channels * factor, strides, dtype, f"conv{number}")
        x = keras.layers.ReLU(dtype=dtype, name=f"relu{number}")(x)
    return x


def _resnet(x, channels: int, dtype: str | None):
    x = _normalized_convolution(x, channels, 1, dtype, "stem")
    x = keras.layers.ReLU(dtype=dtype, name="stem_relu")(x)
    for group, factor in enumerate((1, 2, 4), start=1):
        for block in range(1, RESIDUAL_BLOCKS + 1):
            name, strides, shortcut = f"block{group}_{block}", 1, x
            if group > 1 and block == 1:
                strides = 2
                shortcut = WideningShortcut(channels * factor, dtype=dtype, name=f"{name}_shortcut")(x)
            x = _normalized_convolution(x, channels * factor, strides, dtype, f"{name}_conv1")
            x = keras.layers.ReLU(dtype=dtype, name=f"{name}_conv1_relu")(x)
            x = _normalized_convolution(x, channels * factor, 1, dtype, f"{name}_conv2")
            x = keras.layers.Add(dtype=dtype, name=f"{name}_add")([x, shortcut])
            x = keras.layers.ReLU(dtype=dtype, name=f"{name}_relu")(x)
    return x


@keras.saving.register_keras_serializable(package="caps_tf")
class WideningShortcut(keras.layers.Layer):
    """Every second row and column, between channels of zeros: the shortcut without weights of He et al. 2016 (option A).

    Args:
        channels: how many to put out, at least those of the input.
        **kwargs: `keras.layers.Layer` arguments.

    Call arguments:
        features: [b, rows, columns, channels].

    Returns:
        [b, rows / 2, columns / 2, `channels`], rows and columns rounded up.

    Example:
        >>> WideningShortcut(4)(ops.ones((1, 3, 5, 2)))[0, 0, 0].numpy().tolist()
        [0.0, 1.0, 1.0, 0.0]
    """

    def __init__(self, channels: int, **kwargs):
        super().__init__(**kwargs)
        self.channels = channels

    def call(self, features):
        missing = self.channels - features.shape[-1]
        return ops.pad(features[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (missing // 2, missing - missing // 2)))

    def compute_output_shape(self, input_shape):
        batch, rows, columns, _ = input_shape
        return batch, -(-rows // 2), -(-columns // 2), self.channels

    def get_config(self):
        return {**super().get_config(), "channels": self.channels}
