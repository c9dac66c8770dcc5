"""Capsules with inverted dot-product attention on a convolutional backbone, the network of Tsai et al. 2020."""

import math
from collections.abc import Sequence
from typing import Any

import keras

from caps_tf.errors import UserError
from caps_tf.layers import AttentionConvCapsules, AttentionDenseCapsules, CapsuleStack
from caps_tf.models.attention_config import check_attention_config, load_attention_config
from caps_tf.models.normalization import batch_normalization
from caps_tf.networks import BACKBONES

PUBLISHED_RESNET = {"first_dim": 64, "blocks": (3, 4)}
"""Channels of the first residual blocks; how many there are with these channels, and with the config's and its stride."""


def attention_capsules(
    image_shape: tuple[int, int, int],
    num_classes: int,
    config: str | dict[str, Any] = "cifar10",
    backbone: str = "resnet",
    iterations: int = 2,
    sequential_routing: bool = False,
    dropout: float = 0.0,
    votes_at_a_time: int | None = None,
    dtype: str | None = None,
) -> keras.Model:
    """Builds a backbone, primary capsules, the capsule layers of a configuration, class capsules and their scores.

    The backbone "simple" is one convolution with ReLU; "resnet" a 3x3 convolution of 64 channels, three residual
    blocks of 64 and four of the config's channels and stride. A linear map to each primary capsule and LayerNorm
    over its pose follow. One linear map, the same for all class capsules, turns poses to scores. With 32x32x3
    images and the published configs: 1,828,817 parameters for CIFAR-10 and 2,799,629 for CIFAR-100 (492,177 and
    1,462,989 with the simple backbone).

    Args:
        image_shape: rows, columns and channels.
        num_classes: number of classes.
        config: "cifar10" or "cifar100" (published), the path of a JSON file, or what such a file holds.
        backbone: "resnet" or "simple".
        iterations: routing iterations.
        sequential_routing: whether each layer finishes its iterations before the next begins; otherwise all layers
            route at once.
        dropout: share of the elements of capsules' poses dropped in training.
        votes_at_a_time: bytes of votes that a layer holds at the same time; see `AttentionCapsules`.
        dtype: dtype policy of the layers, such as "mixed_bfloat16"; Keras's global policy by default. Routing and
            the result stay in float32.

    Returns:
        A Keras functional model from "image" [b, rows, columns, channels] to class scores [b, num_classes] in
        float32: real numbers, whose softmax are the class probabilities.

    Raises:
        UserError: if the configuration is not one, or does not suit the images or the classes.

    Example:
        >>> attention_capsules((32, 32, 3), num_classes=10).count_params()   # with 3,200 moving averages
        1832017

    References:
        Tsai, Srivastava, Goh, Salakhutdinov, "Capsules with Inverted Dot-Product Attention Routing", ICLR 2020.
    """
    if isinstance(config, dict):
        check_attention_config(config)
    else:
        config = load_attention_config(config)
    if backbone not in BACKBONES:
        raise UserError(f"backbone must be one of {', '.join(BACKBONES)}, not {backbone!r}")
    stated = config["class_capsules"].get("num_caps", num_classes)
    if stated != num_classes:
        raise UserError(
            f"class_capsules.num_caps is {stated}, but the data have {num_classes} classes: change or remove it"
        )
    _check_size(config, backbone, image_shape)

    images = keras.Input(image_shape, name="image")
    build_backbone = _resnet if backbone == "resnet" else _simple
    x = build_backbone(images, config["backbone"], dtype)
    primary = config["primary_capsules"]
    capsules, size = primary["num_caps"], primary["caps_dim"]
    x = _convolution(x, capsules * size, primary, dtype, "primary_capsules")
    layers = [*config["capsules"], {"type": "FC", **config["class_capsules"], "num_caps": num_classes}]
    pose = _pose_shape(size, layers[0])
    x = keras.layers.Reshape((*x.shape[1:3], capsules, *pose), dtype=dtype, name="primary_poses")(x)
    x = keras.layers.LayerNormalization(
        axis=list(range(-len(pose), 0)), epsilon=1e-5, dtype=dtype, name="primary_norm"
    )(x)
    names = [*(f"capsules_{number}" for number in range(1, len(layers))), "class_capsules"]
    options: dict[str, Any] = {"dropout": dropout, "votes_at_a_time": votes_at_a_time, "dtype": dtype}
    stack: list[AttentionConvCapsules | AttentionDenseCapsules] = []
    for layer, name in zip(layers, names, strict=True):
        pose = _pose_shape(size, layer)
        size = layer["caps_dim"]
        shape: dict[str, Any] = {"pose_columns": size // math.prod(pose[:-1]), "child_pose": pose, "name": name}
        if layer["type"] == "CONV":
            stack.append(
                AttentionConvCapsules(layer["num_caps"], layer["kernel_size"], layer["stride"], **shape, **options)
            )
        else:
            stack.append(AttentionDenseCapsules(layer["num_caps"], **shape, **options))
    schedule = "sequential" if sequential_routing else "concurrent"
    x = CapsuleStack(stack, iterations, schedule, dtype=dtype, name="capsules")(x)
    x = keras.layers.Reshape((num_classes, size), dtype="float32", name="class_poses")(x)
    x = keras.layers.Dense(1, kernel_initializer=_default_initializer(), dtype="float32", name="score")(x)
    scores = keras.layers.Reshape((num_classes,), dtype="float32", name="scores")(x)
    return keras.Model(images, scores, name="attention_capsules")


def _pose_shape(size: int, layer: dict[str, Any]) -> tuple[int, ...]:
    """What a layer reads the poses of the layer below as."""
    return (math.isqrt(size), math.isqrt(size)) if layer["matrix_pose"] else (size,)


def _check_size(config: dict[str, Any], backbone: str, image_shape: tuple[int, int, int]) -> None:
    first = config["backbone"]
    stages = [
        ("backbone", first if backbone == "simple" else {"kernel_size": 3, "stride": first["stride"], "padding": 1})
    ]
    stages += [("primary_capsules", config["primary_capsules"])]
    stages += [(f"capsules[{n}]", layer) for n, layer in enumerate(config["capsules"]) if layer["type"] == "CONV"]
    sizes: Sequence[int] = image_shape[:2]
    for name, stage in stages:
        padded = [size + 2 * stage.get("padding", 0) for size in sizes]
        if min(padded) < stage["kernel_size"]:
            raise UserError(
                f"attention_capsules: {name} has a kernel of {stage['kernel_size']} on {padded[0]}x{padded[1]} "
                f"positions, what is left of images of {image_shape[0]}x{image_shape[1]}: give it larger ones "
                "(`image_size`), or change the configuration"
            )
        sizes = [(size - stage["kernel_size"]) // stage["stride"] + 1 for size in padded]


def _default_initializer() -> keras.initializers.Initializer:
    """PyTorch's default, uniform within 1 / sqrt(fan-in), which the published results started from."""
    return keras.initializers.VarianceScaling(1 / 3, mode="fan_in", distribution="uniform")


def _convolution(x, channels: int, options: dict[str, int], dtype: str | None, name: str, use_bias: bool = False):
    padding = options["padding"]
    if padding:
        x = keras.layers.ZeroPadding2D(padding, data_format="channels_last", dtype=dtype, name=f"{name}_pad")(x)
    return keras.layers.Conv2D(
        channels,
        options["kernel_size"],
        options["stride"],
        use_bias=use_bias,
        kernel_initializer=_default_initializer(),
        data_format="channels_last",
        dtype=dtype,
        name=name,
    )(x)


def _simple(images, options: dict[str, int], dtype: str | None):
    x = _convolution(images, options["output_dim"], options, dtype, "backbone", use_bias=True)
    return keras.layers.ReLU(dtype=dtype, name="backbone_relu")(x)


def _resnet(images, options: dict[str, Any], dtype: str | None):
    def normalized(x, name):
        # PyTorch's momentum of 0.1 is Keras's of 0.9.
        return batch_normalization(f"{name}_norm", dtype, epsilon=1e-5, momentum=0.9)(x)

    def convolution(x, channels, kernel_size, stride, name):
        options = {"kernel_size": kernel_size, "stride": stride, "padding": kernel_size // 2}
        return normalized(_convolution(x, channels, options, dtype, name), name)

    def relu(x, name):
        return keras.layers.ReLU(dtype=dtype, name=f"{name}_relu")(x)

    options = {**PUBLISHED_RESNET, **options}
    groups = zip((options["first_dim"], options["output_dim"]), (1, options["stride"]), options["blocks"], strict=True)
    x = relu(convolution(images, options["first_dim"], 3, 1, "stem"), "stem")
    for group, (channels, stride, blocks) in enumerate(groups, start=1):
        for block in range(1, blocks + 1):
            name = f"block{group}_{block}"
            shortcut = x
            if stride > 1 or x.shape[-1] != channels:
                shortcut = convolution(x, channels, 1, stride, f"{name}_shortcut")
            x = relu(convolution(x, channels, 3, stride, f"{name}_conv1"), f"{name}_conv1")
            x = convolution(x, channels, 3, 1, f"{name}_conv2")
            x = relu(keras.layers.Add(dtype=dtype, name=f"{name}_add")([x, shortcut]), name)
            stride = 1
    return x
