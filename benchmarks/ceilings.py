"""What the machine can do at most: a large matrix product, and the sum z = x + y of arrays beyond every cache."""

import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

REPEATS = 7


def measure_ceilings(precision: str = "float32") -> dict[str, float | str]:
    """Giga floating-point operations (two a multiplication) and gigabytes (10^9) a second, read and written.

    On a CPU NumPy measures, whose products run on all cores and whose sum runs in a thread a core; on an accelerator
    the Keras backend does.
    """
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    if backend == "jax":
        import jax

        if jax.default_backend() != "cpu":
            return _on_device(precision, lambda function: jax.jit(function), jax.block_until_ready)
    if backend == "torch":
        import torch

        if torch.cuda.is_available():
            return _on_device(precision, lambda function: function, lambda _: torch.cuda.synchronize())
    return {"matmul_gflops": round(_numpy_matmul(), 1), "bandwidth_gbs": round(_numpy_sum(), 2), "ceilings_by": "numpy"}


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


def _on_device(precision: str, compiled: Callable, wait: Callable, size: int = 8192, elements: int = 2**28) -> dict:
    import keras
    from keras import ops

    dtype = "bfloat16" if precision == "mixed_bfloat16" else "float32"
    x, y = (ops.cast(keras.random.normal((size, size)), dtype) for _ in range(2))
    product = compiled(lambda a, b: ops.matmul(a, b))
    gflops = 2 * size**3 / _median_seconds(lambda: wait(product(x, y))) / 1e9
    x, y = (keras.random.normal((elements,)) for _ in range(2))
    add = compiled(lambda a, b: a + b)
    bandwidth = 3 * 4 * elements / _median_seconds(lambda: wait(add(x, y))) / 1e9
    by = f"{keras.config.backend()}, {dtype}"
    return {"matmul_gflops": round(gflops, 1), "bandwidth_gbs": round(bandwidth, 2), "ceilings_by": by}
