"""Batches: validation never sees the test files, every test example counts once, a resumed epoch is the same epoch."""

import dataclasses
import itertools

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from caps_tf.data import norb_format
from caps_tf.data.datasets import open_dataset
from caps_tf.data.images import (
    Preprocessing,
    evaluation_batches,
    num_evaluation_batches,
    num_examples,
    num_training_batches,
    training_batches,
)
from caps_tf.data.preprocessing import AUGMENTATIONS
from caps_tf.data.splits import make_splits
from caps_tf.errors import UserError
from tests.batches import assert_same_batches, collect, joined
from tests.small_norb import run_script, write_small_norb

PLAIN = Preprocessing(resize=None, crop=None, normalize="none", **AUGMENTATIONS["none"])


@pytest.fixture(scope="module")
def norb(tmp_path_factory):
    """5 toys x 5 categories x 3 elevations x 18 azimuths: 1,350 pairs of 12x10 pixels a split."""
    storage = tmp_path_factory.mktemp("norb")
    directory = storage / "data" / "smallNORB"
    write_small_norb(directory, size=(12, 10), elevations=(0, 2, 8), azimuths=norb_format.AZIMUTHS)
    run_script("data/convert_to_tfrecord.py", f"--storage={storage}")
    return open_dataset("smallNORB", storage=storage)


@pytest.fixture(scope="module")
def files(norb):
    """The .mat files behind `norb`."""
    directory = norb.builder.data_path.parent
    return {
        "train": norb_format.read_split(directory, "training"),
        "test": norb_format.read_split(directory, "testing"),
    }


def evaluate(split, preprocessing=PLAIN, batch_size=64):
    examples = joined(evaluation_batches(split, preprocessing, batch_size))
    return {key: value[examples["weight"] == 1] for key, value in examples.items()}


def train(split, preprocessing=PLAIN, batch_size=32, **options):
    options = {"epoch": 0, "seed": 1, **options}
    return collect(training_batches(split, preprocessing, batch_size, **options))


def grey_levels(images):
    """Images between 0 and 1 as they are in the files."""
    levels = np.round(255 * images)
    np.testing.assert_allclose(images, levels / 255, atol=1e-6)
    return levels


def assert_pixels_come_from(files, examples):
    rows, views = examples["id"], examples["view"]
    np.testing.assert_array_equal(grey_levels(examples["image"])[..., 0], files.images[rows, views])
    np.testing.assert_array_equal(examples["label"], files.category[rows])
    factors = np.stack([examples[key] for key in ("instance", "elevation", "azimuth", "lighting")], axis=1)
    np.testing.assert_array_equal(factors, files.info[rows] * [1, 5, 10, 1] + [0, 30, 0, 0])


@pytest.mark.parametrize(
    "batch_size", [100, 4000, *(pytest.param(each, marks=pytest.mark.campaign) for each in (1350, 2700, 7))]
)
def test_every_test_example_counts_once_whatever_the_batch_size(norb, files, batch_size):
    split = make_splits(norb)["test"]
    batches = collect(evaluation_batches(split, PLAIN, batch_size))
    assert len(batches) == num_evaluation_batches(split, PLAIN, batch_size)
    assert all(batch["image"].shape == (batch_size, 12, 10, 1) for batch in batches)
    assert sum(batch["weight"].sum() for batch in batches) == num_examples(split, PLAIN) == 2700
    examples = evaluate(split, batch_size=batch_size)
    pairs = set(zip(examples["id"].tolist(), examples["view"].tolist()))
    assert pairs == set(itertools.product(range(1350), range(2))) and len(examples["id"]) == 2700
    assert_pixels_come_from(files["test"], examples)


def test_validation_comes_from_the_training_files_and_never_overlaps_training(norb, files):
    splits = make_splits(norb, val_prop=0.1)
    trained, validated = evaluate(splits["train"]), evaluate(splits["validation"])
    assert_pixels_come_from(files["train"], trained)
    assert_pixels_come_from(files["train"], validated)
    assert splits["validation"].num_records == 135 == len(validated["id"]) / 2
    # By record: both views of a pair are on one side.
    assert not set(trained["id"]) & set(validated["id"])
    assert set(trained["id"]) | set(validated["id"]) == set(range(1350))


def test_validation_on_held_out_toys(norb):
    splits = make_splits(norb, val_instances=[9])
    assert set(evaluate(splits["train"])["instance"]) == {4, 6, 7, 8}
    validated = evaluate(splits["validation"])
    assert set(validated["instance"]) == {9} and len(validated["id"]) == 2 * 270


def test_no_validation_leaves_all_records_to_training(norb):
    splits = make_splits(norb, val_prop=0)
    assert set(splits) == {"train", "test"} and splits["train"].num_records == 1350


def test_training_reads_only_training_records(norb, files):
    splits = make_splits(norb)
    examples = joined(training_batches(splits["train"], PLAIN, 10, epoch=0))
    assert len(examples["id"]) == 2430 == len(set(zip(examples["id"], examples["view"])))
    pixels = files["train"].images[examples["id"], examples["view"]]
    np.testing.assert_array_equal(grey_levels(examples["image"])[..., 0], pixels)
    assert not set(examples["id"]) & set(evaluate(splits["validation"])["id"])


def test_novel_azimuths_of_hinton_2018(norb):
    splits = make_splits(norb, viewpoints="azimuth")
    assert set(splits) == {"train", "validation", "familiar", "novel"}
    familiar_degrees = {300, 320, 340, 0, 20, 40}
    for name in ("train", "validation", "familiar"):
        assert set(evaluate(splits[name])["azimuth"]) == familiar_degrees
    assert set(evaluate(splits["novel"])["azimuth"]) == set(range(60, 300, 20))
    assert splits["train"].num_records + splits["validation"].num_records == 450
    rows = [set(evaluate(splits[name])["id"]) for name in ("familiar", "novel")]
    assert not rows[0] & rows[1] and rows[0] | rows[1] == set(range(1350))


@pytest.mark.campaign
def test_novel_elevations_of_hinton_2018(norb):
    splits = make_splits(norb, viewpoints="elevation", val_instances=[4])
    for name in ("train", "validation", "familiar"):
        assert set(evaluate(splits[name])["elevation"]) == {30, 40}
    assert set(evaluate(splits["novel"])["elevation"]) == {70}
    assert set(evaluate(splits["validation"])["instance"]) == {4}
    assert splits["familiar"].num_records + splits["novel"].num_records == 1350


def test_an_epoch_resumed_in_the_middle_is_the_same_epoch_bit_for_bit(norb):
    split = make_splits(norb)["train"]
    preprocessing = Preprocessing(resize=(6, 5), crop=(5, 4))
    whole = train(split, preprocessing, epoch=3)
    assert len(whole) == num_training_batches(split, preprocessing, 32) == 75
    assert_same_batches(train(split, preprocessing, epoch=3, skip_batches=31), whole[31:])


def test_runs_with_one_seed_agree_and_epochs_and_seeds_differ(norb):
    split = make_splits(norb)["train"]
    preprocessing = Preprocessing(resize=None, crop=(8, 8))
    first = train(split, preprocessing)
    assert_same_batches(train(split, preprocessing), first)
    for other in (train(split, preprocessing, epoch=1), train(split, preprocessing, seed=2)):
        assert not np.array_equal(other[0]["id"], first[0]["id"])
        # The same example, wherever the shuffling put it, is augmented differently.
        row, view, image = other[0]["id"][0], other[0]["view"][0], other[0]["image"][0]
        same = [batch["image"][(batch["id"] == row) & (batch["view"] == view)] for batch in first]
        assert not np.array_equal(np.concatenate(same), image[None])


def test_views_of_a_pair_are_shuffled_apart(norb):
    first = train(make_splits(norb)["train"], batch_size=100)[0]
    assert len(set(first["id"])) > 90 and set(first["view"]) == {0, 1}


@pytest.mark.parametrize("views, view", [("left", 0), ("right", 1)])
def test_one_camera(norb, files, views, view):
    preprocessing = dataclasses.replace(PLAIN, views=views)
    split = make_splits(norb)["test"]
    examples = evaluate(split, preprocessing)
    assert num_examples(split, preprocessing) == 1350 == len(examples["id"])
    assert set(examples["view"]) == {view}
    assert_pixels_come_from(files["test"], examples)


def test_stereo_crops_and_augments_both_cameras_alike(norb, files):
    splits = make_splits(norb)
    preprocessing = dataclasses.replace(PLAIN, crop=(8, 6), random_crop=True, views="stereo")
    assert preprocessing.input_shape(norb) == (8, 6, 2)
    corners = set()
    for batch in train(splits["train"], preprocessing)[:5]:
        for row, image in zip(batch["id"], grey_levels(batch["image"])):
            pair = np.moveaxis(files["train"].images[row], 0, -1)
            windows = np.lib.stride_tricks.sliding_window_view(pair, (8, 6, 2))[:, :, 0]
            matches = np.argwhere((windows == image).all(axis=(2, 3, 4)))
            assert len(matches) == 1
            corners.add(tuple(matches[0]))
    assert corners == set(itertools.product(range(5), range(5)))  # every position is drawn
    brightened = dataclasses.replace(PLAIN, max_brightness_delta=2.0, views="stereo")
    batch = train(splits["train"], brightened)[0]
    deltas = batch["image"] - np.moveaxis(files["train"].images[batch["id"]], 1, -1) / np.float32(255)
    np.testing.assert_allclose(deltas, np.broadcast_to(deltas[:, :1, :1, :1], deltas.shape), atol=1e-4)
    assert np.abs(deltas).max() <= 2 and deltas.std() > 0.5


def test_images_are_halved_standardised_and_cropped_in_this_order(norb, files):
    preprocessing = Preprocessing(resize=(6, 5), crop=(4, 3))
    examples = evaluate(make_splits(norb)["test"], preprocessing)
    pixels = files["test"].images[examples["id"], examples["view"]].astype(np.float32)
    halved = pixels.reshape(-1, 6, 2, 5, 2).mean(axis=(2, 4))
    deviation = np.maximum(halved.std(axis=(1, 2), keepdims=True), 1 / np.sqrt(30))
    standardised = (halved - halved.mean(axis=(1, 2), keepdims=True)) / deviation
    np.testing.assert_allclose(examples["image"][..., 0], standardised[:, 1:5, 1:4], atol=1e-4)


def test_brightness_and_contrast_stay_in_their_ranges(norb):
    split = make_splits(norb)["train"]
    preprocessing = Preprocessing(resize=None, crop=None)
    batches = train(split, preprocessing, batch_size=270)
    images = np.concatenate([batch["image"] for batch in batches])
    shifts, factors = images.mean(axis=(1, 2, 3)), images.std(axis=(1, 2, 3))
    assert -2 <= shifts.min() < -1.9 and 1.9 < shifts.max() <= 2
    assert 0.499 <= factors.min() < 0.52 and 1.48 < factors.max() <= 1.501


def test_batches_fit_a_distribution_strategy_with_global_batches(norb):
    strategy = tf.distribute.MirroredStrategy(tf.config.list_logical_devices("CPU")[:1])
    split = make_splits(norb)["train"]
    plain = train(split)
    spread = strategy.experimental_distribute_dataset(training_batches(split, PLAIN, 32, epoch=0, seed=1))
    for batch, expected in zip(spread, plain, strict=True):
        np.testing.assert_array_equal(strategy.experimental_local_results(batch["id"])[0], expected["id"])


def test_what_does_not_fit_is_one_clear_line(norb):
    with pytest.raises(UserError, match="cannot crop 13x8 pixels out of 12x10"):
        Preprocessing(resize=None, crop=(13, 8)).input_shape(norb)
    with pytest.raises(UserError, match="views must be one of"):
        Preprocessing(views="middle").input_shape(norb)
    with pytest.raises(UserError, match="viewpoints must be one of azimuth, elevation"):
        make_splits(norb, viewpoints="azimut")
    with pytest.raises(UserError, match="val_prop must be"):
        make_splits(norb, val_prop=1)
    with pytest.raises(UserError, match="no records for validation"):
        make_splits(norb, val_instances=[0])
    with pytest.raises(UserError, match="2430 train examples are less than a batch of 5000"):
        training_batches(make_splits(norb)["train"], PLAIN, 5000, epoch=0)


def write_image_folder(directory, shapes):
    random = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 7)):
        for name in ("cat", "dog"):
            (directory / split / name).mkdir(parents=True)
            for index, shape in zip(range(count), itertools.cycle(shapes)):
                image = Image.fromarray(random.integers(0, 256, shape, np.uint8))
                image.save(directory / split / name / f"{index}.png")
    return open_dataset(str(directory))


def test_an_image_folder_of_colour_images_that_are_not_square(tmp_path):
    splits = make_splits(write_image_folder(tmp_path, [(9, 7, 3)]), val_prop=0.25)
    assert {name: split.num_records for name, split in splits.items()} == {"train": 30, "validation": 10, "test": 14}
    preprocessing = Preprocessing(resize=None, crop=(8, 6))
    batches = train(splits["train"], preprocessing, batch_size=15)
    assert [batch["image"].shape for batch in batches] == [(15, 8, 6, 3)] * 2
    trained = {row for batch in batches for row in batch["id"]}
    assert trained == set(range(30)) and set(evaluate(splits["validation"])["id"]) == set(range(30, 40))
    tested = evaluate(splits["test"], preprocessing, batch_size=5)
    assert sorted(tested["id"]) == list(range(14)) and sorted(tested["label"]) == [0] * 7 + [1] * 7
    with pytest.raises(UserError, match="neither toys nor viewpoints"):
        make_splits(splits["test"].dataset, viewpoints="azimuth")
    with pytest.raises(UserError, match="only one view"):
        Preprocessing(views="stereo").input_shape(splits["test"].dataset)


def test_an_image_folder_of_mixed_sizes_needs_a_size(tmp_path):
    dataset = write_image_folder(tmp_path, [(9, 7, 3), (5, 5)])
    with pytest.raises(UserError, match="differ in size: resize"):
        Preprocessing(resize=None).input_shape(dataset)
    preprocessing = Preprocessing(resize=(6, 8), crop=None)
    examples = evaluate(make_splits(dataset)["test"], preprocessing)
    assert examples["image"].shape == (14, 6, 8, 3) and np.isfinite(examples["image"]).all()
