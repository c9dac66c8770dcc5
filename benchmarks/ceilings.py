"""What the machine can do at most: a large matrix product, and the sum z = x + y of arrays beyond every cache."""

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

REPEATS = 7
PRODUCTS = ("bfloat16", "tf32", "float32")
"""Kinds of products that `device_matmul` measures: the last two of float32 numbers, with their mantissas cut and whole."""


def measure_ceilings(precision: str = "float32") -> dict[str, float | str]:
    """Giga floating-point operations (two a multiplication) and gigabytes (10^9) a second, read and written.

    On a CPU NumPy measures, whose products run on all cores and whose sum runs in a thread a core; on an accelerator
    the Keras backend does.
    """
    backend, on_accelerator = os.environ.get("KERAS_BACKEND", "tensorflow"), False
    if backend == "jax":
        import jax

        on_accelerator = jax.default_backend() != "cpu"
    if backend == "torch":
        import torch

        on_accelerator = torch.cuda.is_available()
    if on_accelerator:
        dtype = "bfloat16" if precision == "mixed_bfloat16" else "float32"
        gflops, bandwidth = device_matmul(dtype if dtype == "bfloat16" else "default"), device_sum()
        by = f"{backend}, {dtype}"
    else:
        gflops, bandwidth, by = _numpy_matmul(), _numpy_sum(), "numpy"
    return {"matmul_gflops": round(gflops, 1), "bandwidth_gbs": round(bandwidth, 2), "ceilings_by": by}


def device_matmul(product: str, size: int = 8192) -> float:
    """Giga floating-point operations a second of a square matrix product on the device of the Keras backend.

    Args:
        product: one of `PRODUCTS`, or "default": of float32 numbers as the backend multiplies them by itself.
        size: rows and columns.
    """
    import keras
    from keras import ops

    dtype = "bfloat16" if product == "bfloat16" else "float32"
    x, y = (ops.cast(keras.random.normal((size, size)), dtype) for _ in range(2))
    with _products_of_float32(product):
        return 2 * size**3 / median_seconds(ops.matmul, x, y) / 1e9


def device_sum(elements: int = 2**28) -> float:
    """Gigabytes a second that the device of the Keras backend reads and writes while it adds two arrays."""
    import keras

    x, y = (keras.random.normal((elements,)) for _ in range(2))
    return 3 * 4 * elements / median_seconds(lambda a, b: a + b, x, y) / 1e9


def median_seconds(function: Callable, *tensors: Any, launches: int = 5) -> float:
    """Seconds of a function of tensors on the Keras backend, compiled where the backend compiles.

    Args:
        function: of `tensors` to a tensor.
        tensors: of the backend.
        launches: calls between two waits; the median is taken over `REPEATS` of them.
    """
    import keras

    from benchmarks.steps import wait_for

    backend = keras.config.backend()
    if backend == "jax":
        import jax

        function = jax.jit(function)
    elif backend == "tensorflow":
        import tensorflow as tf

        function = tf.function(function, autograph=False)

    def run():
        for _ in range(launches):
            result = function(*tensors)
        wait_for({"result": result})

    return _median_seconds(run) / launches


@contextlib.contextmanager
def _products_of_float32(product: str) -> Iterator[None]:
    """Has the backend multiply float32 numbers with their mantissas cut ("tf32") or whole ("float32") meanwhile."""
    import keras

    backend = keras.config.backend()
    if product not in ("tf32", "float32"):
        yield
    elif backend == "jax":
        import jax

        with jax.default_matmul_precision("tensorfloat32" if product == "tf32" else "float32"):
            yield
    else:
        is_on, turn = _switch_of_tf32(backend)
        before = is_on()
        turn(product == "tf32")
        try:
            yield
        finally:
            turn(before)


def _switch_of_tf32(backend: str) -> tuple[Callable[[], bool], Callable[[bool], None]]:
    if backend == "torch":
        import torch

        return (
            lambda: torch.backends.cuda.matmul.allow_tf32,
            lambda on: setattr(torch.backends.cuda.matmul, "allow_tf32", on),
        )
    from tensorflow.config import experimental

    return experimental.tensor_float_32_execution_enabled, experimental.enable_tensor_float_32_execution


def _median_seconds(function: Callable[[], object]) -> float:
    function()
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _numpy_matmul(size: int = 2048) -> float:
    generator = np.random.default_rng()
    x, y = (generator.standard_normal((size, size), np.float32) for _ in range(2))
    out = np.empty_like(x)
    return 2 * size**3 / _median_seconds(lambda: np.matmul(x, y, out=out)) / 1e9


def _numpy_sum(elements: int = 2**25) -> float:
    """Two arrays read and one written, as STREAM counts."""
    threads = os.cpu_count() or 1
    arrays = [np.ones(elements, np.float32) for _ in range(3)]
    parts = list(zip(*(np.array_split(array, threads) for array in arrays), strict=True))
    with ThreadPoolExecutor(threads) as pool:

        def add():
            list(pool.map(lambda part: np.add(part[0], part[1], out=part[2]), parts))

        return 3 * 4 * elements / _median_seconds(add) / 1e9
