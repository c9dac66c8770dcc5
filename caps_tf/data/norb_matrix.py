"""The matrix files of NORB: a small header and a raw array, little-endian throughout.

    offset  type              meaning
    0       int32             magic: 0x1E3D4C55 for uint8, 0x1E3D4C54 for int32
    4       int32             ndim
    8       int32[max(3, n)]  the n = ndim dimensions, filled up with ones to at least three
    ...     uint8 or int32    the elements in C order, up to the end of the file

Files are read through a memory map and written row by row, so that memory does not grow with them.
Source: Y. LeCun, F. J. Huang, "The small NORB dataset, v1.0", https://cs.nyu.edu/~ylclab/data/norb-v1.0-small/
"""

import gzip
import io
import math
import os
import shutil
import struct
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from caps_tf.errors import UserError

_DTYPES: dict[int, np.dtype] = {0x1E3D4C55: np.dtype("u1"), 0x1E3D4C54: np.dtype("<i4")}
_MAGICS = {dtype: magic for magic, dtype in _DTYPES.items()}
_OTHER_MAGICS = {0x1E3D4C51: "float32", 0x1E3D4C52: "packed", 0x1E3D4C53: "float64", 0x1E3D4C56: "int16"}
_MAX_NDIM = 8
AGAIN = "delete it and download or render it again"
"""What to do with a damaged file."""

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
        file = decompressed(path) if path.suffix == ".gz" else path.open("rb")
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
                f"{path}: {problem}: expected {expected} bytes ({dtype.name} {list(shape)}), found {found}: {AGAIN}"
            )
        return np.memmap(file, dtype=dtype, mode="r", offset=offset, shape=shape)


def decompressed(path: Path) -> io.BufferedRandom:
    """An unnamed temporary file, open at its start, with what a gzipped file holds.

    Raises:
        UserError: if the file is damaged, or cannot be unpacked.
    """
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
            raise UserError(f"{path}: damaged gzip file ({error}): {AGAIN}") from None
        except OSError as error:
            file.close()
            raise UserError(f"{path}: cannot be decompressed: {error.strerror or error}") from None
    file.seek(0)
    return file


def _read_header(file: BinaryIO, path: Path) -> tuple[np.dtype, tuple[int, ...], int]:
    """Returns the dtype, the shape, and the offset of the first element."""
    start = file.read(8)
    if len(start) < 8:
        raise UserError(f"{path}: cut short: its header needs 8 bytes, found {len(start)}: {AGAIN}")
    magic, ndim = struct.unpack("<Ii", start)
    if magic not in _DTYPES:
        raise UserError(f"{path}: {_explain_magic(start)}")
    if not 1 <= ndim <= _MAX_NDIM:
        raise UserError(f"{path}: damaged header: {ndim} dimensions, expected 1 to {_MAX_NDIM}: {AGAIN}")
    count = max(3, ndim)
    data = file.read(4 * count)
    if len(data) < 4 * count:
        raise UserError(f"{path}: cut short: its header needs {8 + 4 * count} bytes, found {8 + len(data)}: {AGAIN}")
    sizes = struct.unpack(f"<{count}i", data)
    shape = sizes[:ndim]
    if any(size != 1 for size in sizes[ndim:]):
        raise UserError(f"{path}: damaged header: {ndim} dimensions, but sizes {list(sizes)}: {AGAIN}")
    if min(shape) < 1:
        raise UserError(f"{path}: damaged header: dimensions {list(shape)} must all be positive: {AGAIN}")
    return _DTYPES[magic], shape, 8 + 4 * count


def _explain_magic(start: bytes) -> str:
    if start[:2] == b"\x1f\x8b":
        return "is gzip-compressed: rename it to end in .gz"
    magic, swapped = struct.unpack("<I", start[:4])[0], struct.unpack(">I", start[:4])[0]
    if swapped in _DTYPES or swapped in _OTHER_MAGICS:
        return "is big-endian; NORB files are little-endian: write it again with caps_tf.data.norb_matrix.write_matrix"
    if magic in _OTHER_MAGICS:
        return f"holds {_OTHER_MAGICS[magic]} elements; only uint8 and int32 are supported: convert it first"
    return f"not a NORB file (it starts with 0x{magic:08X}): {AGAIN}"


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
