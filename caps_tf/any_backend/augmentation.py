"""From bytes to the network's input, for a whole batch on its device: the same as `caps_tf.data` does with tf.data.

Whatever moves pixels is linear in rows and in columns: of an image I, resizing and cropping make R I C', where a row of R
says which rows of the image a row of the result shows. What is random is a function of numbers between 0 and 1, `draws`,
so that the same numbers give the same images on every backend.
"""

import math

import numpy as np
from keras import ops

from caps_tf.data.preprocessing import Preprocessing
from caps_tf.tensors import Tensor

DRAWS = 5
"""Numbers that augmenting an image takes: row and column of the crop, mirroring, brightness, contrast."""


def prepare(images: Tensor, preprocessing: Preprocessing, draws: Tensor | None = None) -> Tensor:
    """Resizes, crops and normalises images; with draws also pads, flips and changes the light.

    Args:
        images: uint8 [b, h, w, c].
        preprocessing: what is done.
        draws: float32 [b, DRAWS], from 0 to below 1; None for evaluation, where nothing is random and the crop is the
            centre.

    Returns:
        float32 [b, rows, columns, c].

    Example:
        >>> images = np.arange(2 * 6 * 6, dtype="uint8").reshape(2, 6, 6, 1)
        >>> preprocessing = Preprocessing(resize=(3, 3), crop=(2, 2), normalize="none")
        >>> (255 * np.asarray(prepare(images, preprocessing)))[0, :, :, 0].round(2)
        array([[ 3.5,  5.5],
               [15.5, 17.5]], dtype=float32)
    """
    images = ops.cast(images, "float32")
    if preprocessing.resize:
        images = resize(images, preprocessing.resize)
    if draws is None or not preprocessing.random_crop:
        view = central_crop(images, preprocessing.crop)
    else:
        view = random_crop(images, preprocessing, draws[:, 0], draws[:, 1])
    if draws is not None and preprocessing.flip:
        view = ops.where(draws[:, 2, None, None, None] < 0.5, ops.flip(view, axis=2), view)
    view = normalize(view, images, preprocessing)
    return view if draws is None else change_light(view, preprocessing, draws[:, 3], draws[:, 4])


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes images float32 [b, h, w, c]: the mean of areas where both sides shrink, else bilinear with antialiasing."""
    have = images.shape[1:3]
    shrinks = have[0] >= size[0] and have[1] >= size[1]
    weights = area_weights if shrinks else bilinear_weights
    rows, columns = (weights(old, new) for old, new in zip(have, size, strict=True))
    return _weigh(images, ops.convert_to_tensor(rows), ops.convert_to_tensor(columns))


def area_weights(old: int, new: int) -> np.ndarray:
    """How much of each of `old` pixels a new one covers, float32 [new, old]; rows sum to one.

    Example:
        >>> area_weights(3, 2).round(3)
        array([[0.667, 0.333, 0.   ],
               [0.   , 0.333, 0.667]], dtype=float32)
    """
    edges = np.arange(new + 1) * (old / new)
    pixels = np.arange(old)
    covered = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (np.clip(covered, 0, None) * (new / old)).astype("float32")


def bilinear_weights(old: int, new: int) -> np.ndarray:
    """Weights of linear interpolation between the centres of pixels, float32 [new, old].

    To shrink, the triangle of weights is as wide as in the new pixels' units.

    Example:
        >>> bilinear_weights(2, 4).round(3)
        array([[1.  , 0.  ],
               [0.75, 0.25],
               [0.25, 0.75],
               [0.  , 1.  ]], dtype=float32)
    """
    scale = old / new
    centres = (np.arange(new) + 0.5) * scale
    distance = np.abs(np.arange(old) + 0.5 - centres[:, None]) / max(scale, 1.0)
    weights = np.clip(1 - distance, 0, None)
    return (weights / weights.sum(axis=1, keepdims=True)).astype("float32")


def central_crop(images: Tensor, size: tuple[int, int] | None) -> Tensor:
    """The middle of images [b, h, w, c]."""
    if size is None:
        return images
    top, left = ((have - want) // 2 for have, want in zip(images.shape[1:3], size, strict=True))
    return images[:, top : top + size[0], left : left + size[1]]


def random_crop(images: Tensor, preprocessing: Preprocessing, row: Tensor, column: Tensor) -> Tensor:
    """A window of each padded image, its place by numbers from 0 to below 1, [b] each."""
    have, pad = images.shape[1:3], preprocessing.pad
    size = preprocessing.crop or have
    if have == size and not pad:
        return images
    windows = []
    for draw, old, new in zip((row, column), have, size, strict=True):
        places = old + 2 * pad - new + 1
        offset = ops.minimum(ops.cast(ops.floor(draw * places), "int32"), places - 1) - pad
        shown = offset[:, None] + ops.arange(new, dtype="int32")
        if preprocessing.pad_mode == "edge":
            shown = ops.clip(shown, 0, old - 1)
        # Beyond the image a row of the window is no row of it, which leaves it black.
        windows.append(ops.cast(shown[:, :, None] == ops.arange(old, dtype="int32"), "float32"))
    return _weigh(images, *windows)


def _weigh(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """R I C' with R [r, h] and C [s, w] of all images, or [b, r, h] and [b, s, w] of each."""
    each = "b" if len(rows.shape) == 3 else ""
    images = ops.einsum(f"{each}rh,bhwc->brwc", rows, images)
    return ops.einsum(f"{each}sw,brwc->brsc", columns, images)


def normalize(view: Tensor, images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Normalises parts of images; by the statistics of all of each, where they are the image's own."""
    if preprocessing.normalize == "none":
        return view / 255.0
    if preprocessing.normalize == "channel":
        mean, deviation = (
            ops.convert_to_tensor(np.asarray(values, "float32"))
            for values in (preprocessing.channel_mean, preprocessing.channel_std)
        )
        return (view / 255.0 - mean) / deviation
    mean = ops.mean(images, axis=(1, 2, 3), keepdims=True)
    variance = ops.mean(ops.square(images - mean), axis=(1, 2, 3), keepdims=True)
    # An image of one grey is not divided by zero, nor is the gradient of the root taken there.
    return (view - mean) / ops.sqrt(ops.maximum(variance, 1 / math.prod(images.shape[1:])))


def change_light(view: Tensor, preprocessing: Preprocessing, brightness: Tensor, contrast: Tensor) -> Tensor:
    """Adds a number to all pixels, then stretches the distances to each channel's mean; by draws [b] each."""
    delta, (lower, upper) = preprocessing.max_brightness_delta, preprocessing.contrast
    if delta:
        view = view + (2 * brightness - 1)[:, None, None, None] * delta
    if lower < upper:
        factor = (lower + (upper - lower) * contrast)[:, None, None, None]
        mean = ops.mean(view, axis=(1, 2), keepdims=True)
        view = (view - mean) * factor + mean
    return view
