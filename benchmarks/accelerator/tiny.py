"""Data for --tiny: a few images whose class is the place of a bright bar, as an image folder and as the files of NORB."""

from pathlib import Path

import numpy as np
from PIL import Image

from caps_tf.data import norb_format, norb_matrix

SIZE = 20
ELEVATIONS, AZIMUTHS, LIGHTINGS = (0, 8), (0, 16), (0,)
"""Of the NORB files: of both, the published protocols call the first familiar and the second novel."""


def write_image_folder(directory: Path, classes: int = 2, train: int = 16, test: int = 8) -> Path:
    """Writes train/<class>/*.png and test/<class>/*.png, coloured; returns the directory."""
    generator = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for kind in range(classes):
            folder = directory / split / f"class{kind}"
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                Image.fromarray(_picture(kind, generator, 3)).save(folder / f"{number:04d}.png")
    return directory


def write_norb(directory: Path) -> Path:
    """Writes the six .mat files, one instance of each category in each split; returns the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for split, instances in (("training", norb_format.TRAIN_INSTANCES), ("testing", norb_format.TEST_INSTANCES)):
        category, info = norb_format.grid_info(instances[:2], ELEVATIONS, AZIMUTHS, LIGHTINGS)
        images = np.stack([[_picture(kind, generator, 1)[..., 0] for _ in range(2)] for kind in category])
        prefix = norb_format.split_prefix("tinynorb", instances[:2], ELEVATIONS, AZIMUTHS, LIGHTINGS, SIZE)
        for name, array in (("dat", images), ("cat", category), ("info", info)):
            norb_matrix.write_matrix(directory / f"{prefix}-{split}-{name}.mat", array)
    return directory


def _picture(kind: int, generator: np.random.Generator, channels: int) -> np.ndarray:
    """uint8 [SIZE, SIZE, channels]."""
    image = generator.integers(60, 100, (SIZE, SIZE, channels), np.uint8)
    row = 3 + 3 * kind
    image[row : row + 2, 5:15] += 120
    return image
