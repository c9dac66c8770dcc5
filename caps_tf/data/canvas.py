"""Images on a black canvas: placed anywhere on it, changed by affine maps like affNIST's, or laid over each other.

Points are (x, y), x to the right and y down, in pixels; sizes are (height, width), as everywhere else.
"""

import math

import tensorflow as tf

ROTATION = (-20.0, 20.0)
SHEAR = (-0.2, 0.2)
SCALE = (0.8, 1.2)
"""affNIST's ranges, each drawn from uniformly: degrees, the share of x that y grows by, and factors of each axis."""


def place(image: tf.Tensor, corner: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Puts an image on a black canvas.

    Args:
        image: [h, w, c].
        corner: int32 [2], the row and the column of its upper left pixel.
        size: of the canvas; the image must fit in.

    Returns:
        [*size, c].

    Example:
        >>> place(tf.ones((1, 1, 1)), tf.constant([0, 1]), (2, 2))[..., 0].numpy().tolist()
        [[0.0, 1.0], [0.0, 0.0]]
    """
    room = tf.constant(size) - tf.shape(image)[:2] - corner
    return tf.pad(image, [[corner[0], room[0]], [corner[1], room[1]], [0, 0]])


def place_anywhere(image: tf.Tensor, key: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Puts an image [h, w, c] on a black canvas; every place where all of it fits in is as likely as any other.

    Args:
        image: [h, w, c].
        key: int [2]; the place is a function of it.
        size: of the canvas.

    Example:
        >>> float(tf.reduce_sum(place_anywhere(tf.ones((3, 2, 1)), tf.constant([0, 1]), (5, 5))))
        6.0
    """
    places = tf.cast(tf.constant(size) - tf.shape(image)[:2] + 1, tf.float32)
    return place(image, tf.cast(tf.random.stateless_uniform([2], key) * places, tf.int32), size)


def linear_map(degrees: tf.Tensor, shear: tf.Tensor, vertical: tf.Tensor, horizontal: tf.Tensor) -> tf.Tensor:
    """The matrix that turns vectors counter-clockwise, then adds a share of x to y, then stretches both.

    Args:
        degrees: of the rotation.
        shear: how much of x is added to y.
        vertical, horizontal: factors of y and of x.

    Returns:
        float32 [2, 2], of column vectors (x, y).

    Example:
        >>> linear_map(tf.constant(0.0), tf.constant(0.5), tf.constant(2.0), tf.constant(3.0)).numpy().tolist()
        [[3.0, 0.0], [1.0, 2.0]]
    """
    angle = degrees * (math.pi / 180)
    cosine, sine = tf.cos(angle), tf.sin(angle)
    return tf.stack(
        [
            tf.stack([cosine, sine]) * horizontal,
            tf.stack([shear * cosine - sine, shear * sine + cosine]) * vertical,
        ]
    )


def transform(image: tf.Tensor, linear: tf.Tensor, centre: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Draws an image under an affine map on a black canvas; between pixels it is interpolated bilinearly.

    Args:
        image: float32 [h, w, c].
        linear: float32 [2, 2], of vectors from the middle of the image.
        centre: float32 [2], where the middle goes to on the canvas.
        size: of the canvas.

    Returns:
        float32 [*size, c].

    Example:
        >>> image = tf.constant([[1.0, 2.0]])[..., None]
        >>> transform(image, tf.eye(2), tf.constant([1.5, 1.0]), (2, 3))[..., 0].numpy().tolist()
        [[0.0, 0.0, 0.0], [0.0, 1.0, 2.0]]
    """
    # The operation asks where in the image a pixel of the canvas comes from.
    inverse = tf.linalg.inv(linear)
    offset = _middle(image) - tf.einsum("xy,y->x", inverse, centre)
    row = tf.concat([inverse[0], offset[:1], inverse[1], offset[1:], [0.0, 0.0]], axis=0)
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=image[None],
        transforms=row[None],
        output_shape=size,
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )[0]


def transform_anywhere(image: tf.Tensor, key: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Turns, shears and stretches an image as affNIST does, and draws it anywhere where its ink stays on the canvas.

    Ink is what is not black. An image that has more of it than fits in is put into the middle.

    Args:
        image: float32 [h, w, c].
        key: int [2]; everything drawn is a function of it.
        size: of the canvas.

    Returns:
        float32 [*size, c].

    Example:
        >>> transform_anywhere(tf.ones((3, 2, 1)), tf.constant([0, 1]), (9, 9)).shape
        TensorShape([9, 9, 1])
    """
    draws = tf.random.stateless_uniform([6], key)
    ranges = (ROTATION, SHEAR, SCALE, SCALE)
    linear = linear_map(*(low + (high - low) * draws[number] for number, (low, high) in enumerate(ranges)))
    low, high = _ink(image, linear)
    first, last = -0.5 - low, tf.constant(size[::-1], tf.float32) - 0.5 - high
    centre = tf.where(first <= last, first + draws[4:] * (last - first), (first + last) / 2)
    return transform(image, linear, centre, size)


def overlay(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    """Adds two images of values from 0 to 255; what is brighter than white is white."""
    return tf.minimum(first + second, 255.0)


def _middle(image: tf.Tensor) -> tf.Tensor:
    """The middle between the first and the last pixel, (x, y)."""
    return (tf.cast(tf.shape(image)[1::-1], tf.float32) - 1) / 2


def _ink(image: tf.Tensor, linear: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The least and the greatest x and y of an image's ink under a map, from its middle, which counts as ink too.

    Pixels are squares, so that a map which leaves everything as it is finds half a pixel more than their centres.
    """
    shape = tf.shape(image)
    points = tf.stack(tf.meshgrid(tf.range(shape[1]), tf.range(shape[0])), axis=-1)
    points = tf.einsum("xy,hwy->hwx", linear, tf.cast(points, tf.float32) - _middle(image))
    points = tf.where(tf.reduce_any(image > 0, axis=-1, keepdims=True), points, 0.0)
    reach = tf.reduce_sum(tf.abs(linear), axis=1) / 2
    return tf.reduce_min(points, axis=(0, 1)) - reach, tf.reduce_max(points, axis=(0, 1)) + reach
