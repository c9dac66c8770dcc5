"""Runs killed at any moment and started again end as if they had never been stopped: weights, log, and best so far."""

import random
import time

import pytest
import tensorflow as tf

from caps_tf.training.checkpoints import list_checkpoints
from tests.killing import Run, told_apart_from_time
from tests.runs import assert_same_weights, start_training, weights
from tests.small_norb import SMALL_DATA, TINY

# 15 steps an epoch. Dropout, augmentation, and a rate and a momentum that change with every step; a checkpoint comes in
# the middle of a window of the log.
FLAGS = (
    *(*SMALL_DATA, "--network=cnn_baseline", "--optimizer=radam", "--schedule=one_cycle", "--lrn_rate=1e-3"),
    *("--mixup=0.2", "--log_every=2", "--checkpoint_every=5", "--keep_checkpoints=3"),
)
STEPS_PER_EPOCH, BETWEEN_CHECKPOINTS = 15, 5


def unbroken(storage, name, epochs):
    return start_training(*FLAGS, f"--storage={storage}", f"--name={name}", f"--epoch={epochs}")


def assert_ended_alike(found, expected):
    assert told_apart_from_time(found) == told_apart_from_time(expected)
    assert_same_weights(weights(found), weights(expected))
    for directory in ("checkpoints", "checkpoints/best"):
        left = [list_checkpoints(run / "train" / directory)[-1] for run in (found, expected)]
        assert left[0] == left[1]
    best = [run / "train" / "checkpoints" / "best" / left[0] for run in (found, expected)]
    assert_same_weights(*(weights(found, path) for path in best))
    readers = [tf.train.load_checkpoint(str(path)) for path in best]
    key = "best_accuracy/.ATTRIBUTES/VARIABLE_VALUE"
    assert readers[0].get_tensor(key) == readers[1].get_tensor(key) > 0
    assert not [path for path in found.rglob("*_temp")] + [path for path in found.rglob("*.tempstate*")]


def next_checkpoint(run):
    """The step of the next checkpoint in the middle of an epoch."""
    names = list_checkpoints(run.checkpoints)
    step = int(names[-1].removeprefix("step-")) if names else 0
    step += BETWEEN_CHECKPOINTS - step % BETWEEN_CHECKPOINTS
    return step + BETWEEN_CHECKPOINTS if step % STEPS_PER_EPOCH == 0 else step


def stop_by_sigterm(run, step):
    run.wait_until(lambda: run.last_step() >= step)
    assert run.terminate() < 20
    assert "stopped by SIGTERM: step " in run.errors and "Traceback" not in run.errors
    saved = int(list_checkpoints(run.checkpoints)[-1].removeprefix("step-"))
    assert saved >= step and f"step {saved} is saved" in run.errors


def test_a_run_killed_between_two_files_ends_as_if_unbroken(storage, trained, record_property):
    with Run(storage, "stopped", *TINY, "--epoch=2", "--checkpoint_every=12", "--keep_checkpoints=9") as run:
        run.start()
        run.kill_between_files(24)
        assert list_checkpoints(run.checkpoints)[-1] == "step-15"
        run.start()
        run.end()
    assert_ended_alike(run.directory, trained)
    record_property("kills survived", 1)


@pytest.mark.campaign
def test_a_run_killed_at_twenty_random_moments_ends_as_if_unbroken(storage, record_property):
    epochs, rng = 4, random.Random(20)
    expected = unbroken(storage, "long", epochs)
    kinds = ["step"] * 8 + ["start"] * 4 + ["writing"] * 4 + ["between"] * 4
    rng.shuffle(kinds)
    half_written = 0
    with Run(storage, "killed", *FLAGS, f"--epoch={epochs}") as run:
        run.start()
        stop_by_sigterm(run, 1)
        for number, kind in enumerate(kinds):
            run.start()
            spread = (number + 1) * epochs * STEPS_PER_EPOCH // (len(kinds) + 2)
            if kind == "start":
                time.sleep(rng.uniform(0.0, 8.0))
                run.kill()
            elif kind == "between" and list_checkpoints(run.checkpoints):
                run.kill_between_files(next_checkpoint(run))
            elif kind == "writing":
                half_written += run.kill_while_writing()
            else:
                run.kill_after_step(spread, delay=rng.uniform(0.0, 0.1))
        run.start()
        run.end()
    assert half_written > 0
    assert_ended_alike(run.directory, expected)
    record_property("kills survived", len(kinds))
    record_property("preemptions survived", 1)


@pytest.mark.campaign
def test_two_processes_do_not_train_in_one_directory(storage):
    with Run(storage, "shared", *FLAGS, "--epoch=50") as run, Run(storage, "second") as second:
        run.start()
        run.wait_until(lambda: run.last_step() > 0)
        second.directory = run.directory
        second.start()
        second.end(1)
        assert "another process is training there" in second.errors and "Traceback" not in second.errors
