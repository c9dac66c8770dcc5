"""Writes files as `torch.save` does, in both of its formats, without PyTorch: NumPy arrays stand for tensors."""

import io
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from contextlib import contextmanager

import numpy as np

KINDS = {"float32": "FloatStorage", "float64": "DoubleStorage", "float16": "HalfStorage", "int64": "LongStorage"}


class Storage:
    def __init__(self, key, array):
        self.key, self.array = key, array


class Tensor:
    """Pickled as a call of torch._utils._rebuild_tensor_v2, as PyTorch's tensors are."""

    def __init__(self, storage, shape_and_strides=None):
        array = storage.array
        strides = tuple(stride // array.itemsize for stride in array.strides)
        self.storage = storage
        self.shape, self.strides = shape_and_strides or (array.shape, strides)

    def __reduce__(self):
        arguments = (self.storage, 0, self.shape, self.strides, False, OrderedDict())
        return sys.modules["torch._utils"]._rebuild_tensor_v2, arguments


class Pickler(pickle.Pickler):
    def persistent_id(self, value):
        if isinstance(value, Storage):
            kind = getattr(sys.modules["torch"], KINDS[value.array.dtype.name])
            return "storage", kind, value.key, "cuda:0", value.array.size, *self.view
        return None


@contextmanager
def pretended_torch():
    """Modules that hold what the pickles name, while they are written."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in KINDS.values():
        setattr(torch, name, type(name, (), {"__module__": "torch"}))

    def _rebuild_tensor_v2():
        pass

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    before = {name: sys.modules.get(name) for name in ("torch", "torch._utils")}
    sys.modules.update({"torch": torch, "torch._utils": utils})
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def pickled(value, view=()):
    """A pickle as PyTorch's, protocol 2."""
    buffer = io.BytesIO()
    pickler = Pickler(buffer, protocol=2)
    pickler.view = view
    pickler.dump(value)
    return buffer.getvalue()


def write_state_dict(path, arrays, zipped=True, views=None):
    """Writes arrays by name, or whatever `arrays` is if it is no dictionary.

    `views` tells other shapes and strides (in elements) than those of the arrays, in their order.
    """
    storages = []
    if isinstance(arrays, dict):
        storages = [Storage(str(number), array) for number, array in enumerate(arrays.values())]
        tensors = map(Tensor, storages, views or [None] * len(storages))
        arrays = OrderedDict(zip(arrays, tensors, strict=True))
        arrays._metadata = OrderedDict({"": {"version": 1}})  # PyTorch keeps the versions of its modules there
    with pretended_torch():
        if zipped:
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("archive/data.pkl", pickled(arrays))
                archive.writestr("archive/byteorder", "little")
                for storage in storages:
                    archive.writestr(f"archive/data/{storage.key}", storage.array.tobytes("A"))
        else:
            head = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}})
            parts = [*map(pickled, head), pickled(arrays, view=(None,)), pickled([each.key for each in storages])]
            for storage in storages:
                parts.append(np.int64(storage.array.size).tobytes() + storage.array.tobytes("A"))
            path.write_bytes(b"".join(parts))
    return path
