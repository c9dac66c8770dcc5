"""What this process, this machine and this checkout are: memory, processor, versions, commit."""

import os
import platform
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from caps_tf.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


def peak_mib(of_children: bool = False) -> float:
    """The most memory that this process, or any child that it waited for, held at a time, by getrusage."""
    peak = resource.getrusage(resource.RUSAGE_CHILDREN if of_children else resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def held_mib() -> float:
    """Memory in use now, or the peak if the system does not report it."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20
    except OSError:
        return peak_mib()


def forget_peak() -> bool:
    """Starts counting the peak anew, on Linux; returns whether that worked."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def busy_seconds() -> float | None:
    """Seconds that the processors of this machine have worked since it started; None where the system does not tell."""
    try:
        ticks = [int(number) for number in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    except (OSError, ValueError):
        return None
    user, nice, system, _idle, _waiting, interrupts, soft_interrupts, stolen = ticks
    return (user + nice + system + interrupts + soft_interrupts + stolen) / os.sysconf("SC_CLK_TCK")


def children_seconds() -> float:
    """Seconds that processors have worked for processes that this one waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def describe_commit(*paths: str) -> str:
    """Short hash of the commit, with "+" for changes on top of it; of `paths` only, and then new files count too."""
    considered = ("--", *paths) if paths else ("-uno",)
    return _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain", *considered) else "")


def describe_machine() -> dict[str, str]:
    """Processor, versions, and the commit that was measured."""
    try:
        [model, *_] = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except (OSError, ValueError):
        model = platform.processor() or platform.machine()
    packages = ("tensorflow", "jax", "torch", "keras", "numpy")
    versions = [f"python {platform.python_version()}"]
    for name in packages:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return {
        "commit": describe_commit(),
        "machine": f"{model}, {os.cpu_count()} cores",
        "versions": ", ".join(versions),
    }


def exit_code(run: Callable[[], int]) -> int:
    """Runs a command that can be given again after an interruption; what a user can mend is one line and 1."""
    # As an exception, so that the script that runs is stopped too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return run()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted: the same command goes on with the runs that are missing", file=sys.stderr)
        return 130


def _git(*arguments: str) -> str:
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""
