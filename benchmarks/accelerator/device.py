"""The device and its ceilings, measured by the Keras backend in the process that imports this."""

import time
from collections.abc import Callable
from importlib import metadata
from typing import NamedTuple

import keras
import numpy as np

from benchmarks.ceilings import PRODUCTS, device_matmul, device_sum, median_seconds
from benchmarks.steps import wait_for
from caps_tf.processor import processor_of


class Sizes(NamedTuple):
    """Of what is measured: rows of the matrices, elements added, bytes sent to the device, and small operations."""

    matrix: int
    elements: int
    transfer: int
    launches: int


ACCELERATOR = Sizes(8192, 2**28, 2**28, 1000)
CPU = Sizes(1024, 2**25, 2**26, 1000)
TINY = Sizes(256, 2**16, 2**16, 20)


def measure_device(emit: Callable[..., None], tiny: bool = False) -> None:
    """Emits a line for the device and one for each ceiling.

    Args:
        emit: takes the figures of a line.
        tiny: with arrays that say nothing, to try it out.
    """
    device = describe_device()
    emit(name="device", **device)
    sizes = TINY if tiny else CPU if device["platform"] == "cpu" else ACCELERATOR
    for product in (*PRODUCTS, "default"):
        name = "matmul_float32_by_default" if product == "default" else f"matmul_{product}"
        emit(name=name, gflops=round(device_matmul(product, sizes.matrix), 1), size=sizes.matrix)
    bandwidth = device_sum(sizes.elements)
    emit(name="bandwidth", gigabytes_per_second=round(bandwidth, 2), elements=sizes.elements)
    emit(name="launch", microseconds=round(1e6 * _launch_seconds(sizes.launches), 2), launches=sizes.launches)
    transfer = _transfer(sizes.transfer)
    emit(name="transfer_to_device", gigabytes_per_second=round(transfer, 2), bytes=sizes.transfer)


def describe_device() -> dict[str, object]:
    """What the backend calls the device that it computes on, and the memory that it may take of it where that is known."""
    processor, backend = processor_of(), keras.config.backend()
    found = {"platform": processor.kind, "device": processor.name, "backend_version": metadata.version(backend)}
    return found if processor.memory is None else {**found, "memory_gb": round(processor.memory / 1e9, 2)}


def _launch_seconds(launches: int) -> float:
    """Seconds of one small operation among many that follow each other without a wait."""
    return median_seconds(lambda x: x + 1.0, keras.ops.zeros((8,)), launches=launches)


def _transfer(size: int) -> float:
    """Gigabytes a second from an array of the host to the device, waited for."""
    array = np.ones(size, np.uint8)
    wait_for({"array": keras.ops.convert_to_tensor(array[:1024])})
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        wait_for({"array": keras.ops.convert_to_tensor(array)})
        seconds.append(time.perf_counter() - start)
    return size / sorted(seconds)[2] / 1e9
