"""Heinsen's smallNORB classifier (2019): a small convolutional backbone and two routings of matrix capsules."""

from typing import Any

import keras
from keras import ops

from caps_tf.errors import UserError
from caps_tf.layers import HeinsenRouting
from caps_tf.models.normalization import batch_normalization

STRIDES = (1, 2, 1, 2, 1, 2)
SMALLEST = 29  # pixels, for one position after six 3x3 kernels with these strides


@keras.saving.register_keras_serializable(package="caps_tf")
class CoordinateGrid(keras.layers.Layer):
    """Appends each pixel's row and column, from -1 to 1, as two channels.

    Call arguments:
        images: [b, rows, columns, channels].

    Returns:
        [b, rows, columns, channels + 2]: the images, then rows, then columns.

    Example:
        >>> grid = CoordinateGrid()(ops.zeros((1, 3, 5, 1)))
        >>> grid[0, :, 0, 1].numpy().tolist(), grid[0, 0, :, 2].numpy().tolist()
        ([-1.0, 0.0, 1.0], [-1.0, -0.5, 0.0, 0.5, 1.0])
    """

    def call(self, images):
        batch, rows, columns, _ = ops.shape(images)
        row = ops.linspace(-1.0, 1.0, rows, dtype=images.dtype)[:, None]
        column = ops.linspace(-1.0, 1.0, columns, dtype=images.dtype)[None, :]
        grid = ops.stack([ops.broadcast_to(axis, (rows, columns)) for axis in (row, column)], axis=-1)
        return ops.concatenate([images, ops.broadcast_to(grid, (batch, rows, columns, 2))], axis=-1)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], input_shape[-1] + 2)


def heinsen_norb(
    image_shape: tuple[int, int, int],
    num_classes: int,
    channels: int = 64,
    parts: int = 64,
    pose_size: int = 4,
    iterations: int = 3,
    weight_reg: float = 0.0,
    part_noise: float = 0.0,
    votes_at_a_time: int | None = None,
    dtype: str | None = None,
) -> keras.Model:
    """Builds the coordinate grid, six convolutions, part scores and poses, and two routings.

    271,688 trainable parameters for 96x96x2 images and 5 classes. Each position has `parts` capsules, and the first
    routing takes any number of them, so that the weights fit images of any size.

    Args:
        image_shape: rows, columns and channels; at least 29 rows and columns. The published network takes both
            cameras as two channels.
        num_classes: number of classes, at least 2.
        channels: of each convolution.
        parts: capsule types at each position, and parents of the first routing.
        pose_size: rows and columns of a pose.
        iterations: routing iterations.
        weight_reg: L2 penalty on the kernels of the convolutions.
        part_noise: deviation of the biases of part capsules at the start. As published, 0, all parts start as nearly
            the same average, and the loss stays at ln(num_classes) for hundreds of steps; 0.5 leaves it within a hundred.
        votes_at_a_time: bytes of votes that may exist at the same time, see `HeinsenRouting`.
        dtype: dtype policy of the layers, such as "mixed_bfloat16"; Keras's global policy by default. Routing and
            the result stay in float32.

    Returns:
        A Keras functional model from "image" [b, rows, columns, channels] to class scores [b, num_classes] in
        float32: real numbers, whose softmax are the class probabilities. Layers `part_capsules` and
        `class_capsules` each put out scores, poses and variances.

    Raises:
        UserError: if the image is too small for the convolutions.

    Example:
        >>> heinsen_norb((96, 96, 2), num_classes=5).output_shape
        (None, 5)

    References:
        Heinsen, "An Algorithm for Routing Capsules in All Domains", 2019, section 4.1.
    """
    if min(image_shape[:2]) < SMALLEST:
        raise UserError(
            f"heinsen_norb needs at least {SMALLEST} pixels in height and width, "
            f"but images are {image_shape[0]}x{image_shape[1]}: give it larger ones (`image_size`)"
        )
    regularizer = keras.regularizers.L2(weight_reg) if weight_reg else None

    def normalized(x, name):
        # PyTorch's momentum of 0.1 is Keras's of 0.9.
        return batch_normalization(name, dtype, epsilon=1e-5, momentum=0.9)(x)

    def convolution(x, filters, name, **arguments):
        return keras.layers.Conv2D(
            filters, data_format="channels_last", kernel_regularizer=regularizer, dtype=dtype, name=name, **arguments
        )(x)

    images = keras.Input(image_shape, name="image")
    x = CoordinateGrid(dtype=dtype, name="coordinates")(images)
    for number, strides in enumerate(STRIDES, start=1):
        x = normalized(x, f"norm{number}")
        x = convolution(
            x,
            channels,
            f"conv{number}",
            kernel_size=3,
            strides=strides,
            activation="swish",
            kernel_initializer=keras.initializers.HeNormal(),
        )
    # PyTorch's default for a layer of this fan-in, uniform within 1 / sqrt(fan_in), kernels and biases alike.
    limit = channels**-0.5
    default = keras.initializers.RandomUniform(-limit, limit)
    heads = {"kernel_size": 1, "kernel_initializer": default, "bias_initializer": default}
    scores = convolution(normalized(x, "scores_norm"), parts, "scores", **heads)
    poses = convolution(normalized(x, "poses_norm"), parts * pose_size**2, "poses", **heads)
    scores = keras.layers.Reshape((-1,), dtype=dtype, name="part_scores")(scores)
    poses = keras.layers.Reshape((-1, pose_size, pose_size), dtype=dtype, name="part_poses")(poses)
    routing: dict[str, Any] = {
        **{"d_cov": pose_size, "d_inp": pose_size, "d_out": pose_size},
        **{"iterations": iterations, "votes_at_a_time": votes_at_a_time, "dtype": "float32"},
    }
    noise = keras.initializers.RandomNormal(stddev=part_noise) if part_noise else "zeros"
    capsules = HeinsenRouting(n_inp=None, n_out=parts, bias_initializer=noise, **routing, name="part_capsules")(
        (scores, poses)
    )
    scores, _, _ = HeinsenRouting(n_inp=parts, n_out=num_classes, **routing, name="class_capsules")(capsules[:2])
    return keras.Model(images, scores, name="heinsen_norb")
