"""MNIST's file format (IDX), read without TensorFlow.

    offset  type             meaning
    0       uint8[2]         0
    2       uint8            element type: 8 for unsigned bytes, the only one supported
    3       uint8            number of dimensions
    4       int32[n]         the dimensions, big-endian
    ...     uint8            the elements in C order, up to the end of the file

Source: http://yann.lecun.com/exdb/mnist/, also the format of Fashion-MNIST and KMNIST.
"""

import gzip
import math
import os
import zlib
from pathlib import Path

import numpy as np

from caps_tf.errors import UserError

PathLike = str | os.PathLike[str]


def read_idx(path: PathLike) -> np.ndarray:
    """Reads an IDX file of unsigned bytes, compressed or not.

    Returns:
        uint8, of the shape in the header.

    Raises:
        UserError: the file is missing, damaged, or of another type.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     _ = Path(file.name).write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9]))
        ...     read_idx(file.name).tolist()
        [7, 8, 9]
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: damaged gzip file ({error}): fetch it again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise UserError(f"{path}: not an IDX file of unsigned bytes (it starts with 0x{data[:4].hex()})")
    offset = 4 + 4 * data[3]
    shape = np.frombuffer(data[4:offset], ">i4").tolist()
    if len(shape) < data[3] or len(data) != offset + math.prod(shape):
        raise UserError(f"{path}: damaged: dimensions {shape} do not fit its {len(data)} bytes: fetch it again")
    return np.frombuffer(data, np.uint8, offset=offset).reshape(shape)


def find_idx(directory: PathLike, name: str) -> Path:
    """Finds a file by its customary name, with or without `.gz`.

    Raises:
        UserError: neither is there.
    """
    for path in (Path(directory, name), Path(directory, name + ".gz")):
        if path.exists():
            return path
    raise UserError(f"{directory}: holds neither {name} nor {name}.gz: choose another `source`")


def read_idx_split(directory: PathLike, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads `train-images-idx3-ubyte` and `train-labels-idx1-ubyte`, or the `t10k-` files for "test".

    Returns:
        Images uint8 [n, h, w] and labels uint8 [n].

    Raises:
        UserError: a file is missing or damaged, or the two disagree.
    """
    prefix = {"train": "train", "test": "t10k"}[split]
    images_path = find_idx(directory, f"{prefix}-images-idx3-ubyte")
    labels_path = find_idx(directory, f"{prefix}-labels-idx1-ubyte")
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.ndim != 3 or not len(images) or labels.shape != images.shape[:1]:
        raise UserError(
            f"{labels_path}: shape {list(labels.shape)} does not fit {images_path.name}, {list(images.shape)}"
        )
    return images, labels
