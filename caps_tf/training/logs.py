"""What a run reports while it trains: TensorBoard, a JSON-lines log, and a line of progress."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf

from caps_tf.errors import UserError
from caps_tf.files import write_atomically
from caps_tf.progress import format_duration


class TrainingLog:
    """Writes scalars and histograms of a run into its directory, and its progress to stderr.

    Each record becomes TensorBoard scalars `<split>/<name>` and a line of log.jsonl.

    Args:
        directory: the run's directory; made if missing.
        first_step: step that the run starts or continues from; what an interrupted run logged after it is dropped,
            for those steps are about to be taken again.
        total_steps: steps of the whole run, for the time left.
        writes: False in workers other than the chief, which stay silent.
        validates_first: whether the validation of `first_step` is about to be repeated too.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        first_step: int,
        total_steps: int,
        writes: bool = True,
        validates_first: bool = False,
    ):
        self._total_steps = total_steps
        self._writes = writes
        self._path = Path(directory, "log.jsonl")
        if writes:
            with self._told():
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._summaries = tf.summary.create_file_writer(os.fspath(directory))
                _drop_lines_after(self._path, {"train": first_step, "validation": first_step - validates_first})
                self._lines = open(self._path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115

    def record(self, split: str, step: int, epoch: int, **values: float) -> None:
        """Records scalars of the "train" or "validation" split at a step."""
        if not self._writes:
            return
        values = {name: float(value) for name, value in values.items()}
        line = {"step": step, "epoch": epoch, "split": split, **values, "time": time.time()}
        with self._told():
            with self._summaries.as_default(step=step):
                for name, value in values.items():
                    tf.summary.scalar(f"{split}/{name}", value)
            self._lines.write(json.dumps(line) + "\n")

    def histograms(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        """Records a histogram of each array."""
        if not self._writes:
            return
        with self._told(), self._summaries.as_default(step=step):
            for name, value in values.items():
                tf.summary.histogram(name, value)

    def progress(self, step: int, epoch: str, images_per_second: float, seconds_per_step: float, **values: str) -> None:
        """Prints one line with the rate and the time left."""
        left = format_duration((self._total_steps - step) * seconds_per_step)
        shown = "  ".join(f"{name} {value}" for name, value in values.items())
        self.say(
            f"epoch {epoch}  step {step}/{self._total_steps}  {shown}  {images_per_second:.0f} images/s  {left} left"
        )

    def say(self, text: str) -> None:
        """Prints a line to stderr."""
        if self._writes:
            print(text, file=sys.stderr, flush=True)

    def flush(self) -> None:
        """Puts everything recorded so far on disk."""
        if self._writes:
            with self._told():
                self._summaries.flush()

    def close(self) -> None:
        """Closes the files. What cannot be flushed any more is lost: what went wrong was reported before."""
        if self._writes:
            with contextlib.suppress(OSError, tf.errors.OpError):
                self._summaries.close()
            with contextlib.suppress(OSError):
                self._lines.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (OSError, tf.errors.OpError) as error:
            reason = error.strerror if isinstance(error, OSError) else error.message.splitlines()[0].split("}} ")[-1]
            raise UserError(
                f"{self._path.parent}: cannot be written ({reason}): free some space or choose another --storage, then "
                "continue with --load_dir"
            ) from error


def _drop_lines_after(path: Path, last_steps: Mapping[str, int]) -> None:
    """Keeps the whole lines of a log up to the last step of their split."""
    if not path.exists():
        return
    kept = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            record = json.loads(line)
            if line.endswith(b"\n") and record["step"] <= last_steps[record["split"]]:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    write_atomically(path, b"".join(kept))
