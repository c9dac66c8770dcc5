"""Reads PyTorch state dicts as NumPy arrays, without PyTorch and without running what a pickle may hold.

`torch.save` has written two formats, and both are read:

    since 1.6   a zip archive: <name>/data.pkl is the pickle, <name>/data/<key> are the storages, in the writer's byte
                order, which <name>/byteorder holds (little-endian if there is no such file)
    before      five pickles after each other: a magic number, the version of the format, the writer's byte order, the
                pickle, the keys of the storages; then each storage, as its number of elements (int64) and its elements

The pickle refers to storages by persistent ids and rebuilds tensors with a handful of functions. Those, and only
those, are known here; any other global ends the reading.
Source: https://docs.pytorch.org/docs/stable/notes/serialization.html
"""

import io
import math
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from caps_tf.errors import UserError

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001
_STORAGE_TYPES = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
_BYTE_ORDERS: dict[str, Literal["<", ">"]] = {"little": "<", "big": ">"}


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads the tensors of a state dict that `torch.save` wrote.

    Args:
        path: the file, often called .pt or .pth.

    Returns:
        Name -> array of the tensor's shape and type, in the order of the file.

    Raises:
        UserError: the file cannot be read, is damaged or of another kind, or holds anything but tensors. Nothing that
            the file holds has been run then.

    Example:
        >>> {name: array.shape for name, array in read_state_dict("sst.pt").items()}  # doctest: +SKIP
        {'depth_emb': (37, 1280), 'detect_parts.0.weight': (64, 1280), ...}
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            state = _read_zip(file) if zipfile.is_zipfile(file) else _read_legacy(file)
            return _arrays(state)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle fails in as many ways as it has instructions
        raise UserError(
            f"{path}: damaged, or no state dict of PyTorch ({type(error).__name__}: {error}): fetch it again"
        ) from None


@dataclass(eq=False)
class _Storage:
    """The elements that tensors look at; in the older format they come after the pickle."""

    dtype: np.dtype
    size: int
    elements: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class _Tensor:
    """What a pickle tells of a tensor: a view of a storage, counted in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self) -> np.ndarray:
        size = math.prod(self.shape)
        numbers = (self.offset, *self.shape, *self.strides)
        if len(self.shape) != len(self.strides) or any(type(number) is not int or number < 0 for number in numbers):
            raise ValueError(f"a tensor of shape {self.shape} with strides {self.strides}")
        last = self.offset + sum((length - 1) * step for length, step in zip(self.shape, self.strides, strict=True))
        if size > self.storage.size or (size and last >= self.storage.size):
            raise ValueError(f"a tensor of shape {self.shape} in a storage of {self.storage.size} elements")
        elements = self.storage.elements[self.offset :]  # type: ignore[index] # None fails, as other damage does
        strides = [step * elements.itemsize for step in self.strides]
        view = np.lib.stride_tricks.as_strided(elements, self.shape, strides)
        return view.astype(view.dtype.newbyteorder("="))


def _rebuild_tensor(storage: _Storage, offset: int, shape: tuple, strides: tuple, *_: Any) -> _Tensor:
    return _Tensor(storage, offset, shape, strides)


def _rebuild_parameter(tensor: _Tensor, *_: Any) -> _Tensor:
    return tensor


class _Dict(OrderedDict):
    """`torch.save` pickles a state dict with an attribute, `_metadata`, which is of no use here."""

    def __setstate__(self, state: Any) -> None:
        pass


_GLOBALS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Dict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    **{("torch", name): np.dtype(code) for name, code in _STORAGE_TYPES.items()},
}


class _Unpickler(pickle.Unpickler):
    """Knows the globals above and no others.

    Args:
        file: at the start of a pickle.
        load_storage: (key, dtype, number of elements) -> the storage of a persistent id.
    """

    def __init__(self, file: BinaryIO, load_storage: Callable[[str, np.dtype, int], _Storage] | None = None):
        super().__init__(file, encoding="utf-8")
        self._load_storage = load_storage

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _GLOBALS[module, name]
        except KeyError:
            raise UserError(
                f"its pickle asks for {module}.{name}, and only tensors are read: nothing was run; "
                "get the weights from a source that you trust"
            ) from None

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, size, *view = pid
        if kind != "storage" or not isinstance(dtype, np.dtype) or any(view) or self._load_storage is None:
            raise ValueError(f"unknown reference {pid!r}")
        return self._load_storage(key, dtype, size)


def _read_zip(file: BinaryIO) -> Any:
    with zipfile.ZipFile(file) as archive:
        names = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(names) != 1:
            raise UserError("a zip archive, but not one of PyTorch's: it has no data.pkl")
        root = names[0].removesuffix("data.pkl")
        has_order = f"{root}byteorder" in archive.namelist()
        order = archive.read(f"{root}byteorder").decode().strip() if has_order else "little"
        storages: dict[str, _Storage] = {}

        def load(key: str, dtype: np.dtype, size: int) -> _Storage:
            if key not in storages:
                data = archive.read(f"{root}data/{key}")
                storages[key] = _Storage(dtype, size, _elements(data, dtype, size, order))
            return storages[key]

        return _Unpickler(io.BytesIO(archive.read(names[0])), load).load()


def _read_legacy(file: BinaryIO) -> Any:
    file.seek(0)
    if _Unpickler(file).load() != _MAGIC_NUMBER:
        raise UserError("a pickle, but not one of PyTorch's")
    version, system = _Unpickler(file).load(), _Unpickler(file).load()
    if version != _LEGACY_VERSION:
        raise UserError(f"written in version {version} of PyTorch's format, of which only {_LEGACY_VERSION} is known")
    order: Literal["little", "big"] = "little" if system["little_endian"] else "big"
    storages: dict[str, _Storage] = {}

    def load(key: str, dtype: np.dtype, size: int) -> _Storage:
        return storages.setdefault(key, _Storage(dtype, size))

    state = _Unpickler(file, load).load()
    for key in _Unpickler(file).load():
        storage = storages[key]
        if int.from_bytes(file.read(8), order) != storage.size:
            raise ValueError(f"storage {key} has another size than its tensors expect")
        storage.elements = _elements(
            file.read(storage.size * storage.dtype.itemsize), storage.dtype, storage.size, order
        )
    return state


def _elements(data: bytes, dtype: np.dtype, size: int, order: str) -> np.ndarray:
    if len(data) != size * dtype.itemsize:
        raise ValueError(f"a storage of {len(data)} bytes instead of {size * dtype.itemsize}")
    return np.frombuffer(data, dtype.newbyteorder(_BYTE_ORDERS[order]))


def _arrays(state: Any) -> dict[str, np.ndarray]:
    if not isinstance(state, Mapping):
        raise UserError(f"holds a {type(state).__name__}, not a state dict: save model.state_dict()")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, _Tensor):
            raise UserError(f"holds something other than tensors under {name!r}: save model.state_dict() alone")
    return {name: tensor.array() for name, tensor in state.items()}
