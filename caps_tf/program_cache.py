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
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from caps_tf.errors import UserError
from caps_tf.files import write_atomically
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
"""Seconds after which the directory of a process that was killed is removed; TensorFlow makes it anew if it was not."""

_DIGEST = 16
_own: Path | None = None


def use_kept_programs() -> None:
    """Has TensorFlow take compiled programs from disk, and keep what it compiles; before XLA runs for the first time.

    Sets TF_XLA_FLAGS, and leaves alone what already stands there. Does nothing where the disk is full or may not be
    written, or where `CAPS_TF_KEEP_PROGRAMS` is 0: then every start compiles. Called again, it hands on what was
    compiled meanwhile and takes what others did.
    """
    global _own
    flags = os.environ.get("TF_XLA_FLAGS", "")
    if os.environ.get(SWITCH) == "0" or (_own is None and "persistent_cache" in flags):
        return
    with contextlib.suppress(OSError, UserError):
        if _own is None:
            shared = _shared_directory()
            shared.mkdir(parents=True, exist_ok=True)
            if not _has_room(shared):
                return
            _remove_abandoned(shared)
            _own = Path(tempfile.mkdtemp(prefix=f"{platform.node()}-{os.getpid()}-", dir=shared))
            atexit.register(_leave, _own)
        hand_on_programs()
        _link_whole_programs(_own.parent, _own)
    if _own and str(_own) not in flags:
        options = {"directory": _own, "device_types": "CPU"}
        ours = [f"--tf_xla_persistent_cache_{name}={value}" for name, value in options.items()]
        os.environ["TF_XLA_FLAGS"] = " ".join([flags, *ours]).strip()


def hand_on_programs() -> None:
    """Copies what this process has compiled to where the next one finds it. Where that fails, the next one compiles."""
    if _own is None:
        return
    with contextlib.suppress(OSError, UserError):
        shared = _own.parent
        kept = {_program_name(path) for path in shared.glob("*.pb")}
        for path in _own.glob("*.pb"):
            if path.name not in kept and path.stat().st_size <= LARGEST and _has_room(shared):
                program = path.read_bytes()
                write_atomically(shared / f"{path.stem}.{_digest(program)}.pb", program)
        _forget_oldest(shared)


def _shared_directory() -> Path:
    """Where programs are that this kind of machine can run: they hold instructions that not every CPU has."""
    try:
        [instructions, *_] = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line[:5] == "flags"]
    except (OSError, ValueError):
        instructions = platform.processor()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    kind = repr((platform.machine(), instructions, cores, os.environ.get("XLA_FLAGS", "")))
    try:
        tensorflow = version("tensorflow")
    except PackageNotFoundError:  # a build of another name
        tensorflow = "unknown"
    return cache_directory() / "programs" / f"tensorflow-{tensorflow}-{_digest(kind.encode())}"


def _has_room(directory: Path) -> bool:
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return shutil.disk_usage(directory).free > FREE and (limit == resource.RLIM_INFINITY or limit > FREE)


def _link_whole_programs(shared: Path, own: Path) -> None:
    """Links, which cost no space; a damaged program is removed."""
    own.mkdir(exist_ok=True)
    for path in shared.glob("*.pb"):
        link = own / _program_name(path)
        if link.exists():
            continue
        if path.name.split(".")[-2] == _digest(path.read_bytes()):
            os.link(path, link)
        else:
            path.unlink(missing_ok=True)


def _forget_oldest(shared: Path) -> None:
    size = 0
    found = [(path.stat().st_mtime, path.stat().st_size, path) for path in shared.glob("*.pb")]
    for _, bytes_, path in sorted(found, reverse=True):
        size += bytes_
        if size > AT_MOST:
            path.unlink(missing_ok=True)


def _remove_abandoned(shared: Path) -> None:
    for path in shared.iterdir():
        if path.is_dir() and time.time() - path.stat().st_mtime > ABANDONED:
            shutil.rmtree(path, ignore_errors=True)


def _leave(own: Path) -> None:
    hand_on_programs()
    shutil.rmtree(own, ignore_errors=True)


def _program_name(path: Path) -> str:
    """What TensorFlow calls a program whose kept file carries its digest too."""
    return f"{path.name.rsplit('.', 2)[0]}.pb"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_DIGEST]
