"""Renders an image folder of toys seen from all sides: few images of each, tested far from the viewpoints trained on.

    <directory>/train/car_03/car_03_elevation30_azimuth300_lighting0.png    the views about the front
    <directory>/test/car_03/car_03_elevation30_azimuth060_lighting0.png     all others
    <directory>/rendering.json                                              the parameters

The classes are the toys themselves, not their categories.
"""

import functools
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from caps_tf.data.norb_format import CATEGORIES
from caps_tf.data.processes import IN_USE, explained, process_map
from caps_tf.data.records import encode_png
from caps_tf.errors import UserError
from caps_tf.files import locked
from caps_tf.progress import Progress
from caps_tf.rendering import renderer, toys

MANIFEST = "rendering.json"
_VERSION = 1  # of the pictures: raise it when a change to toys or renderer changes them
_LEFT = 0

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class ToyViews:
    """Which toys, from where.

    Attributes:
        toys: how many, of the five categories in turn.
        step: degrees of azimuth from one view to the next; divides 360.
        train_within: views whose azimuth is at least -train_within and below train_within degrees train (0 is the
            front), the others test.
        image_size: pixels; pictures are square.
        elevation: of the camera, degrees, 30 to 70.
        lighting: 0 to 5.
        seed: of the shapes of the toys.

    Raises:
        UserError: a value is out of its range, or no view would be left for a split.

    Example:
        >>> views = ToyViews()
        >>> len(views.azimuths("train")), len(views.azimuths("test"))
        (24, 48)
    """

    toys: int = 20
    step: int = 5
    train_within: int = 60
    image_size: int = 96
    elevation: int = 30
    lighting: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.toys < 2:
            raise UserError(f"toys must be at least 2, not {self.toys}")
        if self.step < 1 or 360 % self.step:
            raise UserError(f"step must divide 360 degrees, as 5 and 20 do, not {self.step}")
        if not 30 <= self.elevation <= 70:
            raise UserError(f"elevation must be 30 to 70 degrees, not {self.elevation}")
        if not 0 <= self.lighting < 6:
            raise UserError(f"lighting must be 0 to 5, not {self.lighting}")
        for split in ("train", "test"):
            if not self.azimuths(split):
                raise UserError(
                    f"train_within={self.train_within} leaves no views of the {self.step}-degree grid to {split}"
                )

    def azimuths(self, split: str) -> tuple[int, ...]:
        """The azimuths of "train" or "test", degrees from 0, ascending."""

        def trains(azimuth: int) -> bool:
            return -self.train_within <= (azimuth + 180) % 360 - 180 < self.train_within

        return tuple(azimuth for azimuth in range(0, 360, self.step) if trains(azimuth) == (split == "train"))

    def toy_name(self, index: int) -> str:
        """The class name of a toy, such as car_03."""
        instance, category = divmod(index, len(CATEGORIES))
        return f"{CATEGORIES[category]}_{instance:02d}"

    def paths(self, index: int) -> Iterator[tuple[int, str]]:
        """(azimuth, path within the folder) of every view of a toy."""
        name = self.toy_name(index)
        for split in ("train", "test"):
            for azimuth in self.azimuths(split):
                view = f"elevation{self.elevation}_azimuth{azimuth:03d}_lighting{self.lighting}"
                yield azimuth, f"{split}/{name}/{name}_{view}.png"


def render_folder(directory: PathLike, views: ToyViews = ToyViews(), num_processes: int | None = None) -> int:
    """Renders the folder, under another name until all of it is there.

    Args:
        directory: what to make. Where it is there already with the same parameters, nothing is done.
        views: which toys, from where.
        num_processes: all cores by default. The images do not depend on it.

    Returns:
        The number of images rendered: 0 if they were there.

    Raises:
        UserError: the directory holds something else, or cannot be written.

    Example:
        >>> import tempfile
        >>> views = ToyViews(toys=2, step=90, image_size=16)
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     render_folder(f"{directory}/toys", views, 1), render_folder(f"{directory}/toys", views, 1)
        (8, 0)
    """
    directory = Path(directory).absolute()
    manifest = json.dumps({"version": _VERSION, **asdict(views)}, indent=1)
    if _is_rendered(directory, manifest):
        return 0
    unfinished = directory.with_name(f".{directory.name}.unfinished")
    with explained(directory), locked(unfinished, IN_USE):
        if _is_rendered(directory, manifest):
            unfinished.rmdir()
            return 0
        for left_behind in unfinished.iterdir():
            shutil.rmtree(left_behind) if left_behind.is_dir() else left_behind.unlink()
        count = _render(unfinished, views, num_processes or os.cpu_count() or 1)
        (unfinished / MANIFEST).write_text(manifest)
        unfinished.replace(directory)
        return count


def _is_rendered(directory: Path, manifest: str) -> bool:
    if not directory.exists():
        return False
    try:
        if (directory / MANIFEST).read_text() == manifest:
            return True
    except OSError:
        if directory.is_dir() and not any(directory.iterdir()):
            return False
        raise UserError(f"{directory}: is there and was not rendered: choose another `output`") from None
    raise UserError(f"{directory}: holds another rendering (see {MANIFEST}): remove it, or choose another `output`")


def _render(directory: Path, views: ToyViews, num_processes: int) -> int:
    total = views.toys * 360 // views.step
    with process_map(num_processes) as map_in_order, Progress(total, "images", "rendering") as progress:
        for count in map_in_order(functools.partial(_photograph, directory, views), range(views.toys)):
            progress.update(count)
    return total


def _photograph(directory: Path, views: ToyViews, index: int) -> int:
    """Writes every view of a toy, and tells how many."""
    instance, category = divmod(index, len(CATEGORIES))
    studio = renderer.Studio(toys.make_toy(category, instance, views.seed))
    paths = dict(views.paths(index))
    for azimuth, path in paths.items():
        picture = studio.photograph(azimuth, [views.elevation], [views.lighting], views.image_size)[0, 0, _LEFT]
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(encode_png(picture))
    return len(paths)
