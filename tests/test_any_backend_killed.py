"""A run of train_any_backend.py that is really killed goes on from its last state, and ends as an unbroken one."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from tests.coloured_folder import write_coloured_folder
from tests.small_norb import run_script

ROOT = Path(__file__).resolve().parents[1]
EPOCHS = 6
# With a state after each epoch; in earnest there are 10 seconds between two of them.
RUN = """
import runpy, sys
from caps_tf.any_backend import trainer
trainer.SECONDS_BETWEEN_STATES = 0.0
runpy.run_path("examples/train_any_backend.py", run_name="__main__")
"""


FLAGS = (
    *("--network=conv_capsules", "--routing=attention", "--convolutions=4k5s4", "--capsules=2", "--batch_size=16"),
    *("--capsule_dropout=0.2", "--jit_compile=off", f"--epoch={EPOCHS}"),
)


def start(data, output):
    return subprocess.Popen(
        [sys.executable, "-c", RUN, *FLAGS, f"--data={data}", f"--output={output}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": keras.config.backend()},
    )


def result(output):
    """The last line of the log, and the state."""
    last = json.loads((output / "log.jsonl").read_text().splitlines()[-1])
    with np.load(output / "state.npz") as state:
        return last, dict(state)


@pytest.mark.campaign
def test_a_killed_run_goes_on_and_ends_as_an_unbroken_one(tmp_path):
    write_coloured_folder(tmp_path / "data")
    places = (f"--data={tmp_path / 'data'}", f"--output={tmp_path / 'whole'}")
    run_script("examples/train_any_backend.py", *FLAGS, *places)
    killed = start(tmp_path / "data", tmp_path / "killed")
    for _ in range(2):
        assert killed.stdout.readline()
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert (tmp_path / "killed" / "state.npz").exists()
    assert len((tmp_path / "killed" / "log.jsonl").read_text().splitlines()) < EPOCHS
    again = start(tmp_path / "data", tmp_path / "killed")
    said, _ = again.communicate()
    assert json.loads(said.splitlines()[0])["epoch"] > 1  # and not from the start
    assert again.returncode == 0
    (last, state), (expected, whole_state) = result(tmp_path / "killed"), result(tmp_path / "whole")
    assert last == expected and "test_accuracy" in last
    assert state.keys() == whole_state.keys()
    for name, value in whole_state.items():
        np.testing.assert_array_equal(state[name], value, err_msg=name)
