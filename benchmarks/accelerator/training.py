"""Accuracy in the time that is left: CIFAR-10, and rendered NORB over viewpoint, by the script for any backend."""

import functools
import importlib.util
import os
import shutil
import sys
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.accelerator.frame import OUT_OF_TIME, Deadline, Log, Part
from benchmarks.accelerator.processes import Process
from benchmarks.accelerator.tiny import write_image_folder, write_norb
from caps_tf.data.norb_format import AZIMUTHS, CATEGORIES, ELEVATIONS, LIGHTINGS, find_files
from caps_tf.errors import UserError

SCRIPT = "examples/train_any_backend.py"
CIFAR10 = "tsai2020_cifar10"
CIFAR10_FLAGS = ("--schedule=one_cycle", "--precision=mixed_bfloat16")
"""Beside the published configuration: one cycle, which the script scales to the time, instead of 350 epochs in steps."""
NORB = ("norb_em", "norb_attention", "norb_cnn", "norb_heinsen")
NORB_FLAGS = ("--epoch=12",)
"""The presets' own number of epochs, at the most: with it their published figures were measured."""
VIEWPOINTS = ("azimuth", "elevation")
LEAST_SECONDS = 40.0
"""Of a training run: what is shared out among fewer runs is worth more than starting and compiling."""
RESERVED, LEAST_RESERVED = 0.2, 10.0
"""Share of a run's time, and seconds at least, for the test at its end, which compiles once more."""

IMAGE_SECONDS = 0.006
"""Of one core, for one rendered image, on the safe side."""
RENDERING_FLAGS = ("--overwrite",)
"""Of the renderer, beside directory and lightings."""
RENDERING_SHARE = 0.35
"""Of the part's time, at most, as far as that can be foretold."""

_TINY = ("--batch_size=8", "--epoch=1", "--resize=0", "--jit_compile=off")
_TINY_CONVOLUTIONS = ("--convolutions=4k5s2,8s2", "--capsules=2")
TINY_CIFAR10 = ("--preset=small_attention", *_TINY, *_TINY_CONVOLUTIONS, "--image_size=0")
TINY_NORB = {"norb_cnn": (*_TINY, "--image_size=17")}


def check_data(cifar10: Path | None, norb: Path | None) -> None:
    """Refuses data that are not there, before anything is measured.

    Raises:
        UserError: naming what is missing.
    """
    if cifar10 is not None:
        if cifar10.is_file():
            if not zipfile.is_zipfile(cifar10):
                raise UserError(f"{cifar10}: not a .zip: give an image folder, or a .zip of one")
        elif not cifar10.is_dir():
            raise UserError(f"{cifar10}: no such file or directory: give --cifar10 an image folder, or a .zip of one")
        else:
            find_image_folder(cifar10)
    if norb is not None:
        for split in ("training", "testing"):
            find_files(norb, split)


def find_image_folder(directory: Path) -> Path:
    """The directory, or the one within it, that holds train and test.

    Raises:
        UserError: there is none.
    """
    for path in (directory, *sorted(path for path in directory.iterdir() if path.is_dir())):
        if (path / "train").is_dir() and (path / "test").is_dir():
            return path.resolve()
    raise UserError(f"{directory}: holds no folders train and test: expected train/<class>/* and test/<class>/*")


def make_parts(cifar10: Path | None, norb: Path | None, work: Path, tiny: bool) -> list[Part]:
    """The parts "cifar10" and "norb".

    Args:
        cifar10: image folder or .zip.
        norb: directory of .mat files; None to render them.
        work: directory for data and runs.
        tiny: on data made on the spot, with tiny networks.
    """
    if tiny:
        return [
            Part("cifar10", functools.partial(_run_tiny_cifar10, work=work)),
            Part("norb", functools.partial(_run_tiny_norb, work=work)),
        ]
    no_cifar10 = "" if cifar10 else "no --cifar10 was given"
    lacking = [name for name in ("trimesh", "embreex", "scipy") if importlib.util.find_spec(name) is None]
    no_norb = "" if norb or not lacking else f"no --norb was given, and rendering needs {' and '.join(lacking)}"
    return [
        Part("cifar10", functools.partial(_run_cifar10, source=cifar10, work=work), no_cifar10),
        Part("norb", functools.partial(_run_norb, source=norb, work=work), no_norb),
    ]


def _run_cifar10(deadline: Deadline, log: Log, source: Path, work: Path) -> None:
    if source.is_file():
        start, directory = time.monotonic(), work / "cifar10_images"
        shutil.rmtree(directory, ignore_errors=True)
        with zipfile.ZipFile(source) as file:
            file.extractall(directory)
        log.write("cifar10", name="unpacking", seconds=round(time.monotonic() - start, 1))
        source = directory
    flags = (f"--preset={CIFAR10}", f"--data={find_image_folder(source)}", *CIFAR10_FLAGS)
    train("cifar10", {"name": CIFAR10}, flags, deadline, log, work / "cifar10")


def _run_tiny_cifar10(deadline: Deadline, log: Log, work: Path) -> None:
    data = write_image_folder(work / "tiny_images")
    train("cifar10", {"name": "tiny"}, (*TINY_CIFAR10, f"--data={data}"), deadline, log, work / "cifar10")


def _run_norb(deadline: Deadline, log: Log, source: Path | None, work: Path) -> None:
    source = source.resolve() if source else render(deadline, log, work)
    runs = [(preset, viewpoints) for viewpoints in VIEWPOINTS for preset in NORB]
    train_presets(runs, dict.fromkeys(NORB, NORB_FLAGS), source, deadline, log, work / "norb")


def _run_tiny_norb(deadline: Deadline, log: Log, work: Path) -> None:
    data = write_norb(work / "tiny_norb")
    train_presets([(preset, "azimuth") for preset in TINY_NORB], TINY_NORB, data, deadline, log, work / "norb", 1.0)


def render(deadline: Deadline, log: Log, work: Path) -> Path:
    """Renders NORB on all cores, with as many lightings as the time suffices for; returns the directory.

    Raises:
        UserError: if it was not done in time, or failed.
    """
    cores, images = os.cpu_count() or 1, 2 * 10 * len(CATEGORIES) * len(ELEVATIONS) * len(AZIMUTHS)
    affordable = RENDERING_SHARE * deadline.remaining() * cores / (images * IMAGE_SECONDS)
    lightings = max(1, min(len(LIGHTINGS), int(affordable)))
    start, directory = time.monotonic(), work / "renderedNORB"
    command = [sys.executable, "data/render_norb.py", f"--data_dir={directory}", f"--lightings={lightings}"]
    process = Process([*command, *RENDERING_FLAGS], work / "rendering.txt")
    for _ in process.results(deadline.remaining()):
        pass
    if process.failure:
        raise UserError(f"rendering: {process.failure}")
    seconds = round(time.monotonic() - start, 1)
    log.write("norb", name="rendering", seconds=seconds, lightings=lightings, cores=cores)
    return directory


def train_presets(
    runs: Sequence[tuple[str, str]],
    flags: Mapping[str, Sequence[str]],
    data: Path,
    deadline: Deadline,
    log: Log,
    work: Path,
    least_seconds: float = LEAST_SECONDS,
) -> None:
    """Trains presets on familiar viewpoints, one after the other, and tests them on familiar and novel ones.

    Args:
        runs: preset and viewpoints of each, in order of worth; the time is shared out among as many of the first as can
            have `least_seconds`.
        flags: more of them, by preset.
        data: directory of .mat files.
        deadline: of all runs.
        log: takes the lines.
        work: directory for the runs.
        least_seconds: see `runs`.
    """
    for number, (preset, viewpoints) in enumerate(runs):
        common = {"name": preset, "viewpoints": viewpoints}
        if deadline.remaining() < least_seconds:
            log.write("norb", **common, skipped=OUT_OF_TIME)
            continue
        sharers = min(len(runs) - number, int(deadline.remaining() / least_seconds))
        one = deadline.within(deadline.remaining() / sharers)
        given = (f"--preset={preset}", f"--data={data}", f"--viewpoints={viewpoints}", *flags.get(preset, ()))
        train("norb", common, given, one, log, work / f"{preset}_{viewpoints}")


def train(
    part: str, common: Mapping[str, Any], flags: Sequence[str], deadline: Deadline, log: Log, directory: Path
) -> None:
    """Runs the training script until the deadline; each of its lines becomes one of the log, and so does a failure.

    Args:
        part: of the benchmark.
        common: what each line says.
        flags: of the script, but for the time and the directory.
        deadline: of training and test.
        log: takes the lines.
        directory: of the run, emptied before.
    """
    shutil.rmtree(directory, ignore_errors=True)
    seconds = deadline.remaining()
    minutes = (seconds - max(LEAST_RESERVED, RESERVED * seconds)) / 60
    if minutes <= 0:
        log.write(part, **common, skipped=OUT_OF_TIME)
        return
    command = [sys.executable, SCRIPT, *flags, f"--output={directory}", f"--minutes={minutes:.4f}"]
    # The same network on other viewpoints is compiled once.
    environment = {"JAX_COMPILATION_CACHE_DIR": str(directory.parent / "compiled")}
    process = Process(command, directory.parent / f"{directory.name}.txt", environment)
    for figures in process.results(seconds):
        log.write(part, **{**figures, **common})
    if process.failure:
        log.write(part, **common, failed=process.failure)
