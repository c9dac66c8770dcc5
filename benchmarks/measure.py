"""Measures a row, in a process of its own."""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time

from benchmarks.process import ROOT, busy_seconds, children_seconds, forget_peak, held_mib, peak_mib
from benchmarks.rows import Row
from caps_tf import startup


@dataclasses.dataclass(frozen=True)
class Settings:
    """How rows are measured.

    Attributes:
        steps: timed steps, whose median counts.
        warm_up: steps between the first, which compiles, and the timed ones.
        precision: dtype policy of the networks.
        jit_compile: as train_val.py's flag.
        full: data scripts at full size.
    """

    steps: int = 7
    warm_up: int = 2
    precision: str = "float32"
    jit_compile: str = "on"
    full: bool = False


def measure_in_a_process(row: Row, settings: Settings) -> dict[str, object] | None:
    """Starts `python -m benchmarks` for one row; None if that failed, with the reason on the screen."""
    task = json.dumps([dataclasses.asdict(row), dataclasses.asdict(settings)])
    environment = {**startup.ENVIRONMENT, **os.environ}
    command = [sys.executable, "-m", "benchmarks", f"--measure={task}"]
    start, busy, ours = time.monotonic(), busy_seconds(), children_seconds()
    child = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if child.returncode != 0:
        print(f"error: {row.name} failed with exit code {child.returncode}", file=sys.stderr)
        return None
    figures = json.loads(child.stdout.splitlines()[-1])
    if busy is not None:
        others = busy_seconds() - busy - (children_seconds() - ours)
        figures["load"] = round(max(0.0, others / (time.monotonic() - start)), 2)
    return figures


def measure_task(task: str) -> dict[str, object]:
    """What such a process does."""
    row, settings = json.loads(task)
    # A row that has been through JSON; its published figures are of no use here.
    row = Row(**{name: row[name] for name in ("name", "title", "kind", "network", "options", "batch")})
    return measure(row, Settings(**settings))


def measure(row: Row, settings: Settings) -> dict[str, object]:
    """Figures of a row, as a line of the results."""
    if row.kind == "ceilings":
        from benchmarks.ceilings import measure_ceilings

        return measure_ceilings(settings.precision)
    if row.kind in ("step", "forward"):
        return measure_network(row, settings)
    if row.kind in ("demo", "start"):
        from benchmarks.whole_rows import measure_whole

        return measure_whole(row)
    from benchmarks.data_rows import measure_data

    return measure_data(row, settings)


def measure_network(row: Row, settings: Settings) -> dict[str, object]:
    """Median time of a step, peak memory, compile time, and what the step must at least cost.

    `before_mib` is what the process held before the network was made, Keras and its backend imported. `peak_mib` is the
    most that it ever held, compiling included; `peak_of_steps_mib` the most during the steps after the first.
    """
    import keras
    import numpy as np

    from benchmarks.networks import NETWORKS, random_batch
    from benchmarks.steps import device_peak_mib, make_step, wait_for
    from caps_tf.costs import count_costs, estimate_memory

    keras.ops.zeros(())
    before = held_mib()
    network = NETWORKS[row.network](**row.options, dtype=settings.precision)
    step = make_step(network, row.kind, row.batch, settings.precision, settings.jit_compile)
    generator = np.random.default_rng()

    def timed() -> float:
        tensors = random_batch(network, row.batch, generator)
        wait_for(tensors)
        start = time.perf_counter()
        loss = step(tensors)
        seconds = time.perf_counter() - start
        if not np.isfinite(loss):
            raise ArithmeticError(f"{row.name}: the loss is {loss}")
        return seconds

    first = timed()
    peak = peak_mib()
    counts_anew = forget_peak()
    for _ in range(settings.warm_up):
        timed()
    seconds = [timed() for _ in range(settings.steps)]
    median = statistics.median(seconds)
    costs, trains = count_costs(network.model, row.batch), row.kind == "step"
    device_peak = device_peak_mib()
    return {
        "batch": row.batch,
        "seconds": round(median, 5),
        "fastest": round(min(seconds), 5),
        "slowest": round(max(seconds), 5),
        "steps": settings.steps,
        "per_second": round(row.batch / median, 1),
        "compile_seconds": round(first - median, 2),
        "peak_mib": round(max(peak, peak_mib()), 1),
        "peak_of_steps_mib": round(peak_mib(), 1) if counts_anew else "",
        "before_mib": round(before, 1),
        "estimated_mib": round(estimate_memory(network.model, row.batch) / 2**20, 1) if trains else "",
        "device_peak_mib": "" if device_peak is None else round(device_peak, 1),
        "multiplications": costs.step if trains else costs.forward,
        "bytes": costs.step_bytes if trains else costs.forward_bytes,
    }
