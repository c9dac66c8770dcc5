"""Kills real training processes at chosen moments, and looks at what they left."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.small_norb import ROOT


class Run:
    """A run of train_val.py that is started, killed and started again.

    Args:
        storage: directory for `--storage`.
        name: of the run.
        flags: of its first start.
    """

    def __init__(self, storage: Path, name: str, *flags: str):
        self._first = ["train_val.py", f"--storage={storage}", f"--name={name}", *flags]
        self._storage, self._name = storage, name
        self.directory: Path | None = None
        self.process: subprocess.Popen | None = None
        self.errors = ""

    @property
    def checkpoints(self) -> Path:
        return self.directory / "train" / "checkpoints"

    def start(self) -> None:
        """Starts the run, or goes on with it."""
        command = [f"--load_dir={self.directory}"] if self.directory else self._first[1:]
        self._log = open(self._storage / f"{self._name}.stderr", "w+b")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "train_val.py", *command], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=self._log
        )
        if self.directory is None:
            self.wait_until(lambda: list(self._storage.glob(f"logs/*/*_{self._name}/train/params.json")))
            [params] = self._storage.glob(f"logs/*/*_{self._name}/train/params.json")
            self.directory = params.parent.parent

    def wait_until(self, condition, pause: float = 0.005, timeout: float = 300) -> None:
        """Waits for a condition; fails if the process ends before it."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert self.process.poll() is None, f"ended with {self.process.returncode}: {self._read()}"
            assert time.monotonic() < deadline, f"still waiting after {timeout} s: {self._read()}"
            time.sleep(pause)

    def last_step(self) -> int:
        """The step of the log's last line."""
        try:
            lines = (self.directory / "train" / "log.jsonl").read_bytes().splitlines()
            return json.loads(lines[-1])["step"] if lines else 0
        except (FileNotFoundError, ValueError):  # it is being written
            return 0

    def kill(self) -> None:
        self.process.kill()
        self.end(-signal.SIGKILL)

    def end(self, code: int = 0, timeout: float = 600) -> float:
        """Waits for the end of the process; returns how many seconds it took."""
        begin = time.monotonic()
        found = self.process.wait(timeout)
        self.errors = self._read()
        self._log.close()
        assert found == code, f"ended with {found} instead of {code}: {self.errors}"
        return time.monotonic() - begin

    def kill_after_step(self, step: int, delay: float = 0.0) -> None:
        self.wait_until(lambda: self.last_step() >= step)
        time.sleep(delay)
        self.kill()

    def kill_while_writing(self) -> bool:
        """Kills while the next checkpoint is being written; returns whether it was half written."""
        self.wait_until(lambda: any(self.checkpoints.glob("*_temp")), pause=0.0002)
        self.kill()
        return any(self.checkpoints.glob("*_temp"))

    def kill_between_files(self, step: int) -> None:
        """Kills between the data and the index of checkpoint `step`, which are two files."""
        index = self.checkpoints / f"step-{step}.index"
        self.wait_until(self.checkpoints.exists)
        os.mkfifo(index)  # TensorFlow waits at it for a reader that never comes
        try:
            self.wait_until(lambda: any(self.checkpoints.glob(f"step-{step}.data-*")))
            self.kill()
        finally:
            index.unlink()

    def terminate(self) -> float:
        """Sends SIGTERM and waits; returns how many seconds it took."""
        self.process.send_signal(signal.SIGTERM)
        return self.end(143)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(AttributeError, ProcessLookupError):
            self.process.kill()
            self.process.wait()

    def _read(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")[-4000:]


def told_apart_from_time(run_directory: Path) -> list[dict]:
    """The lines of a run's log without what depends on the clock."""
    lines = (run_directory / "train" / "log.jsonl").read_text().splitlines()
    clock = ("time", "images_per_second")
    return [{name: value for name, value in json.loads(line).items() if name not in clock} for line in lines]
