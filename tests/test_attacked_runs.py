"""test.py --attack: gradients through the normalisation, white and black boxes, targets, and what is refused."""

import dataclasses
import functools
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from caps_tf.any_backend.augmentation import central_crop
from caps_tf.data.preprocessing import Preprocessing
from caps_tf.training.attack_config import AttackConfig, parse_epsilons
from caps_tf.training.attacker import (
    MARGIN,
    Judge,
    make_attack,
    make_attacked_loss,
    make_image_gradient,
    normalized,
    open_attacker,
)
from caps_tf.training.config import RunConfig
from caps_tf.training.data import image_preprocessing, make_test_data, make_training_data
from caps_tf.training.factories import cross_entropy, make_loss, make_model, spread
from caps_tf.training.params import load_params, save_params
from caps_tf.training.tester import Tester
from tests.networks import tiny
from tests.refusals import refused
from tests.small_norb import expect_one_line, run_script

STRATEGY = tf.distribute.get_strategy()


def write_run(directory, storage, **options):
    """A run as train_val.py leaves it, after a few steps; returns its directory."""
    options = {
        "network": "cnn_baseline",
        "image_size": "17",
        "resize": "0",
        "augment": "none",
        "views": "left",
        **options,
    }
    config = RunConfig(storage=str(storage), batch_size=64, jit_compile="off", val_prop=0.0, seed=1, **options)
    data = make_training_data(config)
    model = make_model(config, data.input_shapes, data.num_classes)
    optimizer, loss = keras.optimizers.Adam(1e-3), make_loss(config)
    model.compile(optimizer, lambda labels, scores: loss(tf.reshape(labels, (-1,)), scores, 0.9), jit_compile=False)
    batches = data.training(0, 0).map(lambda batch: (batch["image"], batch["label"]))
    model.fit(batches, verbose=0)
    save_params(config, directory / "train" / "params.json")
    (directory / "train" / "checkpoints").mkdir()
    step = tf.Variable(12, dtype=tf.int64)
    tf.train.Checkpoint(model=model, step=step).write(str(directory / "train" / "checkpoints" / "step-12"))
    return directory


@pytest.fixture(scope="module")
def runs(storage, tmp_path_factory):
    """The tested network, and one that has learned from the same pixels normalised otherwise."""
    keras.utils.set_random_seed(0)
    directory = tmp_path_factory.mktemp("runs")
    return {
        "victim": write_run(directory / "victim", storage),
        "other": write_run(directory / "other", storage, normalize="none"),
    }


@pytest.fixture(scope="module")
def tested(runs):
    """Parameters, data and restored network of the victim."""
    config = RunConfig(**load_params(runs["victim"] / "train" / "params.json"))
    data = make_test_data(config)
    tester = Tester(config, data.input_shapes, data.class_names, STRATEGY)
    tester.restore(str(runs["victim"] / "train" / "checkpoints" / "step-12"))
    return config, data, tester


def attacked(tested, kind="fgsm", epsilons=(0.0, 0.2), **options):
    config, data, tester = tested
    attack = AttackConfig(kind, tuple(epsilons), **options)
    return open_attacker(config, attack, tester, data, STRATEGY).measure().parts["test"]


@pytest.fixture(scope="module")
def white(tested):
    """What an untargeted attack with the victim's own gradient leaves, with epsilon 0 and 0.2."""
    return attacked(tested)


@pytest.mark.parametrize(
    "routing", ["em", *(pytest.param(each, marks=pytest.mark.campaign) for each in ("heinsen", "attention"))]
)
def test_the_gradient_of_pixels_is_that_of_finite_differences_through_the_normalisation_and_finite(routing):
    model = tiny("conv_capsules", routing=routing)
    loss = functools.partial(spread if routing == "em" else cross_entropy, from_logits=True)
    rng = np.random.default_rng(0)
    for weights in model.trainable_weights:  # Heinsen's start at values that leave no gradient
        weights.assign_add(rng.normal(scale=0.05, size=weights.shape))
    rows, columns, _ = model.input_shape[1:]
    # The statistics are of more than what the network reads, and move with it.
    preprocessing = Preprocessing(resize=None, crop=(rows, columns))
    images = tf.constant(rng.uniform(0.2, 0.8, size=(2, rows + 3, columns + 2, 1)), tf.float32)
    view, labels = central_crop(images, preprocessing.crop), tf.constant([0, 2])
    gradient_of, _ = make_image_gradient(Judge(model, loss, preprocessing))
    gradient = gradient_of(view, images, labels).numpy().astype(np.float64)

    directions = [gradient, np.sign(gradient), rng.normal(size=gradient.shape), np.ones(gradient.shape)]
    directions = np.stack([direction / np.linalg.norm(direction) for direction in directions])
    # All in one batch: of each direction there and back, both images.
    moved = np.concatenate([view + 0.002 * directions, view - 0.002 * directions]).reshape(16, rows, columns, 1)
    read = normalized(moved.astype(np.float32), tf.tile(images, (8, 1, 1, 1)), preprocessing)
    losses = loss(tf.tile(labels, (8,)), model(read, training=False), MARGIN).numpy().astype(np.float64)
    there, back = losses.reshape(2, 4, 2).sum(axis=2)
    size = np.linalg.norm(gradient)
    np.testing.assert_allclose(
        (there - back) / 0.004, np.sum(gradient * directions, axis=(1, 2, 3, 4)), atol=0.02 * size
    )
    assert size > 1e-3
    # Where all is of one grey, the deviation by which it is divided is 0.
    grey = tf.fill(images.shape, 0.5)
    assert np.isfinite(gradient_of(central_crop(grey, preprocessing.crop), grey, labels)).all()


def test_whole_images_are_read_as_the_pipeline_reads_them(tested):
    config, data, _ = tested
    preprocessing = image_preprocessing(config)
    plain = next(iter(data.parts["test"].batches))
    whole = next(iter(make_test_data(config, whole=True).parts["test"].batches))
    assert whole["image"].shape[1:] == (24, 24, 1) and plain["image"].shape[1:] == (17, 17, 1)
    view = central_crop(whole["image"], preprocessing.crop)
    np.testing.assert_allclose(normalized(view, whole["image"], preprocessing), plain["image"], atol=2e-5)


def test_a_network_that_trained_with_the_margin_loss_has_a_gradient_where_it_is_right_by_more_than_its_margins():
    loss, lengths = make_attacked_loss(RunConfig(network="capsnet")), tf.Variable([[0.95, 0.05, 0.02]])
    with tf.GradientTape() as tape:
        loss_value = loss(tf.constant([0]), lengths, MARGIN)
    # Of (1 - 0.95)^2 + (0.05^2 + 0.02^2) / 2.
    np.testing.assert_allclose(tape.gradient(loss_value, lengths), [[-0.1, 0.05, 0.02]], rtol=1e-5)


@pytest.mark.parametrize("kind", ["fgsm", "bim"])
def test_an_attack_keeps_to_epsilon_and_raises_the_targets_score(tested, kind):
    config, data, tester = tested
    preprocessing = image_preprocessing(config)
    batch = next(iter(make_test_data(config, whole=True).parts["test"].batches))
    target = (batch["label"] + 2) % 5
    batch = {**batch, "epsilon": tf.fill(target.shape, 0.2), "aim": target}
    judge = Judge(tester.model, make_loss(config), preprocessing)
    pixels = dataclasses.replace(preprocessing, normalize="none")
    before = central_crop(batch["image"], preprocessing.crop).numpy()
    scores = {}
    for aim in ("", "all", "least_likely"):
        made = make_attack(pixels, judge, AttackConfig(kind, (0.2,), steps=3, target=aim))(batch)
        after = made["image"].numpy()
        assert after.min() >= 0 and after.max() <= 1 and 0.19 < np.abs(after - before).max() < 0.2 + 1e-6
        read = normalized(tf.constant(after), batch["image"], preprocessing)
        scores[aim] = tester.model(read, training=False).numpy()
        assert made["zeros"].shape == target.shape and made["zeros"].numpy().max() <= 1
    plain = tester.model(normalized(tf.constant(before), batch["image"], preprocessing), training=False).numpy()
    np.testing.assert_array_equal(made["aim"], plain.argmin(axis=1))
    examples = np.arange(len(target))
    assert (scores["all"] - plain)[examples, target].mean() > 0.05
    assert (scores[""] - plain)[examples, batch["label"]].mean() < -0.1
    assert (scores["least_likely"] - plain)[examples, made["aim"]].mean() > 0.05


def test_epsilon_0_is_the_plain_accuracy_and_more_of_it_leaves_less(tested, white):
    _, data, tester = tested
    plain = tester.predict("test", data.parts["test"]).accuracy
    assert plain > 0.5
    assert white[0].accuracy == plain and white[0].num_examples == 300 and white[0].success is None
    assert white[1].accuracy < plain - 0.2
    targeted = attacked(tested, target="all", examples=64)
    # One batch, each image once for each of the four other classes.
    assert targeted[0].num_examples == 256 and abs(targeted[0].accuracy - plain) < 0.1
    assert targeted[1].success > targeted[0].success + 0.05
    [one] = attacked(tested, epsilons=(0.2,), target="truck", examples=64)
    assert 40 < one.num_examples < 64 and one.success > targeted[0].success


def test_a_black_box_follows_the_other_networks_gradient(tested, runs, white):
    black = attacked(tested, source=str(runs["other"]))
    assert black[0].accuracy == white[0].accuracy
    assert black[1].accuracy < black[0].accuracy - 0.1 and black[1].accuracy != white[1].accuracy


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.campaign)])
def test_test_py_writes_table_json_and_figure_also_from_two_devices(tested, runs, devices):
    options = {"steps": 2, "target": "least_likely", "examples": 64, "source": str(runs["other"])}
    flags = ("--attack=bim", "--attack_epsilon=0.2,0", "--attack_steps=2", "--attack_target=least_likely")
    box = ("--attack_examples=64", f"--attack_from={runs['other']}")
    process = run_script("test.py", f"--load_dir={runs['victim']}", *flags, *box, *["--num_gpus=2"] * (devices == 2))
    directory = runs["victim"] / "test" / "step-12"
    written = json.loads((directory / "attack.json").read_text())
    assert written["settings"]["steps"] == 2 and written["settings"]["source"] == str(runs["other"])
    for found, expected in zip(written["parts"]["test"], attacked(tested, "bim", **options), strict=True):
        assert found["epsilon"] == expected.epsilon and found["num_examples"] == expected.num_examples
        assert abs(found["accuracy"] - expected.accuracy) < 0.02
        assert (
            f"{100 * found['accuracy']:.2f} %" in process.stdout and f"{100 * found['success']:.2f}" in process.stdout
        )
    assert "attack.png" in (directory / "report.html").read_text() and (directory / "attack.png").stat().st_size > 1e4


def test_what_cannot_be_attacked_is_one_clear_line(tested, runs, tmp_path):
    for text in ("-0.1", "0,nan", "inf", "1.5", "", "a"):
        with refused("`attack_epsilon` must be numbers from 0 to 1"):
            AttackConfig("fgsm", parse_epsilons(text))
    with refused("attack_steps"):
        AttackConfig("bim", (0.1,), steps=0)
    with refused("attack_target", "all, least_likely", "truck", "bicycle"):
        attacked(tested, target="bicycle")
    with refused("params.json", "train_val.py"):
        attacked(tested, source=str(tmp_path))
    config = RunConfig(**load_params(runs["other"] / "train" / "params.json"))
    for change, words in (
        ({"dataset": "cifar10"}, ["learned from cifar10", "smallNORB"]),
        ({"image_size": "20"}, ["attack_from", "crop (20, 20), not (17, 17)"]),
        ({"views": "stereo"}, ["attack_from", "views stereo, not left"]),
        ({"protocol": "affine"}, ["attack_from", "protocol affine, not none"]),
    ):
        save_params(dataclasses.replace(config, **change), tmp_path / "train" / "params.json")
        with refused(*words):
            attacked(tested, source=str(tmp_path))
    victim = f"--load_dir={runs['victim']}"
    for flags, words in (
        ([victim, "--attack=pgd"], ["--attack", "fgsm|bim"]),
        ([victim, "--attack_epsilon=0.1"], ["--attack_epsilon", "--attack=fgsm or bim"]),
        ([victim, "--attack=fgsm", "--attack_epsilon=-1"], ["--attack_epsilon", "'-1.0'"]),
    ):
        expect_one_line(run_script("test.py", *flags, check=False), *words)
    save_params(RunConfig(network="heinsen_sst", dataset="sst2"), tmp_path / "sst" / "train" / "params.json")
    process = run_script("test.py", f"--load_dir={tmp_path / 'sst'}", "--attack=fgsm", check=False)
    expect_one_line(process, "heinsen_sst reads no images")
