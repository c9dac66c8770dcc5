"""A tiny folder of photographs over viewpoint: bright bars whose place is the category's, on noise."""

import numpy as np
from PIL import Image

RING = tuple((90, azimuth) for azimuth in range(0, 360, 45))  # (polar, azimuth)


def write_photographs(directory, categories=("cup", "dog"), objects=(1, 2, 3, 4), views=((45, 0), *RING), size=17):
    """Writes <category>/<category>0<object>_polar<...>_azimuth<...>.png in colour."""
    rng = np.random.default_rng(0)
    for label, category in enumerate(categories):
        (directory / category).mkdir(parents=True)
        for number in objects:
            for polar, azimuth in views:
                pixels = rng.integers(60, 100, size=(size, size, 3), dtype=np.uint8)
                pixels[3 + 6 * label : 7 + 6 * label, 3:-3] += np.array([120, 60, 30], np.uint8)
                name = f"{category}{number:02d}_polar{polar:03d}_azimuth{azimuth:03d}.png"
                Image.fromarray(pixels).save(directory / category / name)
    return directory
