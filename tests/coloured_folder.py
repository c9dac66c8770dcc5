"""A tiny image folder in the form of CIFAR-10's: coloured bars whose place is the class's, on noise."""

import numpy as np
from PIL import Image


def write_coloured_folder(directory, classes=3, train=24, test=8, size=(20, 16), seed=0):
    """Writes train/<class>/*.png and test/<class>/*.png, `train` and `test` images of each class; rows x columns."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", train), ("test", test)):
        for label in range(classes):
            place = directory / split / f"kind{label}"
            place.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(60, 100, size=(*size, 3), dtype=np.uint8)
                row = 2 + label * (size[0] - 8) // max(1, classes - 1)
                pixels[row : row + 4, :, label % 3] += 120
                Image.fromarray(pixels).save(place / f"{number:04}.png")
