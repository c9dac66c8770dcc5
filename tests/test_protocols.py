"""Affine generalisation and overlapping pairs: what is drawn, that tests are the same for all, and runs of both."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest
import scipy.io
import tensorflow as tf

from benchmarks.runs import figures
from caps_tf.data import canvas, conversion
from caps_tf.data.affnist_format import read_affnist_split
from caps_tf.data.datasets import open_dataset
from caps_tf.data.idx_records import IdxRecords, idx_schema
from caps_tf.data.images import evaluation_batches, training_batches
from caps_tf.data.preprocessing import AUGMENTATIONS, Preprocessing
from caps_tf.data.protocols import Partners
from caps_tf.data.splits import make_splits
from caps_tf.evaluation.metrics import report
from caps_tf.evaluation.mistakes import worst_mistakes
from caps_tf.evaluation.predictions import Predictions, are_right
from caps_tf.evaluation.report import write_report
from caps_tf.export import export_run
from caps_tf.models import from_preset
from caps_tf.trained_runs import read_run
from caps_tf.training import tester
from caps_tf.training.config import RunConfig
from caps_tf.training.data import make_test_data, make_training_data
from caps_tf.training.factories import make_loss
from caps_tf.training.gradients import Labels, _are_correct
from caps_tf.training.trainer import Trainer
from caps_tf.weights import load_sample
from tests.refusals import refused
from tests.runs import log_lines, start_training
from tests.small_norb import run_script

COUNTS = {"train": 60, "test": 22}
CLASSES = 4
TINY = {
    "network": "conv_capsules",
    "convolutions": "4k5s4",
    "routing": "none",
    "jit_compile": "off",
    "batch_size": 18,
    "epoch": 1,
}


def drawn_digits(count, size=28, classes=CLASSES):
    """Grey squares with a bright block whose place is the class's: ink sums to size**2 + 90 (class + 1)."""
    labels = (np.arange(count) % classes).astype(np.uint8)
    images = np.ones((count, size, size), np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[3 + 5 * label :, 4:][:3, :3] += 10 * (label + 1)
    return images, labels


def convert(directory, seed=0, size=28, classes=CLASSES):
    """Writes a set as convert_idx_to_tfrecord.py does."""
    splits = {name: IdxRecords(*drawn_digits(count, size, classes), name) for name, count in COUNTS.items()}
    schema = idx_schema("digits", size, size, [str(label) for label in range(classes)])
    conversion.convert(directory, schema, splits, num_shards=2 + seed, seed=seed)
    return directory


def plain(protocol):
    return Preprocessing(resize=None, crop=None, normalize="none", protocol=protocol, **AUGMENTATIONS["none"])


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return convert(tmp_path_factory.mktemp("digits") / "tfrecord")


@pytest.fixture(scope="module")
def splits(digits):
    return make_splits(open_dataset(str(digits)))


def by_id(batches):
    """The real examples of evaluation batches, in the order of their ids."""
    batches = list(batches.as_numpy_iterator())
    joined = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    rows = np.flatnonzero(joined["weight"] > 0)
    rows = rows[np.argsort(joined["id"][rows])]
    return {name: values[rows] for name, values in joined.items()}


@pytest.mark.parametrize(
    "pixel, change, values",
    [  # of a 3x3 image in the middle of 5x5: (row, column) of the bright pixel, rotation and so on, and where it goes
        ((1, 2), (90.0, 0.0, 1.0, 1.0), {(1, 2): 8.0}),  # right, turned counter-clockwise, is up
        ((1, 2), (0.0, 1.0, 1.0, 1.0), {(3, 3): 8.0}),  # one to the right is one lower
        ((2, 1), (0.0, 0.0, 2.0, 1.0), {(4, 2): 8.0, (3, 2): 4.0}),  # twice as far down, half of it half way
        ((1, 0), (0.0, 0.0, 1.0, 2.0), {(2, 0): 8.0, (2, 1): 4.0}),
        ((1, 2), (90.0, 1.0, 1.0, 2.0), {(1, 2): 8.0}),  # turned first: x is then 0
    ],
)
def test_a_pixel_goes_where_the_map_sends_it(pixel, change, values):
    image = np.zeros((3, 3, 1), np.float32)
    image[pixel] = 8.0
    linear = canvas.linear_map(*map(tf.constant, change))
    found = canvas.transform(tf.constant(image), linear, tf.constant([2.0, 2.0]), (5, 5))[..., 0].numpy()
    for place, value in values.items():
        assert found[place] == pytest.approx(value, abs=1e-5)
    if change[2] == change[3] == 1.0:
        assert found.sum() == pytest.approx(8.0, abs=1e-4)
    # A quarter of a pixel to the right and half a pixel up of where it was.
    found = canvas.transform(tf.constant(image), tf.eye(2), tf.constant([2.25, 1.5]), (5, 5))[..., 0].numpy()
    row, column = pixel
    np.testing.assert_allclose(found[row : row + 2, column + 1 : column + 3], [[3.0, 1.0], [3.0, 1.0]], atol=1e-5)


def test_every_place_on_the_canvas_is_as_likely_and_nothing_is_cut_off():
    image = tf.reshape(tf.range(1.0, 5.0), (2, 2, 1))
    found = [canvas.place_anywhere(image, tf.constant([seed, 1]), (4, 3))[..., 0].numpy() for seed in range(600)]
    places = {}
    for each in found:
        row, column = np.argwhere(each == 1.0)[0]
        np.testing.assert_array_equal(each[row : row + 2, column : column + 2], [[1, 2], [3, 4]])
        assert each.sum() == 10
        places[row, column] = places.get((row, column), 0) + 1
    assert len(places) == 6 and all(60 < count < 140 for count in places.values())  # 100, deviation 9


def test_transformed_ink_stays_on_the_canvas_and_what_is_too_large_is_centred():
    assert (canvas.ROTATION, canvas.SHEAR, canvas.SCALE) == ((-20.0, 20.0), (-0.2, 0.2), (0.8, 1.2))
    block = np.zeros((28, 28, 1), np.float32)
    block[4:24, 6:22] = 200.0
    centres = []
    for seed in range(40):
        key = tf.constant([seed, 3])
        small, large = (canvas.transform_anywhere(tf.constant(block), key, (side, side)).numpy() for side in (40, 99))
        assert small.sum() == pytest.approx(large.sum(), rel=5e-3)  # on the larger canvas nothing can be lost
        assert 0.62 < large.sum() / block.sum() < 1.46
        centres.append(np.einsum("hwc,hwx->x", small, np.stack(np.mgrid[:40, :40], -1)) / small.sum())
    assert np.ptp(centres, axis=0).min() > 10  # of about 20 pixels of room
    full = canvas.transform_anywhere(tf.fill((40, 40, 1), 9.0), tf.constant([0, 1]), (40, 40)).numpy()
    assert full[20, 20] == 9.0
    assert not canvas.transform_anywhere(tf.zeros((28, 28, 1)), tf.constant([0, 1]), (40, 40)).numpy().any()


def test_partners_are_of_another_class_each_as_likely_in_any_order_of_the_files():
    images = np.array([[b"a"], [b"b"], [b"c"], [b"d"], [b"e"], [b"f"]])
    examples = {"image": images, "label": np.int32([2, 0, 2, 4, 0, 2]), "id": np.arange(6)}
    backwards = {name: values[::-1] for name, values in examples.items()}
    partners, others = (Partners(tf.data.Dataset.from_tensor_slices(each), "toys") for each in (examples, backwards))
    expected = {0: b"acdf", 2: b"bde", 4: b"abcef"}
    for label, allowed in expected.items():
        drawn = [partners.draw(tf.constant(label), tf.constant([seed, label])) for seed in range(200)]
        counts = {}
        for seed, (image, other) in enumerate(drawn):
            name = image.numpy()[0]
            assert examples["label"][list(images[:, 0]).index(name)] == other.numpy() != label
            assert others.draw(tf.constant(label), tf.constant([seed, label]))[0].numpy()[0] == name
            counts[name] = counts.get(name, 0) + 1
        assert b"".join(sorted(counts)) == allowed and min(counts.values()) > 120 / len(allowed)


def test_pairs_show_the_two_classes_that_they_are_labelled_with(splits):
    preprocessing = plain("overlap")
    batches = [
        *training_batches(splits["train"], preprocessing, 6, epoch=0).as_numpy_iterator(),
        *evaluation_batches(splits["test"], preprocessing, 6).as_numpy_iterator(),
    ]
    assert len(batches) == 9 + 4
    for batch in batches:
        assert batch["image"].shape == (6, 36, 36, 1)
        assert (batch["label"] != batch["label2"]).all()
        ink = 2 * 28**2 + 90 * (batch["label"] + batch["label2"] + 2)
        np.testing.assert_allclose(255 * batch["image"].sum((1, 2, 3)), ink, rtol=1e-5)  # nothing is cut off
        np.testing.assert_array_equal(batch["target"].sum(1), 2)
        assert all(
            target[[one, two]].all() for target, one, two in zip(batch["target"], batch["label"], batch["label2"])
        )
    sides = np.concatenate([batch["image"][:, [0, -1]].any((2, 3)) for batch in batches])
    assert sides.any(0).all()  # shifts reach four pixels both ways


DIGEST = """
import sys
from tests import test_protocols
print(test_protocols.digest(sys.argv[1], 5))
"""


def digest(directory, batch_size):
    """A checksum of all test sets of a converted data set, whatever the order of its files."""
    splits = make_splits(open_dataset(str(directory)))
    novel = dataclasses.replace(splits["test"], name="novel")
    found = hashlib.sha256()
    for split, protocol in ((splits["test"], "affine"), (novel, "affine"), (splits["test"], "overlap")):
        examples = by_id(evaluation_batches(split, plain(protocol), batch_size))
        found.update(np.round(255 * examples["image"]).astype(np.uint8).tobytes())
        found.update(examples.get("label2", examples["label"]).tobytes())
    return found.hexdigest()


@pytest.mark.campaign
def test_test_sets_are_the_same_for_every_process_batch_size_and_order_of_the_files(digits, tmp_path):
    other = convert(tmp_path / "other", seed=1)
    assert digest(digits, 8) in run_script("-c", DIGEST, str(other), start="forked").stdout.split()


def test_novel_images_are_transformed_and_familiar_ones_only_placed(splits):
    novel = dataclasses.replace(splits["test"], name="novel")
    familiar, transformed = (by_id(evaluation_batches(each, plain("affine"), 11)) for each in (splits["test"], novel))
    ink = 28**2 + 90 * (familiar["label"] + 1)
    assert familiar["image"].shape == (22, 40, 40, 1)
    np.testing.assert_allclose(255 * familiar["image"].sum((1, 2, 3)), ink, rtol=1e-5)
    assert np.abs(255 * transformed["image"].sum((1, 2, 3)) / ink - 1).max() > 0.1
    np.testing.assert_array_equal(familiar["label"], transformed["label"])


@pytest.mark.parametrize("protocol", ["affine", "overlap"])
def test_training_draws_anew_in_every_epoch_and_goes_on_in_the_middle_of_one(splits, protocol):
    batches = {
        (epoch, skipped): list(
            training_batches(splits["train"], plain(protocol), 9, epoch=epoch, skip_batches=skipped).as_numpy_iterator()
        )
        for epoch, skipped in ((0, 0), (1, 0), (1, 4))
    }
    for resumed, unbroken in zip(batches[1, 4], batches[1, 0][4:], strict=True):
        for name, values in unbroken.items():
            np.testing.assert_array_equal(resumed[name], values)
    first, second = (
        {name: image for batch in batches[epoch, 0] for name, image in zip(batch["id"], batch["image"], strict=True)}
        for epoch in (0, 1)
    )
    both = first.keys() & second.keys()
    assert sum(np.array_equal(first[key], second[key]) for key in both) < len(both) / 4


def test_losses_of_two_classes():
    scores = np.random.default_rng(0).uniform(0.1, 0.9, (5, 4)).astype(np.float32)
    label, label2 = np.array([0, 1, 2, 3, 0]), np.array([1, 3, 0, 2, 3])
    target = np.zeros((5, 4), np.float32)
    np.put_along_axis(target, np.stack([label, label2], 1), 1.0, axis=1)
    config = RunConfig(network="matrix_capsules", protocol="overlap")
    expected = [
        sum(max(0.0, 0.5 - row[true] + row[wrong]) ** 2 for true in pair for wrong in {0, 1, 2, 3} - set(pair))
        for row, pair in zip(scores, zip(label.tolist(), label2.tolist()), strict=True)
    ]
    np.testing.assert_allclose(make_loss(config)(target, scores, 0.5), expected, rtol=1e-5)
    config = dataclasses.replace(config, network="conv_capsules")
    logs = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    rows = np.arange(5)
    expected = -(logs[rows, label] + logs[rows, label2]) / 2
    np.testing.assert_allclose(make_loss(config)(tf.constant(target), tf.constant(scores), 0.5), expected, rtol=1e-5)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_of_equal_scores_the_first_counts_in_training_and_in_the_test(jit_compile):
    scores = np.float32(
        [[3, 2, 2, 1], [3, 2, 2, 1], [2, 2, 2, 2], [2, 2, 2, 2], [1, 3, 0, 3], [1, 3, 0, 3], [2, 1, 2, 0]]
    )
    label, label2 = np.array([0, 2, 1, 3, 3, 1, 0]), np.array([1, 0, 0, 1, 1, 0, 2])
    target = np.zeros((7, 4), np.float32)
    np.put_along_axis(target, np.stack([label, label2], 1), 1.0, axis=1)
    count = tf.function(_are_correct, jit_compile=jit_compile)
    for labels, expected in (
        ((label, None, None), [1, 0, 0, 0, 0, 1, 1]),
        ((label, tf.constant(target), label2), [1, 0, 1, 0, 1, 0, 1]),
    ):
        assert are_right(scores, label, labels[2]).tolist() == list(map(bool, expected))
        found = count(Labels(*(None if each is None else tf.constant(each) for each in labels)), tf.constant(scores))
        assert found.numpy().tolist() == list(map(bool, expected))


def test_the_report_of_pairs_counts_answers_that_name_both(tmp_path):
    scores = np.float32([[0.9, 0.8, 0.1], [0.9, 0.1, 0.8], [0.2, 0.7, 0.6]])
    part = Predictions(scores, np.array([1, 0, 2]), 0.5, ("cat", "dog", "fox"), label2=np.array([0, 1, 1]))
    assert part.correct.tolist() == [True, False, True]
    assert part.labels.tolist() == [[1, 0], [0, 1], [2, 1]] and part.answers.tolist() == [[0, 1], [0, 2], [1, 2]]
    np.testing.assert_allclose(part.wrong_margin, [-0.7, 0.7, -0.4], rtol=1e-5)
    found = report({"test": part})["test"]
    assert found["accuracy"] == pytest.approx(2 / 3, rel=1e-5) and "confusion" not in found
    by_class = {name: (each["num_examples"], each["accuracy"]) for name, each in found["accuracy_by_class"].items()}
    assert by_class == {"cat": (2, 0.5), "dog": (3, 0.666667), "fox": (1, 1.0)}
    texts = [text.get_text() for text in worst_mistakes(part, np.zeros((3, 4, 4), np.uint8)).axes[0].texts]
    assert texts == ["true cat  0.90, dog  0.10", "predicted cat  0.90, fox  0.80"]
    assert "confusion" not in write_report(tmp_path, {"test": part})
    assert "names both" in (tmp_path / "report.html").read_text()


def test_data_that_do_not_suit_a_protocol_are_one_line(digits, tmp_path):
    def opened(name="digits", **flags):
        directory = digits if name == "digits" else convert(tmp_path / name, **sizes[name])
        return make_training_data(RunConfig(dataset=str(directory), network="conv_capsules", **flags))

    sizes = {"large": {"size": 44}, "pair": {"classes": 2}, "one": {"classes": 1}}
    for protocol in ("affine", "overlap"):
        with refused("44x44", "do not fit", protocol, "resize"):
            opened("large", protocol=protocol)
    assert opened("large", protocol="overlap", resize="20").input_shapes == {"image": (36, 36, 1)}
    with refused("28x28", "image_size=0"):
        opened(protocol="affine", image_size="28")
    for name in ("pair", "one"):
        with refused("at least three classes"):
            opened(name, protocol="overlap")
    with refused("leave out --mixup"):
        RunConfig(network="conv_capsules", protocol="overlap", mixup=0.2)
    with refused("leave out --reconstruction"):
        RunConfig(network="conv_capsules", protocol="overlap", reconstruction=0.0005)
    with refused("choose one"):
        RunConfig(protocol="affine", viewpoints="azimuth")
    with refused("affine, overlap"):
        RunConfig(protocol="rotate")
    one_class = tf.data.Dataset.from_tensor_slices({"image": [[b"a"]] * 2, "label": [1, 1], "id": [0, 1]})
    with refused("digits, validation", "one class"):
        Partners(one_class, "digits, validation")


def test_stereo_pairs_are_refused(storage):
    with refused("smallnorb", "stereo pairs", "affine"):
        make_test_data(RunConfig(storage=str(storage), protocol="affine"))


def test_affnist_files_become_a_dataset(tmp_path):
    rng = np.random.default_rng(0)
    files = {}
    for split, name, count in (("train", "training_and_validation.mat", 30), ("test", "test.mat", 20)):
        files[split] = rng.integers(256, size=(1600, count), dtype=np.uint8), np.arange(count) % 10
        image, label = files[split]
        fields = {"affine_matrix": np.eye(3), "image": image, "label_int": np.uint8(label)[None]}
        scipy.io.savemat(tmp_path / name, {"affNISTdata": fields}, do_compression=True)
    flags = (
        "data/convert_idx_to_tfrecord.py",
        f"--source={tmp_path}",
        f"--data_dir={tmp_path / 'aff'}",
        "--num_shards=1",
    )
    run_script(*flags)
    dataset = open_dataset(str(tmp_path / "aff"))
    assert dataset.image_shape == (40, 40, 1) and len(dataset.class_names) == 10
    for split, (image, label) in files.items():
        for example in dataset.builder.as_dataset(split=split).as_numpy_iterator():
            row = int(example["id"].decode().removeprefix(f"{split}_"))
            assert example["label"] == label[row] and example["image"][7, 3, 0] == image[7 * 40 + 3, row]
    for content in ({"affNISTdata": {"image": image[:9], "label_int": label}}, {"other": 1}):
        scipy.io.savemat(tmp_path / "test.mat", content)
        with refused("test.mat", "affNIST" if "other" in content else "1600 bytes"):
            read_affnist_split(tmp_path, "test")
    (tmp_path / "test.mat").write_bytes(b"MATLAB")
    with refused("test.mat", "affNIST"):
        read_affnist_split(tmp_path, "test")
    (tmp_path / "test.mat").unlink()
    with refused("test.mat", "No such file"):
        read_affnist_split(tmp_path, "test")


def test_a_run_of_the_affine_protocol_reports_placed_and_transformed_images(digits, tmp_path):
    config = RunConfig(dataset=str(digits), protocol="affine", **TINY)
    strategy = tf.distribute.get_strategy()
    Trainer(config, make_training_data(config), tmp_path, strategy).run()
    data = make_test_data(config)
    judge = tester.Tester(config, data.input_shapes, data.class_names, strategy)
    judge.restore(tf.train.latest_checkpoint(tmp_path / "checkpoints"))
    parts = {name: judge.predict(name, part) for name, part in data.parts.items()}
    assert (parts["familiar"].scores != parts["novel"].scores).any()
    details = {"training_examples": data.num_training, "parameters": judge.num_parameters, "step": judge.step}
    line = figures({"parts": report(parts), "details": details})  # of benchmarks/accuracy.csv
    assert (line["train_images"], line["test_images"], line["novel_images"]) == ("54", "22", "22")
    assert line["familiar"] and line["novel"]


@pytest.mark.campaign
def test_a_run_on_pairs_learns_from_both_labels_and_reports_both(digits, tmp_path):
    flags = (f"--{name}={value}" for name, value in TINY.items())
    data = (f"--dataset={digits}", f"--storage={tmp_path}", "--protocol=overlap", "--resize=20")
    trained = start_training(*flags, *data)
    run_script("test.py", f"--load_dir={trained}")
    [path] = (trained / "test").glob("*/report.json")
    part = json.loads(path.read_text())["parts"]["test"]
    assert part["num_examples"] == 22 and "confusion" not in part
    assert sum(each["num_examples"] for each in part["accuracy_by_class"].values()) == 2 * 22
    least = np.log(2)  # of the cross-entropy with two classes of a half each
    assert part["loss"] > least and log_lines(trained, "validation")[0]["loss"] > least

    exported = export_run(read_run(trained, "latest", 22, {}), tmp_path / "mine", {})
    model, sample = from_preset(exported), load_sample(exported)
    right = int(are_right(sample["scores"], sample["label"], sample["label2"]).sum())
    assert model.card.sample == {"correct": right, "num_examples": 22}
    assert abs(right - 22 * part["accuracy"]) <= 1.01  # the sample's grey levels are whole numbers
    assert "two highest" in model.card.accuracy_note
    np.testing.assert_array_equal(model.preprocess(sample["image"]), sample["image"])  # of a canvas's size
    placed = model.preprocess([np.full((28, 28), 9, "uint8")])[0, ..., 0]
    assert placed.shape == (36, 36) and (placed[8:-8, 8:-8] == 9).all() and placed.sum() == 9 * 20**2
