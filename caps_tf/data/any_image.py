"""Any image, of any size and colours, as one of the shape that a network takes; and what was done to it, in words."""

import os
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps

from caps_tf.errors import UserError


def read_any_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Pixels of a file, uint8 [h, w] or [h, w, 3].

    Of 16 bits a pixel the upper eight are taken, transparent pixels are white, and the camera's orientation is heeded.

    Raises:
        UserError: the file is missing, or no image that Pillow reads.
    """
    try:
        with Image.open(path) as file:
            image: Image.Image = file
            if image.mode.startswith("I"):
                return (np.asarray(image, np.int64) >> 8).clip(0, 255).astype("uint8")
            image = ImageOps.exif_transpose(image)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return np.asarray(image.convert("L" if image.mode in ("1", "L", "LA", "F") else "RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{path}: cannot be read as an image ({said}): give a PNG, JPEG or the like") from None


def fit_image(
    image: np.ndarray | Image.Image, shape: Sequence[int], part: Sequence[int] | None = None
) -> tuple[np.ndarray, str]:
    """Makes an image fit a network: its colours, its proportions by cutting off the longer sides, and its size.

    Args:
        image: a Pillow image, or pixels from 0 to 255, [h, w], [h, w, 1], [h, w, 3], or of as many channels as `shape`.
        shape: (h, w, c) to make.
        part: (h, w) of images that lie in the middle of that, on black: larger ones are made of this size, smaller ones
            stay as they are, and so do those that fill all of `shape`.

    Returns:
        float32 [h, w, c], and what was done.

    Raises:
        UserError: the channels do not fit.

    Example:
        >>> fitted, done = fit_image(np.full((8, 4), 9, "uint8"), (2, 2, 3))
        >>> fitted.shape, done
        ((2, 2, 3), 'grey made colour, the middle 4x4 of 8x4 pixels, resized to 2x2')
        >>> fit_image(np.ones((2, 2)), (4, 4, 1), part=(2, 2))[1]
        'put in the middle of 4x4 black pixels'
    """
    if isinstance(image, Image.Image):
        image = image.convert("L" if image.mode in ("1", "L") else "RGB")
    pixels = np.asarray(image, "float32")
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or not pixels.size:
        raise UserError(f"an image must be [rows, columns] or [rows, columns, channels], not of shape {pixels.shape}")
    height, width, channels = shape
    done = []
    if pixels.shape[2] != channels:
        pixels, changed = _recoloured(pixels, channels)
        done.append(changed)
    have = pixels.shape[:2]
    if part is None or have == (height, width):
        pixels, steps = _resized(pixels, height, width)
        return np.ascontiguousarray(pixels, "float32"), ", ".join([*done, *steps]) or "as it is"
    if have[0] > part[0] or have[1] > part[1]:
        pixels, steps = _resized(pixels, part[0], part[1])
        done += steps
    top, left = (height - pixels.shape[0]) // 2, (width - pixels.shape[1]) // 2
    canvas = np.zeros((height, width, channels), "float32")
    canvas[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return canvas, ", ".join([*done, f"put in the middle of {height}x{width} black pixels"])


def _resized(pixels: np.ndarray, height: int, width: int) -> tuple[np.ndarray, list[str]]:
    """Pixels [height, width, c], cut to the proportions and then resized; and what was done, if anything."""
    have, done = pixels.shape[:2], []
    scale = min(have[0] / height, have[1] / width)
    cut = max(1, round(height * scale)), max(1, round(width * scale))
    if cut != have:
        top, left = (have[0] - cut[0]) // 2, (have[1] - cut[1]) // 2
        pixels = pixels[top : top + cut[0], left : left + cut[1]]
        done.append(f"the middle {cut[0]}x{cut[1]} of {have[0]}x{have[1]} pixels")
    if cut != (height, width):
        method = Image.Resampling.BOX if min(cut[0] / height, cut[1] / width) >= 1 else Image.Resampling.BILINEAR
        planes = [Image.fromarray(plane).resize((width, height), method) for plane in np.moveaxis(pixels, -1, 0)]
        pixels = np.stack([np.asarray(plane) for plane in planes], axis=-1)
        done.append(f"resized to {height}x{width}")
    return pixels, done


def _recoloured(pixels: np.ndarray, channels: int) -> tuple[np.ndarray, str]:
    if pixels.shape[2] == 1 and channels == 3:
        return np.repeat(pixels, 3, axis=2), "grey made colour"
    if pixels.shape[2] == 3 and channels == 1:
        return pixels @ np.array([[0.299], [0.587], [0.114]], "float32"), "colour made grey"
    if channels == 2:
        raise UserError(
            "the network takes stereo pairs: give arrays [rows, columns, 2], the left and the right camera's pixels"
        )
    raise UserError(f"an image has {pixels.shape[2]} channels where the network takes {channels}: give 1 or 3")
