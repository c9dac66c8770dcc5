"""The networks that train_val.py trains: one entry each, from which flags, factories, help texts and tests read.

To add a network write its builder, and its entry here. Nothing else that trains or tests lists networks. This module imports
neither Keras nor TensorFlow, so that flags are parsed at once.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

ROUTINGS = ("em", "vb", "heinsen", "attention", "dynamic", "self", "none")
"""What routes conv_capsules; none is the same network without capsules."""
BACKBONES = ("resnet", "simple")
"""What stands below the capsules of attention and of self-routing."""


@dataclass(frozen=True)
class Network:
    """What the rest of the library has to know of a network.

    Attributes:
        builder: module and function, "package.module:function". Called with the shape of an example (of an image
            rows, columns and channels; of embeddings depth and width), the number of classes, `dtype`, and the
            arguments below, it returns a `keras.Model` to scores [b, classes].
        flags: the flags of train_val.py that it reads besides those of every network, and the builder's argument for
            each. Other flags of networks are refused where they are given.
        reads: the feature of the data that it takes, "image" or "embedding".
        logits: whether its scores are logits; otherwise they are between 0 and 1.
        loss: what --loss=auto is.
        iterations: what --iter_routing=0 is; 0 where the builder decides.
        routes: whether capsules are routed in it.
        smallest: values of flags that make a network which a test can afford.
    """

    builder: str
    flags: Mapping[str, str]
    reads: str = "image"
    logits: bool = True
    loss: str = "cross_entropy"
    iterations: int = 0
    routes: bool = True
    smallest: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Callable:
        """Imports the builder, and Keras with it."""
        module, _, function = self.builder.partition(":")
        return getattr(importlib.import_module(module), function)


_ROUTED = {"iter_routing": "iterations", "weight_reg": "weight_reg"}
_BOUND = {"votes_mib": "votes_at_a_time"}

NETWORKS: dict[str, Network] = {
    "matrix_capsules": Network(
        "caps_tf.models:matrix_capsules",
        flags={
            **{name: name for name in ("A", "B", "C", "D", "final_lambda", "epsilon")},
            **_ROUTED,
            **_BOUND,
        },
        logits=False,
        loss="spread",
        iterations=2,
        smallest={"A": 4, "B": 2, "C": 3, "D": 3},
    ),
    "vb_capsules": Network(
        "caps_tf.models:vb_capsules",
        flags={**{name: name for name in ("A", "B", "C", "D")}, **_ROUTED, **_BOUND},
        logits=False,
        iterations=3,
        smallest={"A": 4, "B": 2, "C": 3, "D": 3},
    ),
    "heinsen_norb": Network(
        "caps_tf.models:heinsen_norb",
        flags={"part_noise": "part_noise", **_ROUTED, **_BOUND},
        iterations=3,
    ),
    "heinsen_sst": Network(
        "caps_tf.models:heinsen_sst",
        flags={**_ROUTED, **_BOUND},
        reads="embedding",
        iterations=3,
    ),
    "attention": Network(
        "caps_tf.models:attention_capsules",
        flags={
            "iter_routing": "iterations",
            "sequential_routing": "sequential_routing",
            "backbone": "backbone",
            "config_path": "config",
            "capsule_dropout": "dropout",
            **_BOUND,
        },
        iterations=2,
        smallest={"backbone": "simple"},
    ),
    "capsnet": Network(
        "caps_tf.models:capsnet",
        flags={"channels": "channels", "iter_routing": "iterations", **_BOUND},
        logits=False,
        loss="margin",
        iterations=3,
        smallest={"channels": 16},
    ),
    "conv_capsules": Network(
        "caps_tf.models:conv_capsules",
        flags={
            **{name: name for name in ("routing", "convolutions", "capsules", "coordinates")},
            "capsule_dropout": "dropout",
            **_ROUTED,
            **_BOUND,
        },
        smallest={"convolutions": "4k5s2,8s2", "capsules": 2},
    ),
    "self_routing": Network(
        "caps_tf.models:self_routing",
        flags={"backbone": "backbone", "capsule_layers": "capsule_layers", **_BOUND},
        smallest={"backbone": "simple", "capsule_layers": 2},
    ),
    "cnn_baseline": Network(
        "caps_tf.models:cnn_baseline",
        flags={"dropout": "dropout", "weight_reg": "weight_reg"},
        logits=False,
        routes=False,
    ),
}


def readers(flag: str) -> list[str]:
    """The networks that read a flag.

    Example:
        >>> readers("part_noise"), readers("capsule_dropout")
        (['heinsen_norb'], ['attention', 'conv_capsules'])
    """
    return [name for name, network in NETWORKS.items() if flag in network.flags]
