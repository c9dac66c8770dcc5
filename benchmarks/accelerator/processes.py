"""Processes with a deadline that say lines of JSON: what they said before they were ended, or crashed, is kept."""

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.accelerator.frame import OUT_OF_TIME, shorten
from benchmarks.process import ROOT
from caps_tf import startup

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_ENVIRONMENT = {
    **startup.ENVIRONMENT,
    # Memory is taken when it is needed, so that its peak is what a step needs, and the next process finds some.
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",
    "PYTHONUNBUFFERED": "1",
}


class Process:
    """A process that is started at once, gets its task when its results are asked for, and ends with this one.

    Args:
        command: program and arguments.
        errors: file that takes its stderr.
        environment: variables beside those of this process.

    Attributes:
        failure: after `results`, why it did not end well, in one line; None if it did.
    """

    def __init__(self, command: Sequence[str], errors: Path, environment: Mapping[str, str] | None = None):
        self._errors = errors
        self.failure: str | None = None
        errors.parent.mkdir(parents=True, exist_ok=True)
        with errors.open("wb") as file:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env={**_ENVIRONMENT, **os.environ, **(environment or {})}, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file,
                start_new_session=True, preexec_fn=_die_with_parent,
            )  # fmt: skip

    def results(self, seconds: float, task: Mapping[str, Any] | None = None) -> Iterator[dict[str, Any]]:
        """Gives the process its task and yields its lines of JSON; ends it after so many seconds."""
        out_of_time = threading.Event()

        def end():
            out_of_time.set()
            self.kill()

        timer = threading.Timer(seconds, end)
        timer.start()
        try:
            self._give(task)
            for line in self._process.stdout:
                found = _parse(line)
                if found is not None:
                    yield found
            self._process.wait()
        finally:
            timer.cancel()
            self.kill()
        code = self._process.returncode
        if code:
            self.failure = OUT_OF_TIME if out_of_time.is_set() else self._last_words(code)

    def kill(self) -> None:
        """Ends the process and all that it started; harmless if it has ended."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        _close(self._process.stdin)

    def _give(self, task: Mapping[str, Any] | None) -> None:
        try:
            if task is not None:
                self._process.stdin.write(json.dumps(task) + "\n")
                self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended, and its exit code says so
        _close(self._process.stdin)

    def _last_words(self, code: int) -> str:
        lines = self._errors.read_text(encoding="utf-8", errors="replace").splitlines()[-200:]
        named = [
            line
            for line in lines
            if re.match(r"[\w.]*(Error|Exception|Interrupt)\b|error: |.*RESOURCE_EXHAUSTED", line)
        ]
        said = (named or [line for line in lines if line.strip()] or [""])[-1].strip().removeprefix("error: ")
        how = f"killed by signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return shorten(f"{how}: {said}" if said else how)


def _close(pipe) -> None:
    try:
        pipe.close()
    except BrokenPipeError:
        pass


def _die_with_parent() -> None:
    if _LIBC is not None:
        _LIBC.prctl(_DIE_WITH_PARENT, signal.SIGKILL)


def _parse(line: str) -> dict[str, Any] | None:
    """A line of JSON; None for what libraries print beside."""
    try:
        found = json.loads(line) if line.startswith("{") else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


class Workers:
    """Processes for one task each; the next is started as soon as one has its task, and imports the backend meanwhile.

    Args:
        errors: directory for what they write to stderr.
        command: of a worker.
    """

    def __init__(self, errors: Path, command: Sequence[str] = (sys.executable, "-m", "benchmarks.accelerator.task")):
        self._errors, self._command = errors, command
        self._started = 0
        self._spare: Process | None = None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        if self._spare is not None:
            self._spare.kill()

    def next(self, another: bool) -> Process:
        """A process without a task; `another` starts one more to be ready after it."""
        worker = self._spare or self._start()
        self._spare = self._start() if another else None
        return worker

    def _start(self) -> Process:
        self._started += 1
        return Process(self._command, self._errors / f"worker{self._started}.txt")
