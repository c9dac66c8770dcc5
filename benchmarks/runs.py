"""Trains a network by train_val.py and tests it by test.py, each a process of its own, as users do."""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.process import ROOT, describe_commit, describe_machine
from benchmarks.results import Result

MEASURED = ("caps_tf", "train_val.py", "test.py")


class Script(NamedTuple):
    """What a script that ended well leaves.

    Attributes:
        output: what it printed as its result.
        peak_mib: the most MiB that it held at a time.
        seconds: that it took.
        processor_seconds: that processors worked for it and its processes.
    """

    output: str
    peak_mib: float
    seconds: float
    processor_seconds: float


class Trained(NamedTuple):
    """A run that was trained and tested.

    Attributes:
        directory: of the run.
        figures: sizes and accuracies of its test, see `figures`.
        peak_mib: the most MiB that training held at a time.
        seconds: that training took, start and validation with it.
    """

    directory: Path
    figures: Result
    peak_mib: float
    seconds: float


def run_script(name: str, *flags: str) -> Script:
    """Runs a script. What it says while it runs stays visible.

    Raises:
        subprocess.CalledProcessError: if it fails.
    """
    command, start = [sys.executable, str(ROOT / name), *flags], time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            output = process.stdout.read()
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            raise
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    peak = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return Script(output, peak, time.monotonic() - start, usage.ru_utime + usage.ru_stime)


def train_and_test(*flags: str) -> Trained:
    """Trains a network, and tests its last checkpoint.

    Args:
        *flags: of train_val.py.

    Raises:
        subprocess.CalledProcessError: if a script fails.
    """
    training = run_script("train_val.py", *flags)
    directory = Path(re.search(r"^trained: (.*)$", training.output, re.MULTILINE)[1])
    run_script("test.py", f"--load_dir={directory}")
    [path] = (directory / "test").glob("*/report.json")
    found = figures(json.loads(path.read_text(encoding="utf-8")))
    return Trained(directory, found, training.peak_mib, training.seconds)


def figures(report: dict[str, Any]) -> Result:
    """What a report of test.py says of sizes and accuracies; without novel viewpoints or images all are familiar."""
    parts, details = report["parts"], report["details"]
    familiar, novel = parts.get("familiar") or parts["test"], parts.get("novel", {})
    found = {
        "train_images": details["training_examples"],
        "test_images": familiar["num_examples"],
        "novel_images": novel.get("num_examples", ""),
        "parameters": details["parameters"],
        "steps": details["step"],
        "familiar": familiar["accuracy"],
        "novel": novel.get("accuracy", ""),
    }
    return {name: str(value) for name, value in found.items()}


def places(arguments: argparse.Namespace) -> list[str]:
    """The flags that say where the data are, as far as they were given."""
    given = {name: getattr(arguments, name) for name in ("dataset", "data_dir", "storage")}
    return [f"--{name}={value}" for name, value in given.items() if value]


def origin() -> Result:
    """Where and when something is measured, and of which commit."""
    today = datetime.now(UTC).strftime("%Y-%m-%d")
    return {"machine": describe_machine()["machine"], "commit": describe_commit(*MEASURED), "date": today}
