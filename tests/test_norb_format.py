"""The six files of a NORB data set: which are read, and one clear error where they do not fit together."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from caps_tf.data import norb_format as nf
from caps_tf.data import norb_matrix
from caps_tf.errors import UserError
from tests.refusals import assert_one_line_naming
from tests.small_norb import compress

PREFIX = "toys-5x4x1x2x1x2x6x8"


def write_split(directory: Path, split: str = "training", prefix: str = PREFIX) -> nf.NorbSplit:
    """Writes a split of ten pairs of 6x8 pixels, and returns what was written."""
    category, info = nf.grid_info([4], [8], [0, 34], [5])
    images = np.random.default_rng(0).integers(0, 256, [len(category), 2, 6, 8], np.uint8)
    for kind, array in (("dat", images), ("cat", category), ("info", info)):
        norb_matrix.write_matrix(directory / f"{prefix}-{split}-{kind}.mat", array)
    return nf.NorbSplit(images, category, info, directory / f"{prefix}-{split}-dat.mat")


@pytest.mark.parametrize("kinds", [[], ["dat"], ["dat", "cat", "info"]])
@pytest.mark.parametrize("split", ["training", "testing"])
def test_split_is_read_as_written_unpacked_or_not(tmp_path, split, kinds):
    written = write_split(tmp_path, split)
    for kind in kinds:
        compress(tmp_path / f"{PREFIX}-{split}-{kind}.mat")
    read = nf.read_split(tmp_path, split)
    assert len(read) == 10
    assert read.images_path.name.startswith(f"{PREFIX}-{split}-dat.mat")
    assert (read.images.dtype, read.category.dtype, read.info.dtype) == (np.uint8, np.int32, np.int32)
    np.testing.assert_array_equal(read.images, written.images)
    np.testing.assert_array_equal(read.category, written.category)
    np.testing.assert_array_equal(read.info, written.info)


def test_unpacked_file_is_preferred_and_leftovers_are_ignored(tmp_path):
    write_split(tmp_path)
    for kind in ("dat", "cat", "info"):
        name = f"{PREFIX}-training-{kind}.mat"
        for leftover in (f"{name}.gz", f"{name}.gz.part", f"{name}.tmp", f"._{name}"):
            (tmp_path / leftover).write_bytes(b"not to be read")
    assert len(nf.read_split(tmp_path, "training")) == 10


def test_missing_directory_says_which_command_to_run(tmp_path):
    with pytest.raises(UserError) as caught:
        nf.read_split(tmp_path / "smallNORB", "training")
    assert_one_line_naming(caught.value, "smallNORB", "./data/download.sh", "data/render_norb.py")


@pytest.mark.parametrize("kind", ["dat", "cat", "info"])
def test_missing_file_of_a_split_is_named_with_the_command_to_run(tmp_path, kind):
    write_split(tmp_path)
    (tmp_path / f"{PREFIX}-training-{kind}.mat").unlink()
    with pytest.raises(UserError) as caught:
        nf.read_split(tmp_path, "training")
    assert_one_line_naming(caught.value, f"{PREFIX}-training-{kind}.mat", "./data/download.sh")


def test_files_of_the_other_split_do_not_count(tmp_path):
    write_split(tmp_path, "training")
    with pytest.raises(UserError) as caught:
        nf.read_split(tmp_path, "testing")
    assert_one_line_naming(caught.value, "*-testing-dat.mat", "./data/download.sh")


def test_two_sets_in_one_directory_are_not_mixed(tmp_path):
    write_split(tmp_path, prefix="a")
    write_split(tmp_path, prefix="b")
    with pytest.raises(UserError) as caught:
        nf.read_split(tmp_path, "training")
    assert_one_line_naming(caught.value, str(tmp_path), "a, b")


def test_unknown_split_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'test'"):
        nf.find_files(tmp_path, "test")


def labels(column: int, row: int, value: int) -> Callable[[nf.NorbSplit], np.ndarray]:
    def change(split: nf.NorbSplit) -> np.ndarray:
        info = split.info.copy()
        info[row:, column] = value
        return info

    return change


def categories(row: int, value: int) -> Callable[[nf.NorbSplit], np.ndarray]:
    def change(split: nf.NorbSplit) -> np.ndarray:
        category = split.category.copy()
        category[row:] = value
        return category

    return change


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("cat", lambda split: split.category[:-1], ["9 rows", "10 pairs"]),
        ("info", lambda split: split.info[1:], ["9 rows", "10 pairs"]),
        ("cat", lambda split: split.category.astype(np.uint8), ["holds uint8 [10]", "expected int32 [any]"]),
        ("cat", lambda split: split.category[:, None], ["holds int32 [10, 1]"]),
        ("info", lambda split: split.info[:, :3], ["holds int32 [10, 3]", "expected int32 [any, 4]"]),
        ("info", lambda split: split.info.astype(np.uint8), ["holds uint8"]),
        ("dat", lambda split: split.images.astype(np.int32), ["holds int32", "expected uint8 [any, 2, any, any]"]),
        ("dat", lambda split: split.images[:, :1], ["[10, 1, 6, 8]"]),
        ("dat", lambda split: split.images[:, 0], ["[10, 6, 8]"]),
        ("cat", categories(3, 5), ["row 3", "category 5", "0 to 4"]),
        ("cat", categories(0, -1), ["row 0", "category -1"]),
        ("info", labels(0, 4, 10), ["row 4", "instance 10", "0 to 9"]),
        ("info", labels(0, 4, -1), ["row 4", "instance -1"]),
        ("info", labels(1, 9, 9), ["row 9", "elevation 9", "0 to 8"]),
        ("info", labels(2, 2, 3), ["row 2", "azimuth 3", "0 to 34, even"]),
        ("info", labels(2, 2, 36), ["row 2", "azimuth 36"]),
        ("info", labels(2, 2, -2), ["row 2", "azimuth -2"]),
        ("info", labels(3, 1, 6), ["row 1", "lighting 6", "0 to 5"]),
    ],
)
def test_split_with_a_wrong_file_is_one_error_that_names_it(tmp_path, kind, change, words):
    split = write_split(tmp_path)
    path = tmp_path / f"{PREFIX}-training-{kind}.mat"
    norb_matrix.write_matrix(path, change(split))
    with pytest.raises(UserError) as caught:
        nf.read_split(tmp_path, "training")
    assert_one_line_naming(caught.value, path.name, *words)


def test_prefixes_are_the_official_ones():
    axes = (nf.ELEVATIONS, nf.AZIMUTHS, nf.LIGHTINGS, 96)
    assert nf.split_prefix("smallnorb", nf.TRAIN_INSTANCES, *axes) == "smallnorb-5x46789x9x18x6x2x96x96"
    assert nf.split_prefix("smallnorb", nf.TEST_INSTANCES, *axes) == "smallnorb-5x01235x9x18x6x2x96x96"
