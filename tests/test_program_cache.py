"""Compiled programs are kept for the next start, and one that is damaged, or a disk that is full, costs only time."""

import errno
import os
import time
from collections import namedtuple

import pytest

from caps_tf import program_cache
from caps_tf.program_cache import hand_on_programs, use_kept_programs
from tests.killing import Run
from tests.runs import assert_same_weights, train, weights
from tests.small_norb import TINY, run_script

NAME = "xla_compile_cache__1__2__XLA_CPU_JIT.pb"
PREFIX = "--tf_xla_persistent_cache_"
FLAG = f"{PREFIX}directory="


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv("CAPS_TF_CACHE", str(tmp_path))
    monkeypatch.delenv(program_cache.SWITCH, raising=False)
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    monkeypatch.setenv("TF_XLA_FLAGS", "--tf_xla_auto_jit=0")
    monkeypatch.setattr(program_cache, "_own", None)
    return tmp_path


def start_anew(monkeypatch):
    """As in a process that inherits all variables."""
    monkeypatch.setattr(program_cache, "_own", None)
    use_kept_programs()


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
    start_anew(monkeypatch)
    assert own() != first and (own() / NAME).read_bytes() == b"a program"
    (own() / NAME.replace("1", "3")).write_bytes(b"another")
    use_kept_programs()  # for the next script in one process
    assert len(kept(cache)) == 2
    assert os.environ["TF_XLA_FLAGS"].split() == ["--tf_xla_auto_jit=0", f"{FLAG}{own()}", f"{PREFIX}device_types=CPU"]


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
    start_anew(monkeypatch)
    assert busy.is_dir() and not abandoned.exists()


def test_programs_are_copied_where_there_are_no_links(cache, monkeypatch):
    use_kept_programs()
    (own() / NAME).write_bytes(b"a program")
    hand_on_programs()
    monkeypatch.setattr(os, "link", lambda *paths: (_ for _ in ()).throw(PermissionError()))
    start_anew(monkeypatch)
    assert (own() / NAME).read_bytes() == b"a program"


REASONS = ("off", "the user's own", "a file of flags", "full", "a quota", "a file in the way", "a space", "not mine")


@pytest.mark.parametrize("reason", REASONS)
def test_without_a_place_for_programs_every_start_compiles(cache, monkeypatch, reason):
    def no_room(*_):
        raise OSError(errno.EDQUOT, "")

    if reason == "off":
        monkeypatch.setenv(program_cache.SWITCH, "0")
    elif reason == "the user's own":
        monkeypatch.setenv("TF_XLA_FLAGS", f"{FLAG}{cache}")
    elif reason == "a file of flags":
        monkeypatch.setenv("TF_XLA_FLAGS", str(cache / "flags.txt"))
    elif reason == "full":
        usage = namedtuple("usage", "free")(program_cache.FREE - 1)
        monkeypatch.setattr(program_cache.shutil, "disk_usage", lambda path: usage)
    elif reason == "a quota":
        monkeypatch.setattr(os, "posix_fallocate", no_room)
    elif reason == "a file in the way":
        (cache / "programs").write_text("")
    elif reason == "a space":
        monkeypatch.setenv("CAPS_TF_CACHE", str(cache / "My Drive"))
    else:
        use_kept_programs()
        own().parent.chmod(0o777)
        monkeypatch.setattr(program_cache, "_own", None)
        monkeypatch.setenv("TF_XLA_FLAGS", "")
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
def test_a_killed_run_leaves_its_program_and_learns_the_same_with_it_bit_for_bit(storage, tmp_path, monkeypatch):
    monkeypatch.setenv("CAPS_TF_CACHE", str(tmp_path))
    flags = (*TINY, "--epoch=1", "--jit_compile=on")
    with Run(storage, "killed", *flags) as killed:
        killed.start()
        killed.kill_after_step(5)
        assert len(kept(tmp_path)) == 1
        killed.start()
        killed.end()
    assert len(kept(tmp_path)) == 2  # of a training step and of validation, from either start
    monkeypatch.setenv(program_cache.SWITCH, "0")
    whole = train(storage, "whole", *flags, start="new")
    assert_same_weights(weights(killed.directory), weights(whole))
