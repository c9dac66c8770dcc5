"""Capsule routing for TensorFlow/Keras.

    import caps_tf

    poses, activations = caps_tf.layers.PrimaryCapsules(8)(features)

Its parts are imported when they are first used, so that programs which only parse flags do not wait for Keras.
"""

import importlib
from types import ModuleType

__version__ = "0.1.0"
__all__ = [
    "attacks",
    "initializers",
    "layers",
    "losses",
    "models",
    "networks",
    "optimizers",
    "presets",
    "routing",
    "weights",
]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"caps_tf.{name}")
    raise AttributeError(f"module 'caps_tf' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
