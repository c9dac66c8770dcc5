"""Presets: a name for the flags of a network, its training regime and its preprocessing, as a TOML file in this directory.

A file holds two tables: `[flags]`, fields of `RunConfig`, and `[about]`, fields of `About`. What is not known is left out.
"""

import dataclasses
import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from caps_tf.errors import UserError
from caps_tf.scripts import how_to_call
from caps_tf.training.config import RunConfig
from caps_tf.training.params import current_names, whole_numbers_as_floats

DIRECTORY = Path(__file__).parent
OF_A_RUN = ("preset", "name", "storage", "data_dir")
"""Fields of `RunConfig` that say where a run is, not what it is."""


@dataclass(frozen=True)
class About:
    """What a preset is for, and what it reached.

    Attributes:
        summary: one line.
        command: the whole command that trains with it.
        paper: citation.
        data: what it is made for: the data set, and how it was made.
        hardware: that the figures were measured on.
        minutes: of training, wall time.
        accuracy: reached, with the number of test examples and seeds.
        measured: on which day.
        commit: that was measured.
    """

    summary: str
    command: str
    paper: str = ""
    data: str = ""
    hardware: str = ""
    minutes: float | None = None
    accuracy: str = ""
    measured: date | None = None
    commit: str = ""


_KINDS = {"minutes": ((int, float), "a number"), "measured": ((date,), "a date such as 2026-11-27, without quotes")}
"""Types of the fields of `About` that are not text."""


@dataclass(frozen=True)
class Preset:
    """A named set of flags.

    Attributes:
        name: what --preset takes.
        about: what it is for, and what it reached.
        flags: values of `RunConfig`, by field.
    """

    name: str
    about: About
    flags: Mapping[str, Any]


def list_presets() -> dict[str, Preset]:
    """All presets by name, in alphabetical order.

    Raises:
        UserError: if one of the files is not a preset.

    Example:
        >>> "hinton2018_smallnorb" in list_presets()
        True
    """
    return {name: load_preset(name) for name in _names()}


def load_preset(name: str) -> Preset:
    """Reads the preset of a name.

    Raises:
        UserError: if there is none, with the nearest names, or if its file is not a preset.

    Example:
        >>> load_preset("tsai2020_cifar100").flags["config_path"]
        'cifar100'
    """
    names = _names()
    if name not in names:
        nearest = difflib.get_close_matches(name, names, cutoff=0.4)
        hint = f"the nearest are {', '.join(nearest)}; " if nearest else ""
        raise UserError(f"no preset is called {name!r}: {hint}--preset=list names all")
    return read_preset(DIRECTORY / f"{name}.toml")


def departures(params: Mapping[str, Any]) -> tuple[str, dict[str, tuple[Any, Any]]]:
    """In what a run is not as its preset says, or as the defaults say where it has none.

    Args:
        params: of the run, by name; what is neither a field of `RunConfig` nor an earlier name of one is ignored, and so
            is what says where a run is rather than what it is.

    Returns:
        What the run is held against, "preset demo" or "defaults", and name -> (the run's value, the other).

    Example:
        >>> departures({"preset": "demo", "network": "conv_capsules", "epoch": 2, "name": "quick", "step": 150})
        ('preset demo', {'epoch': (2, 15)})
    """
    usual = {option.name: option.default for option in dataclasses.fields(RunConfig)}
    against, preset = "defaults", params.get("preset")
    if preset and preset in _names():  # else it is one of another version
        against, usual = f"preset {preset}", {**usual, **load_preset(preset).flags}
    known = {name: value for name, value in current_names(params).items() if name in usual and name not in OF_A_RUN}
    return against, {name: (value, usual[name]) for name, value in known.items() if value != usual[name]}


def read_preset(path: str | os.PathLike[str]) -> Preset:
    """Reads and checks a preset's file; the preset is called as the file is.

    Raises:
        UserError: if the file cannot be read, is not TOML, names what neither `About` nor `RunConfig` has, or gives a
            value of another type or out of range.
    """
    path = Path(path)
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}: give the file of a preset") from None
    except ValueError as error:
        raise UserError(f"{path}: not TOML ({error}): correct the file") from None
    if tables.keys() != {"about", "flags"} or not all(isinstance(table, dict) for table in tables.values()):
        raise UserError(f"{path}: a preset has two tables, [about] and [flags], and nothing else: correct the file")
    return Preset(path.stem, _read_about(path, tables["about"]), _read_flags(path, tables["flags"]))


def _names() -> list[str]:
    return sorted(path.stem for path in DIRECTORY.glob("*.toml"))


def _read_about(path: Path, table: dict[str, Any]) -> About:
    known = [option.name for option in dataclasses.fields(About)]
    for name, value in table.items():
        if name not in known:
            raise UserError(f"{path}: [about] has no field {name!r}: it takes {', '.join(known)}")
        kinds, words = _KINDS.get(name, ((str,), "text"))
        if type(value) not in kinds:
            raise UserError(f"{path}: {name} of [about] must be {words}, not {value!r}")
    for name in ("summary", "command"):
        if not table.get(name) or not table[name].isprintable():
            raise UserError(f"{path}: [about] must say {name}, in one line")
    return About(**table)


def _read_flags(path: Path, table: dict[str, Any]) -> dict[str, Any]:
    known = [option.name for option in dataclasses.fields(RunConfig) if option.name not in OF_A_RUN]
    for name in table:
        if name not in known:
            nearest = difflib.get_close_matches(name, known)
            hint = f", perhaps {' or '.join(nearest)}" if nearest else ""
            raise UserError(
                f"{path}: [flags] takes no {name!r}{hint}: {how_to_call('train_val.py')} --helpfull lists them"
            )
    try:
        values = whole_numbers_as_floats(table)
        RunConfig(**values).check_given(values)
    except OverflowError:
        raise UserError(f"{path}: [flags] holds a number that is too large") from None
    except UserError as error:
        raise UserError(f"{path}: [flags] {error}") from None
    return values
