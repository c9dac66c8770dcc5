"""From a decoded image to the network's input: crop, flip, normalisation and light.

To add an augmentation write a function of an image, a key and `Preprocessing`, put it into `SHAPES` or `LIGHT`, and give
`Preprocessing` the field that it reads. It draws from a key of its own name, so that the others draw what they drew
before.
"""

import zlib
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from caps_tf.data.preprocessing import Preprocessing

Change = Callable[[tf.Tensor, tf.Tensor, Preprocessing], tf.Tensor]
"""An augmentation: an image and a key to what it makes of the image."""

_FIRST = ("crop", "brightness", "contrast", "flip")
"""Named before keys were: they split the image's key among them."""


def augment(image: tf.Tensor, key: tf.Tensor, preprocessing: Preprocessing) -> tf.Tensor:
    """Crops, flips, normalises, brightens and contrasts an image, at random.

    Args:
        image: float32 [h, w, c], values from 0 to 255.
        key: int32 [2], the image's own: the result is a function of it.
        preprocessing: what is done.

    Returns:
        float32, of the size that `preprocessing` crops to.
    """
    view = image
    for change in SHAPES:
        view = change(view, draw_key(key, change.__name__), preprocessing)
    view = normalize(view, image, preprocessing)
    for change in LIGHT:
        view = change(view, draw_key(key, change.__name__), preprocessing)
    return view


def draw_key(key: tf.Tensor, name: str) -> tf.Tensor:
    """The key of one random draw, int32 [2], from an image's key and the draw's name."""
    if name in _FIRST:
        return tf.random.split(key, len(_FIRST))[_FIRST.index(name)]
    return tf.random.fold_in(key, zlib.crc32(name.encode()) & 0x7FFFFFFF)


def crop(image: tf.Tensor, key: tf.Tensor, preprocessing: Preprocessing) -> tf.Tensor:
    """A window of the padded image, anywhere or in the middle."""
    if not preprocessing.random_crop:
        return central_crop(image, preprocessing)
    shape = tf.shape(image)
    size = preprocessing.crop or (shape[0], shape[1])
    pad = preprocessing.pad
    if pad and preprocessing.pad_mode == "edge":
        for axis in (0, 1):
            nearest = tf.clip_by_value(tf.range(-pad, shape[axis] + pad), 0, shape[axis] - 1)
            image = tf.gather(image, nearest, axis=axis)
    elif pad:
        image = tf.pad(image, [[pad, pad], [pad, pad], [0, 0]])
    return tf.image.stateless_random_crop(image, (*size, shape[2]), key)


def flip(image: tf.Tensor, key: tf.Tensor, preprocessing: Preprocessing) -> tf.Tensor:
    """Mirrors every other image on average from left to right."""
    return tf.image.stateless_random_flip_left_right(image, key) if preprocessing.flip else image


def brightness(view: tf.Tensor, key: tf.Tensor, preprocessing: Preprocessing) -> tf.Tensor:
    """Adds one number to all pixels."""
    delta = preprocessing.max_brightness_delta
    return tf.image.stateless_random_brightness(view, delta, key) if delta else view


def contrast(view: tf.Tensor, key: tf.Tensor, preprocessing: Preprocessing) -> tf.Tensor:
    """Stretches the distances to each channel's mean."""
    lower, upper = preprocessing.contrast
    return tf.image.stateless_random_contrast(view, lower, upper, key) if lower < upper else view


SHAPES: tuple[Change, ...] = (crop, flip)
"""What moves pixels, in this order, before normalisation."""
LIGHT: tuple[Change, ...] = (brightness, contrast)
"""What changes their values, in this order, after it."""


def central_crop(image: tf.Tensor, preprocessing: Preprocessing) -> tf.Tensor:
    """The middle of an image, as evaluation sees it."""
    return tf.image.resize_with_crop_or_pad(image, *preprocessing.crop) if preprocessing.crop else image


def normalize(view: tf.Tensor, image: tf.Tensor, preprocessing: Preprocessing) -> tf.Tensor:
    """Normalises a part of an image; by the statistics of all of it, where they are the image's own.

    After the crop, so that padding with zeros is black whatever the normalisation.
    """
    if preprocessing.normalize == "none":
        return view / 255.0
    if preprocessing.normalize == "channel":
        mean = np.asarray(preprocessing.channel_mean, np.float32)
        deviation = np.asarray(preprocessing.channel_std, np.float32)
        return (view / 255.0 - mean) / deviation
    # As tf.image.per_image_standardization: an image of one grey is not divided by zero.
    deviation = tf.maximum(tf.math.reduce_std(image), tf.math.rsqrt(tf.cast(tf.size(image), tf.float32)))
    return (view - tf.reduce_mean(image)) / deviation
