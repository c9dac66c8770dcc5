"""Shows that the categories of a rendered set cannot be told without recognising shapes.

    python data/check_rendered_norb.py --data_dir=data/renderedNORB

Prints the test accuracy of the nearest neighbour in raw pixels (it stays under 70 %: see the README), and the mean
and deviation of the brightness by category with the accuracy of a classifier that knows only these two. Works on any
NORB files, smallNORB's too. Chance is 20 %.
"""

import sys
from pathlib import Path

import numpy as np
from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from caps_tf.data import norb_format
from caps_tf.errors import UserError, run_script
from caps_tf.progress import Progress

FLAGS = flags.FLAGS
flags.DEFINE_string("storage", ".", "directory that holds data/ and logs/")
flags.DEFINE_string("data_dir", None, "where the six files are [<storage>/data/renderedNORB]")
flags.DEFINE_integer("max_test", None, "look only at so many test pairs, evenly spread [all]", lower_bound=1)

_CHUNK = 512


def nearest(train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Index [m] of the nearest of the training rows [n, d] for each test row [m, d], both uint8; Euclidean.

    Example:
        >>> nearest(np.uint8([[0, 0], [9, 9]]), np.uint8([[7, 8]])).tolist()
        [1]
    """
    best = np.full(len(test), np.inf, np.float32)
    index = np.zeros(len(test), np.int64)
    # Centred, so that float32 keeps its digits for the differences.
    centred = test.astype(np.float32) - 128
    with Progress(-(-len(train) // _CHUNK), "chunks", "nearest neighbours") as progress:
        for start in range(0, len(train), _CHUNK):
            rows = train[start : start + _CHUNK].astype(np.float32) - 128
            # |a - b|^2 without |a|^2, which is the same for all b
            distance = np.einsum("nd,nd->n", rows, rows) - 2 * (centred @ rows.T)
            closest = distance.argmin(axis=1)
            value = distance[np.arange(len(test)), closest]
            better = value < best
            best[better], index[better] = value[better], start + closest[better]
            progress.update()
    return index


def halved(images: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 pixels: uint8 [n, h, w] to uint8 [n, h // 2, w // 2]."""
    n, height, width = images.shape
    blocks = images[:, : height // 2 * 2, : width // 2 * 2].reshape(n, height // 2, 2, width // 2, 2)
    return (np.einsum("nyaxb->nyx", blocks, dtype=np.uint16) // 4).astype(np.uint8)


def left_images(split: norb_format.NorbSplit, max_count: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The left camera's images [n, h, w] and their categories [n], at most `max_count` of them, evenly spread."""
    rows = np.arange(len(split))
    if max_count is not None and max_count < len(split):
        rows = rows[np.linspace(0, len(split) - 1, max_count).round().astype(int)]
    return split.images[rows, 0], split.category[rows]


def brightness(images: np.ndarray) -> np.ndarray:
    """Mean and standard deviation [n, 2] of the pixels of each image."""
    return np.stack([(image.mean(), image.std()) for image in images])


def main(argv: list[str]) -> None:
    del argv
    directory = Path(FLAGS.data_dir or Path(FLAGS.storage, "data", "renderedNORB"))
    train, train_category = left_images(norb_format.read_split(directory, "training"), None)
    test, test_category = left_images(norb_format.read_split(directory, "testing"), FLAGS.max_test)
    if train.shape[1:] != test.shape[1:]:
        raise UserError(f"{directory}: training and testing images differ in size: put the files of one set there")

    train_brightness, test_brightness = brightness(train), brightness(test)
    print("category   mean grey  deviation  (training images)")
    centroids = []
    for category, name in enumerate(norb_format.CATEGORIES):
        centroids.append(train_brightness[train_category == category].mean(axis=0))
        print(f"{name:9} {centroids[-1][0]:10.1f} {centroids[-1][1]:10.1f}")
    spread = train_brightness.std(axis=0)
    distance = (((test_brightness[:, None] - np.stack(centroids)) / spread) ** 2).sum(axis=2)
    print(f"by brightness alone: {(distance.argmin(axis=1) == test_category).mean():.1%} of {len(test)} test images")

    for how, prepare in (("", lambda images: images), (" halved", halved)):
        a, b = prepare(train), prepare(test)
        index = nearest(a.reshape(len(a), -1), b.reshape(len(b), -1))
        right = train_category[index] == test_category
        each = ", ".join(
            f"{name} {right[test_category == category].mean():.1%}" for category, name in enumerate(norb_format.CATEGORIES)
        )
        size = f"{a.shape[1]}x{a.shape[2]}{how}"
        print(f"nearest neighbour, {size} pixels: {right.mean():.1%} of {len(test)} test images ({each})")


if __name__ == "__main__":
    run_script(main)
