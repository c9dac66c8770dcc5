"""Renders the six NORB files: every toy of `toys`, photographed by `renderer`, written by `norb_format`.

A task is one instance number of all categories at one azimuth: its toys are built once a process, its ground shadows
once a task. Nothing depends on which process does it, so the bytes are the same for any number of processes.
"""

import functools
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from caps_tf.data import norb_format, norb_matrix
from caps_tf.data.processes import IN_USE, explained, process_map
from caps_tf.errors import UserError
from caps_tf.files import check_space, locked
from caps_tf.progress import Progress
from caps_tf.rendering import renderer, toys

NAME = "renderednorb"
_MANIFEST = "rendering.json"
_VERSION = 1  # of the pictures: raise it when a change to toys or renderer changes them

# What users write (degrees, or the number of a lighting) -> the units of the info file.
_AXES = {
    "elevations": {30 + 5 * value: value for value in norb_format.ELEVATIONS},
    "azimuths": {10 * value: value for value in norb_format.AZIMUTHS},
    "lightings": {value: value for value in norb_format.LIGHTINGS},
}

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Grid:
    """Which views of which toys, in the units of the info file (see `norb_format`). The default is all of NORB.

    Attributes:
        instances_per_split: the first so many of each split's five instances.
        elevations, azimuths, lightings: the values, ascending.
        image_size: pixels; pictures are square.

    Example:
        >>> Grid(elevations=(0, 8), lightings=(0,)).pairs_per_split
        900
    """

    instances_per_split: int = 5
    elevations: tuple[int, ...] = norb_format.ELEVATIONS
    azimuths: tuple[int, ...] = norb_format.AZIMUTHS
    lightings: tuple[int, ...] = norb_format.LIGHTINGS
    image_size: int = 96

    def instances(self, split: str) -> tuple[int, ...]:
        """The instances of the split "training" or "testing"."""
        every = {"training": norb_format.TRAIN_INSTANCES, "testing": norb_format.TEST_INSTANCES}[split]
        return every[: self.instances_per_split]

    @property
    def pairs_per_split(self) -> int:
        """The number of stereo pairs in each of the two splits."""
        views = len(self.elevations) * len(self.azimuths) * len(self.lightings)
        return self.instances_per_split * views * len(norb_format.CATEGORIES)

    def paths(self, directory: PathLike, split: str) -> dict[str, Path]:
        """The three files of a split, under the keys "dat", "cat" and "info"."""
        prefix = norb_format.split_prefix(
            NAME, self.instances(split), self.elevations, self.azimuths, self.lightings, self.image_size
        )
        return {kind: Path(directory, f"{prefix}-{split}-{kind}.mat") for kind in ("dat", "cat", "info")}


def choose(axis: str, text: str) -> tuple[int, ...]:
    """Reads which values of one axis a user wants.

    One number is a count, spread evenly: azimuths around the circle, the others from the first value to the last.
    Several numbers with commas are the values themselves; a lone one needs a comma too ("40,").

    Args:
        axis: "elevations" (degrees 30 to 70), "azimuths" (degrees 0 to 340) or "lightings" (0 to 5).
        text: what the user wrote.

    Returns:
        Values in the units of the info file, ascending.

    Raises:
        UserError: not numbers, too many, unknown values, or one twice.

    Example:
        >>> choose("azimuths", "3"), choose("elevations", "3"), choose("azimuths", "340,0,20")
        ((0, 12, 24), (0, 4, 8), (0, 2, 34))
    """
    known = _AXES[axis]
    try:
        numbers = [int(number) for number in text.split(",") if number.strip()]
    except ValueError:
        raise UserError(f"`{axis}`={text}: needs whole numbers, one or several with commas") from None
    if "," in text or not numbers:
        if not numbers or len(set(numbers)) < len(numbers) or not set(numbers) <= set(known):
            raise UserError(f"`{axis}`={text}: choose, each once, from {', '.join(map(str, known))}")
        return tuple(sorted(known[number] for number in numbers))
    count, values = numbers[0], tuple(known.values())
    if not 1 <= count <= len(values):
        raise UserError(
            f"`{axis}`={text}: one number is a count, 1 to {len(values)}; for the value {count} write '{count},'"
        )
    if axis == "azimuths":
        return tuple(values[i * len(values) // count] for i in range(count))
    return tuple(values[round(i * (len(values) - 1) / max(count - 1, 1))] for i in range(count))


def render_set(
    directory: PathLike,
    grid: Grid = Grid(),
    *,
    seed: int = 0,
    num_processes: int | None = None,
    overwrite: bool = False,
) -> int:
    """Renders the training and testing files of a grid into a directory.

    A run after a success does nothing; a run after a kill does the split again that was not finished. Rows run as in
    the official testing files: instance, elevation, azimuth, lighting, and the category fastest.

    Args:
        directory: where the six files go; created if missing.
        grid: which views.
        seed: of the shapes of the toys.
        num_processes: all cores by default.
        overwrite: render again in any case, also over a rendering with other parameters.

    Returns:
        The number of stereo pairs rendered: 0 if everything was there.

    Raises:
        UserError: the directory holds something else, is in use or cannot be written; the disk is too small; a
            process was killed.

    Example:
        >>> import tempfile
        >>> grid = Grid(instances_per_split=1, elevations=(0,), azimuths=(0,), lightings=(0,), image_size=16)
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     render_set(directory, grid, num_processes=1)
        ...     norb_format.read_split(directory, "testing").images.shape
        10
        (5, 2, 16, 16)
    """
    directory = Path(directory)
    with explained(directory), locked(directory, IN_USE):
        _prepare(directory, grid, seed, overwrite)
        missing = [
            split
            for split in ("training", "testing")
            if not all(path.exists() for path in grid.paths(directory, split).values())
        ]
        check_space(directory, len(missing) * grid.pairs_per_split * (2 * grid.image_size**2 + 20))
        if missing:
            _render(directory, grid, missing, seed, num_processes or os.cpu_count() or 1)
        return len(missing) * grid.pairs_per_split


def _prepare(directory: Path, grid: Grid, seed: int, overwrite: bool) -> None:
    """Checks what the directory holds against what is wanted, and removes what must go."""
    manifest = directory / _MANIFEST
    text = json.dumps({"version": _VERSION, "seed": seed, **asdict(grid)}, indent=1)
    # Files get their names only when they are whole; a name that ends in .tmp is what a kill left behind.
    whole, torn = sorted(directory.glob("*.mat")) + sorted(directory.glob("*.mat.gz")), directory.glob("*.mat.tmp")
    ours = manifest.exists()
    same = ours and manifest.read_text() == text
    if whole and not ours:
        raise UserError(f"{directory}: holds {whole[0].name}, which was not rendered: choose another `data_dir`")
    if whole and not same and not overwrite:
        raise UserError(
            f"{directory}: holds another rendering (see {_MANIFEST}): give `overwrite` to replace it, "
            "or another `data_dir`"
        )
    for path in [*torn, *(whole if overwrite else [])]:
        path.unlink()
    temporary = manifest.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(manifest)


def _render(directory: Path, grid: Grid, splits: list[str], seed: int, num_processes: int) -> None:
    with (
        process_map(num_processes) as map_in_order,
        Progress(len(splits) * grid.pairs_per_split, "pairs", "rendering") as progress,
    ):
        for split in splits:
            paths, instances = grid.paths(directory, split), grid.instances(split)
            category, info = norb_format.grid_info(instances, grid.elevations, grid.azimuths, grid.lightings)
            tasks = [(instance, azimuth) for instance in instances for azimuth in grid.azimuths]
            blocks = map_in_order(functools.partial(_block, grid, seed), tasks)
            shape = (grid.pairs_per_split, 2, grid.image_size, grid.image_size)
            with norb_matrix.MatrixWriter(paths["dat"], shape, np.uint8) as writer:
                for (instance, azimuth), block in zip(tasks, blocks):
                    for elevation, rows in zip(grid.elevations, block):
                        key = (info[:, :3] == (instance, elevation, azimuth)).all(axis=1)
                        writer.write(int(key.argmax()), rows)
                        progress.update(len(rows))
            norb_matrix.write_matrix(paths["cat"], category)
            norb_matrix.write_matrix(paths["info"], info)


def _block(grid: Grid, seed: int, task: tuple[int, int]) -> np.ndarray:
    """Pairs uint8 [elevations, lightings x categories, 2, size, size] of one instance and azimuth."""
    instance, azimuth = task
    views = [
        _studio(category, instance, seed).photograph(
            10.0 * azimuth, [30.0 + 5 * elevation for elevation in grid.elevations], grid.lightings, grid.image_size
        )
        for category in range(len(norb_format.CATEGORIES))
    ]
    block = np.stack(views, axis=2)
    return block.reshape(len(block), -1, *block.shape[3:])


@functools.lru_cache(len(norb_format.CATEGORIES))
def _studio(category: int, instance: int, seed: int) -> renderer.Studio:
    return renderer.Studio(toys.make_toy(category, instance, seed))
