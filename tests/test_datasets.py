"""Opening data by name or path: what is accepted, and one line that helps for everything else."""

import numpy as np
import pytest
from PIL import Image

from caps_tf.data.datasets import open_dataset
from caps_tf.errors import UserError
from tests.small_norb import run_script, write_small_norb


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    storage = tmp_path_factory.mktemp("norb")
    write_small_norb(storage / "data" / "smallNORB", size=(12, 10), elevations=[0], azimuths=[0, 34])
    run_script("data/convert_to_tfrecord.py", f"--storage={storage}")
    return storage


def write_images(directory, names, shapes, suffix="png"):
    """Writes <directory>/<name>/<i>.<suffix> with random pixels, one of each shape for each name."""
    random = np.random.default_rng(0)
    for name in names:
        (directory / name).mkdir(parents=True)
        for index, shape in enumerate(shapes):
            Image.fromarray(random.integers(0, 256, shape, np.uint8)).save(directory / name / f"{index}.{suffix}")


def test_norb_is_found_under_storage_or_data_dir_or_its_path(storage):
    directory = storage / "data" / "smallNORB"
    for dataset in (
        open_dataset("smallNORB", storage=storage),
        open_dataset("smallNORB", data_dir=directory),
        open_dataset(str(directory / "tfrecord")),
    ):
        assert dataset.name == "smallnorb"
        assert dataset.class_names == ("animal", "human", "airplane", "truck", "car")
        assert dataset.image_shape == (12, 10, 1)
        assert (dataset.num_train, dataset.num_test, dataset.test_split) == (50, 50, "test")
        assert dataset.has_viewpoints and dataset.has_stereo


@pytest.mark.parametrize(
    "name, fetch", [("smallNORB", "./data/download.sh"), ("renderedNORB", "python data/render_norb.py")]
)
def test_missing_norb_names_the_commands_to_run(tmp_path, name, fetch):
    convert = f"python data/convert_to_tfrecord.py --dataset={name}"
    with pytest.raises(UserError, match=f"run {fetch}, then {convert}"):
        open_dataset(name, storage=tmp_path)
    write_small_norb(tmp_path / "data" / name, size=(4, 4), elevations=[0], azimuths=[0])
    with pytest.raises(UserError, match=f"holds no TFRecords yet: run {convert}"):
        open_dataset(name, storage=tmp_path)


def test_damaged_metadata_name_the_command_to_run(storage, tmp_path):
    for path in (storage / "data" / "smallNORB" / "tfrecord").iterdir():
        (tmp_path / "tfrecord").mkdir(exist_ok=True)
        (tmp_path / "tfrecord" / path.name).write_bytes(path.read_bytes())
    metadata = tmp_path / "tfrecord" / "dataset_info.json"
    metadata.write_text(metadata.read_text()[:100])
    with pytest.raises(UserError, match="damaged metadata.*run python data/convert_to_tfrecord.py"):
        open_dataset("smallNORB", data_dir=tmp_path)


def test_unknown_names_and_directories_are_told_apart(tmp_path):
    with pytest.raises(UserError, match="unknown data set 'smallnorbb': give smallNORB, renderedNORB, a directory"):
        open_dataset("smallnorbb", storage=tmp_path)
    with pytest.raises(UserError, match="holds neither dataset_info.json .* nor train/<class>"):
        open_dataset(str(tmp_path))


def test_no_network_is_one_clear_line(tmp_path, monkeypatch):
    code = (
        "import sys, caps_tf.data.datasets as datasets\n"
        "from caps_tf.scripts import run_script\n"
        "run_script(lambda argv: datasets.open_dataset('mnist', storage=sys.stdin.read()) and 0)"
    )
    nowhere = "http://127.0.0.1:9"  # nothing listens there
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY", "HTTP_PROXY"):
        monkeypatch.setenv(name, nowhere)
    code = code.replace("sys.stdin.read()", repr(str(tmp_path)))
    process = run_script("-c", code, check=False, start="forked")
    assert process.returncode == 1
    assert process.stderr.startswith("error: mnist: is not in ") and process.stderr.count("\n") == 1
    assert "cannot be reached" in process.stderr


def test_an_image_folder_is_described_from_its_files(tmp_path):
    write_images(tmp_path / "train", ["dog", "cat"], [(9, 7, 3)] * 3)
    write_images(tmp_path / "test", ["dog", "cat"], [(9, 7, 3)] * 2, suffix="jpg")
    dataset = open_dataset(str(tmp_path))
    assert dataset.class_names == ("cat", "dog")
    assert dataset.image_shape == (9, 7, 3)
    assert (dataset.num_train, dataset.num_test) == (6, 4)
    assert not dataset.has_viewpoints and not dataset.has_stereo


def test_mixed_image_folders_become_colour_of_open_size(tmp_path):
    for split in ("train", "test"):
        write_images(tmp_path / split, ["a", "b"], [(9, 7), (9, 7, 3), (5, 5)])
    assert open_dataset(str(tmp_path)).image_shape == (None, None, 3)


def test_grey_image_folders_have_one_channel(tmp_path):
    for split in ("train", "validation"):
        write_images(tmp_path / split, ["a", "b"], [(9, 7), (9, 7)])
    dataset = open_dataset(str(tmp_path))
    assert dataset.image_shape == (9, 7, 1)
    assert dataset.test_split == "validation" and dataset.num_test == 4


def test_image_folders_that_cannot_be_trained_on_are_one_line(tmp_path):
    (tmp_path / "train" / "a").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no images"):
        open_dataset(str(tmp_path))
    (tmp_path / "train" / "a" / "0.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"a/0.png: cannot be read as an image"):
        open_dataset(str(tmp_path))
    Image.new("L", (4, 4)).save(tmp_path / "train" / "a" / "0.png")
    with pytest.raises(UserError, match="holds one class, 'a'"):
        open_dataset(str(tmp_path))
    (tmp_path / "train" / "b").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "train" / "b" / "0.png")
    with pytest.raises(UserError, match="has no validation split .*train"):
        open_dataset(str(tmp_path))
