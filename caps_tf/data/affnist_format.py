"""affNIST's files: MATLAB 5 matrices of images of 40x40 pixels.

A file holds a structure "affNISTdata", of whose fields two are read:

    image       uint8 [1600, n]    a column is an image, one row of pixels after the other
    label_int   uint8 [1, n]       its digit

Source: T. Tieleman, https://www.cs.toronto.edu/~tijmen/affNIST/
"""

import os
from pathlib import Path

import numpy as np
import scipy.io

from caps_tf.errors import UserError

PathLike = str | os.PathLike[str]

NAMES = {"train": "training_and_validation.mat", "test": "test.mat"}
SIDE = 40


def read_affnist_split(directory: PathLike, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads `training_and_validation.mat`, or `test.mat` for "test".

    Returns:
        Images uint8 [n, 40, 40] and labels uint8 [n].

    Raises:
        UserError: the file is missing or damaged, or holds something else.
    """
    path = Path(directory, NAMES[split])
    try:
        with open(path, "rb") as file:
            content = scipy.io.loadmat(file, struct_as_record=False, squeeze_me=True)["affNISTdata"]
        images, labels = np.atleast_2d(content.image), np.atleast_1d(content.label_int)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except Exception as error:  # SciPy's reader has as many errors as MATLAB's format has parts
        raise UserError(
            f"{path}: is not a file of affNIST ({type(error).__name__}: {error}): fetch it again"
        ) from error
    if images.dtype != np.uint8 or images.shape != (SIDE * SIDE, labels.size) or not labels.size:
        raise UserError(
            f"{path}: images of {images.dtype} {list(images.shape)} are not {SIDE * SIDE} bytes for each label"
        )
    return images.T.reshape(-1, SIDE, SIDE), labels.astype(np.uint8)
