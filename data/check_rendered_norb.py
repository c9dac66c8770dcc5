"""Shows that the categories of a rendered set cannot be distinguished without recognising shapes.

    python data/check_rendered_norb.py --data_dir=data/renderedNORB

Prints the test accuracy of the nearest neighbour in raw pixels, and the mean and deviation of the brightness by category
with the accuracy of a classifier that knows only these two. Works on any NORB files, smallNORB's too. Chance is 20 %.
"""

import sys
from pathlib import Path

import numpy as np
from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from caps_tf.data import baselines, norb_format
from caps_tf.errors import UserError
from caps_tf.progress import Progress
from caps_tf.scripts import run_script

FLAGS = flags.FLAGS
flags.DEFINE_string("storage", ".", "directory that holds data/ and logs/")
flags.DEFINE_string("data_dir", None, "where the six files are [<storage>/data/renderedNORB]")
flags.DEFINE_integer("max_test", None, "how many test pairs to use, evenly spread [all]", lower_bound=1)


def left_images(split: norb_format.NorbSplit, max_count: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The left camera's images [n, h, w] and their categories [n], at most `max_count` of them, evenly spread."""
    rows = np.arange(len(split))
    if max_count is not None and max_count < len(split):
        rows = rows[np.linspace(0, len(split) - 1, max_count).round().astype(int)]
    return split.images[rows, 0], split.category[rows]


def main(argv: list[str]) -> None:
    del argv
    directory = Path(FLAGS.data_dir or Path(FLAGS.storage, "data", "renderedNORB"))
    train, train_category = left_images(norb_format.read_split(directory, "training"), None)
    test, test_category = left_images(norb_format.read_split(directory, "testing"), FLAGS.max_test)
    if train.shape[1:] != test.shape[1:]:
        raise UserError(f"{directory}: training and testing images differ in size: put the files of one set there")

    train_brightness, test_brightness = baselines.brightness(train), baselines.brightness(test)
    print("category   mean grey  deviation  (training images)")
    for category, name in enumerate(norb_format.CATEGORIES):
        mean, deviation = train_brightness[train_category == category].mean(axis=0)
        print(f"{name:9} {mean:10.1f} {deviation:10.1f}")
    guess = baselines.nearest_centroids(train_brightness, train_category, test_brightness)
    print(f"nearest centroid, brightness alone: {np.mean(guess == test_category):.1%} of {len(test)} test images")

    for a, b in ((train, test), (baselines.halved(train), baselines.halved(test))):
        with Progress(len(a) * len(b), "distances", "nearest neighbours") as progress:
            index = baselines.nearest_neighbours(a.reshape(len(a), -1), b.reshape(len(b), -1), progress.update)
        right = train_category[index] == test_category
        each = ", ".join(
            f"{name} {right[test_category == category].mean():.1%}"
            for category, name in enumerate(norb_format.CATEGORIES)
        )
        size = "x".join(map(str, a.shape[1:]))
        print(f"nearest neighbour, {size} pixels: {right.mean():.1%} of {len(test)} test images ({each})")


if __name__ == "__main__":
    run_script(main)
