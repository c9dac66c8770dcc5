"""Configurations of the attention network: which capsule layers stand on the backbone, as JSON.

The words are those of the published code, whose files can be used as they are. Two are published and come with the
library: "cifar10" and "cifar100". Beyond them, `backbone` takes `first_dim`, the channels of the first residual blocks
(64 if it is missing), and `blocks`, how many there are with these channels and with `output_dim` ([3, 4]).
"""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from caps_tf.errors import UserError

PUBLISHED = ("cifar10", "cifar100")

_SIZE, _LENGTH, _FLAG = "a positive whole number", "a whole number, 0 or more", "true or false"
_PAIR = "two positive whole numbers"
_IS_KIND: dict[str, Callable[[Any], bool]] = {
    _SIZE: lambda value: type(value) is int and value > 0,
    _LENGTH: lambda value: type(value) is int and value >= 0,
    _FLAG: lambda value: type(value) is bool,
    _PAIR: lambda value: isinstance(value, list) and len(value) == 2 and all(map(_IS_KIND[_SIZE], value)),
}
_POSES = {"num_caps": _SIZE, "caps_dim": _SIZE, "matrix_pose": _FLAG}
_CONVOLUTION = {"kernel_size": _SIZE, "stride": _SIZE}
_SECTIONS = {
    "backbone": {"output_dim": _SIZE, **_CONVOLUTION, "padding": _LENGTH},
    "primary_capsules": {"num_caps": _SIZE, "caps_dim": _SIZE, **_CONVOLUTION, "padding": _LENGTH},
    "class_capsules": {"caps_dim": _SIZE, "matrix_pose": _FLAG},
}
_LAYERS = {"CONV": {**_POSES, **_CONVOLUTION}, "FC": _POSES}
# What published files also say and what follows from the rest: allowed, of the right type, and otherwise not read.
_DERIVED = {"input_dim": _SIZE, "out_img_size": _SIZE}
_OPTIONAL = {
    "backbone": {**_DERIVED, "first_dim": _SIZE, "blocks": _PAIR},
    "primary_capsules": _DERIVED,
    "class_capsules": {**_DERIVED, "num_caps": _SIZE},
}


def load_attention_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads and checks a configuration.

    Args:
        path: a JSON file, or "cifar10" or "cifar100" for a published configuration.

    Returns:
        What the file says.

    Raises:
        UserError: if the file cannot be read, is not JSON, or `check_attention_config` finds fault with it.

    Example:
        >>> [layer["type"] for layer in load_attention_config("cifar100")["capsules"]]
        ['CONV', 'CONV', 'FC']
    """
    if path in PUBLISHED:
        path = Path(__file__).with_name(f"attention_{path}.json")
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}: give a JSON file, or one of {', '.join(PUBLISHED)}") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}): fix it; cifar10 and cifar100 are examples") from None
    check_attention_config(config, str(path))
    return config


def check_attention_config(config: Any, name: str = "config") -> None:
    """Checks that a configuration has all that the network needs, of the right types, and nothing else.

    Args:
        config: what a JSON file held.
        name: of the file, for the message.

    Raises:
        UserError: naming the first key that is missing, unknown, of the wrong type, or that does not fit the others.

    Example:
        >>> check_attention_config({"backbone": {"output_dim": "wide"}})
        Traceback (most recent call last):
        ...
        caps_tf.errors.UserError: config: backbone.output_dim must be a positive whole number, not 'wide'
    """
    _check_object(config, (*_SECTIONS, "capsules"), (), name, "")
    for section, kinds in _SECTIONS.items():
        if section in config:
            _check_section(config[section], kinds, _OPTIONAL[section], name, section)
    for section in (*_SECTIONS, "capsules"):
        if section not in config:
            raise UserError(f"{name}: {section} is missing: see the published configurations for an example")
    if not isinstance(config["capsules"], list):
        raise UserError(f"{name}: capsules must be a list of layers, not {config['capsules']!r}")
    for number, layer in enumerate(config["capsules"]):
        where = f"capsules[{number}]"
        _check_object(layer, None, (), name, where)
        kind = layer.get("type")
        if not isinstance(kind, str) or kind not in _LAYERS:
            raise UserError(f"{name}: {where}.type must be one of {', '.join(_LAYERS)}, not {kind!r}")
        _check_section({key: layer[key] for key in layer if key != "type"}, _LAYERS[kind], _DERIVED, name, where)
    _check_fit(config, name)


def _check_section(section: Any, kinds: dict, optional: dict, name: str, where: str) -> None:
    _check_object(section, kinds, optional, name, where)
    for key, value in section.items():
        kind = kinds.get(key) or optional[key]
        if not _IS_KIND[kind](value):
            raise UserError(f"{name}: {where}.{key} must be {kind}, not {value!r}")
    for key in kinds:
        if key not in section:
            raise UserError(f"{name}: {where}.{key} is missing: add it")


def _check_object(value: Any, known, optional, name: str, where: str) -> None:
    if not isinstance(value, dict):
        raise UserError(f"{name}: {where or 'a configuration'} must be an object, not {value!r}")
    for key in value if known is not None else ():
        if key not in known and key not in optional:
            path = f"{where}.{key}" if where else key
            raise UserError(f"{name}: unknown key {path}: known are {', '.join((*known, *optional))}")


def _check_fit(config: dict, name: str) -> None:
    below, dense = config["primary_capsules"]["caps_dim"], False
    layers = [*config["capsules"], {"type": "FC", **config["class_capsules"]}]
    for number, layer in enumerate(layers):
        where = f"capsules[{number}]" if number < len(config["capsules"]) else "class_capsules"
        size = layer["caps_dim"]
        if dense and layer["type"] == "CONV":
            raise UserError(f"{name}: {where} is CONV above an FC layer, which has no rows and columns: reorder them")
        if layer["matrix_pose"] and (size != below or math.isqrt(size) ** 2 != size):
            raise UserError(
                f"{name}: {where}.caps_dim is {size} on capsules of {below}, but matrix poses need a square number "
                "and the same in both: change it, or set matrix_pose to false"
            )
        below, dense = size, layer["type"] == "FC"
