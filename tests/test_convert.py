"""Conversion to TFRecords: nothing lost, nothing half done, the same bytes every time, little memory."""

import fcntl
import gzip
import math
import os
import resource
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from caps_tf.data import idx_records, norb_format, norb_matrix, records
from caps_tf.data.datasets import open_dataset
from caps_tf.errors import UserError
from tests.small_norb import ROOT, expect_one_line, run_script, write_small_norb

CONVERT = "data/convert_to_tfrecord.py"
CONVERT_IDX = "data/convert_idx_to_tfrecord.py"


def write_norb(storage: Path, **options) -> Path:
    directory = storage / "data" / "smallNORB"
    write_small_norb(directory, **{"size": (12, 10), "elevations": [0, 8], "azimuths": [0, 34], **options})
    return directory


def convert(storage: Path, *flags: str) -> Path:
    run_script(CONVERT, f"--storage={storage}", *flags)
    return storage / "data" / "smallNORB" / "tfrecord"


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def write_times(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in directory.iterdir()}


@pytest.mark.parametrize("encoding", ["png", "raw"])
def test_tfds_reads_back_every_pixel_and_label(tmp_path, encoding):
    source = write_norb(tmp_path)
    builder = tfds.builder_from_directory(convert(tmp_path, f"--encoding={encoding}"))
    assert builder.info.features["label_category"].names == list(norb_format.CATEGORIES)
    assert builder.info.supervised_keys == ("image", "label_category")
    for split, file_split in (("train", "training"), ("test", "testing")):
        norb = norb_format.read_split(source, file_split)
        examples = list(builder.as_dataset(split=split).as_numpy_iterator())
        rows = [int(example["id"].decode().removeprefix(f"{split}_")) for example in examples]
        assert sorted(rows) == list(range(len(norb))) and rows != sorted(rows)
        for row, example in zip(rows, examples, strict=True):
            np.testing.assert_array_equal(example["image"][..., 0], norb.images[row, 0])
            np.testing.assert_array_equal(example["image2"][..., 0], norb.images[row, 1])
            assert example["label_category"] == norb.category[row]
            keys = ("instance", "label_elevation", "label_azimuth", "label_lighting")
            assert [example[key] for key in keys] == (norb.info[row] // [1, 1, 2, 1]).tolist()


def test_bytes_depend_on_the_seed_but_not_on_the_threads(tmp_path):
    source = write_norb(tmp_path / "a")
    for storage in ("b", "c"):
        (tmp_path / storage / "data").mkdir(parents=True)
        (tmp_path / storage / "data" / "smallNORB").symlink_to(source)
    one = contents(convert(tmp_path / "a", "--num_threads=1"))
    assert contents(convert(tmp_path / "b", "--num_threads=7", "--overwrite")) == one
    other = contents(convert(tmp_path / "c", "--seed=1"))
    assert other.keys() == one.keys()
    assert all(other[name] != one[name] for name in one if ".tfrecord-" in name)


def test_killed_in_the_middle_it_goes_on_where_it_stopped(tmp_path):
    write_norb(tmp_path / "whole", size=(96, 96), azimuths=range(0, 36, 4))
    whole = contents(convert(tmp_path / "whole"))
    write_norb(tmp_path / "killed", size=(96, 96), azimuths=range(0, 36, 4))
    output = tmp_path / "killed" / "data" / "smallNORB" / "tfrecord"
    process = subprocess.Popen(
        [sys.executable, CONVERT, f"--storage={tmp_path / 'killed'}", "--num_threads=1"],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while len(list(output.glob("*.tfrecord-*-of-00016"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL

    finished = {name: when for name, when in write_times(output).items() if name.endswith("-of-00016")}
    assert 3 <= len(finished) < 32
    assert not (output / "dataset_info.json").exists()
    with pytest.raises(UserError, match=r"interrupted: run python data/convert_to_tfrecord.py --dataset=smallNORB"):
        open_dataset("smallNORB", storage=tmp_path / "killed")

    convert(tmp_path / "killed")
    assert contents(output) == whole
    assert finished.items() <= write_times(output).items()


def test_a_second_run_verifies_and_writes_nothing(tmp_path):
    source = write_norb(tmp_path)
    output = convert(tmp_path)
    before = write_times(output)
    assert "verified" in run_script(CONVERT, f"--storage={tmp_path}").stdout
    assert write_times(output) == before
    for path in source.glob("*.mat"):  # the same data, packed
        path.with_suffix(".mat.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert convert(tmp_path) == output
    assert write_times(output) == before


def test_changed_source_or_parameters_start_from_scratch(tmp_path):
    source = write_norb(tmp_path)
    output = convert(tmp_path)
    before = contents(output)
    (dat,) = source.glob("*-testing-dat.mat")
    images = np.array(norb_matrix.read_matrix(dat))
    images[3, 1, 0, 0] ^= 1
    norb_matrix.write_matrix(dat, images)
    changed = contents(convert(tmp_path))
    assert changed != before
    convert(tmp_path, "--num_shards=2", "--encoding=raw")
    assert len(list(output.glob("*.tfrecord-*"))) == 4
    assert contents(convert(tmp_path)) == changed


def test_a_damaged_or_lost_shard_is_written_again(tmp_path):
    write_norb(tmp_path)
    output = convert(tmp_path)
    before = contents(output)
    damaged, lost, short = sorted(output.glob("*.tfrecord-*"))[:3]
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    lost.unlink()
    short.write_bytes(short.read_bytes()[:-30])
    with pytest.raises(UserError, match="run python data/convert_to_tfrecord.py"):
        open_dataset("smallNORB", storage=tmp_path)
    assert "3 shards written" in run_script(CONVERT, f"--storage={tmp_path}").stdout
    assert contents(output) == before


def test_memory_does_not_grow_with_the_data(tmp_path):
    directory = write_norb(tmp_path, azimuths=range(0, 36, 2))
    for split in ("training", "testing"):
        (dat,) = directory.glob(f"*-{split}-dat.mat")
        shape = (len(norb_matrix.read_matrix(dat)), 2, 256, 256)
        # A file of zeros that takes no space: 236 MB in all.
        dat.write_bytes(struct.pack("<6i", 0x1E3D4C55, 4, *shape))
        os.truncate(dat, 24 + math.prod(shape))
    # Measured by a process of its own: a child's peak counts what its parent held when it was forked.
    measure = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, capture_output=True); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    result = run_script("-c", measure, sys.executable, CONVERT, f"--storage={tmp_path}")
    assert int(result.stdout) / 1024 < 200


def test_tensorflow_is_not_imported():
    code = "import sys, caps_tf.data.norb_records, caps_tf.data.idx_records; sys.exit('tensorflow' in sys.modules)"
    run_script("-c", code)


def test_missing_files_name_the_command_to_run(tmp_path):
    command = (CONVERT, f"--storage={tmp_path}")
    expect_one_line(run_script(*command, check=False), "./data/download.sh", str(tmp_path))
    expect_one_line(run_script(*command, "--dataset=renderedNORB", check=False), "python data/render_norb.py")


def test_too_little_disk_space_is_told_before_anything_is_written(tmp_path):
    for dat in write_norb(tmp_path).glob("*-dat.mat"):
        shape = (len(norb_matrix.read_matrix(dat)), 2, 100_000, 100_000)
        dat.write_bytes(struct.pack("<6i", 0x1E3D4C55, 4, *shape))
        os.truncate(dat, 24 + math.prod(shape))  # terabytes of zeros that take no space
    expect_one_line(run_script(CONVERT, f"--storage={tmp_path}", check=False), "disk space")


def test_a_write_that_fails_is_one_line_and_leaves_nothing_half_written(tmp_path):
    write_norb(tmp_path, size=(96, 96))
    flags, limits = (f"--storage={tmp_path}", "--encoding=raw", "--num_shards=2"), [(resource.RLIMIT_FSIZE, 99999)]
    expect_one_line(run_script(CONVERT, *flags, check=False, limits=limits), "File too large")
    output = tmp_path / "data" / "smallNORB" / "tfrecord"
    assert [path.name for path in output.iterdir()] == ["conversion.json"]


def test_two_conversions_at_once_are_refused(tmp_path):
    write_norb(tmp_path)
    output = convert(tmp_path)
    descriptor = os.open(output, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        expect_one_line(run_script(CONVERT, f"--storage={tmp_path}", check=False), "another conversion")
    finally:
        os.close(descriptor)


def test_a_dataset_from_elsewhere_is_not_overwritten(tmp_path):
    write_norb(tmp_path)
    output = convert(tmp_path)
    (output / "conversion.json").unlink()
    before = contents(output)
    expect_one_line(run_script(CONVERT, f"--storage={tmp_path}", check=False), "--overwrite")
    assert contents(output) == before


def test_records_are_tfrecords_both_ways(tmp_path):
    written = [b"", b"one", bytes(range(256)) * 300]
    records.write_records(tmp_path / "ours", written)
    assert list(tf.data.TFRecordDataset(str(tmp_path / "ours")).as_numpy_iterator()) == written
    with tf.io.TFRecordWriter(str(tmp_path / "theirs")) as writer:
        for record in written:
            writer.write(record)
    assert (tmp_path / "theirs").read_bytes() == (tmp_path / "ours").read_bytes()
    assert list(records.read_records(tmp_path / "theirs")) == written


def test_every_damaged_or_missing_byte_of_a_record_file_is_noticed(tmp_path):
    path = tmp_path / "file"
    records.write_records(path, [b"first", b"second"])
    data = path.read_bytes()
    one_record = 12 + len(b"first") + 4
    damaged = [data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :] for at in range(len(data))]
    short = [data[:length] for length in range(1, len(data)) if length != one_record]
    for content in damaged + short:
        path.write_bytes(content)
        with pytest.raises(ValueError, match="damaged"):
            list(records.read_records(path))


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


def write_toy_idx(directory: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    directory.mkdir()
    random = np.random.default_rng(0)
    splits = {}
    for split, prefix, count in (("train", "train", 50), ("test", "t10k", 20)):
        images, labels = random.integers(0, 256, (count, 7, 9), np.uint8), np.arange(count, dtype=np.uint8) % 3
        write_idx(directory / f"{prefix}-images-idx3-ubyte.gz", images)
        write_idx(directory / f"{prefix}-labels-idx1-ubyte.gz", labels)
        splits[split] = images, labels
    return splits


def test_idx_files_become_a_dataset(tmp_path):
    splits = write_toy_idx(tmp_path / "idx")
    command = (CONVERT_IDX, f"--source={tmp_path / 'idx'}", f"--data_dir={tmp_path / 'toy'}")
    run_script(*command, "--class_names=a,b,c")
    dataset = open_dataset(str(tmp_path / "toy"))
    assert (dataset.name, dataset.class_names, dataset.image_shape) == ("toy", ("a", "b", "c"), (7, 9, 1))
    for split, (images, labels) in splits.items():
        for example in dataset.builder.as_dataset(split=split).as_numpy_iterator():
            row = int(example["id"].decode().removeprefix(f"{split}_"))
            np.testing.assert_array_equal(example["image"][..., 0], images[row])
            assert example["label"] == labels[row]
    expect_one_line(run_script(*command, "--class_names=a,b", check=False), "--class_names")


def test_a_part_of_the_training_images_is_the_first_of_them(tmp_path):
    splits = write_toy_idx(tmp_path / "idx")
    images = idx_records.IdxRecords.read(tmp_path / "idx", "train")
    part = images.first(30)
    np.testing.assert_array_equal(part.images, splits["train"][0][:30])
    np.testing.assert_array_equal(part.labels, splits["train"][1][:30])
    with pytest.raises(UserError, match="the train files hold 50 images, not 51"):
        images.first(51)
    run_script(CONVERT_IDX, f"--source={tmp_path / 'idx'}", f"--data_dir={tmp_path / 'toy'}", "--train_images=30")
    splits = open_dataset(str(tmp_path / "toy")).builder.info.splits
    assert (splits["train"].num_examples, splits["test"].num_examples) == (30, 20)


def test_bad_idx_files_are_one_line(tmp_path):
    write_toy_idx(tmp_path / "idx")
    command = (CONVERT_IDX, f"--source={tmp_path / 'idx'}", f"--data_dir={tmp_path / 'toy'}")
    images = tmp_path / "idx" / "train-images-idx3-ubyte.gz"
    data = images.read_bytes()
    images.write_bytes(data[:-20])
    expect_one_line(run_script(*command, check=False), images.name, "damaged gzip")
    images.write_bytes(gzip.compress(gzip.decompress(data)[:-1]))
    expect_one_line(run_script(*command, check=False), images.name, "do not fit")
    images.write_bytes(gzip.compress(b"no IDX"))
    expect_one_line(run_script(*command, check=False), images.name, "not an IDX file")
    images.unlink()
    expect_one_line(run_script(*command, check=False), "train-images-idx3-ubyte")
    assert not (tmp_path / "toy").exists()
