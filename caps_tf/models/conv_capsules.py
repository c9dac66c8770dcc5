"""Class capsules of any routing on a few normalised convolutions: a small network that trains fast on few images."""

import re
from typing import NamedTuple

import keras

from caps_tf.errors import UserError
from caps_tf.models.class_heads import HEADS, ClassHead, HeadOptions, Parts
from caps_tf.models.normalization import batch_normalization
from caps_tf.networks import ROUTINGS

POSE = (4, 4)
_CONVOLUTION = r"(?P<channels>[1-9]\d{0,4})(?:k(?P<kernel_size>[1-9]\d?))?(?:s(?P<strides>[1-9]))?"


class Convolution(NamedTuple):
    """One convolution of a stack.

    Attributes:
        channels: that it puts out.
        kernel_size: side of its kernel.
        strides: pixels between two of its positions.
    """

    channels: int
    kernel_size: int = 3
    strides: int = 1


def parse_convolutions(text: str) -> tuple[Convolution, ...]:
    """Reads a stack of convolutions: channels, with k and the kernel's side (3) and s and the stride (1) behind them.

    Raises:
        UserError: for anything else.

    Example:
        >>> parse_convolutions("16k5s2,32")
        (Convolution(channels=16, kernel_size=5, strides=2), Convolution(channels=32, kernel_size=3, strides=1))
    """
    layers = []
    for part in text.split(","):
        match = re.fullmatch(_CONVOLUTION, part.strip())
        if not match:
            raise UserError(
                "convolutions must be channels with an optional kernel and stride, such as 16k5s2,32,48s2, "
                f"not {text!r}"
            )
        layers.append(Convolution(**{name: int(digits) for name, digits in match.groupdict().items() if digits}))
    return tuple(layers)


def conv_capsules(
    image_shape: tuple[int, int, int],
    num_classes: int,
    routing: str = "em",
    convolutions: str = "16k5s2,32,48s2,64s2",
    capsules: int = 8,
    coordinates: bool = False,
    iterations: int = 0,
    dropout: float = 0.0,
    weight_reg: float = 0.0,
    votes_at_a_time: int | None = None,
    dtype: str | None = None,
) -> keras.Model:
    """Builds convolutions, part capsules at each of their positions, and one capsule for each class.

    All positions share the weights of the routing, so that what is learned of a part at one place holds at all others.
    With `routing="none"` the class scores come from the mean of the features over all positions: the network without
    capsules to compare with.

    What each routing is made of is in `caps_tf.models.class_heads`.

    Args:
        image_shape: rows, columns and channels.
        num_classes: number of classes, at least 2.
        routing: a name of `caps_tf.networks.ROUTINGS`.
        convolutions: see `parse_convolutions`; each is followed by batch normalisation and ReLU, and keeps the size of
            the image but for its stride.
        capsules: types of part capsules at each position.
        coordinates: with "em" and "vb", whether votes carry the position of their part.
        iterations: routing iterations; 0 for those of the head.
        dropout: share of the elements of part poses (of features, with "none") dropped in training.
        weight_reg: L2 penalty on the kernels of the convolutions.
        votes_at_a_time: bytes of votes that a layer holds at the same time.
        dtype: dtype policy of the layers, such as "mixed_bfloat16"; Keras's global policy by default. Routing and
            the result stay in float32.

    Returns:
        A Keras functional model from "image" [b, rows, columns, channels] to class scores [b, num_classes] in
        float32: real numbers, whose softmax are the class probabilities.

    Raises:
        UserError: if the routing or the convolutions are none of these, or the routing knows no coordinates.

    Example:
        >>> conv_capsules((44, 44, 1), num_classes=5).count_params()
        57127

    References:
        The routings' papers, see `EMClassCapsules`, `VBClassCapsules`, `HeinsenRouting`, `AttentionClassCapsules`,
        `DynamicClassCapsules` and `SelfRoutingClassCapsules`.
    """
    if routing not in ROUTINGS:
        raise UserError(f"routing must be one of {', '.join(ROUTINGS)}, not {routing!r}")
    told = [name for name, head in HEADS.items() if head.coordinates]
    if coordinates and routing not in told:
        raise UserError(
            f"routing={routing} does not read `coordinates`: leave it out, or choose a routing that does, "
            f"{' or '.join(told)}"
        )
    images = keras.Input(image_shape, name="image")
    x = _convolve(images, parse_convolutions(convolutions), weight_reg, dtype)
    if routing == "none":
        x = keras.layers.GlobalAveragePooling2D(data_format="channels_last", dtype=dtype, name="average")(x)
        x = keras.layers.Dropout(dropout, dtype=dtype, name="dropout")(x)
        scores = keras.layers.Dense(num_classes, dtype="float32", name="scores")(x)
        return keras.Model(images, scores, name="conv_capsules")
    head = HEADS[routing]
    options = HeadOptions(num_classes, iterations or head.iterations, coordinates, votes_at_a_time, dtype)
    parts = _part_capsules(x, capsules, head, dropout, dtype)
    return keras.Model(images, head.scores(parts, options), name="conv_capsules")


def _convolve(x, convolutions: tuple[Convolution, ...], weight_reg: float, dtype: str | None):
    for number, layer in enumerate(convolutions, start=1):
        x = keras.layers.Conv2D(
            layer.channels,
            layer.kernel_size,
            layer.strides,
            padding="same",
            use_bias=False,
            kernel_initializer="he_normal",
            kernel_regularizer=keras.regularizers.L2(weight_reg) if weight_reg else None,
            data_format="channels_last",
            dtype=dtype,
            name=f"conv{number}",
        )(x)
        x = batch_normalization(f"norm{number}", dtype, momentum=0.9)(x)
        x = keras.layers.ReLU(dtype=dtype, name=f"relu{number}")(x)
    return x


def _part_capsules(x, capsules: int, head: ClassHead, dropout: float, dtype: str | None) -> Parts:
    options = {"kernel_size": 1, "data_format": "channels_last", "dtype": dtype}
    poses = keras.layers.Conv2D(capsules * POSE[0] * POSE[1], **options, name="part_pose")(x)
    activations = None
    if head.activation:
        poses = batch_normalization("part_norm", dtype, momentum=0.9)(poses)
        activation = keras.layers.Conv2D(capsules, activation=head.activation, **options, name="part_activation")
        activations = activation(x)
    poses = keras.layers.Dropout(dropout, dtype=dtype, name="dropout")(poses)
    poses = keras.layers.Reshape((*poses.shape[1:3], capsules, *POSE), dtype=dtype, name="parts")(poses)
    return Parts(poses, activations)
