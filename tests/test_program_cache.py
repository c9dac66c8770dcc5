"""Compiled programs are kept for the next start, and one that is damaged, or a disk that is full, costs only time."""

import os
import time
from collections import namedtuple

import pytest

from caps_tf import program_cache
from caps_tf.program_cache import hand_on_programs, use_kept_programs
from tests.runs import assert_same_weights, train, weights
from tests.small_norb import run_script

NAME = "xla_compile_cache__1__2__XLA_CPU_JIT.pb"
FLAG = "--tf_xla_persistent_cache_directory="


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv("CAPS_TF_CACHE", str(tmp_path))
    monkeypatch.delenv(program_cache.SWITCH, raising=False)
    monkeypatch.setenv("TF_XLA_FLAGS", "--tf_xla_auto_jit=0")
    monkeypatch.setattr(program_cache, "_own", None)
    return tmp_path


def own():
    """Where TensorFlow would look now."""
    [path] = [flag.removeprefix(FLAG) for flag in os.environ["TF_XLA_FLAGS"].split() if flag.startswith(FLAG)]
    return program_cache.Path(path)


def kept(cache):
    return sorted(cache.glob("programs/*/*.pb"))


def test_what_one_process_compiles_the_next_one_finds_whole(cache, monkeypatch):
    use_kept_programs()
    first = own()
    (first / NAME).write_bytes(b"a program")
    hand_on_programs()
    hand_on_programs()
    assert len(kept(cache)) == 1
    monkeypatch.setattr(program_cache, "_own", None)
    monkeypatch.setenv("TF_XLA_FLAGS", "")
    use_kept_programs()
    assert own() != first and (own() / NAME).read_bytes() == b"a program"
    (own() / NAME.replace("1", "3")).write_bytes(b"another")
    use_kept_programs()  # for the next script in one process
    assert os.environ["TF_XLA_FLAGS"].count(FLAG) == 1 and len(kept(cache)) == 2


def test_a_damaged_program_is_removed_and_not_read(cache):
    use_kept_programs()
    (own() / NAME).write_bytes(b"a program")
    hand_on_programs()
    [path] = kept(cache)
    (own() / NAME).unlink()
    path.write_bytes(b"a prog")
    use_kept_programs()
    assert not kept(cache) and not list(own().iterdir())


def test_the_oldest_programs_go_first_and_large_ones_are_not_kept(cache, monkeypatch):
    monkeypatch.setattr(program_cache, "LARGEST", 50)
    use_kept_programs()
    for age, (name, size) in enumerate({"large": 60, "new": 40, "old": 40, "older": 40}.items()):
        path = own() / f"{name}.pb"
        path.write_bytes(bytes(size))
        hand_on_programs()
        path.unlink()
        for found in kept(cache):
            if found.name.startswith(f"{name}."):
                os.utime(found, (time.time() - age,) * 2)
    monkeypatch.setattr(program_cache, "AT_MOST", 100)
    hand_on_programs()
    assert [path.name.split(".")[0] for path in kept(cache)] == ["new", "old"]


def test_directories_of_killed_processes_are_removed_after_a_day(cache, monkeypatch):
    use_kept_programs()
    abandoned, busy = (own().parent / name for name in ("abandoned", "busy"))
    for path in (abandoned, busy):
        path.mkdir()
    os.utime(abandoned, (time.time() - program_cache.ABANDONED - 1,) * 2)
    monkeypatch.setattr(program_cache, "_own", None)
    monkeypatch.setenv("TF_XLA_FLAGS", "")
    use_kept_programs()
    assert busy.is_dir() and not abandoned.exists()


@pytest.mark.parametrize("reason", ["switched off", "the user's own directory", "a full disk", "a file in the way"])
def test_without_a_place_for_programs_every_start_compiles(cache, monkeypatch, reason):
    if reason == "switched off":
        monkeypatch.setenv(program_cache.SWITCH, "0")
    elif reason == "the user's own directory":
        monkeypatch.setenv("TF_XLA_FLAGS", f"{FLAG}{cache}")
    elif reason == "a full disk":
        usage = namedtuple("usage", "free")(program_cache.FREE - 1)
        monkeypatch.setattr(program_cache.shutil, "disk_usage", lambda path: usage)
    else:
        (cache / "programs").write_text("")
    before = os.environ["TF_XLA_FLAGS"]
    use_kept_programs()
    hand_on_programs()
    assert os.environ["TF_XLA_FLAGS"] == before and not kept(cache)


PROGRAM = """
from caps_tf.startup import start_keras
start_keras()
import tensorflow as tf
route = tf.function(lambda votes: tf.nn.softmax(votes @ votes), jit_compile=True)
print(route(tf.eye(3)).numpy().tolist())
"""


def test_a_second_start_reads_what_the_first_one_compiled(tmp_path):
    environment = {"CAPS_TF_CACHE": str(tmp_path)}
    run_script("-c", PROGRAM, environment=environment)
    [path] = kept(tmp_path)
    assert list(path.parent.iterdir()) == [path]  # the process's own directory is gone
    path.unlink()  # whole by its digest and yet no program: a start that it stops has read it
    nothing = f"{program_cache._program_name(path)[:-3]}.{program_cache._digest(b'nothing')}.pb"
    path.with_name(nothing).write_bytes(b"nothing")
    assert run_script("-c", PROGRAM, environment=environment, check=False).returncode == 1


@pytest.mark.campaign
def test_a_run_whose_program_was_kept_learns_the_same_bit_for_bit(storage, tmp_path):
    options = {"environment": {"CAPS_TF_CACHE": str(tmp_path)}}
    first, second = (train(storage, name, "--epoch=1", "--jit_compile=on", **options) for name in ("first", "second"))
    assert len(kept(tmp_path)) == 2  # of a training step and of validation, from either start
    assert_same_weights(weights(second), weights(first))
