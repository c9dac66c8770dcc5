"""The parameters of a run as absl flags, for the scripts that train."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from absl import flags

from caps_tf.networks import readers
from caps_tf.presets import list_presets
from caps_tf.training.config import RunConfig

flags.disclaim_key_flags()  # they belong to the script that defines them: --help lists its own


def define_flags() -> None:
    """One flag for each parameter of `RunConfig`, in its groups."""
    kinds: dict[Any, Callable[..., Any]] = {
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        str: flags.DEFINE_string,
        bool: flags.DEFINE_bool,
    }
    for option in dataclasses.fields(RunConfig):
        default: Any = option.default
        metadata, read_by = option.metadata, readers(option.name)
        text = metadata["help"] + (f" ({', '.join(read_by)})" if read_by else "")
        if metadata["choices"]:
            flags.DEFINE_enum(option.name, default, metadata["choices"], text, module_name=metadata["group"])
        else:
            kinds[option.type](option.name, default, text, module_name=metadata["group"])
        flags.declare_key_flag(option.name)
    flags.DEFINE_alias("num_routing", "iter_routing", module_name="network")


def given_flags() -> set[str]:
    """The names of the parameters that the command line gives.

    iter_routing is among them also where its other name, num_routing, was given.
    """
    return {option.name for option in dataclasses.fields(RunConfig) if flags.FLAGS[option.name].present}


def overruled(params: Mapping[str, Any]) -> RunConfig:
    """Parameters: what the command line says, else `params`, else the defaults.

    Raises:
        UserError: if a value is out of its range, or a given flag is not the network's.
    """
    given = given_flags()
    config = RunConfig(**{**params, **{name: flags.FLAGS[name].value for name in given}})
    config.check_given(sorted(given))
    return config


def print_presets() -> None:
    """One line for each preset: its name and what it is."""
    presets = list_presets()
    width = max(map(len, presets))
    for name, preset in presets.items():
        print(f"{name:{width}}  {preset.about.summary}")
