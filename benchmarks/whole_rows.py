"""Rows for whole commands, with where their time goes: the demo until its report, and a start until the first step."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.data_rows import WORK, converted
from benchmarks.process import ROOT, peak_mib
from benchmarks.rows import Row

Said = tuple[float, str]
"""Seconds since a command was given, and a line that it wrote then."""


def measure_whole(row: Row) -> dict[str, object]:
    """Figures of a row; `remark` says where the seconds went."""
    WORK.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=WORK) as storage:
        seconds, remark = _demo(storage) if row.kind == "demo" else _start(storage)
    return {"seconds": round(seconds, 2), "peak_mib": round(peak_mib(of_children=True), 1), "remark": remark}


def _demo(storage: str) -> tuple[float, str]:
    environment = _nothing_kept(storage) | {"PYTHON": sys.executable, "STORAGE": storage}
    said = list(_listen(["bash", str(ROOT / "examples" / "demo.sh")], environment))
    return said[-1][0], "; ".join(describe(name, parts) for name, parts in commands(said).items())


def _start(storage: str) -> tuple[float, str]:
    """Starts train_val.py twice, until each has taken its first step; the second one counts."""
    data, found = converted("png"), []
    flags = "--preset=demo", "--dataset=renderedNORB", f"--data_dir={data}", f"--storage={storage}"
    for _ in range(2):
        said = [(0.0, "")]
        for line in _listen([sys.executable, str(ROOT / "train_val.py"), *flags], _nothing_kept(storage)):
            said.append(line)
            if line[1].startswith("compiled"):
                break
        found.append((said[-1][0], parts_of_training(said)))
    [(first, parts_of_first), (seconds, parts)] = found
    return seconds, f"{describe('second start', parts)}; {describe(f'first start, {first:.1f} s', parts_of_first)}"


def _nothing_kept(storage: str) -> dict[str, str]:
    """Variables with which only commands of this row leave compiled programs to each other."""
    return {**os.environ, "CAPS_TF_CACHE": str(Path(storage) / "cache")}


def _listen(command: Sequence[str], environment: dict[str, str]) -> Iterator[Said]:
    """The lines that a command writes, with their times, and an empty one at its end; killed where no one listens on.

    Raises:
        subprocess.CalledProcessError: if the command fails.
    """
    start = time.monotonic()
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment}
    with subprocess.Popen(command, cwd=ROOT, **options) as process:
        try:
            for line in process.stdout:
                yield time.monotonic() - start, line.rstrip()
            if process.wait():
                raise subprocess.CalledProcessError(process.returncode, command)
            yield time.monotonic() - start, ""
        finally:
            process.kill()


def commands(said: Sequence[Said]) -> dict[str, dict[str, float]]:
    """The commands of a shell script that names each by a line "$ command" first: what they took, by their parts.

    Example:
        >>> lines = [(0.0, "$ python data/render.py --a"), (4.0, "$ python test.py"), (4.5, "hello"), (6.0, "")]
        >>> commands(lines)
        {'render.py': {'in all': 4.0}, 'test.py': {'in all': 2.0}}
    """
    begins = [number for number, (_, line) in enumerate(said) if line.startswith("$ ")]
    found = {}
    for begin, end in zip(begins, [*begins[1:], len(said) - 1]):
        name = Path(said[begin][1].split()[2]).name
        parts = parts_of_training(said[begin:end]) if name == "train_val.py" else {}
        found[name] = {**parts, "in all": said[end][0] - said[begin][0]}
    return found


def parts_of_training(said: Sequence[Said]) -> dict[str, float]:
    """Seconds until the training step is compiled, of compiling, of training and of validation.

    Args:
        said: a line with the time of the start, and what train_val.py writes.

    Example:
        >>> lines = [(0.0, ""), (6.0, "compiling the training step, once"), (15.0, "compiled, first step taken: 0:09")]
        >>> lines += [(18.0, "epoch 1/2  step 5/10"), (20.0, "epoch 1/2  validation on 27 examples"),]
        >>> lines += [(23.0, "epoch 2/2  step 10/10"), (24.0, "epoch 2/2  validation on 27 examples"),]
        >>> parts_of_training(lines)
        {'start': 6.0, 'compilation': 9.0, 'training': 6.0, 'validation': 3.0}
    """
    marks = {"compiling": "start", "compiled": "compilation", "step": "training", "validation": "validation"}
    parts, last = dict.fromkeys(marks.values(), 0.0), said[0][0]
    for seconds, line in said:
        words = line.replace(",", "").split()
        mark = next((word for word in (words[:1] + words[2:3]) if word in marks), "")
        if mark:
            parts[marks[mark]] += seconds - last
            last = seconds
    return {name: seconds for name, seconds in parts.items() if seconds}


def describe(name: str, parts: dict[str, float]) -> str:
    """Parts as text.

    Example:
        >>> describe("train_val.py", {"start": 6.04, "compilation": 9.0, "in all": 90.0})
        'train_val.py 90.0 s (start 6.0, compilation 9.0)'
    """
    within = ", ".join(f"{part} {seconds:.1f}" for part, seconds in parts.items() if part != "in all")
    whole = f" {parts['in all']:.1f} s" if "in all" in parts else ""
    return f"{name}{whole}" + (f" ({within})" if within else "")
