"""Reads the JSON-lines log which the training loop writes."""

import json
import os
from pathlib import Path
from typing import Any

from caps_tf.errors import UserError

SPLITS = ("train", "validation")


def read_log(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Reads a run's log, one record a line.

    A last line cut short (the run was killed, or is writing it now) is left out. Where a run went back to a
    checkpoint and repeated steps, the repeated ones replace the lost ones.

    Args:
        path: of a log.jsonl. Each line is an object with "step" (int), "split" ("train" or "validation") and any
            numbers: loss, accuracy, margin, inverse_temperature, learning_rate, images_per_second, ...

    Returns:
        The records, in the order of the file; within each split steps increase.

    Raises:
        UserError: no such file, or a line that is no such record; names file and line.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as log:
        ...     _ = log.write('{"step": 1, "split": "train", "loss": 0.5}' + chr(10) + '{"step": 2, "spl')
        ...     log.flush()
        ...     read_log(log.name)
        [{'step': 1, 'split': 'train', 'loss': 0.5}]
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): is this the directory of a run?") from error
    records = []
    unfinished = len(lines)  # the number of what follows the last newline; nothing, in a log written to its end
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            records.append(_parse(line))
        except ValueError as error:
            if number < unfinished:
                raise UserError(f"{path}, line {number}: {error}: fix or remove the line") from error
    return _without_repeated_steps(records)


def _parse(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError("not JSON") from error
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    if type(record.get("step")) is not int:
        raise ValueError('no whole number under "step"')
    if record.get("split") not in SPLITS:
        raise ValueError(f'"split" is none of {", ".join(SPLITS)}')
    for name, value in record.items():
        if name != "split" and type(value) not in (int, float, type(None)):
            raise ValueError(f'"{name}" is not a number')
    return record


def _without_repeated_steps(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Keeps what came last of every stretch of steps that was trained more than once."""
    lowest_later: dict[str, int] = {}
    kept = []
    for record in reversed(records):
        split, step = record["split"], record["step"]
        if step < lowest_later.get(split, step + 1):
            lowest_later[split] = step
            kept.append(record)
    return kept[::-1]
