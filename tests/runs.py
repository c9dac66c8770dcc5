"""Training runs as their users start them, and what they leave behind."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import tensorflow as tf

from tests.small_norb import SMALL_DATA, TINY, run_script


def start_training(*flags, **options):
    """Trains a new run with these flags; returns its directory."""
    process = run_script("train_val.py", *flags, **options)
    return Path(re.search(r"^trained: (.*)$", process.stdout, re.MULTILINE).group(1))


def train(storage, name, *flags, **options):
    """Trains a new run on the small data set; returns its directory."""
    small = SMALL_DATA if any(flag.startswith("--network=") for flag in flags) else TINY
    return start_training(*small, f"--storage={storage}", f"--name={name}", *flags, **options)


def continued(run_directory, storage, name, checkpoint, *flags, **options):
    """Copies a run and goes on from a checkpoint, as after a kill behind it; returns the copy's directory."""
    copy = storage / "logs" / run_directory.parent.name / name
    shutil.copytree(run_directory, copy)
    run_script("train_val.py", f"--load_dir={copy}", f"--ckpt_name={checkpoint}", *flags, **options)
    return copy


def weights(run_directory, checkpoint=None):
    """Every variable of a run's newest checkpoint that training decides, by name."""
    path = checkpoint or tf.train.latest_checkpoint(run_directory / "train" / "checkpoints")
    reader = tf.train.load_checkpoint(str(path))
    names = [
        name for name in reader.get_variable_to_shape_map() if name.startswith(("model/", "decoder/", "optimizer/"))
    ]
    assert len(names) > 20
    return {name: reader.get_tensor(name) for name in sorted(names)}


def assert_same_weights(found, expected):
    assert found.keys() == expected.keys()
    for name, value in found.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def log_lines(run_directory, split):
    lines = (run_directory / "train" / "log.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["split"] == split]


def assert_learned_the_same(found, expected):
    """Losses, weights, and Adam's means of all gradients, which a gradient summed twice or not at all would change."""
    for one, two in zip(log_lines(found, "train"), log_lines(expected, "train"), strict=True):
        np.testing.assert_allclose(one["loss"], two["loss"], rtol=1e-3)
        assert abs(one["accuracy"] - two["accuracy"]) < 0.05
    found, expected = weights(found), weights(expected)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        if value.dtype.kind == "f":
            largest = np.abs(expected[name]).max()
            np.testing.assert_allclose(value, expected[name], rtol=0, atol=0.01 * largest + 1e-9, err_msg=name)
