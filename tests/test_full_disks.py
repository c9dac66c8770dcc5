"""Full disks, directories that may not be written, and too little memory: one clear line, and nothing lost."""

import contextlib
import json
import os
import resource
import tempfile
from pathlib import Path

import pytest

from caps_tf.data import conversion, norb_format, norb_matrix, norb_records
from caps_tf.files import locked, write_atomically
from caps_tf.training.config import RunConfig
from caps_tf.training.logs import TrainingLog
from caps_tf.training.params import load_params, save_params
from tests.refusals import refused
from tests.small_norb import SMALL_DATA, TINY, expect_one_line, run_script, write_small_norb
from tests.test_checkpoints import make_checkpoints


@contextlib.contextmanager
def file_size_limit(size):
    """Files end at `size`, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_up_while_a_checkpoint_is_written_keeps_the_one_before(tmp_path, record_property):
    checkpoints = make_checkpoints(tmp_path)
    checkpoints.save()
    checkpoints.step.assign(1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for size in (0, 100, 1500):
        with refused("cannot save a checkpoint", "free some space, then continue"), file_size_limit(size):
            checkpoints.save()
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    checkpoints.save()
    record_property("inputs refused", 3)


def test_a_disk_that_fills_up_while_a_log_is_written_is_one_line(tmp_path, record_property):
    log = TrainingLog(tmp_path, 0, 10)
    log.record("train", 1, 0, loss=1.0)
    log.flush()
    size = (tmp_path / "log.jsonl").stat().st_size
    with refused(str(tmp_path), "free some space", "--load_dir"), file_size_limit(size + 10):
        log.record("train", 2, 0, loss=1.0)
    log.close()
    again = TrainingLog(tmp_path, 1, 10)
    again.record("train", 2, 0, loss=0.5)
    again.close()
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [1, 2]
    record_property("inputs refused", 1)


def test_a_disk_that_fills_up_leaves_the_old_parameters_and_no_half_converted_shard(tmp_path, record_property):
    write_small_norb(tmp_path / "norb", size=(6, 4), elevations=[0], azimuths=[0, 34])
    save_params(RunConfig(), tmp_path / "params.json")
    old = (tmp_path / "params.json").read_bytes()
    with refused("params.json", "cannot be written"), file_size_limit(100):
        save_params(RunConfig(A=4), tmp_path / "params.json")
    assert (tmp_path / "params.json").read_bytes() == old
    assert sorted(path.name for path in tmp_path.iterdir()) == ["norb", "params.json"]

    split = norb_format.read_split(tmp_path / "norb", "training")
    source = norb_records.NorbRecords(split, "train", "raw")
    schema = norb_records.norb_schema("toys", *split.images.shape[2:], "raw")
    with refused("cannot be written"), file_size_limit(2000):
        conversion.convert(tmp_path / "out", schema, {"train": source}, num_shards=1)
    assert not list((tmp_path / "out").glob("*tfrecord*")) and not (tmp_path / "out" / "dataset_info.json").exists()
    record_property("inputs refused", 2)


@contextlib.contextmanager
def nobody():
    """No rights to other users' files, also where the tests run as root."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def forbidden():
    """A directory that nobody may write, and in it a file that nobody may read."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "params.json").write_text("{}")
        (directory / "params.json").chmod(0)
        directory.chmod(0o555)
        yield directory
        directory.chmod(0o755)


def test_what_may_not_be_read_or_written_is_named(forbidden, record_property):
    with nobody(), refused("params.json", "Permission denied"):
        load_params(forbidden / "params.json")
    with nobody(), refused("params.json", "cannot be read"):
        norb_matrix.read_matrix(forbidden / "params.json")
    with nobody(), refused(str(forbidden), "cannot be written"):
        write_atomically(forbidden / "x.json", b"")
    with nobody(), refused(str(forbidden), "cannot be written"):
        TrainingLog(forbidden / "run", 0, 1)
    with nobody(), refused(str(forbidden), "cannot be written"), locked(forbidden / "run", ""):
        pass
    checkpoints = make_checkpoints(forbidden / "checkpoints")
    with nobody(), refused(str(forbidden), "cannot save a checkpoint"):
        checkpoints.save()
    record_property("inputs refused", 6)


def test_a_storage_that_is_a_file_is_one_line(tmp_path, storage, record_property):
    (tmp_path / "data").symlink_to(storage / "data")
    (tmp_path / "logs").write_text("a file where a directory is wanted")
    process = run_script("train_val.py", *SMALL_DATA, "--network=cnn_baseline", f"--storage={tmp_path}", check=False)
    expect_one_line(process, str(tmp_path / "logs"), "cannot be written")
    record_property("inputs refused", 1)


@pytest.mark.parametrize("script", ["train_val.py", "test.py"])
def test_an_address_space_too_small_for_tensorflow_is_one_line(tmp_path, script, record_property):
    save_params(RunConfig(), tmp_path / "train" / "params.json")
    flags, limits = [f"--load_dir={tmp_path}"], [(resource.RLIMIT_AS, 2 * 10**9)]
    expect_one_line(run_script(script, *flags, check=False, limits=limits), "2.0 GB of address space", "ulimit -v")
    record_property("inputs refused", 1)


@pytest.mark.campaign
def test_a_step_beyond_the_address_space_is_one_line_before_anything_is_written(storage, record_property):
    flags, limits = [f"--storage={storage}", *TINY, "--B=300", "--C=300"], [(resource.RLIMIT_AS, 7 * 10**9)]
    before = sorted(storage.rglob("*"))
    expect_one_line(run_script("train_val.py", *flags, check=False, limits=limits), "GB are free", "lower --batch_size")
    assert sorted(storage.rglob("*")) == before
    record_property("inputs refused", 1)
