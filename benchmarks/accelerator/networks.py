"""The rows of networks: what is measured, in order of worth, each network and precision in a process of its own."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.accelerator.frame import OUT_OF_TIME, Deadline, Log
from benchmarks.accelerator.processes import Process, Workers
from benchmarks.results import lower_limit
from benchmarks.rows import ROWS, Row

PRECISIONS = ("float32", "mixed_bfloat16")
CEILINGS = {"float32": ("matmul_float32",), "mixed_bfloat16": ("matmul_bfloat16",)}
"""The products that a precision may use; the fastest is its ceiling."""
WORTH = (
    *("attention_2_batch_128", "em_2", "heinsen_norb", "em_96", "cnn", "vector_routing", "heinsen_sst"),
    *("heinsen_routing", "attention_2", "em_3", "heinsen_routing_open", "attention_3", "em_1"),
    *("attention_1", "attention_sequential_2"),
)
"""Rows of `benchmarks.rows` in order of worth; each is timed forward and as a training step."""
LARGEST_SHARE = 0.25
"""Of the part's time, that one of many processes may take."""
TINY_ROWS = (
    Row(
        "vector_routing_tiny",
        "vector routing, tiny",
        "step",
        "vector_routing",
        {"n_inp": 5, "n_out": 3, "d_inp": 4, "d_out": 4},
        2,
    ),
)


def chosen_rows(tiny: bool = False) -> tuple[Row, ...]:
    """The rows in order of worth; those of --tiny are as many as a test needs."""
    return TINY_ROWS if tiny else tuple(ROWS[name] for name in WORTH)


def measure_rows(
    rows: Sequence[Row],
    deadline: Deadline,
    log: Log,
    ceilings: Mapping[str, float],
    work: Path,
    task: Mapping[str, Any] | None = None,
    workers: Workers | None = None,
) -> None:
    """Measures rows in both precisions until the deadline, and writes a line for each; one that fails is a line too.

    Args:
        rows: in order of worth.
        deadline: of all of them.
        log: takes the lines.
        ceilings: figures of the device by name.
        work: directory for what the processes say on stderr.
        task: more of each process's task (`network_task.measure_network`).
        workers: instead of those of `benchmarks.accelerator.task`.
    """
    wanted = [(row, precision) for row in rows for precision in PRECISIONS]
    most, quickest = max(LARGEST_SHARE, 1 / len(wanted)) * deadline.remaining(), 0.0
    with workers or Workers(work / "networks") as ready:
        for number, (row, precision) in enumerate(wanted):
            common = {"name": row.name, "title": row.title, "batch": row.batch, "precision": precision}
            if deadline.remaining() <= quickest:
                log.write("networks", **common, skipped=OUT_OF_TIME)
                continue
            one, start = deadline.within(most), deadline.remaining()
            process = ready.next(another=number + 1 < len(wanted))
            given = {"network": row.network, "options": dict(row.options), "batch": row.batch, "precision": precision}
            _measure_row(process, {"kind": "network", **given, **(task or {})}, one, log, common, ceilings)
            spent = start - deadline.remaining()
            quickest = min(quickest or spent, spent)


def _measure_row(
    process: Process,
    task: Mapping[str, Any],
    deadline: Deadline,
    log: Log,
    common: Mapping[str, Any],
    ceilings: Mapping[str, float],
) -> None:
    for figures in process.results(deadline.remaining(), task):
        log.write("networks", **common, **figures, **_limit(figures, str(common["precision"]), ceilings))
    if process.failure:
        log.write("networks", **common, failed=process.failure)


def _limit(figures: Mapping[str, Any], precision: str, ceilings: Mapping[str, float]) -> dict[str, float]:
    """The least seconds and the gap as benchmarks/README.md defines them; nothing where the ceilings are not known."""
    products = [ceilings[name] for name in CEILINGS[precision] if name in ceilings]
    if "seconds" not in figures or not products or "bandwidth" not in ceilings:
        return {}
    least = lower_limit({**figures, "matmul_gflops": max(products), "bandwidth_gbs": ceilings["bandwidth"]})
    return {"least_seconds": float(f"{least:.4g}"), "gap": round(figures["seconds"] / least, 2)}
