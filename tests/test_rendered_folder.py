"""The image folder of rendered toys: which views train, what the files are, and what a second run does."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from caps_tf.data.datasets import open_dataset
from caps_tf.errors import UserError
from caps_tf.rendering.folder import ToyViews, render_folder
from caps_tf.rendering.renderer import Studio
from caps_tf.rendering.toys import make_toy

ROOT = Path(__file__).resolve().parent.parent
TINY = ("--toys=2", "--step=60", "--image_size=16", "--seed=3")


def run(*flags: str) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "data" / "render_view_folders.py", *flags]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("toys") / "toys2"
    result = run(f"--output={output}", *TINY, "--num_processes=2")
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{output}: 4 training and 8 test images of 2 toys\n"
    return output


def test_the_views_within_sixty_degrees_train_with_the_front_side_inclusive_on_the_left_only():
    views = ToyViews()
    assert views.azimuths("train") == (*range(0, 60, 5), *range(300, 360, 5))
    assert views.azimuths("test") == tuple(range(60, 300, 5))
    assert [views.toy_name(index) for index in (0, 4, 19)] == ["animal_00", "car_00", "car_03"]


def test_every_file_is_the_left_cameras_view_that_its_name_says(folder):
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))
    names = {"train": (0, 300), "test": (60, 120, 180, 240)}
    assert files == sorted(
        f"{split}/{toy}/{toy}_elevation30_azimuth{azimuth:03d}_lighting0.png"
        for split, azimuths in names.items()
        for azimuth in azimuths
        for toy in ("animal_00", "human_00")
    )
    image = Image.open(folder / "test" / "human_00" / "human_00_elevation30_azimuth120_lighting0.png")
    assert image.mode == "L"
    expected = Studio(make_toy(1, 0, seed=3)).photograph(120, [30], [0], size=16)[0, 0, 0]
    np.testing.assert_array_equal(np.asarray(image), expected)


def test_it_opens_as_an_image_folder_whose_classes_are_the_toys(folder):
    dataset = open_dataset(str(folder))
    assert dataset.class_names == ("animal_00", "human_00")
    assert (dataset.num_train, dataset.num_test, dataset.image_shape) == (4, 8, (16, 16, 1))


@pytest.mark.campaign
def test_a_second_run_does_nothing_and_other_parameters_are_refused(folder):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    again = run(f"--output={folder}", *TINY)
    assert again.returncode == 0 and "already there" in again.stdout
    other = run(f"--output={folder}", *TINY, "--lighting=1")
    assert other.returncode == 1 and "holds another rendering" in other.stderr and len(other.stderr.splitlines()) == 1
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert [path.name for path in folder.parent.iterdir()] == ["toys2"]


def test_what_a_killed_run_left_behind_is_not_part_of_the_folder(tmp_path):
    stale = tmp_path / ".toys.unfinished" / "train" / "car_09" / "torn.png"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"\x89PNG")
    assert render_folder(tmp_path / "toys", ToyViews(toys=2, step=120, image_size=8), num_processes=1) == 6
    assert len(list((tmp_path / "toys").rglob("*.png"))) == 6
    assert [path.name for path in tmp_path.iterdir()] == ["toys"]


def test_a_folder_from_elsewhere_is_never_touched(tmp_path):
    (tmp_path / "photo.png").write_bytes(b"precious")
    with pytest.raises(UserError, match="was not rendered: choose another `output`"):
        render_folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]


@pytest.mark.parametrize(
    "flag,hint",
    [
        ("--step=7", "must divide 360"),
        ("--train_within=180", "leaves no views of the 60-degree grid to test"),
        ("--output=/proc/nowhere", "cannot be written"),
    ],
)
def test_impossible_flags_get_one_clear_line(tmp_path, flag, hint):
    result = run(f"--output={tmp_path / 'out'}", *TINY, flag)
    assert result.returncode == 1 and hint in result.stderr and len(result.stderr.splitlines()) == 1, result.stderr
    assert not list(tmp_path.iterdir())
