"""The NORB file format: a small header and a raw array, little-endian throughout.

    offset  type              meaning
    0       int32             magic: 0x1E3D4C55 for uint8, 0x1E3D4C54 for int32
    4       int32             ndim
    8       int32[max(3, n)]  the n = ndim dimensions, filled up with ones to at least three
    ...     uint8 or int32    the elements in C order, up to the end of the file

A split ("training" or "testing") is three such files, possibly gzipped:

    <prefix>-<split>-dat.mat    uint8 [n, 2, h, w]  stereo pairs
    <prefix>-<split>-cat.mat    int32 [n]           category, an index into `CATEGORIES`
    <prefix>-<split>-info.mat   int32 [n, 4]        instance 0-9, elevation 0-8 (30 + 5e degrees),
                                                    azimuth 0, 2, ..., 34 (tens of degrees), lighting 0-5

Everything is read through a memory map and written row by row, so that memory does not grow with the files.
Source: Y. LeCun, F. J. Huang, "The small NORB dataset, v1.0", https://cs.nyu.edu/~ylclab/data/norb-v1.0-small/
"""

import gzip
import hashlib
import io
import math
import os
import re
import shutil
import struct
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from caps_tf.errors import UserError

CATEGORIES = ("animal", "human", "airplane", "truck", "car")
TRAIN_INSTANCES = (4, 6, 7, 8, 9)
TEST_INSTANCES = (0, 1, 2, 3, 5)
ELEVATIONS = tuple(range(9))
AZIMUTHS = tuple(range(0, 36, 2))
LIGHTINGS = tuple(range(6))

_INFO_COLUMNS = {"instance": tuple(range(10)), "elevation": ELEVATIONS, "azimuth": AZIMUTHS, "lighting": LIGHTINGS}
_DTYPES: dict[int, np.dtype] = {0x1E3D4C55: np.dtype("u1"), 0x1E3D4C54: np.dtype("<i4")}
_MAGICS = {dtype: magic for magic, dtype in _DTYPES.items()}
_OTHER_MAGICS = {0x1E3D4C51: "float32", 0x1E3D4C52: "packed", 0x1E3D4C53: "float64", 0x1E3D4C56: "int16"}
_MAX_NDIM = 8
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

_AGAIN = "delete it and download or render it again"

PathLike = str | os.PathLike[str]


def read_matrix(path: PathLike) -> np.ndarray:
    """Maps one NORB file into memory.

    A `.gz` is decompressed as a stream into a temporary file that has no name, beside the `.gz` where the directory
    is writable (the default temporary directory is often held in memory), and that file is mapped.

    Args:
        path: a `.mat` or `.mat.gz` file.

    Returns:
        A read-only `np.memmap`, uint8 or int32, of the shape in the header.

    Raises:
        UserError: the file is missing, unreadable, damaged, or of another type.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     write_matrix(f"{directory}/toy.mat", np.arange(3, dtype=np.int32))
        ...     read_matrix(f"{directory}/toy.mat").tolist()
        [0, 1, 2]
    """
    path = Path(path)
    try:
        file = _decompress(path) if path.suffix == ".gz" else path.open("rb")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    with file:
        dtype, shape, offset = _read_header(file, path)
        expected = offset + math.prod(shape) * dtype.itemsize
        found = os.fstat(file.fileno()).st_size
        if found != expected:
            problem = "cut short" if found < expected else "bytes after its end"
            raise UserError(
                f"{path}: {problem}: expected {expected} bytes ({dtype.name} {list(shape)}), found {found}: {_AGAIN}"
            )
        return np.memmap(file, dtype=dtype, mode="r", offset=offset, shape=shape)


def _decompress(path: Path) -> io.BufferedRandom:
    with path.open("rb") as compressed:
        try:
            file = tempfile.TemporaryFile(dir=path.parent)
        except OSError:
            file = tempfile.TemporaryFile()
        try:
            with gzip.open(compressed) as stream:
                shutil.copyfileobj(stream, file, 1 << 20)
            file.flush()
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            file.close()
            raise UserError(f"{path}: damaged gzip file ({error}): {_AGAIN}") from None
        except OSError as error:
            file.close()
            raise UserError(f"{path}: cannot be decompressed: {error.strerror or error}") from None
    file.seek(0)
    return file


def _read_header(file: BinaryIO, path: Path) -> tuple[np.dtype, tuple[int, ...], int]:
    """Returns the dtype, the shape, and the offset of the first element."""
    start = file.read(8)
    if len(start) < 8:
        raise UserError(f"{path}: cut short: its header needs 8 bytes, found {len(start)}: {_AGAIN}")
    magic, ndim = struct.unpack("<Ii", start)
    if magic not in _DTYPES:
        raise UserError(f"{path}: {_explain_magic(start)}")
    if not 1 <= ndim <= _MAX_NDIM:
        raise UserError(f"{path}: damaged header: {ndim} dimensions, expected 1 to {_MAX_NDIM}: {_AGAIN}")
    count = max(3, ndim)
    data = file.read(4 * count)
    if len(data) < 4 * count:
        raise UserError(f"{path}: cut short: its header needs {8 + 4 * count} bytes, found {8 + len(data)}: {_AGAIN}")
    sizes = struct.unpack(f"<{count}i", data)
    shape = sizes[:ndim]
    if any(size != 1 for size in sizes[ndim:]):
        raise UserError(f"{path}: damaged header: {ndim} dimensions, but sizes {list(sizes)}: {_AGAIN}")
    if min(shape) < 1:
        raise UserError(f"{path}: damaged header: dimensions {list(shape)} must all be positive: {_AGAIN}")
    return _DTYPES[magic], shape, 8 + 4 * count


def _explain_magic(start: bytes) -> str:
    if start[:2] == b"\x1f\x8b":
        return "is gzip-compressed: rename it to end in .gz"
    magic, swapped = struct.unpack("<I", start[:4])[0], struct.unpack(">I", start[:4])[0]
    if swapped in _DTYPES or swapped in _OTHER_MAGICS:
        return "is big-endian; NORB files are little-endian: write it again with caps_tf.data.norb_format.write_matrix"
    if magic in _OTHER_MAGICS:
        return f"holds {_OTHER_MAGICS[magic]} elements; only uint8 and int32 are supported: convert it first"
    return f"not a NORB file (it starts with 0x{magic:08X}): {_AGAIN}"


class MatrixWriter:
    """Writes one NORB file piece by piece, in any order of rows.

    The file appears under its name only when every row is written: until then it is called `<path>.tmp`, which is
    removed after an exception and overwritten by the next try after a kill.

    Args:
        path: the file to write; an older one is replaced.
        shape: dimensions, 1 to 8 of them, the first one rows.
        dtype: uint8 or int32.

    Raises:
        UserError: the file cannot be written (no such directory, no permission, disk full).
        ValueError: a shape, dtype or row that does not fit, or rows left unwritten at a clean exit.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     with MatrixWriter(f"{directory}/toy.mat", (4, 2), np.uint8) as writer:
        ...         writer.write(2, np.full([2, 2], 7, np.uint8))
        ...         writer.write(0, np.zeros([2, 2], np.uint8))
        ...     read_matrix(f"{directory}/toy.mat").tolist()
        [[0, 0], [0, 0], [7, 7], [7, 7]]
    """

    def __init__(self, path: PathLike, shape: Sequence[int], dtype: np.typing.DTypeLike):
        self._path = Path(path)
        self._temporary = self._path.with_name(self._path.name + ".tmp")
        self._shape = tuple(int(size) for size in shape)
        self._dtype = np.dtype(dtype).newbyteorder("<")
        if self._dtype not in _MAGICS:
            raise ValueError(f"{path}: NORB files hold uint8 or int32, not {self._dtype.name}")
        if not 1 <= len(self._shape) <= _MAX_NDIM or min(self._shape) < 1:
            raise ValueError(f"{path}: needs 1 to {_MAX_NDIM} positive dimensions, not {list(self._shape)}")
        sizes = self._shape + (1,) * (3 - len(self._shape))
        self._header = struct.pack(f"<Ii{len(sizes)}i", _MAGICS[self._dtype], len(self._shape), *sizes)
        self._row_bytes = math.prod(self._shape[1:]) * self._dtype.itemsize
        self._written = np.zeros(self._shape[0], bool)

    def __enter__(self) -> "MatrixWriter":
        try:
            # Made anew instead of truncated: a second process writing the same file is noticed at exit.
            self._temporary.unlink(missing_ok=True)
            self._file = self._temporary.open("xb")
            self._file.write(self._header)
        except OSError as error:
            raise self._unwritable(error) from None
        return self

    def write(self, start_row: int, rows: np.ndarray) -> None:
        """Writes `rows` ([count, *shape[1:]], of the file's dtype) at rows `start_row` to `start_row + count`."""
        rows = np.asarray(rows)
        stop_row = start_row + len(rows)
        if rows.shape[1:] != self._shape[1:] or rows.dtype.newbyteorder("<") != self._dtype:
            raise ValueError(
                f"{self._path}: rows are {rows.dtype.name} {list(rows.shape[1:])}, "
                f"expected {self._dtype.name} {list(self._shape[1:])}"
            )
        if not 0 <= start_row <= stop_row <= self._shape[0]:
            raise ValueError(f"{self._path}: rows {start_row}:{stop_row} of a file of {self._shape[0]} rows")
        try:
            self._file.seek(len(self._header) + start_row * self._row_bytes)
            self._file.write(np.ascontiguousarray(rows, self._dtype).data)
        except OSError as error:
            raise self._unwritable(error) from None
        self._written[start_row:stop_row] = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        ours = self._temporary.exists() and os.path.samestat(self._temporary.stat(), os.fstat(self._file.fileno()))
        try:
            self._file.close()
            if kind is None:
                if not self._written.all():
                    raise ValueError(f"{self._path}: row {int(self._written.argmin())} was never written")
                if not ours:
                    raise UserError(f"{self._path}: another process is writing it: wait for its end, then try again")
                os.replace(self._temporary, self._path)
        except OSError as failure:
            raise self._unwritable(failure) from None
        finally:
            if ours:
                self._temporary.unlink(missing_ok=True)

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(f"{self._path}: cannot be written: {error.strerror or error}")


def write_matrix(path: PathLike, array: np.ndarray) -> None:
    """Writes a whole uint8 or int32 array as one NORB file, atomically.

    Raises:
        UserError: the file cannot be written.
        ValueError: another dtype, or an empty or more than 8-dimensional array.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     write_matrix(f"{directory}/toy.mat", np.array([[1, 2]], np.uint8))
        ...     open(f"{directory}/toy.mat", "rb").read().hex(" ", -4)
        '554c3d1e 02000000 01000000 02000000 01000000 0102'
    """
    with MatrixWriter(path, array.shape, array.dtype) as writer:
        writer.write(0, array)


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
    remedy = "run ./data/download.sh for smallNORB or python data/render_norb.py for renderedNORB"
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
                with _decompress(path) if path.suffix == ".gz" else path.open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
            if found != expected:
                raise UserError(f"{path}: damaged: its sha256 is {found}, not {expected}: {_AGAIN}")
            checked += 1
    return checked


def _read_as(path: Path, dtype: str, shape: tuple[int | None, ...]) -> np.ndarray:
    matrix = read_matrix(path)
    fits = len(matrix.shape) == len(shape) and all(want in (None, got) for want, got in zip(shape, matrix.shape))
    if matrix.dtype.name != dtype or not fits:
        expected = ", ".join("any" if size is None else str(size) for size in shape)
        raise UserError(
            f"{path}: holds {matrix.dtype.name} {list(matrix.shape)}, expected {dtype} [{expected}]: {_AGAIN}"
        )
    return matrix


def _check_values(path: Path, name: str, values: np.ndarray, allowed: tuple[int, ...]) -> None:
    bad = ~np.isin(values, allowed)
    if bad.any():
        row = int(bad.argmax())
        step = ", even" if name == "azimuth" else ""
        raise UserError(
            f"{path}: row {row}: {name} {values[row]} is not in {allowed[0]} to {allowed[-1]}{step}: {_AGAIN}"
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
