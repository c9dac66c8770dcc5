"""Damaged, truncated and foreign input: each gets one clear line that names it, and leaves nothing behind."""

import dataclasses
import gzip
import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from caps_tf.data import conversion, norb_format, records
from caps_tf.data.damage import find_damage
from caps_tf.data.datasets import open_dataset
from caps_tf.training import tester
from caps_tf.training.config import RunConfig
from caps_tf.training.data import make_test_data, make_training_data
from caps_tf.training.failures import explained
from caps_tf.training.params import load_params
from caps_tf.training.trainer import Trainer
from tests.coloured_folder import write_coloured_folder
from tests.refusals import refused
from tests.small_norb import expect_one_line, run_script, write_small_norb


def cut(path, length):
    path.write_bytes(path.read_bytes()[:length])


def flip(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


# The NORB files.


@pytest.fixture
def norb(tmp_path):
    write_small_norb(tmp_path / "norb", size=(6, 4), elevations=[0], azimuths=[0, 34])
    return tmp_path / "norb"


@pytest.mark.parametrize("kind", ["dat", "cat", "info"])
def test_norb_files_cut_at_every_kind_of_boundary_are_named(norb, kind, record_property):
    [path] = norb.glob(f"*-training-{kind}.mat")
    whole = path.read_bytes()
    header = 24 if kind == "dat" else 20
    row = {"dat": 2 * 6 * 4, "cat": 4, "info": 16}[kind]
    ends = [0, 1, 4, 7, 8, 12, header - 1, header, header + 1, header + row, header + row + 1, len(whole) - row]
    for end in [*ends, len(whole) - 1]:
        path.write_bytes(whole[:end])
        with refused(path.name, "delete it and download or render it again"):
            norb_format.read_split(norb, "training")
    path.write_bytes(whole)
    path.with_suffix(".mat.gz").write_bytes(gzip.compress(whole)[:-5])
    path.unlink()
    with refused(path.name, "damaged gzip"):
        norb_format.read_split(norb, "training")
    record_property("inputs refused", len(ends) + 2)


@pytest.mark.parametrize("kind", ["dat", "cat", "info"])
def test_every_flipped_bit_of_a_header_is_noticed(norb, kind, record_property):
    [path] = norb.glob(f"*-training-{kind}.mat")
    bits = 8 * (24 if kind == "dat" else 20)
    for bit in range(bits):
        flip(path, bit)
        with refused(path.name):
            norb_format.read_split(norb, "training")
        flip(path, bit)
    norb_format.read_split(norb, "training")
    record_property("inputs refused", bits)


def test_a_flipped_bit_of_the_published_files_is_noticed_before_anything_is_converted(norb, tmp_path, record_property):
    # Files of another content under the official names: what a flipped bit makes of them.
    for split, instances in (("training", "46789"), ("testing", "01235")):
        for kind in ("dat", "cat", "info"):
            [path] = norb.glob(f"*-{split}-{kind}.mat")
            path.rename(norb / f"smallnorb-5x{instances}x9x18x6x2x96x96-{split}-{kind}.mat")
    process = run_script("data/convert_to_tfrecord.py", f"--data_dir={norb}", check=False)
    expect_one_line(process, "smallnorb-5x46789x9x18x6x2x96x96-training-cat.mat", "damaged: its sha256", "delete it")
    assert not (norb / "tfrecord").exists()
    record_property("inputs refused", 1)


def test_any_flipped_bit_of_a_file_with_a_known_checksum_is_noticed(norb, record_property):
    checksums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in norb.glob("*.mat")}
    assert norb_format.verify(norb, checksums) == 6
    rng, flips = np.random.default_rng(0), 0
    for path in norb.glob("*.mat"):
        for bit in rng.integers(0, 8 * path.stat().st_size, 20).tolist():
            flip(path, bit)
            with refused(path.name, "its sha256 is"):
                norb_format.verify(norb, checksums)
            flip(path, bit)
            flips += 1
    record_property("inputs refused", flips)


def test_official_checksums_are_those_of_the_downloader():
    script = Path(__file__).parents[1] / "data" / "download.sh"
    lines = [line.split() for line in script.read_text().splitlines() if line.startswith("smallnorb-")]
    assert {name: sha256 for name, _, _, sha256 in lines} == norb_format.OFFICIAL_SHA256


# TFRecords. Training is stopped by the damage, whatever of the data it comes from.


def tiny_config(storage, **options):
    sizes = {"dataset": "smallNORB", "image_size": "17", "resize": "0", "batch_size": 32, "jit_compile": "off"}
    return RunConfig(**{"storage": str(storage), "network": "cnn_baseline", "epoch": 1, **sizes, **options})


def train(config, directory):
    strategy = tf.distribute.get_strategy()
    data = make_training_data(config)
    with explained(strategy, data.find_damage):
        Trainer(config, data, directory, strategy).run()


def judge(config, directory=None):
    strategy = tf.distribute.get_strategy()
    data = make_test_data(config)
    judge = tester.Tester(config, data.input_shapes, data.class_names, strategy)
    with explained(strategy, data.find_damage):
        for name, part in data.parts.items():
            judge.predict(name, part)


@pytest.fixture
def converted(storage, tmp_path):
    """A copy of the converted data set that may be damaged."""
    shutil.copytree(storage / "data", tmp_path / "data")
    return tmp_path / "data" / "smallNORB" / "tfrecord"


def record_offsets(path):
    """Where each record of a TFRecord file begins."""
    offsets, at = [], 0
    for record in records.read_records(path):
        offsets.append(at)
        at += 16 + len(record)
    return offsets


@pytest.mark.parametrize(
    "part",
    [
        *("length", "content"),
        *(pytest.param(f"checksum of the {part}", marks=pytest.mark.campaign) for part in ("length", "content")),
    ],
)
@pytest.mark.parametrize("run, split", [(train, "train"), (judge, "test")], ids=["training", "testing"])
def test_a_flipped_record_is_named(converted, tmp_path, run, split, part, record_property):
    path = sorted(converted.glob(f"*-{split}.tfrecord-*"))[0]
    offsets = record_offsets(path)
    at = {"length": 1, "checksum of the length": 9, "content": 40, "checksum of the content": -2}[part]
    flip(path, 8 * (offsets[17 + (at < 0)] + at))
    with refused(path.name, "record 17 is damaged", "convert or download the set again"):
        run(tiny_config(tmp_path), tmp_path / "run")
    record_property("inputs refused", 1)


def test_a_flipped_record_is_named_where_labels_are_read_beforehand(converted, tmp_path):
    path = sorted(converted.glob("*-train.tfrecord-*"))[1]
    flip(path, 8 * (record_offsets(path)[3] + 40))
    with refused(path.name, "record 3 is damaged"):
        make_training_data(tiny_config(tmp_path, val_instances="9"))


def test_a_truncated_or_missing_shard_is_told_before_training(converted, tmp_path, record_property):
    path = sorted(converted.glob("*-train.tfrecord-*"))[0]
    whole, offsets = path.read_bytes(), record_offsets(path)
    for end in (0, 5, 12, offsets[1], offsets[1] + 20, len(whole) - 1):
        path.write_bytes(whole[:end])
        with refused("shards have", "python data/convert_to_tfrecord.py"):
            make_training_data(tiny_config(tmp_path))
    path.unlink()
    with refused(path.name, "no such file", "python data/convert_to_tfrecord.py"):
        make_training_data(tiny_config(tmp_path))
    record_property("inputs refused", 7)


def test_missing_records_and_images_that_cannot_be_decoded_are_found_in_data_of_others(converted, record_property):
    (converted / conversion.MANIFEST).unlink()  # ours would be noticed by its size
    first, second = sorted(converted.glob("*-train.tfrecord-*"))[:2]
    whole, offsets = first.read_bytes(), record_offsets(first)
    first.write_bytes(whole[: offsets[-1]])
    damage = find_damage(open_dataset(str(converted)))
    assert f"{first}: holds {len(offsets) - 1} records instead of {len(offsets)}" in damage
    first.write_bytes(whole)
    kept = list(records.read_records(second))
    kept[2] = kept[2].replace(b"IHDR", b"IHDX")
    records.write_records(second, kept)
    assert f"{second}: record 2 cannot be decoded" in find_damage(open_dataset(str(converted)))
    record_property("inputs refused", 2)


def test_whole_data_have_no_damage(storage):
    assert find_damage(open_dataset("smallNORB", storage=storage)) is None


# Image folders.


@pytest.fixture
def folder(tmp_path):
    write_coloured_folder(tmp_path / "folder", classes=2, train=8, test=4)
    return tmp_path / "folder"


def folder_config(folder, tmp_path):
    return tiny_config(tmp_path, dataset=str(folder), batch_size=4, image_size="0")


def body_damaged(path):
    data = bytearray(path.read_bytes())
    at = data.index(b"IDAT") + 20
    data[at : at + 40] = bytes(40)
    path.write_bytes(data)


def cut_jpeg(path):
    Image.open(path).save(path.with_suffix(".jpg"))
    path.unlink()
    cut(path.with_suffix(".jpg"), path.with_suffix(".jpg").stat().st_size - 60)


@pytest.mark.parametrize("damage", [body_damaged, lambda path: cut(path, path.stat().st_size // 2), cut_jpeg])
@pytest.mark.parametrize("run, split", [(train, "train"), (judge, "test")], ids=["training", "testing"])
def test_an_image_that_cannot_be_decoded_is_named(folder, tmp_path, damage, run, split, record_property):
    damage(folder / split / "kind1" / "0002.png")
    with refused(f"{split}/kind1/0002.", "cannot be decoded", "fix or remove it"):
        run(folder_config(folder, tmp_path), tmp_path / "run")
    record_property("inputs refused", 1)


def saved_as(kind):
    return lambda folder: Image.new("RGB", (16, 20)).save(folder / "train" / "kind0" / "x.png", format=kind)


FOLDERS = {
    "text": (lambda at: (at / "train" / "kind0" / "x.png").write_text("no"), ["x.png", "cannot be read as an image"]),
    "empty": (lambda at: (at / "train" / "kind0" / "x.png").touch(), ["x.png", "cannot be read as an image"]),
    "header cut": (lambda at: cut(at / "train" / "kind0" / "0001.png", 20), ["0001.png", "cannot be read as an image"]),
    "GIF": (saved_as("GIF"), ["x.png", "is GIF under the name of another format"]),
    "WebP": (saved_as("WEBP"), ["x.png", "is WEBP"]),
    "TIFF": (saved_as("TIFF"), ["x.png", "is TIFF"]),
    "BMP": (saved_as("BMP"), ["x.png", "is BMP"]),
    "another suffix": (
        lambda at: Image.new("RGB", (16, 20)).save(at / "train" / "kind0" / "x.bmp"),
        ["x.bmp", "only PNG and JPEG are read"],
    ),
    "one class": (
        lambda at: [shutil.rmtree(at / split / "kind1") for split in ("train", "test")],
        ["one class, 'kind0'"],
    ),
    "class without training images": (
        lambda at: [path.unlink() for path in (at / "train" / "kind1").iterdir()],
        ["no training images of class 'kind1'"],
    ),
    "no test images": (lambda at: shutil.rmtree(at / "test"), ["has no validation split"]),
    "no training images": (lambda at: [shutil.rmtree(path) for path in (at / "train").iterdir()], ["train"]),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_that_cannot_be_trained_on_are_told_before_training(folder, tmp_path, name, record_property):
    damage, words = FOLDERS[name]
    damage(folder)
    with refused(*words):
        make_training_data(folder_config(folder, tmp_path))
    record_property("inputs refused", 1)


# Parameters.


PARAMS = {
    "not JSON": (b"A=4", "not JSON"),
    "cut short": (b'{"A": 4, "B"', "not JSON"),
    "binary": (bytes(range(256)), "not JSON"),
    "nested without end": (b"[" * 100_000, "not JSON"),
    "a list": (b"[1, 2]", "expected an object"),
    "a number": (b"7", "expected an object"),
    "of a newer version": (b'{"A": 4, "quantum_routing": true}', "no parameter 'quantum_routing'"),
    "a network of a newer version": (b'{"network": "hyper_capsules"}', "network must be one of"),
    "text for a whole number": (b'{"batch_size": "many"}', "batch_size must be of type int"),
    "text for a number": (b'{"lrn_rate": "fast"}', "lrn_rate must be of type float"),
    "a number for text": (b'{"dataset": 5}', "dataset must be of type str"),
    "a fraction for a whole number": (b'{"A": 4.5}', "A must be of type int"),
    "true for a whole number": (b'{"A": true}', "A must be of type int"),
    "a list for a number": (b'{"lrn_rate": [1]}', "lrn_rate must be of type float"),
    "null": (b'{"seed": null}', "seed must be of type int"),
    "NaN": (b'{"lrn_rate": NaN}', "lrn_rate must be a finite number"),
    "infinity": (b'{"margin_steps": Infinity}', "margin_steps must be a finite number"),
    "too large for a float": (b'{"lrn_rate": 1' + b"0" * 400 + b"}", "too large"),
    "too large for anything": (b'{"batch_size": 1' + b"0" * 40 + b"}", "batch_size must be below"),
    "a seed that generators refuse": (b'{"seed": 4294967296}', "seed must be below"),
    "negative": (b'{"seed": -1}', "seed must not be negative"),
    "a zero byte": (b'{"dataset": "a\\u0000b"}', "dataset must be printable"),
    "half a character": (b'{"name": "\\ud800"}', "name must be printable"),
    "line breaks": (b'{"name": "a\\nb"}', "name must be printable"),
    "a path for a name": (b'{"name": "../../etc"}', "cannot hold a slash"),
}


@pytest.mark.parametrize("name", PARAMS)
def test_parameters_that_cannot_be_used_are_told_by_name(tmp_path, name, record_property):
    content, words = PARAMS[name]
    (tmp_path / "params.json").write_bytes(content)
    with refused(words):
        RunConfig(**load_params(tmp_path / "params.json"))
    record_property("inputs refused", 1)


@pytest.mark.parametrize("kind", [int, float, str, bool])
def test_every_parameter_refuses_every_other_type(kind):
    values = {int: 3, float: 0.5, str: "text", bool: True}
    for option in dataclasses.fields(RunConfig):
        if option.type is not kind:
            with refused(f"{option.name} must be of type"):
                RunConfig(**{option.name: values[kind]})


@pytest.mark.parametrize(
    "script, flags, words",
    [
        ("train_val.py", ["--batch_size=many"], ["--batch_size=many", "--help"]),
        ("train_val.py", ["--lrn_rate=fast"], ["--lrn_rate=fast"]),
        ("train_val.py", ["--network=hyper"], ["--network=hyper"]),
        ("train_val.py", ["--no_such_flag=1"], ["no_such_flag"]),
        ("train_val.py", ["--lrn_rate=nan"], ["lrn_rate must be a finite number"]),
        ("test.py", ["--batch_size=x"], ["--batch_size=x"]),
        ("data/convert_to_tfrecord.py", ["--num_shards=0"], ["num_shards"]),
        ("data/convert_to_tfrecord.py", ["--num_shards=a"], ["num_shards"]),
    ],
)
def test_flags_that_cannot_be_read_get_one_clear_line(script, flags, words, record_property):
    expect_one_line(run_script(script, *flags, check=False), *words)
    record_property("inputs refused", 1)
