"""Networks that a test can afford, by the names of `caps_tf.networks.NETWORKS`, and batches that they take.

The `smallest` flags of an entry decide how large its network is, and `SIZES` what flags do not reach. A new entry needs
no line there.
"""

from pathlib import Path

import keras
import numpy as np

from caps_tf.networks import NETWORKS
from caps_tf.training.config import RunConfig
from caps_tf.training.factories import make_model

CLASSES, TOKENS = 3, 5
ATTENTION = Path(__file__).with_name("tiny_attention.json")
"""A configuration of the attention network, for `config` of its builder and for --config_path."""
SIZES = {
    "matrix_capsules": {"image_shape": (20, 24, 1)},
    "vb_capsules": {"image_shape": (20, 24, 2)},
    "heinsen_norb": {"image_shape": (29, 33, 2), "channels": 4, "parts": 5},
    "heinsen_sst": {"depth": 3, "width": 8, "features": 6, "parts": 5},
    "attention": {"image_shape": (8, 8, 1), "config": str(ATTENTION)},
    "capsnet": {"image_shape": (20, 22, 1)},
    "conv_capsules": {"image_shape": (16, 20, 1)},
    "self_routing": {"image_shape": (12, 16, 1), "capsules": 3, "channels": 2},
    "cnn_baseline": {"image_shape": (8, 8, 1)},
}
"""Arguments of builders. tests/golden/program_costs.json holds what networks of these sizes cost."""


def tiny(name: str, **arguments) -> keras.Model:
    """A network from its builder; `arguments` go before those that are set here."""
    entry = NETWORKS[name]
    smallest = {entry.flags[flag]: value for flag, value in entry.smallest.items()}
    return entry.load()(**{"num_classes": CLASSES, **smallest, **SIZES[name], **arguments})


def tiny_config(name: str, **options) -> RunConfig:
    """Parameters of a run that trains such a network, of the published sizes where no flag says another."""
    config_path = {"config_path": str(ATTENTION)} if "config_path" in NETWORKS[name].flags else {}
    return RunConfig(network=name, jit_compile="off", **{**NETWORKS[name].smallest, **config_path, **options})


def input_shapes(name: str, tokens: int | None = TOKENS) -> dict[str, tuple[int | None, ...]]:
    """The shape of each feature of an example."""
    sizes = SIZES.get(name, {})
    if NETWORKS[name].reads == "image":
        return {"image": sizes.get("image_shape", (32, 32, 1))}
    return {"embedding": (tokens, sizes.get("depth", 2), sizes.get("width", 8)), "mask": (tokens,)}


def tiny_run_model(name: str, **options) -> keras.Model:
    """The network of a run, with the same initial weights at each call."""
    keras.utils.set_random_seed(0)
    return make_model(tiny_config(name, **options), input_shapes(name), CLASSES)


def random_batch(name: str, examples: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Features of normal numbers and a label; the last token of every second sentence is padding."""
    rng = np.random.default_rng(seed)
    batch = {key: rng.normal(size=(examples, *shape)).astype(np.float32) for key, shape in input_shapes(name).items()}
    if "mask" in batch:
        batch["mask"] = np.ones_like(batch["mask"])
        batch["mask"][1::2, -1] = 0
    return {**batch, "label": rng.integers(CLASSES, size=examples, dtype=np.int32)}


def inputs_of(model: keras.Model, batch: dict):
    """What a model is called with."""
    return {name: batch[name] for name in model.input} if isinstance(model.input, dict) else batch["image"]
