"""Everything worth knowing of one accelerator in a stated time, the most valuable first.

    python -m benchmarks.accelerator --minutes=10 --output=DIR                      ceilings, networks, rendered NORB
    python -m benchmarks.accelerator --minutes=10 --output=DIR --cifar10=cifar10.zip --norb=data/renderedNORB
    python -m benchmarks.accelerator --tiny --output=DIR                            tries everything out, on a CPU too
    python -m benchmarks.accelerator --table --output=DIR                           what was measured, in Markdown

KERAS_BACKEND says which backend computes: jax, torch or tensorflow. Four parts: the device and its ceilings; the networks
of `python -m benchmarks`, forward and as training steps, in float32 and mixed bfloat16; CIFAR-10 by the published
configuration, in one cycle as long as the time that is left; capsules and the convolutional baseline on novel viewpoints
of renderedNORB. Each line of JSON is on the screen and in DIR/results.jsonl as soon as it is measured, and so stays when
the run is cut off. What the time does not suffice for, what fails and what is not given is a line too.
"""

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from benchmarks.accelerator import networks, tables, training
from benchmarks.accelerator.frame import RESULTS, SHARES, Deadline, Log, Part, read_lines, run_parts
from benchmarks.accelerator.processes import Process
from benchmarks.process import describe_machine
from caps_tf.errors import UserError

BACKENDS = ("tensorflow", "jax", "torch")
TINY_MINUTES = 4.0
SAVED_FOR_THE_END = 3.0
"""Seconds of the stated time that no part gets."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}: see --help")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads and checks the command line.

    Raises:
        UserError: for what cannot be done.
    """
    parser = _Parser(
        prog="python -m benchmarks.accelerator",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, help=f"for everything [10; with --tiny {TINY_MINUTES:g}]")
    parser.add_argument("--output", type=Path, required=True, help=f"directory of {RESULTS}")
    parser.add_argument("--work", type=Path, help="directory for pictures, runs and messages [OUTPUT/work]")
    parser.add_argument("--cifar10", type=Path, help="image folder (train/<class>/*, test/<class>/*), or a .zip of it")
    parser.add_argument("--norb", type=Path, help="directory of .mat files, instead of rendering")
    parser.add_argument("--parts", default=",".join(SHARES), help="some of them, with commas [%(default)s]")
    parser.add_argument("--rows", default="", help="of the networks, with commas, instead of all")
    parser.add_argument("--tiny", action="store_true", help="tiny networks on data made on the spot")
    parser.add_argument("--table", action="store_true", help="measure nothing: write what was measured as Markdown")
    found = parser.parse_args(arguments)
    if found.minutes is None:
        found.minutes = TINY_MINUTES if found.tiny else 10.0
    found.work = (found.work or found.output / "work").resolve()
    _check(found)
    return found


def _check(arguments: argparse.Namespace) -> None:
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    if not 0 < arguments.minutes < 10_000:
        raise UserError(f"--minutes must be positive, not {arguments.minutes:g}")
    if unknown := set(arguments.parts.split(",")) - set(SHARES):
        raise UserError(f"no part is called {min(unknown)!r}: --parts takes {', '.join(SHARES)}")
    known = [row.name for row in networks.chosen_rows(arguments.tiny)]
    if unknown := set(filter(None, arguments.rows.split(","))) - set(known):
        raise UserError(f"no row is called {min(unknown)!r}: --rows takes {', '.join(known)}")
    if arguments.table:
        return
    if backend not in BACKENDS:
        raise UserError(f"KERAS_BACKEND={backend}: must be one of {', '.join(BACKENDS)}")
    if importlib.util.find_spec(backend) is None:
        raise UserError(f"KERAS_BACKEND={backend}: {backend} is not installed here: install it, or name another")
    training.check_data(arguments.cifar10, arguments.norb)


def make_parts(arguments: argparse.Namespace) -> list[Part]:
    """The chosen parts in order of worth."""
    work, tiny, ceilings = arguments.work, arguments.tiny, {}
    rows = [row for row in networks.chosen_rows(tiny) if not arguments.rows or row.name in arguments.rows.split(",")]
    task = {"seconds": 0.1, "jit_compile": "off"} if tiny else {}

    def device(deadline: Deadline, log: Log) -> None:
        process = Process([sys.executable, "-m", "benchmarks.accelerator.task"], work / "device.txt")
        for figures in process.results(deadline.remaining(), {"kind": "device", "tiny": tiny}):
            log.write("device", **figures)
            ceilings[figures.get("name")] = figures.get("gflops") or figures.get("gigabytes_per_second")
        if process.failure:
            raise UserError(process.failure)

    parts = [
        Part("device", device),
        Part("networks", lambda deadline, log: networks.measure_rows(rows, deadline, log, ceilings, work, task)),
        *training.make_parts(arguments.cifar10, arguments.norb, work, tiny),
    ]
    return [part for part in parts if part.name in arguments.parts.split(",")]


def _nvidia_smi() -> dict[str, str]:
    """What the driver says of the cards; nothing without one."""
    names = ("name", "memory.total", "driver_version", "power.limit", "clocks.max.sm", "clocks.max.memory")
    command = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"cards": "; ".join(said.strip().splitlines()), "cards_columns": ", ".join(names)}


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    if options.table:
        print(tables.tables(read_lines(options.output)))
        return 0
    whole = Deadline(60 * options.minutes - SAVED_FOR_THE_END)
    # Ended like an interrupted run: what was started ends too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    try:
        log = Log(options.output / RESULTS, backend=backend, run=now, **({"tiny": True} if options.tiny else {}))
        log.write("start", minutes=options.minutes, shares=SHARES, **describe_machine(), **_nvidia_smi())
    except OSError as error:
        raise UserError(f"{options.output}: cannot be written ({error.strerror}): choose another --output") from None
    failed = run_parts(make_parts(options), whole, log)
    log.write(
        "end", seconds=round(60 * options.minutes - SAVED_FOR_THE_END - whole.remaining(), 1), failed_parts=failed
    )
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
