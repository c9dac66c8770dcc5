"""A tiny data set in the NORB format whose categories a network can learn in seconds, and scripts run on it."""

import gzip
import os
import resource
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np

from caps_tf.data import norb_format, norb_matrix
from caps_tf.networks import NETWORKS
from tests.script_host import HOST

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


HOSTED = (
    *("train_val.py", "test.py", "data/convert_text_to_tfrecord.py", "data/plain_classifiers.py"),
    *("data/convert_to_tfrecord.py", "data/convert_idx_to_tfrecord.py", "data/convert_views_to_tfrecord.py"),
    *("examples/credit.py", "examples/train_any_backend.py", "-m"),
)
"""Scripts whose imports take longer than most of what tests have them do."""


def run_script(script, *flags, check=True, environment=None, limits=(), timeout=300, start=None):
    """Runs a script of the project as its user would; returns the finished process with its output as text.

    Args:
        script: its path, or "-m" or "-c" as Python takes them.
        flags: its arguments.
        check: whether it must succeed.
        environment: more variables, of a new process.
        limits: pairs of one of resource's RLIMIT_* and what it allows, of a new process.
        timeout: seconds.
        start: in which process: "kept", which has run others and takes the least time; "forked", of its own, but with
            everything imported, where it sets up devices; or "new", where what is tested is a start, with its imports.
            By default one of `HOSTED` is run in the first where that is possible.
    """
    command = [str(script), *map(str, flags)]
    if environment or limits or keras.config.backend() != "tensorflow":
        start = "new"
    elif start is None:
        devices = any(flag.startswith("--num_gpus") for flag in command)
        start = "new" if command[0] not in HOSTED else "forked" if devices else "kept"
    if start == "new":
        process = start_script(command, environment or {}, limits, timeout)
    else:
        process = HOST.run(command, alone=start == "forked", timeout=timeout)
    if check and process.returncode != 0:
        raise AssertionError(f"{' '.join(command)} failed:\n{process.stdout}\n{process.stderr[-4000:]}")
    return process


def start_script(command, environment, limits, timeout):
    """Runs a script as `run_script` does, in a new process."""

    def set_limits():
        for kind, size in limits:
            resource.setrlimit(kind, (size, size))

    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        preexec_fn=set_limits if limits else None,  # JAX's threads mind a fork that runs Python
    )


def expect_one_line(process, *words):
    """Asserts that a script failed with a single `error:` line that holds each of `words`."""
    errors = [line for line in process.stderr.splitlines() if line.startswith("error:")]
    assert process.returncode != 0, process.stdout
    assert "Traceback" not in process.stderr, process.stderr
    assert len(errors) == 1, process.stderr
    for word in words:
        assert word in errors[0], errors[0]
