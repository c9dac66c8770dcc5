"""Rows for what feeds training: the renderer, the converter and the input pipeline, on rendered toys.

Rendered sets stay in build/benchmarks, so that only the first row that needs one renders it.
"""

import os
import tempfile
import time
from pathlib import Path

from benchmarks.process import ROOT, peak_mib
from benchmarks.rows import Row
from benchmarks.runs import Script, run_script

WORK = ROOT / "build" / "benchmarks"
REDUCED = ("--elevations=3", "--azimuths=6", "--lightings=2")  # 2 x 900 pairs of 2 x 24,300
SECONDS_OF_WARMING = 4.0
SECONDS_OF_INPUT = 6.0
STEPS_OF_TRAINING = 20


def measure_data(row: Row, settings) -> dict[str, object]:
    """Figures of a row; `per_second` counts images for scripts, and examples (images or pairs) for the pipeline."""
    if row.kind == "render":
        return _render(settings.full)
    if row.kind == "convert":
        return _convert(row.options["encoding"], settings.full)
    if row.kind == "input":
        return _input(row, settings.full)
    return _wait(row, settings)


def _render(full: bool) -> dict[str, object]:
    WORK.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=WORK) as directory:
        script = run_script("data/render_norb.py", f"--data_dir={directory}", *(() if full else REDUCED))
        return _finish(script, read=0, written=_bytes_of(Path(directory)), images=_images(full))


def _convert(encoding: str, full: bool) -> dict[str, object]:
    directory = _rendered(encoding, full)
    read = sum(path.stat().st_size for path in directory.glob("*.mat"))
    flags = f"--data_dir={directory}", f"--encoding={encoding}", "--dataset=renderedNORB", "--overwrite"
    script = run_script("data/convert_to_tfrecord.py", *flags)
    return _finish(script, read=read, written=_bytes_of(directory / "tfrecord"), images=_images(full))


def _input(row: Row, full: bool) -> dict[str, object]:
    from caps_tf.training.data import make_training_data

    encoding = row.options["encoding"]
    # One epoch over and over: a rendered set's epochs are so short that setting up each of them would count.
    data = iter(make_training_data(_config(row, full)).training(0, 0).repeat())
    _read_for(SECONDS_OF_WARMING, data)  # fills the page cache and settles on a number of threads
    start = os.times()
    seconds, batches = _read_for(SECONDS_OF_INPUT, data)
    used = sum(os.times()[:2]) - sum(start[:2])
    return {
        "batch": row.batch,
        "seconds": round(seconds / batches, 5),
        "steps": batches,
        "per_second": round(batches * row.batch / seconds, 1),
        "peak_mib": round(peak_mib(), 1),
        "megabytes_read": round(_bytes_of(_rendered(encoding, full) / "tfrecord") / 2 / 1e6, 1),
        "cores_used": round(used / seconds, 2),
    }


def _wait(row: Row, settings) -> dict[str, object]:
    """Trains, and returns the share of the time spent waiting for a batch."""
    from benchmarks.networks import NETWORKS
    from benchmarks.steps import make_step
    from caps_tf.training.data import make_training_data

    row = Row(row.name, row.title, row.kind, options={"encoding": "png"}, batch=row.batch)
    data = make_training_data(_config(row, settings.full))
    network = NETWORKS["matrix_capsules"](iterations=1, dtype=settings.precision)
    step = make_step(network, "step", row.batch, settings.precision, settings.jit_compile)
    waited = total = 0.0
    batches = iter(data.training(0, 0).repeat())
    for number in range(STEPS_OF_TRAINING + 2):
        start = time.perf_counter()
        batch = next(batches)
        there = time.perf_counter()
        step(batch)
        if number >= 2:  # the first compiles, and the second finds more batches waiting than training ever leaves
            waited, total = waited + there - start, total + time.perf_counter() - start
    return {
        "batch": row.batch,
        "seconds": round(total / STEPS_OF_TRAINING, 5),
        "steps": STEPS_OF_TRAINING,
        "per_second": round(STEPS_OF_TRAINING * row.batch / total, 1),
        "peak_mib": round(peak_mib(), 1),
        "remark": f"{waited / total:.2%} of the time waited",
    }


def _config(row: Row, full: bool):
    """The published regimes of Hinton et al. and of Heinsen."""
    from caps_tf.training.config import RunConfig

    directory = str(converted(row.options["encoding"], full))
    options = {"dataset": "renderedNORB", "data_dir": directory, "batch_size": row.batch, "val_prop": 0.0}
    if row.options.get("pairs"):
        options |= {"network": "heinsen_norb", "views": "stereo", "image_size": "96", "pad": 16, "augment": "crop"}
        options |= {"mixup": 0.2}
    return RunConfig(**options)


def _read_for(seconds: float, data) -> tuple[float, int]:
    """Seconds, and batches read in them."""
    start, batches = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        next(data)
        batches += 1
    return time.perf_counter() - start, batches


def _rendered(encoding: str, full: bool) -> Path:
    """A directory of its own for each encoding, with the same rendered files."""
    size = "full" if full else "reduced"
    source, directory = WORK / size, WORK / f"{size}_{encoding}"
    if not list(directory.glob("*.mat")):
        run_script("data/render_norb.py", f"--data_dir={source}", *(() if full else REDUCED))
        directory.mkdir(parents=True, exist_ok=True)
        for path in source.glob("*.mat"):
            os.link(path, directory / path.name)
    return directory


def converted(encoding: str, full: bool = False) -> Path:
    """A directory of rendered toys and their records, made unless it is there."""
    directory = _rendered(encoding, full)
    if not (directory / "tfrecord" / "dataset_info.json").exists():
        flags = f"--data_dir={directory}", f"--encoding={encoding}", "--dataset=renderedNORB"
        run_script("data/convert_to_tfrecord.py", *flags)
    return directory


def _finish(script: Script, read: int, written: int, images: int) -> dict[str, object]:
    disk, cores = _disk_speed(), script.processor_seconds / script.seconds
    share = written / script.seconds / disk
    return {
        "seconds": round(script.seconds, 2),
        "per_second": round(images / script.seconds, 1),
        "peak_mib": round(script.peak_mib, 1),
        "megabytes_read": round(read / 1e6, 1),
        "megabytes_written": round(written / 1e6, 1),
        "cores_used": round(cores, 2),
        "remark": f"{cores / (os.cpu_count() or 1):.0%} of the cores, {share:.0%} of the disk's {disk / 1e6:.0f} MB/s; "
        f"{images} images",
    }


def _disk_speed(megabytes: int = 256) -> float:
    """Bytes a second of one sequential write, until they are on the disk."""
    block = os.urandom(2**20)
    with tempfile.TemporaryFile(dir=WORK) as file:
        start = time.perf_counter()
        for _ in range(megabytes):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        return megabytes * 2**20 / (time.perf_counter() - start)


def _images(full: bool) -> int:
    """Of two splits of stereo pairs."""
    return 2 * 2 * (24300 if full else 900)


def _bytes_of(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())
