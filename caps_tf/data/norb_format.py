"""The NORB data sets as files: what a split holds, and how its files are found, read and checked.

A split ("training" or "testing") is three matrix files (`norb_matrix`), possibly gzipped:

    <prefix>-<split>-dat.mat    uint8 [n, 2, h, w]  stereo pairs
    <prefix>-<split>-cat.mat    int32 [n]           category, an index into `CATEGORIES`
    <prefix>-<split>-info.mat   int32 [n, 4]        instance 0-9, elevation 0-8 (30 + 5e degrees),
                                                    azimuth 0, 2, ..., 34 (tens of degrees), lighting 0-5

Source: Y. LeCun, F. J. Huang, "The small NORB dataset, v1.0", https://cs.nyu.edu/~ylclab/data/norb-v1.0-small/
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from caps_tf.data.norb_matrix import AGAIN, PathLike, decompressed, read_matrix
from caps_tf.errors import UserError
from caps_tf.scripts import how_to_call

CATEGORIES = ("animal", "human", "airplane", "truck", "car")
TRAIN_INSTANCES = (4, 6, 7, 8, 9)
TEST_INSTANCES = (0, 1, 2, 3, 5)
ELEVATIONS = tuple(range(9))
AZIMUTHS = tuple(range(0, 36, 2))
LIGHTINGS = tuple(range(6))

_INFO_COLUMNS = {"instance": tuple(range(10)), "elevation": ELEVATIONS, "azimuth": AZIMUTHS, "lighting": LIGHTINGS}
_SMALL_NORB = "smallnorb-5x{}x9x18x6x2x96x96-{}-{}.mat"
OFFICIAL_SHA256 = {
    _SMALL_NORB.format("46789", "training", "cat"): "591ed90c090cb6724593e8de28180bd602095ee8ec82bd1a5ca30b488cd1d06e",
    _SMALL_NORB.format("46789", "training", "info"): "6b4075d3800ba0c6fa8c46a02f672572abe7b93f7ed82fb7668354a99ef03306",
    _SMALL_NORB.format("46789", "training", "dat"): "4813bf104d229583fea8ed57fdc3e9258c927b8dfb43d75412e854a7a9588067",
    _SMALL_NORB.format("01235", "testing", "cat"): "591ed90c090cb6724593e8de28180bd602095ee8ec82bd1a5ca30b488cd1d06e",
    _SMALL_NORB.format("01235", "testing", "info"): "318f817236b7c97af03cd90e07a9cbb4346e20ef83a1118a61eeb50e3b96db7e",
    _SMALL_NORB.format("01235", "testing", "dat"): "2b1de646c57ffdc259b8fb973a6453e90915248a8fdb4d9df948786bdae72b34",
}
"""Checksums of the published files, unpacked, by name."""


@dataclass(frozen=True, eq=False)
class NorbSplit:
    """One split in memory (labels) and on disk (images).

    Attributes:
        images: [n, 2, h, w] uint8, a read-only memory map; axis 1 is the left and the right camera.
        category: [n] int32, an index into `CATEGORIES`.
        info: [n, 4] int32: instance, elevation, azimuth, lighting, in the units of the file.
        images_path: the file behind `images`, for messages.
    """

    images: np.ndarray
    category: np.ndarray
    info: np.ndarray
    images_path: Path

    def __len__(self) -> int:
        return len(self.images)


def find_files(directory: PathLike, split: str) -> dict[str, Path]:
    """Finds the three files of a split; an unpacked file is preferred to its `.gz`.

    Args:
        directory: where the six files are.
        split: "training" or "testing".

    Returns:
        The paths under the keys "dat", "cat" and "info".

    Raises:
        UserError: a file is missing, or the directory holds more than one set of files.

    Example:
        >>> find_files("data/nowhere", "training")
        Traceback (most recent call last):
        ...
        caps_tf.errors.UserError: data/nowhere: no such directory: run ./data/download.sh for smallNORB or \
python data/render_norb.py for renderedNORB
    """
    if split not in ("training", "testing"):
        raise ValueError(f"split must be 'training' or 'testing', not {split!r}")
    directory = Path(directory)
    fetch, render = how_to_call("data/download.sh"), how_to_call("data/render_norb.py")
    remedy = f"run {fetch} for smallNORB or {render} for renderedNORB"
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory: {remedy}")
    try:
        paths = sorted(directory.iterdir())
    except OSError as error:
        raise UserError(f"{directory}: cannot be read: {error.strerror or error}") from None
    # Names that start with a dot are other systems' leftovers (macOS writes "._name" beside every file).
    pattern = re.compile(rf"([^.].*)-{split}-(dat|cat|info)\.mat(\.gz)?")
    sets: dict[str, dict[str, Path]] = {}
    for path in paths:
        if match := pattern.fullmatch(path.name):
            prefix, kind, _ = match.groups()
            sets.setdefault(prefix, {}).setdefault(kind, path)
    if len(sets) > 1:
        raise UserError(f"{directory}: more than one set of {split} files ({', '.join(sets)}): keep only one")
    prefix, files = sets.popitem() if sets else ("*", {})
    if missing := [kind for kind in ("dat", "cat", "info") if kind not in files]:
        names = ", ".join(f"{prefix}-{split}-{kind}.mat" for kind in missing)
        raise UserError(f"{directory}: missing {names}: {remedy}")
    return files


def read_split(directory: PathLike, split: str) -> NorbSplit:
    """Reads and checks one split: headers, sizes, agreement of the three files, and every label.

    Args:
        directory: where the six files are.
        split: "training" or "testing".

    Returns:
        The split; its images stay on disk.

    Raises:
        UserError: a file is missing or damaged, the files disagree, or a label is out of range.

    Example:
        >>> split = read_split("data/smallNORB", "training")  # doctest: +SKIP
        >>> split.images.shape, split.category.shape, split.info.shape  # doctest: +SKIP
        ((24300, 2, 96, 96), (24300,), (24300, 4))
    """
    files = find_files(directory, split)
    images = _read_as(files["dat"], "uint8", (None, 2, None, None))
    category = np.array(_read_as(files["cat"], "int32", (None,)), np.int32)
    info = np.array(_read_as(files["info"], "int32", (None, 4)), np.int32)
    for kind, labels in (("cat", category), ("info", info)):
        if len(labels) != len(images):
            raise UserError(
                f"{files[kind]}: has {len(labels)} rows, but {files['dat'].name} has {len(images)} pairs: "
                "put the three files of one set there"
            )
    _check_values(files["cat"], "category", category, tuple(range(len(CATEGORIES))))
    for column, (name, allowed) in enumerate(_INFO_COLUMNS.items()):
        _check_values(files["info"], name, info[:, column], allowed)
    return NorbSplit(images, category, info, files["dat"])


def verify(directory: PathLike, checksums: Mapping[str, str] = OFFICIAL_SHA256) -> int:
    """Checks the files of a set against known checksums: the format itself has none, and a flipped bit is a pixel.

    Args:
        directory: where the six files are.
        checksums: sha256 of unpacked files, by name. Other files are not looked at.

    Returns:
        How many files were checked.

    Raises:
        UserError: a file is missing, or not the one that the checksum is of.

    Example:
        >>> verify("data/smallNORB")  # doctest: +SKIP
        6
    """
    checked = 0
    for split in ("training", "testing"):
        for path in find_files(directory, split).values():
            expected = checksums.get(path.name.removesuffix(".gz"))
            if expected is None:
                continue
            try:
                with decompressed(path) if path.suffix == ".gz" else path.open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
            if found != expected:
                raise UserError(f"{path}: damaged: its sha256 is {found}, not {expected}: {AGAIN}")
            checked += 1
    return checked


def _read_as(path: Path, dtype: str, shape: tuple[int | None, ...]) -> np.ndarray:
    matrix = read_matrix(path)
    fits = len(matrix.shape) == len(shape) and all(want in (None, got) for want, got in zip(shape, matrix.shape))
    if matrix.dtype.name != dtype or not fits:
        expected = ", ".join("any" if size is None else str(size) for size in shape)
        raise UserError(
            f"{path}: holds {matrix.dtype.name} {list(matrix.shape)}, expected {dtype} [{expected}]: {AGAIN}"
        )
    return matrix


def _check_values(path: Path, name: str, values: np.ndarray, allowed: tuple[int, ...]) -> None:
    bad = ~np.isin(values, allowed)
    if bad.any():
        row = int(bad.argmax())
        step = ", even" if name == "azimuth" else ""
        raise UserError(
            f"{path}: row {row}: {name} {values[row]} is not in {allowed[0]} to {allowed[-1]}{step}: {AGAIN}"
        )


def grid_info(
    instances: Sequence[int],
    elevations: Sequence[int],
    azimuths: Sequence[int],
    lightings: Sequence[int],
    num_categories: int = len(CATEGORIES),
) -> tuple[np.ndarray, np.ndarray]:
    """Labels of a full grid in the order of the official testing files.

    Nested loops, outermost first: instance, elevation, azimuth, lighting, category.

    Args:
        instances, elevations, azimuths, lightings: the values of each loop, in the units of the info file.
        num_categories: how many equal info rows follow each other.

    Returns:
        category [n] int32 and info [n, 4] int32.

    Example:
        >>> category, info = grid_info([0], [3], [0, 2], [5], num_categories=2)
        >>> category.tolist(), info.tolist()
        ([0, 1, 0, 1], [[0, 3, 0, 5], [0, 3, 0, 5], [0, 3, 2, 5], [0, 3, 2, 5]])
    """
    axes = np.meshgrid(instances, elevations, azimuths, lightings, indexing="ij")
    views = np.stack(axes, axis=-1).reshape(-1, 4).astype(np.int32)
    category = np.tile(np.arange(num_categories, dtype=np.int32), len(views))
    return category, np.repeat(views, num_categories, axis=0)


def split_prefix(
    name: str,
    instances: Sequence[int],
    elevations: Sequence[int],
    azimuths: Sequence[int],
    lightings: Sequence[int],
    size: int,
) -> str:
    """The first part of a split's file names, as the official files are called.

    Example:
        >>> split_prefix("smallnorb", TRAIN_INSTANCES, ELEVATIONS, AZIMUTHS, LIGHTINGS, 96)
        'smallnorb-5x46789x9x18x6x2x96x96'
    """
    digits = "".join(str(instance) for instance in instances)
    grid = f"{len(CATEGORIES)}x{digits}x{len(elevations)}x{len(azimuths)}x{len(lightings)}"
    return f"{name}-{grid}x2x{size}x{size}"
