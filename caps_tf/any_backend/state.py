"""What a run leaves behind: its state after an epoch, and a log in JSON lines."""

import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from caps_tf.errors import UserError
from caps_tf.files import write_atomically

_STEP = "step"


def save_state(path: Path, variables: Sequence[keras.Variable], step: int) -> None:
    """Writes the values of variables and the step that they are of, atomically.

    Raises:
        UserError: the file cannot be written.
    """
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {_STEP: np.asarray(step)}
    arrays |= zip(_names(variables), values_of(variables), strict=True)
    np.savez(buffer, **arrays)
    write_atomically(path, buffer.getvalue())


def load_state(path: Path, variables: Sequence[keras.Variable]) -> int:
    """Gives variables the values that `save_state` wrote.

    Returns:
        The step that they are of.

    Raises:
        UserError: the file is damaged, or of other variables.

    Example:
        >>> import tempfile
        >>> variable = keras.Variable([1.0, 2.0])
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     save_state(Path(directory, "state.npz"), [variable], step=7)
        ...     _ = variable.assign([0.0, 0.0])
        ...     load_state(Path(directory, "state.npz"), [variable])
        7
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: cannot be read ({error}): delete it to start over") from None
    names = _names(variables)
    shapes = {name: tuple(variable.shape) for name, variable in zip(names, variables, strict=True)}
    if {name: values.shape for name, values in found.items()} != {_STEP: (), **shapes}:
        raise UserError(f"{path}: is of another network or optimiser: give the flags of that run, or another --output")
    assign([found[name] for name in names], variables)
    return int(found[_STEP])


def values_of(variables: Sequence[keras.Variable]) -> list[np.ndarray]:
    """Copies of the values of variables."""
    return [np.array(ops.convert_to_numpy(variable.value)) for variable in variables]


def assign(values: Sequence[np.ndarray], variables: Sequence[keras.Variable]) -> None:
    """Gives each variable its value."""
    for value, variable in zip(values, variables, strict=True):
        variable.assign(ops.convert_to_tensor(value, variable.dtype))


def _names(variables: Sequence[keras.Variable]) -> list[str]:
    return [f"{number:05d}" for number in range(len(variables))]


class RunLog:
    """A file of JSON lines, each with a "step", and the same lines on the screen.

    Args:
        path: the file; made if missing.
        step: that the run goes on from. What an interrupted run logged after it is dropped, for those steps are about to
            be taken again.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     RunLog(Path(directory, "log.jsonl"), 0).write({"step": 8, "loss": 0.5})
        ...     RunLog(Path(directory, "log.jsonl"), 8).lines
        {"step": 8, "loss": 0.5}
        [{'step': 8, 'loss': 0.5}]
    """

    def __init__(self, path: Path, step: int):
        self._path = path
        self.lines: list[dict[str, Any]] = []
        if path.exists():
            self.lines = [line for line in _read_lines(path) if line["step"] <= step]
            write_atomically(path, "".join(json.dumps(line) + "\n" for line in self.lines).encode())

    def write(self, line: dict[str, Any]) -> None:
        """Adds a line.

        Raises:
            UserError: the file cannot be written.
        """
        text = json.dumps(line)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(text + "\n")
        except OSError as error:
            raise UserError(
                f"{self._path}: cannot be written ({error.strerror}): free some space, then start again"
            ) from None
        self.lines.append(line)
        print(text, flush=True)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log."""
    lines = []
    for text in path.read_bytes().splitlines():
        try:
            line = json.loads(text)
            if isinstance(line["step"], int):
                lines.append(line)
        except (ValueError, KeyError, TypeError):  # half a line, of a killed run
            continue
    return lines
