"""Image folders, train/<class>/*.png and test/<class>/*.png: which images there are and of what kind, without TensorFlow."""

from pathlib import Path
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

from caps_tf.errors import UserError

_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")  # what tfds.ImageFolder reads
_OTHER_SUFFIXES = (".bmp", ".gif", ".tif", ".tiff", ".webp", ".avif", ".heic", ".ppm", ".pgm", ".npy")
_GREY = ("1", "L", "LA", "I", "I;16")


class FolderContents(NamedTuple):
    """What the headers of a folder's images say.

    Attributes:
        paths: of all images, sorted.
        class_names: names of the directories that hold them, sorted.
        shape: (h, w, c) of an image; h and w are None where images differ in size. Three channels if any is in colour.
        num_bytes: of all files.
    """

    paths: list[Path]
    class_names: tuple[str, ...]
    shape: tuple[int | None, int | None, int]
    num_bytes: int


def image_paths(directory: Path) -> list[Path]:
    """The images of an image folder, sorted.

    Raises:
        UserError: it holds images of a format that is not read, which would be left out silently.
    """
    paths = []
    for path in sorted(directory.glob("*/*/*")):
        if path.suffix.lower() in _OTHER_SUFFIXES:
            raise UserError(f"{path}: only PNG and JPEG are read: convert or remove it")
        if path.suffix.lower() in _IMAGE_SUFFIXES:
            paths.append(path)
    return paths


def inspect_folder(directory: Path) -> FolderContents:
    """Looks at the header of every image, so that what cannot be trained on is reported before training.

    Raises:
        UserError: there are no images, or one that cannot be read, or classes that cannot be told apart.
    """
    first: tuple[Path, tuple[int, int]] | None = None
    same_size, colour, num_bytes = True, False, 0
    trained: set[str] = set()
    tested: set[str] = set()
    paths = image_paths(directory)
    for path in paths:
        try:
            with Image.open(path) as image:
                size, mode, kind = image.size, image.mode, image.format
        except (UnidentifiedImageError, OSError, Image.DecompressionBombError, SyntaxError) as error:
            raise UserError(f"{path}: cannot be read as an image: {error}: fix or remove it") from None
        if kind not in ("PNG", "JPEG"):
            raise UserError(f"{path}: is {kind} under the name of another format: convert or remove it")
        (trained if path.parts[-3] == "train" else tested).add(path.parts[-2])
        first = first or (path, size)
        same_size &= size == first[1]
        colour |= mode not in _GREY
        num_bytes += path.stat().st_size
    if first is None:
        raise UserError(f"{directory}: holds no images: expected train/<class>/*.png and test/<class>/*.png")
    if trained and len(trained | tested) < 2:
        raise UserError(f"{directory}: holds one class, {trained.pop()!r}, and nothing to tell it from: add another")
    if trained and tested - trained:
        raise UserError(f"{directory}: no training images of class {min(tested - trained)!r}: add some, or remove it")
    width, height = first[1] if same_size else (None, None)
    return FolderContents(paths, tuple(sorted(trained | tested)), (height, width, 3 if colour else 1), num_bytes)
