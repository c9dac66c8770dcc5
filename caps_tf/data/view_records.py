"""Folders of photographs whose names tell category, object and viewpoint, as records.

    image             [h, w, 1] or [h, w, 3] uint8
    label_category    the category, in the order of the names
    instance          the object: its place among its category's, from 0, in the order of their numbers or names
    label_elevation   degrees above the horizon, -90 to 90
    label_azimuth     degrees, 0 to 359
    label_lighting    a number, 0 where the names tell none
    id                the file, relative to the folder

They are NORB's features, less the second camera, and with elevation and azimuth in degrees instead of steps: their
description says so (`datasets.ImageDataset.viewpoint_unit`).
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from caps_tf.data.conversion import Schema
from caps_tf.data.records import encode_png
from caps_tf.data.viewpoints import DEGREES
from caps_tf.errors import UserError

ETH_80 = r"(?P<category>[a-z]+)/(?P=category)(?P<object>\d+)_polar(?P<polar>\d+)_azimuth(?P<azimuth>\d+)\.png"
"""Pattern of cup/cup03_polar045_azimuth090.png."""

_GROUPS = ("category", "object", "elevation", "polar", "azimuth", "lighting")
_OVERHEAD = 1024  # bytes a record, at most, beside its pixels

PathLike = str | os.PathLike[str]
Shape = tuple[int, int, int]


class View(NamedTuple):
    """A photograph: its path within the folder, and what its name tells; angles in degrees."""

    path: str
    category: str
    object: str
    elevation: int
    azimuth: int
    lighting: int


def find_views(source: PathLike, pattern: str = ETH_80) -> tuple[list[View], list[str]]:
    """Reads the names of all files of a folder.

    Args:
        source: the folder.
        pattern: a regular expression for a whole path within the folder, with / between directories, with named groups
            category, object, azimuth, and perhaps elevation or polar (of which elevation is 90 - polar; 0 without
            either) and lighting (0 without it). Angles are whole degrees; azimuths count modulo 360.

    Returns:
        (the views, by path; the paths that do not match, sorted).

    Raises:
        UserError: the pattern is none, nothing matches, a number is none or out of range, or two files are the same
            view of one object.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     Path(directory, "cup").mkdir()
        ...     Path(directory, "cup", "cup03_polar066_azimuth090.png").touch()
        ...     find_views(directory)[0][0][1:]
        ('cup', '3', 24, 90, 0)
    """
    matcher = _compile(pattern)
    source = Path(source)
    if not source.is_dir():
        raise UserError(f"{source}: no such folder: give `source`")
    views, unmatched = [], []
    for path in sorted(path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()):
        match = matcher.fullmatch(path)
        if match:
            views.append(_view(path, match.groupdict()))
        else:
            unmatched.append(path)
    if not views:
        found = f"{unmatched[0]!r} does not match {pattern!r}" if unmatched else "it is empty"
        raise UserError(f"{source}: holds no file of the pattern ({found}): give another `pattern`")
    seen: dict[tuple, str] = {}
    for view in views:
        if (other := seen.setdefault(view[1:], view.path)) != view.path:
            raise UserError(f"{source}: {other} and {view.path} are the same view of one object: remove one")
    return views, unmatched


def _compile(pattern: str) -> re.Pattern:
    try:
        matcher = re.compile(pattern)
    except re.error as error:
        raise UserError(f"pattern {pattern!r} is no regular expression: {error}") from None
    groups = set(matcher.groupindex)
    if not {"category", "object", "azimuth"} <= groups <= set(_GROUPS) or {"elevation", "polar"} <= groups:
        raise UserError(
            f"pattern {pattern!r} needs the named groups category, object and azimuth, may have elevation or polar, "
            "and lighting, and no others"
        )
    return matcher


def _view(path: str, groups: Mapping[str, str | None]) -> View:
    def number(name: str) -> int:
        text = groups.get(name)
        try:
            return 0 if text is None else int(text)
        except ValueError:
            raise UserError(f"{path}: {name} {text!r} is not a whole number: change `pattern`") from None

    if not groups["category"] or not groups["object"]:
        raise UserError(f"{path}: the pattern finds no category or no object in it: change `pattern`")
    elevation = 90 - number("polar") if "polar" in groups else number("elevation")
    if not -90 <= elevation <= 90:
        raise UserError(f"{path}: elevation {elevation} is not within -90 and 90 degrees: change `pattern`")
    return View(
        path, groups["category"], _plain(groups["object"]), elevation, number("azimuth") % 360, number("lighting")
    )


def _plain(name: str) -> str:
    """An object's number without leading zeros; another name as it is."""
    return str(int(name)) if name.isascii() and name.isdigit() else name


def objects_by_category(views: Iterable[View]) -> dict[str, list[str]]:
    """The objects of each category, in the order of their numbers, and other names after them in alphabetical order."""
    names = defaultdict(set)
    for view in views:
        names[view.category].add(view.object)
    return {category: sorted(names[category], key=_order) for category in sorted(names)}


def _order(name: str) -> tuple[bool, int, str]:
    return (False, int(name), "") if name.isascii() and name.isdigit() else (True, 0, name)


def number_objects(objects: Mapping[str, Sequence[str]]) -> dict[tuple[str, str], int]:
    """The instance of each (category, object): places, so that an instance is one object of every category.

    Example:
        >>> number_objects({"cup": ["1", "3"], "dog": ["fido"]})
        {('cup', '1'): 0, ('cup', '3'): 1, ('dog', 'fido'): 0}
    """
    return {(category, name): place for category, names in objects.items() for place, name in enumerate(names)}


def training_objects(objects: Mapping[str, Sequence[str]], text: str) -> dict[str, list[str]]:
    """Which objects of each category train; the others test.

    Args:
        objects: of `objects_by_category`.
        text: one number n for the first n objects, or a list with commas for exactly these objects of every category
            (a list of one needs its comma: "3,").

    Raises:
        UserError: a category lacks one of them, or none would be left to test.

    Example:
        >>> objects = {"cup": ["1", "2", "3"], "dog": ["1", "2"]}
        >>> training_objects(objects, "1"), training_objects(objects, "2,")
        ({'cup': ['1'], 'dog': ['1']}, {'cup': ['2'], 'dog': ['2']})
    """
    named = [_plain(name.strip()) for name in text.split(",") if name.strip()] if "," in text else []
    if not named and not (text.isascii() and text.isdigit() and int(text)):
        raise UserError(
            f"`train_objects`={text}: give how many of each category train, or which, with commas ('{text},')"
        )
    if len(objects) < 2:
        raise UserError(f"holds one category, {next(iter(objects))!r}, and nothing to tell it from: change `pattern`")
    chosen = {}
    for category, names in objects.items():
        if missing := [name for name in named if name not in names]:
            known = ", ".join(names)
            raise UserError(f"`train_objects`={text}: {category} has no object {missing[0]} (it has {known})")
        chosen[category] = [name for name in names if name in named] if named else list(names[: int(text)])
        if len(chosen[category]) == len(names):
            raise UserError(
                f"`train_objects`={text}: {category} has {len(names)} objects, which leaves none to test: give fewer"
            )
    return chosen


def missing_views(views: Sequence[View]) -> list[str]:
    """Names each view that other objects have and one lacks.

    Example:
        >>> front, side = View("", "cup", "1", 0, 0, 0), View("", "cup", "1", 0, 90, 0)
        >>> missing_views([side, front._replace(object="2"), side._replace(object="2")])
        ['cup 1: elevation 0, azimuth 0, lighting 0']
    """
    present = {view[1:] for view in views}
    viewpoints = sorted({view[3:] for view in views})
    return [
        f"{category} {name}: elevation {elevation}, azimuth {azimuth}, lighting {lighting}"
        for category, name in sorted({view[1:3] for view in views})
        for elevation, azimuth, lighting in viewpoints
        if (category, name, elevation, azimuth, lighting) not in present
    ]


def image_shape(source: PathLike, views: Sequence[View], size: tuple[int, int] | None, colour: bool) -> Shape:
    """Looks at the header of every image.

    Args:
        source: the folder.
        views: its images.
        size: (h, w) that images will be resized to, or None if all are square and of one size.
        colour: whether records keep colours.

    Returns:
        (h, w, channels) of every record.

    Raises:
        UserError: an image cannot be read, is of more than 8 bits, or has another size and `size` is None.
    """
    first: tuple[str, tuple[int, int]] | None = None
    for view in views:
        with _opened(Path(source, view.path)) as image:
            found = image.size
        first = first or (view.path, found)
        if size is None and found != first[1]:
            raise UserError(
                f"{source}: images differ in size, {_pixels(first[1])} in {first[0]} and {_pixels(found)} in "
                f"{view.path}: give `image_size`"
            )
    assert first is not None, "a folder has views"
    width, height = first[1]
    if size is None and width != height:
        raise UserError(
            f"{source}: images of {_pixels(first[1])} are not square: give `image_size`={height}x{width}, or N"
        )
    return *(size or (height, width)), 3 if colour else 1


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]} pixels"


def _opened(path: Path) -> Image.Image:
    try:
        image = Image.open(path)
    except (OSError, Image.DecompressionBombError, SyntaxError) as error:
        raise UserError(f"{path}: cannot be read as an image: {error}: fix or remove it") from None
    if image.mode.startswith(("I", "F")):
        raise UserError(f"{path}: has more than 8 bits a channel: convert it to 8")
    return image


def view_schema(name: str, shape: Shape, categories: Sequence[str], description: str) -> Schema:
    """The schema of a folder of views.

    Example:
        >>> schema = view_schema("eth80", (96, 96, 1), ["apple", "cup"], "Photographs.")
        >>> schema.features["label_azimuth"].doc.desc
        'degrees'
    """

    def number(unit: str | None = None) -> tfds.features.Scalar:
        return tfds.features.Scalar(np.int64, doc=tfds.features.Documentation(desc=unit))

    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=shape),
            "label_category": tfds.features.ClassLabel(names=categories),
            "instance": number(),
            "label_elevation": number(DEGREES),
            "label_azimuth": number(DEGREES),
            "label_lighting": number(),
            "id": tfds.features.Text(),
        }
    )
    return Schema(
        name=name,
        version="1.0.0",
        features=features,
        supervised_keys=("image", "label_category"),
        description=description,
    )


@dataclass(frozen=True, eq=False)
class ViewRecords:
    """Photographs as records (a `conversion.RecordSource`).

    Attributes:
        source: the folder.
        views: its images, of one split.
        categories: all of them, in the order of the labels.
        instances: of every (category, object).
        shape: (h, w, channels); images of another size are resized, and squeezed where their shape is another.
    """

    source: Path
    views: Sequence[View]
    categories: Sequence[str]
    instances: Mapping[tuple[str, str], int]
    shape: Shape

    def __len__(self) -> int:
        return len(self.views)

    def examples(self, rows: Sequence[int]) -> Iterator[dict[str, bytes | str | int]]:
        """The features of the views at `rows`."""
        for row in rows:
            view = self.views[row]
            yield {"image": encode_png(self._read(view)), **self._labels(view), "id": view.path}

    def fingerprint(self) -> str:
        """A checksum of files and labels."""
        crc = 0
        for view in self.views:
            crc = google_crc32c.extend(crc, repr((view.path, *self._labels(view).values())).encode())
            crc = google_crc32c.extend(crc, (self.source / view.path).read_bytes())
        return f"{len(self)} {crc:08x}"

    def max_bytes(self) -> int:
        """Space for uncompressed images."""
        return len(self) * (int(np.prod(self.shape)) + _OVERHEAD)

    def _labels(self, view: View) -> dict[str, int]:
        return {
            "label_category": self.categories.index(view.category),
            "instance": self.instances[view.category, view.object],
            "label_elevation": view.elevation,
            "label_azimuth": view.azimuth,
            "label_lighting": view.lighting,
        }

    def _read(self, view: View) -> np.ndarray:
        height, width, channels = self.shape
        path = self.source / view.path
        with _opened(path) as image:
            try:
                image = image.convert("L" if channels == 1 else "RGB")
            except (OSError, SyntaxError, ValueError) as error:
                raise UserError(f"{path}: cannot be decoded: {error}: fix or remove it") from None
            if image.size != (width, height):
                image = image.resize((width, height), Image.Resampling.BILINEAR)  # antialiased where it shrinks
            return np.asarray(image)
