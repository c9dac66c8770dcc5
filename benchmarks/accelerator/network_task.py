"""Forward passes and training steps of one network in one precision, in the process that imports this."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.networks import NETWORKS, random_batch
from benchmarks.process import peak_mib
from benchmarks.steps import Batch, Launch, device_peak_mib, make_launch, wait_for
from caps_tf.costs import count_costs
from caps_tf.processor import exact_float32

KINDS = ("forward", "step")
"""The forward pass first: its peak of memory is smaller, and no backend forgets the peaks of what came before."""
REPEATS = 7
WARM_UP = 2
MOST_LAUNCHES = 50
BATCHES = 4
"""Different batches on the device, taken in turn."""


def measure_network(
    emit: Callable[..., None],
    network: str,
    options: Mapping[str, Any],
    batch: int,
    precision: str,
    seconds: float = 1.0,
    jit_compile: str = "on",
) -> None:
    """Emits a line for the forward pass and one for the training step.

    Args:
        emit: takes the figures of a line.
        network: a function of `benchmarks.networks`.
        options: its arguments.
        batch: examples a step.
        precision: dtype policy.
        seconds: about how long to time each of the two, compiling not counted.
        jit_compile: as train_val.py's flag.
    """
    exact_float32()
    built = NETWORKS[network](**options, dtype=precision)
    costs = count_costs(built.model, batch)
    generator = np.random.default_rng()
    batches = [random_batch(built, batch, generator) for _ in range(BATCHES)]
    for kind in KINDS:
        launch = make_launch(built, kind, batch, precision, jit_compile)
        figures = time_launches(launch, batches, seconds)
        median, peak = figures["seconds"], device_peak_mib()
        emit(
            kind=kind,
            **figures,
            per_second=round(batch / median, 1),
            device_peak_mib=None if peak is None else round(peak, 1),
            peak_mib=round(peak_mib(), 1),
            multiplications=costs.step if kind == "step" else costs.forward,
            bytes=costs.step_bytes if kind == "step" else costs.forward_bytes,
        )


def time_launches(launch: Launch, batches: Sequence[Batch], seconds: float) -> dict[str, float]:
    """Times steps: several between two waits, and the median of several such runs.

    Raises:
        ArithmeticError: if a loss is not finite.
    """
    taken = 0

    def run(steps: int) -> float:
        """Seconds of a step."""
        nonlocal taken
        start = time.perf_counter()
        for _ in range(steps):
            loss = launch(batches[taken % len(batches)])
            taken += 1
        wait_for({"loss": loss})
        loss = float(loss)
        spent = (time.perf_counter() - start) / steps
        if not np.isfinite(loss):
            raise ArithmeticError(f"the loss is {loss} after {taken} steps")
        return spent

    for tensors in batches:
        wait_for(tensors)
    first = run(1)
    each = [run(1) for _ in range(WARM_UP)][-1]
    steps = max(1, min(MOST_LAUNCHES, int(seconds / REPEATS / max(each, 1e-9))))
    repeats = max(3, min(REPEATS, int(seconds / steps / max(each, 1e-9))))
    found = [run(steps) for _ in range(repeats)]
    median = statistics.median(found)
    return {
        "seconds": round(median, 7),
        "fastest": round(min(found), 7),
        "slowest": round(max(found), 7),
        "repeats": repeats,
        "steps_between_waits": steps,
        "compile_seconds": round(max(0.0, first - median), 2),
    }
