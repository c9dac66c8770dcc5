"""A tiny data set in the NORB format whose categories a network can learn in seconds, and scripts run on it."""

import gzip
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np

from caps_tf.data import norb_format, norb_matrix
from caps_tf.networks import NETWORKS

ROOT = Path(__file__).parent.parent

# 240 training pairs (one instance of five held out), both views, 17 pixels: the smallest image the network takes.
SMALL_DATA = (
    *("--dataset=smallNORB", "--image_size=17", "--resize=0", "--val_instances=9", "--batch_size=32"),
    *("--jit_compile=off", "--log_every=5", "--margin_steps=5"),
)
SMALL_CAPSULES = tuple(f"--{flag}={value}" for flag, value in NETWORKS["matrix_capsules"].smallest.items())
TINY = (*SMALL_DATA, *SMALL_CAPSULES)
"""The same with few matrix capsules; other networks refuse these flags."""


def write_small_norb(directory, size=(24, 24), elevations=(0, 1, 8), azimuths=(0, 4, 16, 34), seed=0):
    """Writes the six .mat files: bright bars whose place is the category's, on noise; 60 pairs an instance."""
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    splits = {"training": norb_format.TRAIN_INSTANCES, "testing": norb_format.TEST_INSTANCES}
    for split, instances in splits.items():
        category, info = norb_format.grid_info(instances, elevations, azimuths, (0,))
        images = rng.integers(60, 100, size=(len(category), 2, *size), dtype=np.uint8)
        for pair, kind in zip(images, category, strict=True):
            # Inside the centre crop, whatever the size.
            row, column = size[0] // 6 + kind * size[0] // 9, size[1] // 4
            pair[:, row : row + 3, column : column + size[1] // 2] += 120
        prefix = norb_format.split_prefix("smallnorb", instances, elevations, azimuths, (0,), size[0])
        for kind, array in (("dat", images), ("cat", category), ("info", info)):
            norb_matrix.write_matrix(directory / f"{prefix}-{split}-{kind}.mat", array)


def compress(path: Path) -> Path:
    """Puts a file.gz in the place of a file."""
    packed = path.with_name(path.name + ".gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    return packed


def run_script(script, *flags, check=True, environment=None, limits=(), timeout=300):
    """Runs a script of the project as its user would; returns the finished process with its output as text.

    `limits` are pairs of one of resource's RLIMIT_* and what it allows.
    """

    def set_limits():
        for kind, size in limits:
            resource.setrlimit(kind, (size, size))

    process = subprocess.run(
        [sys.executable, script, *flags],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
        preexec_fn=set_limits if limits else None,  # JAX's threads mind a fork that runs Python
    )
    if check and process.returncode != 0:
        raise AssertionError(f"{script} {' '.join(flags)} failed:\n{process.stdout}\n{process.stderr[-4000:]}")
    return process


def expect_one_line(process, *words):
    """Asserts that a script failed with a single `error:` line that holds each of `words`."""
    errors = [line for line in process.stderr.splitlines() if line.startswith("error:")]
    assert process.returncode != 0, process.stdout
    assert "Traceback" not in process.stderr, process.stderr
    assert len(errors) == 1, process.stderr
    for word in words:
        assert word in errors[0], errors[0]
