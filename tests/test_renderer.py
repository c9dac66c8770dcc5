"""The rendered set: toys, studio, the six files, and the scripts as users run them."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import trimesh
from scipy.ndimage import binary_dilation
from scipy.spatial import ConvexHull

from caps_tf.data import baselines, norb_format, norb_matrix
from caps_tf.errors import UserError
from caps_tf.files import locked
from caps_tf.rendering import norb, solids
from caps_tf.rendering.renderer import Studio
from caps_tf.rendering.toys import Toy, make_toy

ROOT = Path(__file__).resolve().parent.parent
CATEGORIES = range(len(norb_format.CATEGORIES))
TINY = ("--instances_per_split=1", "--elevations=1", "--azimuths=1", "--lightings=2", "--image_size=24")


def run(script: str, *flags: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "data" / script, *flags]
    return subprocess.run(
        command, check=False, capture_output=True, text=True, env={**os.environ, **environment}, timeout=300
    )


def error_line(result: subprocess.CompletedProcess) -> str:
    """The error of a failed run, which must be one line."""
    assert result.returncode == 1, result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    return lines[0]


def digests(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.glob("*"))}


def ball(x: float, y: float, z: float = 0.5, radius: float = 0.2) -> Toy:
    """A black ball, whose pixels are 0 and nothing else's are."""
    vertices, normals, faces = solids.surface([solids.hull([(x, y, z)], radius)])
    return Toy(trimesh.Trimesh(vertices, faces, vertex_normals=normals, process=False), albedo=0.0)


def centroid(picture: np.ndarray) -> np.ndarray:
    """Row and column of the middle of the black pixels."""
    return np.argwhere(picture == 0).mean(axis=0)


@pytest.fixture(scope="module", params=[1, pytest.param(5, marks=pytest.mark.campaign)])
def small_set(request, tmp_path_factory) -> tuple[Path, int]:
    """One toy a category and split, or all fifty, from four sides under two lightings, rendered by the script."""
    directory, pairs = tmp_path_factory.mktemp("small") / "renderedNORB", 40 * request.param
    flags = ("--elevations=35,60", "--azimuths=2", "--lightings=0,4", "--image_size=32")
    result = run("render_norb.py", f"--data_dir={directory}", f"--instances_per_split={request.param}", *flags)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{directory}: {pairs} training and {pairs} testing pairs\n"
    assert f"{2 * pairs}/{2 * pairs} pairs" in result.stderr
    return directory, request.param


# Toys


def test_hulls_are_closed_and_their_normals_point_outwards():
    part = solids.slab([(0, 0), (1, 0), (0.7, 0.5), (0.2, 0.5)], width=0.6, radius=0.05)
    vertices, normals, faces = solids.surface([part])
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    assert mesh.is_watertight and mesh.is_winding_consistent and mesh.volume > 0
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1)
    assert (np.einsum("vx,vx->v", normals, vertices - vertices.mean(axis=0)) > 0).all()


def test_flat_faces_are_shaded_flat():
    vertices, normals, _ = solids.surface([solids.box(0, 1, 0, 1, width=1)])
    top = vertices[:, 2] > 1 - 1e-9
    np.testing.assert_allclose(normals[top], np.broadcast_to([0, 0, 1], normals[top].shape), atol=1e-12)


def test_a_toy_depends_on_nothing_but_its_arguments():
    first, again, other = make_toy(2, 5, seed=1), make_toy(2, 5, seed=1), make_toy(2, 5, seed=2)
    np.testing.assert_array_equal(first.mesh.vertices, again.mesh.vertices)
    assert first.albedo == again.albedo
    assert first.albedo != other.albedo and first.mesh.vertices.shape != other.mesh.vertices.shape


@pytest.mark.parametrize("category", [0, *(pytest.param(each, marks=pytest.mark.campaign) for each in CATEGORIES[1:])])
def test_instances_differ_in_shape_not_only_in_size(category):
    toys = [make_toy(category, instance) for instance in range(10)]
    for toy in toys:
        assert toy.mesh.bounds[0, 2] == pytest.approx(0)
        assert np.abs(toy.mesh.bounds).max() < 2.3
    # Moments of inertia of the vertices, scaled to the same size: alike only for alike shapes.
    shapes = []
    for toy in toys:
        moments = np.linalg.eigvalsh(np.cov(toy.mesh.vertices.T))
        shapes.append([*moments / moments.sum(), len(toy.mesh.faces) / 1e4])
    distances = np.linalg.norm(np.subtract.outer(shapes, shapes).diagonal(axis1=1, axis2=3), axis=-1)
    assert distances[~np.eye(10, dtype=bool)].min() > 1e-3


@pytest.mark.campaign
def test_size_and_paint_know_nothing_of_the_category():
    sizes, paints = [], []
    for category in CATEGORIES:
        toys = [make_toy(category, instance) for instance in range(16)]
        sizes.append(np.mean([np.sqrt(ConvexHull(toy.mesh.vertices).area) for toy in toys]))
        paints.append(np.mean([np.log(toy.albedo) for toy in toys]))
    assert np.ptp(sizes) / np.mean(sizes) < 0.15
    assert np.ptp(paints) < 0.6  # of the range ln(0.45 / 0.12) = 1.3


# Studio


def test_a_turn_of_ninety_degrees_moves_what_was_in_front_to_the_right():
    studio = Studio(ball(0.6, 0))
    front, right, back, left = (centroid(studio.photograph(turn, [30], [0])[0, 0, 0]) for turn in (0, 90, 180, 270))
    assert right[1] - front[1] > 15 and front[1] - left[1] > 15
    assert front[0] - back[0] > 15  # what is farther away is higher up
    assert abs(front[1] - back[1]) < 3


def test_a_higher_camera_looks_down():
    studio = Studio(ball(0.6, 0))
    rows = [centroid(picture[0, 0])[0] for picture in studio.photograph(0, [30, 50, 70], [0])]
    assert rows[0] < rows[1] < rows[2]


@pytest.mark.parametrize("x,sign", [(0.8, 1), (-0.8, -1)])
def test_stereo_disparity_is_small_horizontal_and_tells_near_from_far(x, sign):
    left, right = Studio(ball(x, 0)).photograph(0, [30], [0])[0, 0]
    rows, columns = centroid(left) - centroid(right)
    assert abs(rows) < 0.5
    assert 1 < sign * columns < 6


def test_lighting_changes_shading_and_shadows_not_the_silhouette():
    pictures = Studio(ball(0, 0)).photograph(40, [50], range(6))[0, :, 0]
    for picture in pictures[1:]:
        np.testing.assert_array_equal(picture == 0, pictures[0] == 0)
    toy = Studio(make_toy(1, 0)).photograph(40, [50], range(6))[0, :, 0].astype(int)
    for a in range(6):
        for b in range(a):
            assert np.abs(toy[a] - toy[b]).mean() > 2


def test_shadows_fall_away_from_the_lamp_and_are_soft():
    pictures = Studio(ball(0, 0)).photograph(0, [50], [1, 2])[0, :, 0].astype(int)
    for picture, to_the_left in zip(pictures, (True, False)):  # a lamp on the right, then one on the left
        ground = ~binary_dilation(picture == 0, iterations=2)
        columns = np.argwhere(ground & (picture < 150))[:, 1]
        assert len(columns) > 100
        assert (columns < 48).all() if to_the_left else (columns >= 48).all()
        both = ground[:, 1:] & ground[:, :-1]
        assert np.abs(np.diff(picture, axis=1))[both].max() < 30


def test_pictures_do_not_depend_on_what_else_is_photographed():
    studio = Studio(make_toy(3, 2))
    together = studio.photograph(100, [30, 45, 70], [0, 3, 5], size=32)
    alone = studio.photograph(100, [45], [3], size=32)
    np.testing.assert_array_equal(together[1:2, 1:2], alone)


# The six files


def test_the_full_grid_has_the_official_labels(tmp_path):
    grid = norb.Grid()
    assert grid.pairs_per_split == 24300
    category, info = norb_format.grid_info(grid.instances("testing"), grid.elevations, grid.azimuths, grid.lightings)
    norb_matrix.write_matrix(tmp_path / "cat", category)
    norb_matrix.write_matrix(tmp_path / "info", info)
    assert digests(tmp_path) == {
        "cat": "591ed90c090cb6724593e8de28180bd602095ee8ec82bd1a5ca30b488cd1d06e",
        "info": "318f817236b7c97af03cd90e07a9cbb4346e20ef83a1118a61eeb50e3b96db7e",
    }
    assert grid.paths("d", "testing")["dat"].name == "renderednorb-5x01235x9x18x6x2x96x96-testing-dat.mat"


def test_every_picture_lies_at_the_row_of_its_labels(small_set):
    directory, toys = small_set
    split = norb_format.read_split(directory, "testing")
    assert split.images.shape == (40 * toys, 2, 32, 32)
    instances = norb_format.TEST_INSTANCES[:toys]
    assert sorted(set(split.info[:, 0])) == sorted(instances)
    category, info = norb_format.grid_info(instances, (1, 6), (0, 18), (0, 4))
    np.testing.assert_array_equal(split.category, category)
    np.testing.assert_array_equal(split.info, info)
    for row in (0, 15 * toys + 2, 40 * toys - 1):
        instance, elevation, azimuth, lighting = split.info[row].tolist()
        studio = Studio(make_toy(int(split.category[row]), instance))
        expected = studio.photograph(10.0 * azimuth, [30.0 + 5 * elevation], [lighting], size=32)[0, 0]
        np.testing.assert_array_equal(split.images[row], expected)


def test_training_and_testing_toys_differ(small_set):
    train, test = (norb_format.read_split(small_set[0], split) for split in ("training", "testing"))
    assert not set(train.info[:, 0]) & set(test.info[:, 0])
    assert not {image.tobytes() for image in train.images} & {image.tobytes() for image in test.images}


@pytest.mark.campaign
def test_the_bytes_do_not_depend_on_the_number_of_processes(tmp_path):
    for processes in (1, 2):
        result = run(
            "render_norb.py",
            f"--data_dir={tmp_path / str(processes)}",
            f"--num_processes={processes}",
            *TINY,
            "--azimuths=2",
        )
        assert result.returncode == 0, result.stderr
    assert digests(tmp_path / "1") == digests(tmp_path / "2")
    assert len(digests(tmp_path / "1")) == 7  # six files and rendering.json


@pytest.mark.campaign
def test_a_second_run_does_nothing_unless_told_to(tmp_path):
    flags = (f"--storage={tmp_path}", "--num_processes=1", *TINY)
    assert run("render_norb.py", *flags).returncode == 0
    directory = tmp_path / "data" / "renderedNORB"
    before, times = digests(directory), {path: path.stat().st_mtime_ns for path in directory.glob("*.mat")}

    again = run("render_norb.py", *flags)
    assert again.returncode == 0 and "already there" in again.stdout and again.stderr == ""
    assert times == {path: path.stat().st_mtime_ns for path in directory.glob("*.mat")}

    assert "holds another rendering" in error_line(run("render_norb.py", *flags, "--seed=1"))
    assert digests(directory) == before

    assert run("render_norb.py", *flags, "--seed=1", "--lightings=1", "--overwrite").returncode == 0
    assert len(list(directory.glob("*.mat"))) == 6
    assert not set(digests(directory).values()) & {before[name] for name in before if "dat" in name}


def test_files_from_elsewhere_are_never_touched(tmp_path):
    (tmp_path / "smallnorb-5x01235x9x18x6x2x96x96-testing-dat.mat").write_bytes(b"precious")
    with pytest.raises(UserError, match="was not rendered: choose another `data_dir`"):
        norb.render_set(tmp_path, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["smallnorb-5x01235x9x18x6x2x96x96-testing-dat.mat"]


def test_one_rendering_at_a_time(tmp_path):
    with locked(tmp_path, "in use"), pytest.raises(UserError, match="another rendering is writing it"):
        norb.render_set(tmp_path)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the worker processes in /proc")
@pytest.mark.parametrize(
    "how",
    [signal.SIGTERM, *(pytest.param(how, marks=pytest.mark.campaign) for how in (signal.SIGKILL, signal.SIGINT))],
    ids=lambda how: how.name,
)
def test_a_stopped_run_leaves_no_half_file_and_no_process(tmp_path, how):
    flags = (f"--data_dir={tmp_path}", "--num_processes=2", "--elevations=1", "--lightings=1", "--image_size=24")
    process = subprocess.Popen(
        [sys.executable, ROOT / "data" / "render_norb.py", *flags], stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: list(tmp_path.glob("*-dat.mat.tmp")) and len(children(process.pid)) >= 2)
    workers = children(process.pid)
    process.send_signal(how)
    stderr = process.communicate()[1]
    wait_until(lambda: not any(running(worker) for worker in workers))
    assert not list(tmp_path.glob("*.mat"))
    if how is not signal.SIGKILL:
        assert process.returncode == 130 and stderr.splitlines()[-1] == "error: interrupted"
        assert [path.name for path in tmp_path.iterdir()] == ["rendering.json"]
    else:
        again = run("render_norb.py", f"--data_dir={tmp_path}", "--num_processes=1", *TINY)  # other views
        assert again.returncode == 0, again.stderr
        assert len(list(tmp_path.iterdir())) == 7


# Flags


def test_flags_choose_views():
    choose = norb.choose
    assert choose("azimuths", "18") == norb_format.AZIMUTHS
    assert choose("elevations", "9") == norb_format.ELEVATIONS
    assert choose("lightings", "6") == norb_format.LIGHTINGS
    assert choose("azimuths", "300,320,340,0,20,40") == (0, 2, 4, 30, 32, 34)
    assert choose("azimuths", "6") == (0, 6, 12, 18, 24, 30)
    assert choose("elevations", "3") == (0, 4, 8)
    assert choose("elevations", "30,35,40") == (0, 1, 2)
    assert choose("lightings", "5,") == (5,)


@pytest.mark.parametrize(
    "axis,text,hint",
    [
        ("azimuths", "10,20", "0, 20, 40"),
        ("azimuths", "20,20", "each once"),
        ("azimuths", "19", "a count, 1 to 18"),
        ("azimuths", "all", "whole numbers"),
        ("azimuths", "", "choose"),
        ("elevations", "30", "write '30,'"),
        ("elevations", "30,75", "30, 35, 40"),
        ("lightings", "0", "a count, 1 to 6"),
        ("lightings", "1,6", "0, 1, 2, 3, 4, 5"),
    ],
)
def test_impossible_views_are_explained(axis, text, hint):
    with pytest.raises(UserError, match=f"`{axis}`={text}: .*{hint}"):
        norb.choose(axis, text)


@pytest.mark.parametrize(
    "flag,hint",
    [
        ("--azimuths=10,20", "choose, each once, from 0, 20, 40"),
        ("--data_dir=/proc/nowhere", "cannot be written"),
        ("extra", "unexpected argument"),
    ],
)
def test_bad_flags_get_one_clear_line(flag, hint, tmp_path):
    assert hint in error_line(run("render_norb.py", f"--storage={tmp_path}", flag))
    assert not list(tmp_path.iterdir())


def test_a_missing_ray_caster_gets_one_clear_line(tmp_path):
    (tmp_path / "embreex.py").write_text("raise ImportError('no wheel for this machine')")
    result = run("render_norb.py", f"--data_dir={tmp_path / 'out'}", PYTHONPATH=str(tmp_path))
    assert "pip install trimesh embreex" in error_line(result)


# Nothing but shape gives the category away


@pytest.mark.campaign
@pytest.mark.parametrize("small_set", [5], indirect=True)
def test_brightness_gives_no_category_away_and_pixels_only_some(small_set):
    result = run("check_rendered_norb.py", f"--data_dir={small_set[0]}")
    assert result.returncode == 0, result.stderr
    brightness, full, halved = result.stdout.splitlines()[-3:]
    accuracy = [float(line.split(": ")[1].split("%")[0]) for line in (full, halved)]
    assert float(brightness.split(": ")[1].split("%")[0]) < 40
    assert max(accuracy) < 70
    assert "32x32 pixels" in full and "16x16" in halved and "of 200 test images" in full


def test_nearest_neighbours_are_exact_over_chunks():
    rng = np.random.default_rng(0)
    train, test = rng.integers(0, 256, (1100, 12), np.uint8), rng.integers(0, 256, (40, 12), np.uint8)
    exact = ((train[None].astype(int) - test[:, None]) ** 2).sum(axis=-1)
    np.testing.assert_array_equal(exact[np.arange(40), baselines.nearest_neighbours(train, test)], exact.min(axis=1))


def test_the_check_names_missing_files(tmp_path):
    assert "render_norb.py" in error_line(run("check_rendered_norb.py", f"--data_dir={tmp_path}"))
