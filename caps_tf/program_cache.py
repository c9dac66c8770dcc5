"""Programs that XLA has compiled, kept on disk, so that the second start of a network need not compile it again.

TensorFlow itself can keep them, in a directory that a variable names, but takes a step down with it when a file there is
damaged, and never removes one. So each process gets a directory of its own, which begins with links to the programs that
are known to be whole, and what it compiles is copied to where the next one finds it.
"""

import atexit
import contextlib
import hashlib
import os
import platform
import resource
import shutil
import stat
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from caps_tf.errors import UserError
from caps_tf.files import check_space, write_atomically
from caps_tf.weights.fetching import cache_directory

SWITCH = "CAPS_TF_KEEP_PROGRAMS"
"""The variable that, set to 0, has every start compile anew."""
LARGEST = 32 * 2**20
"""Bytes of the largest program that is kept."""
AT_MOST = 128 * 2**20
"""Bytes of all programs that are kept; the oldest go first."""
FREE = 2**30
"""Bytes of disk below which nothing is kept: TensorFlow would fail if its file did not fit."""
ABANDONED = 24 * 3600
"""Seconds after which what a process that was killed left is removed; TensorFlow makes its directory anew if it was not."""
FORGOTTEN = 60 * 24 * 3600
"""Seconds after which the programs of another TensorFlow or kind of machine go."""

_PROGRAMS = f"{os.sep}programs{os.sep}tensorflow-"
"""In the path of a directory with programs: what its TensorFlow and kind of machine follow."""
_DIRECTORY_FLAG = "--tf_xla_persistent_cache_directory="
_DIGEST = 16
_NOT_KEPT = (OSError, RuntimeError, UserError)  # no home is a RuntimeError
_own: Path | None = None


def use_kept_programs() -> None:
    """Has TensorFlow take compiled programs from disk, and keep what it compiles; before XLA runs for the first time.

    Sets TF_XLA_FLAGS, and leaves alone what already stands there. Does nothing with another backend, where the disk
    is full, where the directory is not this user's alone, or where `CAPS_TF_KEEP_PROGRAMS` is 0: then every start
    compiles. Called again, it hands on what was compiled meanwhile and takes what others did.
    """
    global _own
    flags = _flags_of_others()
    if os.environ.get(SWITCH) == "0" or os.environ.get("KERAS_BACKEND", "tensorflow") != "tensorflow" or flags is None:
        return
    with contextlib.suppress(*_NOT_KEPT):
        if _own is None:
            shared = _make_shared_directory()
            _remove_abandoned(shared)
            _own = Path(tempfile.mkdtemp(prefix=f"{platform.node()}-{os.getpid()}-", dir=shared))
            atexit.register(_leave, _own, os.getpid())
        hand_on_programs()
        _take_whole_programs(_own.parent, _own)
    if _own:
        ours = [f"{_DIRECTORY_FLAG}{_own}", "--tf_xla_persistent_cache_device_types=CPU"]
        os.environ["TF_XLA_FLAGS"] = " ".join([*flags, *ours])


def hand_on_programs() -> None:
    """Copies what this process has compiled to where the next one finds it. Where that fails, the next one compiles."""
    if _own is None:
        return
    with contextlib.suppress(*_NOT_KEPT):
        shared = _own.parent
        kept = {_program_name(path) for path in shared.glob("*.pb")}
        for path in _own.glob("*.pb"):
            if path.name not in kept and path.stat().st_size <= LARGEST:
                program = path.read_bytes()
                write_atomically(shared / f"{path.stem}.{_digest(program)}.pb", program)
        _forget_oldest(shared)


def _flags_of_others() -> list[str] | None:
    """What TF_XLA_FLAGS holds beside the flags of this module, which a process inherits; None where it is the user's
    own cache, or the name of a file of flags."""
    flags = os.environ.get("TF_XLA_FLAGS", "").split()
    if any(flag.startswith(_DIRECTORY_FLAG) and _PROGRAMS in flag for flag in flags):
        flags = [flag for flag in flags if "persistent_cache" not in flag]
    return None if any("persistent_cache" in flag or not flag.startswith("-") for flag in flags) else flags


def _make_shared_directory() -> Path:
    """Where programs are that this kind of machine can run: they hold instructions that not every CPU has.

    Raises:
        UserError: if nothing can be kept there.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    kind = repr((platform.machine(), _instructions(), cores, os.environ.get("XLA_FLAGS", "")))
    try:
        tensorflow = version("tensorflow")
    except PackageNotFoundError as error:
        raise UserError("a build of another name does not say which TensorFlow it is") from error
    shared = Path(f"{cache_directory()}{_PROGRAMS}{tensorflow}-{_digest(kind.encode())}")
    if len(str(shared).split()) > 1 or any(mark in str(shared) for mark in "'\"\\"):
        raise UserError("TensorFlow would read such a path as several flags")
    shared.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = shared.stat()
    if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o022:  # programs are run
        raise UserError("others may write there")
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit != resource.RLIM_INFINITY and limit < FREE:
        raise UserError("files may not be large enough")
    check_space(shared, FREE)
    if hasattr(os, "posix_fallocate"):
        with tempfile.TemporaryFile(dir=shared) as file:  # quotas are not part of what is free
            os.posix_fallocate(file.fileno(), 0, LARGEST)
    os.utime(shared)
    return shared


def _instructions() -> str:
    if sys.platform != "linux":
        return platform.processor()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(line for line in lines if line.startswith(("flags", "Features")))


def _take_whole_programs(shared: Path, own: Path) -> None:
    """Links programs, which costs no space, or copies them where there are no links; a damaged one is removed."""
    own.mkdir(exist_ok=True)
    for path in shared.glob("*.pb"):
        taken = own / _program_name(path)
        with contextlib.suppress(OSError):
            if taken.exists():
                continue
            program = path.read_bytes()
            if path.name.split(".")[-2] != _digest(program):
                path.unlink(missing_ok=True)
                continue
            try:
                os.link(path, taken)
            except OSError:
                write_atomically(taken, program)


def _forget_oldest(shared: Path) -> None:
    size = 0
    found = [(path.stat().st_mtime, path.stat().st_size, path) for path in shared.glob("*.pb")]
    for _, bytes_, path in sorted(found, reverse=True):
        size += bytes_
        if size > AT_MOST:
            path.unlink(missing_ok=True)


def _remove_abandoned(shared: Path) -> None:
    now = time.time()
    for path in shared.iterdir():
        if now - path.stat().st_mtime > ABANDONED:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.suffix == ".tmp":
                path.unlink(missing_ok=True)
    for path in shared.parent.iterdir():
        if now - path.stat().st_mtime > FORGOTTEN:
            shutil.rmtree(path, ignore_errors=True)


def _leave(own: Path, process: int) -> None:
    if os.getpid() == process:  # not a fork of it
        hand_on_programs()
        shutil.rmtree(own, ignore_errors=True)


def _program_name(path: Path) -> str:
    """What TensorFlow calls a program whose kept file carries its digest too."""
    return f"{path.name.rsplit('.', 2)[0]}.pb"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_DIGEST]
