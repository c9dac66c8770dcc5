"""A run's parameters as a file, params.json: today's, and those of earlier versions."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from caps_tf.errors import UserError
from caps_tf.files import write_atomically
from caps_tf.training.config import RunConfig


def save_params(config: RunConfig, path: str | os.PathLike[str], **others: Any) -> None:
    """Writes a run's parameters as JSON, and `others` beside them, atomically."""
    write_atomically(path, (json.dumps({**dataclasses.asdict(config), **others}, indent=2) + "\n").encode())


def load_params(path: str | os.PathLike[str], others: tuple[str, ...] = ()) -> dict[str, Any]:
    """Reads what `save_params` wrote, and leaves the checking of values to `RunConfig`.

    Args:
        path: the file.
        others: names that the file may hold beside the fields of `RunConfig`.

    Returns:
        Parameters by name, a subset of the fields of `RunConfig` and of `others`.

    Raises:
        UserError: if the file cannot be read, is not JSON, or names a parameter that this version does not have.
    """
    path = Path(path)
    try:
        params = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}: give a directory that train_val.py wrote, or a params.json"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}): fix it, or train anew") from None
    if not isinstance(params, dict):
        raise UserError(f"{path}: expected an object of parameters, not {type(params).__name__}")
    params = current_names(params)
    unknown = sorted(set(params) - {option.name for option in dataclasses.fields(RunConfig)} - set(others))
    if unknown:
        raise UserError(f"{path}: this version has no parameter {unknown[0]!r}: use the version that wrote it")
    try:
        return whole_numbers_as_floats(params)
    except OverflowError:
        raise UserError(f"{path}: holds a number that is too large: fix it, or train anew") from None


def current_names(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of earlier runs by today's names and values.

    Attention's iterations were num_routing, and iter_routing the others'; jit_compile could be auto, which was on.

    Example:
        >>> current_names({"network": "attention", "iter_routing": 0, "num_routing": 4})
        {'network': 'attention', 'iter_routing': 4}
    """
    params = dict(params)
    if params.get("jit_compile") == "auto":
        params["jit_compile"] = "on"
    num_routing = params.pop("num_routing", None)
    if num_routing is not None and params.get("network") == "attention":
        params["iter_routing"] = num_routing
    return params


def whole_numbers_as_floats(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as `RunConfig` takes them: JSON and TOML files may say 1 where it wants 1.0.

    Raises:
        OverflowError: if a number is too large for a float.

    Example:
        >>> whole_numbers_as_floats({"lrn_rate": 1, "epoch": 1})
        {'lrn_rate': 1.0, 'epoch': 1}
    """
    floats = {option.name for option in dataclasses.fields(RunConfig) if option.type is float}
    return {name: float(value) if name in floats and type(value) is int else value for name, value in params.items()}
