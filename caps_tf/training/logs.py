"""What a run tells while it trains: TensorBoard, a JSON-lines log, and a line of progress."""

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf

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
    """

    def __init__(self, directory: str | os.PathLike[str], first_step: int, total_steps: int, writes: bool = True):
        self._total_steps = total_steps
        self._writes = writes
        if writes:
            Path(directory).mkdir(parents=True, exist_ok=True)
            self._summaries = tf.summary.create_file_writer(os.fspath(directory))
            path = Path(directory, "log.jsonl")
            _drop_lines_after(path, first_step)
            self._lines = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115

    def record(self, split: str, step: int, epoch: int, **values: float) -> None:
        """Records scalars of the "train" or "validation" split at a step."""
        if not self._writes:
            return
        values = {name: float(value) for name, value in values.items()}
        with self._summaries.as_default(step=step):
            for name, value in values.items():
                tf.summary.scalar(f"{split}/{name}", value)
        line = {"step": step, "epoch": epoch, "split": split, **values, "time": time.time()}
        self._lines.write(json.dumps(line) + "\n")

    def histograms(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        """Records a histogram of each array."""
        if not self._writes:
            return
        with self._summaries.as_default(step=step):
            for name, value in values.items():
                tf.summary.histogram(name, value)

    def progress(self, step: int, epoch: str, images_per_second: float, seconds_per_step: float, **values: str) -> None:
        """Prints one line with the rate and the time left."""
        left = format_duration((self._total_steps - step) * seconds_per_step)
        told = "  ".join(f"{name} {value}" for name, value in values.items())
        self.say(
            f"epoch {epoch}  step {step}/{self._total_steps}  {told}  {images_per_second:.0f} images/s  {left} left"
        )

    def say(self, text: str) -> None:
        """Prints a line to stderr."""
        if self._writes:
            print(text, file=sys.stderr, flush=True)

    def flush(self) -> None:
        """Puts everything recorded so far on disk."""
        if self._writes:
            self._summaries.flush()

    def close(self) -> None:
        """Flushes and closes the files."""
        if self._writes:
            self._summaries.close()
            self._lines.close()


def _drop_lines_after(path: Path, step: int) -> None:
    """Keeps the whole lines of a log up to a step."""
    if not path.exists():
        return
    kept = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            if line.endswith(b"\n") and json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    write_atomically(path, b"".join(kept))
