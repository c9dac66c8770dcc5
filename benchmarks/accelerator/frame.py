"""The frame: parts in order of worth, each with its share of the time, and lines of JSON that are on disk at once."""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caps_tf.errors import UserError

SHARES = {"device": 0.05, "networks": 0.45, "cifar10": 0.25, "norb": 0.25}
"""Of the whole time, in order of worth. What a part leaves over, or does not run for, goes to those after it."""
AT_LEAST = {"device": 45.0}
"""Seconds that a part gets even if its share is less, up to half of what is left: all gaps need the ceilings."""
LEAST_SECONDS = 2.0
"""With less than this a part is not begun."""
OUT_OF_TIME = "the time ran out"
RESULTS = "results.jsonl"


class Deadline:
    """A moment to be done by.

    Args:
        seconds: from now.
        now: a clock in seconds.
    """

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic):
        self._now = now
        self._end = now() + seconds

    def remaining(self) -> float:
        """Seconds that are left, 0 at the least."""
        return max(0.0, self._end - self._now())

    def within(self, seconds: float) -> "Deadline":
        """The moment so many seconds from now, or this one if it comes first."""
        return Deadline(min(seconds, self.remaining()), self._now)


class Log:
    """Lines of JSON, on the screen and at the end of a file; each is on disk when `write` returns.

    Args:
        path: the file, made if missing.
        common: what every line says.
    """

    def __init__(self, path: Path, **common: Any):
        self._path, self._common, self._start = path, common, time.monotonic()
        path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, part: str, **figures: Any) -> None:
        """Adds a line; `at` is how many seconds after the start."""
        line = {"part": part, **figures, **self._common, "at": round(time.monotonic() - self._start, 1)}
        text = json.dumps(line)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        print(text, flush=True)


def read_lines(directory: Path) -> list[dict[str, Any]]:
    """What is in a directory's log; a line that was cut off counts as none.

    Raises:
        UserError: if there is no log.
    """
    path = directory / RESULTS
    try:
        texts = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}: give --output the directory that was measured into") from None
    lines = []
    for text in texts:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and "part" in line:
            lines.append(line)
    return lines


@dataclass(frozen=True)
class Part:
    """A part of the benchmark.

    Attributes:
        name: a key of `SHARES`.
        run: measures until a deadline, and writes lines.
        missing: what it lacks, if it cannot run.
    """

    name: str
    run: Callable[[Deadline, Log], None]
    missing: str = ""


def run_parts(parts: Sequence[Part], whole: Deadline, log: Log) -> int:
    """Runs parts one after the other, each for its share of the time that is left; one that fails is a line.

    Returns:
        How many parts failed.
    """
    failed = 0
    for number, part in enumerate(parts):
        if part.missing:
            log.write(part.name, skipped=part.missing)
            continue
        shares = sum(SHARES[each.name] for each in parts[number:] if not each.missing)
        left = whole.remaining()
        share = left * SHARES[part.name] / shares
        deadline = whole.within(max(share, min(AT_LEAST.get(part.name, 0.0), left / 2)))
        if deadline.remaining() < LEAST_SECONDS:
            log.write(part.name, skipped=OUT_OF_TIME)
            continue
        try:
            part.run(deadline, log)
        except Exception as error:
            if not isinstance(error, UserError):
                traceback.print_exc(file=sys.stderr)
            log.write(part.name, failed=explain(error))
            failed += 1
    return failed


def explain(error: Exception) -> str:
    """An exception in one line that begins with "out of memory" if that is what it was.

    Example:
        >>> explain(RuntimeError("RESOURCE_EXHAUSTED: 2 GiB"))
        'out of memory: RuntimeError: RESOURCE_EXHAUSTED: 2 GiB'
    """
    text = " ".join(str(error).split())
    name = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return shorten(name + text)


def shorten(text: str, limit: int = 300) -> str:
    """The start of an error's text, with "out of memory" in front if it says so in words of its own."""
    words = ("out of memory", "resource_exhausted", "out_of_memory", "memoryerror", "bad_alloc")
    memory = any(word in text.lower() for word in words)
    return ("out of memory: " if memory and not text.startswith("out of memory") else "") + text[:limit]
