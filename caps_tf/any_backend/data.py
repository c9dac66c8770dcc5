"""Images of any kind of files as bytes in memory: an image folder, IDX files, or the matrix files of NORB."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from caps_tf.data.idx_format import read_idx_split
from caps_tf.data.image_folder import inspect_folder
from caps_tf.data.norb_format import CATEGORIES, NorbSplit, read_split
from caps_tf.data.parts import divide
from caps_tf.data.preprocessing import Preprocessing
from caps_tf.data.viewpoints import STEPS
from caps_tf.errors import UserError
from caps_tf.training.config import RunConfig

_INFO = ("instance", "label_elevation", "label_azimuth", "label_lighting")
"""Names of the columns of NORB's info, as the data sets of TensorFlow Datasets have them."""


class Records(NamedTuple):
    """Records of one file split.

    Attributes:
        images: uint8 [n, v, h, w, c], v views of each object: two cameras, or one.
        labels: int32 [n].
        viewpoints: int32 [n] each of "instance", "label_elevation", "label_azimuth" and "label_lighting" where known.
    """

    images: np.ndarray
    labels: np.ndarray
    viewpoints: Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """A data set in memory. Training records are in a shuffled order that never changes, test records in the files'.

    Attributes:
        name: of the directory.
        class_names: in the order of the labels.
        records: of the file splits "train" and "test".
        viewpoint_unit: "steps" where viewpoints are known, as NORB counts them, else None.
    """

    name: str
    class_names: tuple[str, ...]
    records: Mapping[str, Records]
    viewpoint_unit: str | None = None
    test_split: str = "test"

    @property
    def num_train(self) -> int:
        return len(self.records["train"].labels)

    @property
    def num_test(self) -> int:
        return len(self.records["test"].labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(h, w, c) of one view."""
        _, _, height, width, channels = self.records["train"].images.shape
        return height, width, channels

    @property
    def has_stereo(self) -> bool:
        return self.records["train"].images.shape[1] == 2


class Examples(NamedTuple):
    """What a run reads, as it lies in the memory of a device.

    Attributes:
        images: uint8 [n, h, w, c].
        labels: int32 [n].
        parts: numbers of the examples, int32, of "train", "validation" where there is one, and "test", or "familiar" and
            "novel".
    """

    images: np.ndarray
    labels: np.ndarray
    parts: Mapping[str, np.ndarray]


def read_images(directory: Path) -> ImageSet:
    """Reads a data set, whatever its kind.

    Args:
        directory: with train/<class>/*.png and test/<class>/*.png (or .jpg), all of one size; or with the four IDX files
            of MNIST's kin; or with the six .mat files of a NORB set.

    Raises:
        UserError: it holds none of these, or files that are damaged or missing.

    Example:
        >>> read_images(Path("data/smallNORB")).image_shape  # doctest: +SKIP
        (96, 96, 1)
    """
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory: give one of images as --data")
    if (directory / "train").is_dir():
        return _shuffled(_read_folder(directory))
    if any(directory.glob("*-images-idx3-ubyte*")):
        return _shuffled(_read_idx(directory))
    if any(directory.glob("*-dat.mat*")):
        return _shuffled(_read_norb(directory))
    raise UserError(
        f"{directory}: holds neither train/<class>/*.png, nor IDX files (train-images-idx3-ubyte), nor NORB's .mat files: "
        "give another --data"
    )


def arrange(images: ImageSet, config: RunConfig, preprocessing: Preprocessing) -> Examples:
    """Divides a data set as the parameters say, and makes examples of its records.

    Where records are stereo pairs and each camera's image is an example, record r is examples 2r and 2r + 1.

    Raises:
        UserError: if the parameters do not suit the data.

    Example:
        >>> pair = Records(np.zeros((4, 2, 8, 9, 1), "uint8"), np.array([0, 1, 0, 1], "int32"), {})
        >>> pairs = ImageSet("pairs", ("a", "b"), {"train": pair, "test": pair})
        >>> found = arrange(pairs, RunConfig(val_prop=0.25), Preprocessing(views="both"))
        >>> found.images.shape, found.parts["validation"].tolist()
        ((16, 8, 9, 1), [6, 7])
    """
    preprocessing.input_shape(images)  # refuses views that there are not
    divided = divide(
        images,
        lambda source: images.records[source].viewpoints,
        config.val_prop,
        config.validation_instances(),
        config.viewpoints,
    )
    views = 2 if preprocessing.views == "both" and images.has_stereo else 1
    first = {"train": 0, images.test_split: images.num_train}
    parts = {}
    for name, part in divided.items():
        rows = np.arange(part.start, part.stop) if part.keep is None else part.start + np.flatnonzero(part.keep)
        rows = first[part.source] + rows
        parts[name] = (rows[:, None] * views + np.arange(views)).reshape(-1).astype("int32")
    pixels = np.concatenate([_as_examples(images.records[source].images, preprocessing.views) for source in first])
    labels = np.concatenate([np.repeat(images.records[source].labels, views) for source in first])
    return Examples(pixels, labels.astype("int32"), parts)


def _as_examples(images: np.ndarray, views: str) -> np.ndarray:
    """Views uint8 [n, v, h, w, c] as examples: each view of its own, one of them, or the two as channels."""
    if views == "stereo":
        return np.concatenate([images[:, 0], images[:, 1]], axis=-1)
    if views == "both":
        return images.reshape(-1, *images.shape[2:])
    return images[:, 0 if views == "left" else 1]


def _shuffled(images: ImageSet) -> ImageSet:
    """Training records in another order, for the last of them may validate; files are often sorted by class."""
    train = images.records["train"]
    order = np.random.default_rng(0).permutation(len(train.labels))
    viewpoints = {name: values[order] for name, values in train.viewpoints.items()}
    shuffled = Records(train.images[order], train.labels[order], viewpoints)
    return ImageSet(
        images.name, images.class_names, {**images.records, "train": shuffled}, images.viewpoint_unit, images.test_split
    )


def _read_folder(directory: Path) -> ImageSet:
    contents = inspect_folder(directory)
    if contents.shape[0] is None:
        raise UserError(f"{directory}: its images differ in size, and in memory all have one: resize the files to one")
    labels = {name: label for label, name in enumerate(contents.class_names)}
    mode = "RGB" if contents.shape[2] == 3 else "L"
    records = {}
    for split in ("train", "test"):
        paths = [path for path in contents.paths if path.parts[-3] == split]
        if not paths:
            raise UserError(f"{directory}: holds no images in {split}: expected {split}/<class>/*.png")
        with ThreadPoolExecutor() as pool:
            pixels = np.stack(list(pool.map(lambda path: _read_image(path, mode), paths)))
        pixels = pixels.reshape(len(paths), 1, *pixels.shape[1:3], contents.shape[2])
        records[split] = Records(pixels, np.array([labels[path.parts[-2]] for path in paths], "int32"), {})
    return ImageSet(directory.resolve().name, contents.class_names, records)


def _read_image(path: Path, mode: str) -> np.ndarray:
    """Pixels uint8 [h, w] or [h, w, 3]; of 16 bits the upper eight."""
    try:
        with Image.open(path) as image:
            if image.mode in ("I", "I;16"):
                high = Image.fromarray((np.asarray(image) >> 8).astype("uint8"))
                return np.asarray(high.convert(mode))
            return np.asarray(image.convert(mode))
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path}: cannot be decoded ({error}): fix or remove it") from None


def _read_idx(directory: Path) -> ImageSet:
    records, sizes = {}, {}
    for split in ("train", "test"):
        images, labels = read_idx_split(directory, split)
        records[split] = Records(images[:, None, :, :, None], labels.astype("int32"), {})
        sizes[split] = images.shape[1:]
    if sizes["train"] != sizes["test"]:
        raise UserError(
            f"{directory}: training images are {sizes['train']}, test images {sizes['test']}: fetch it again"
        )
    present, tested = (set(np.unique(records[split].labels).tolist()) for split in ("train", "test"))
    if tested - present:
        raise UserError(f"{directory}: no training images of class {min(tested - present)}: fetch it again")
    if len(present) < 2:
        raise UserError(f"{directory}: holds one class, {present.pop()}, and nothing to tell it from: add another")
    return ImageSet(directory.resolve().name, tuple(map(str, range(max(present) + 1))), records)


def _read_norb(directory: Path) -> ImageSet:
    splits = {"train": read_split(directory, "training"), "test": read_split(directory, "testing")}
    sizes = {name: split.images.shape[2:] for name, split in splits.items()}
    if sizes["train"] != sizes["test"]:
        raise UserError(
            f"{directory}: training images are {sizes['train']}, test images {sizes['test']}: keep the files of one set"
        )
    records = {name: _norb_records(split) for name, split in splits.items()}
    return ImageSet(directory.resolve().name, CATEGORIES, records, STEPS)


def _norb_records(split: NorbSplit) -> Records:
    viewpoints = dict(zip(_INFO, split.info.T, strict=True))
    viewpoints["label_azimuth"] = viewpoints["label_azimuth"] // 2  # the file counts tens of degrees
    return Records(np.asarray(split.images)[..., None], split.category, viewpoints)
