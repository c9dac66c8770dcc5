"""Training on any Keras backend: every kind of data, the regimes of presets, resumption, and no TensorFlow."""

import json
import os
import struct

import keras
import numpy as np
import pytest
from keras import ops

from caps_tf.any_backend import trainer as trainer_module
from caps_tf.any_backend.augmentation import DRAWS, bilinear_weights, prepare
from caps_tf.any_backend.data import arrange, read_images
from caps_tf.any_backend.epochs import part_of, training_inputs
from caps_tf.any_backend.learner import Learner, evaluation_inputs
from caps_tf.any_backend.state import RunLog, load_state
from caps_tf.any_backend.trainer import AnyBackendTrainer
from caps_tf.data.preprocessing import AUGMENTATIONS, Preprocessing
from caps_tf.errors import UserError
from caps_tf.presets import load_preset
from caps_tf.training.config import RunConfig
from caps_tf.training.factories import make_preprocessing
from caps_tf.training.regime import make_learning_rate
from tests.coloured_folder import write_coloured_folder
from tests.compiling import IN_CAMPAIGN
from tests.small_norb import expect_one_line, run_script, write_small_norb

# `make test-backends` runs them on JAX and PyTorch, for which this way of training is.
pytestmark = IN_CAMPAIGN
SCRIPT = "examples/train_any_backend.py"
BACKEND = keras.config.backend()
ENVIRONMENT = {} if BACKEND == "tensorflow" else {"KERAS_BACKEND": BACKEND}
TINY = {"network": "conv_capsules", "routing": "none", "convolutions": "4k5s4", "jit_compile": "off"}
CAPSULES = {**TINY, "routing": "attention", "capsules": 2, "capsule_dropout": 0.2}
TIMES = ("seconds", "images_per_second")


def write_idx(directory, train=40, test=9, size=(6, 7)):
    """The four files of a tiny set of ten classes."""
    directory.mkdir()
    rng = np.random.default_rng(0)
    for prefix, count in (("train", train), ("t10k", test)):
        pixels, labels = rng.integers(256, size=(count, *size), dtype="uint8"), np.arange(count, dtype="uint8") % 10
        header = struct.pack(">HBBiii", 0, 8, 3, count, *size)
        (directory / f"{prefix}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        (directory / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">HBBi", 0, 8, 1, count) + labels.tobytes())


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """A data set of each kind, by its name."""
    directory = tmp_path_factory.mktemp("images")
    write_coloured_folder(directory / "folder")
    write_idx(directory / "idx")
    write_small_norb(directory / "norb")
    return {name: directory / name for name in ("folder", "idx", "norb")}


def make_trainer(directories, kind, output, **options):
    config = RunConfig(batch_size=16, **{"epoch": 2, **options})
    return AnyBackendTrainer(config, read_images(directories[kind]), output)


def lines_of(directory):
    """A run's log without what depends on the clock."""
    lines = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def states_of(directory):
    with np.load(directory / "state.npz") as state:
        return dict(state)


# What the script does, and then says whether it ever needed TensorFlow.
RUN = """
import runpy, sys
try:
    runpy.run_path("examples/train_any_backend.py", run_name="__main__")
finally:
    print("tensorflow" in sys.modules)
"""


def test_the_script_trains_a_presets_regime_on_a_folder_goes_on_and_needs_no_tensorflow(directories, tmp_path):
    flags = [f"--output={tmp_path / 'run'}", f"--data={directories['folder']}", "--preset=fashion_attention"]
    flags += ["--convolutions=4k5s4", "--capsules=2", "--image_size=0", "--batch_size=16", "--val_prop=0.2"]
    flags += ["--jit_compile=off"]
    process = run_script("-c", RUN, *flags, "--epoch=1", environment=ENVIRONMENT)
    *said, needed = process.stdout.splitlines()
    assert needed == str(keras.config.backend() == "tensorflow")
    epoch, test = map(json.loads, said)
    assert (epoch["epoch"], epoch["step"], epoch["backend"]) == (1, 3, keras.config.backend())
    assert 0 <= epoch["validation_accuracy"] <= 1 and epoch["images_per_second"] > 0 and epoch["loss"] < 10
    assert 0 <= test["test_accuracy"] <= 1 and test["test_examples"] == 24
    again = run_script(SCRIPT, *flags, "--epoch=2", environment=ENVIRONMENT)
    assert [json.loads(line)["step"] for line in again.stdout.splitlines()] == [6, 6]
    assert [line["step"] for line in lines_of(tmp_path / "run")] == [3, 3, 6, 6]
    params = json.loads((tmp_path / "run" / "params.json").read_text())
    assert (params["preset"], params["epoch"], params["schedule"]) == ("fashion_attention", 2, "one_cycle")
    network = keras.models.load_model(tmp_path / "run" / "network.keras")
    assert network.output_shape == (None, 3)


def test_minutes_choose_a_number_of_steps_which_is_kept(directories, tmp_path):
    flags = (f"--output={tmp_path}", f"--data={directories['idx']}", "--batch_size=16")
    flags += (
        *(f"--{flag}={value}" for flag, value in TINY.items()),
        "--schedule=one_cycle",
        "--augment=none",
        "--val_prop=0",
        "--minutes=5",
    )
    process = run_script(SCRIPT, *flags, "--epoch=3", environment=ENVIRONMENT)
    assert "6 steps fit into 5 minutes" in process.stderr  # no more than three epochs of two steps
    params = json.loads((tmp_path / "params.json").read_text())
    assert (params["minutes"], params["steps"]) == (5.0, 6)
    assert [line["step"] for line in lines_of(tmp_path)] == [2, 4, 6, 6]
    for flag, word in (("--minutes=6", "--minutes=5.0"), ("--epoch=4", "--epoch=3"), ("--preset=demo", "no --preset")):
        expect_one_line(run_script(SCRIPT, f"--output={tmp_path}", flag, check=False), str(tmp_path), word)


@pytest.mark.parametrize("kind, classes", [("idx", 10), ("norb", 5), ("folder", 3)])
def test_each_kind_of_data_trains_and_is_tested_on_its_own_test_part(directories, tmp_path, kind, classes):
    augment = "norb" if kind == "norb" else "crop_flip"
    trainer = make_trainer(directories, kind, tmp_path, epoch=1, augment=augment, resize="0", image_size="0", **TINY)
    last = trainer.run()
    assert trainer.network.output_shape == (None, classes)
    assert last["test_examples"] == {"idx": 9, "norb": 600, "folder": 24}[kind]
    assert lines_of(tmp_path)[0]["step"] == trainer.steps_per_epoch == {"idx": 2, "norb": 33, "folder": 4}[kind]


def test_novel_viewpoints_are_told_apart_and_never_trained_on(directories, tmp_path):
    options = {"viewpoints": "azimuth", "views": "stereo", "resize": "0", "image_size": "22", "val_instances": "9"}
    options |= {"loss": "spread", "margin_steps": 5.0, "epoch": 1}
    last = make_trainer(directories, "norb", tmp_path, **options, **CAPSULES).run()
    line = lines_of(tmp_path)[0]
    assert 0 < line["loss"] < 5 and 0 <= line["validation_accuracy"] <= 1
    assert last["test_accuracy"] == pytest.approx(
        (3 * last["familiar"] + last["novel"]) / 4, abs=1e-4
    )  # three azimuths of four
    images = read_images(directories["norb"])
    config = RunConfig(viewpoints="azimuth", val_instances="9")
    examples = arrange(images, config, make_preprocessing(config, is_norb=True))
    azimuths = np.concatenate([images.records[split].viewpoints["label_azimuth"] * 20 for split in ("train", "test")])
    instances = np.concatenate([images.records[split].viewpoints["instance"] for split in ("train", "test")])
    for name, expected in (
        ("train", {0, 40, 340}),
        ("validation", {0, 40, 340}),
        ("novel", {160}),
        ("familiar", {0, 40, 340}),
    ):
        found = set(azimuths[examples.parts[name] // 2].tolist())
        assert found == expected & {0, 40, 160, 340}, name
        toys = {"train": {4, 6, 7, 8}, "validation": {9}}.get(name, {0, 1, 2, 3, 5})
        assert set(instances[examples.parts[name] // 2].tolist()) == toys, name
    numbers = np.concatenate(list(examples.parts.values()))
    assert len(numbers) == len(set(numbers.tolist()))


def test_a_run_that_was_stopped_ends_as_an_unbroken_one(directories, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_module, "SECONDS_BETWEEN_STATES", 0.0)
    options = {
        "epoch": 3,
        "mixup": 0.3,
        "schedule": "one_cycle",
        "optimizer": "radam",
        "augment": "crop_flip",
        "pad": 2,
    }
    options |= {"val_prop": 0.0, **CAPSULES}
    make_trainer(directories, "folder", tmp_path / "whole", **options).run()

    stopped = make_trainer(directories, "folder", tmp_path / "broken", **options)
    save_state = trainer_module.save_state

    def killed(path, variables, step):
        if step == 8:  # the line of the second epoch is written, its state is not
            raise KeyboardInterrupt
        save_state(path, variables, step)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer_module, "save_state", killed)
        stopped.run()
    with (tmp_path / "broken" / "log.jsonl").open("a") as log:
        log.write('{"step": 12, "los')
    again = make_trainer(directories, "folder", tmp_path / "broken", **options)
    assert again.restore() and again.step == 4
    again.run()
    assert lines_of(tmp_path / "broken") == lines_of(tmp_path / "whole")
    found, expected = states_of(tmp_path / "broken"), states_of(tmp_path / "whole")
    assert found.keys() == expected.keys() and len(found) > 10
    for name, values in found.items():
        np.testing.assert_array_equal(values, expected[name])


def test_what_is_timed_is_forgotten_and_schedules_stretch_over_the_steps_chosen(directories, tmp_path):
    options = {"schedule": "steps", "lrn_drop_epochs": "1", "optimizer": "sgd", "lrn_rate": 0.1, "val_prop": 0.0}
    config = RunConfig(batch_size=16, epoch=2, **TINY, **options)
    images = read_images(directories["idx"])
    runs = []
    for name, steps in (("timed", None), ("told", 12)):
        trainer = AnyBackendTrainer(config, images, tmp_path / name, steps, paced=True)
        if steps is None:
            assert trainer.choose_steps(600.0, at_most=12) == 12
        trainer.run()
        runs.append(states_of(tmp_path / name))
        optimizer = trainer._learner.optimizer
        rates = []
        for step in (0, 3, 6, 11):  # two epochs of two steps become twelve steps, and the rate falls with the second
            optimizer.iterations.assign(step)
            rates.append(float(optimizer.learning_rate))
        np.testing.assert_allclose(rates, [0.1, 0.1, 0.01, 0.01], rtol=1e-6)
    for name, values in runs[0].items():
        np.testing.assert_array_equal(values, runs[1][name])
    assert [line["step"] for line in lines_of(tmp_path / "told")] == [2, 4, 6, 8, 10, 12, 12]
    with pytest.raises(UserError, match="raise --minutes"):
        AnyBackendTrainer(config, images, tmp_path / "late", paced=True).choose_steps(0.0)


# The parameters that both scripts make of the same flags, without starting Keras.
RESOLVE = """
import dataclasses, json, runpy, sys
from absl import flags
flags.DEFINE_string("script", None, "")
from caps_tf.commands import train
script = vars(train) if sys.argv[1] == "train_val.py" else runpy.run_path(sys.argv[1])
script["define_flags"]()
flags.FLAGS(sys.argv[1:])
found = script["resolve_config"]() if "resolve_config" in script else script["resolve"]()[0]
assert "keras" not in sys.modules
print(json.dumps(dataclasses.asdict(found)))
"""


def test_a_preset_means_the_same_to_both_scripts(directories, tmp_path):
    flags = ("--preset=tsai2020_cifar10", "--lrn_rate=0.2", "--num_routing=3")
    ours = run_script("-c", RESOLVE, SCRIPT, *flags, f"--output={tmp_path}", f"--data={directories['idx']}").stdout
    theirs = json.loads(run_script("-c", RESOLVE, "train_val.py", *flags).stdout)
    assert json.loads(ours) == {**theirs, "dataset": str(directories["idx"])}


@pytest.mark.parametrize("name", ["tsai2020_cifar10", "hinton2018_smallnorb", "norb_cnn", "heinsen2019_smallnorb"])
def test_rates_at_any_step_are_those_of_the_preset(directories, tmp_path, name):
    flags = {**load_preset(name).flags, "batch_size": 16, "network": "cnn_baseline", "loss": "cross_entropy"}
    flags = {flag: value for flag, value in flags.items() if flag not in ("channel_mean", "channel_std", "views")}
    config = RunConfig(**flags | {"resize": "0", "image_size": "22", "channel_mean": "0.5", "channel_std": "0.2"})
    trainer = AnyBackendTrainer(config, read_images(directories["norb"]), tmp_path)
    rate = make_learning_rate(config, trainer.steps_per_epoch)
    optimizer = trainer._learner.optimizer
    for step in (0, 1, trainer.steps_per_epoch, 3_000, 6_000, 100_000):
        optimizer.iterations.assign(step)
        np.testing.assert_allclose(float(optimizer.learning_rate), float(rate(step)), rtol=1e-6)


def test_an_epoch_has_every_example_once_and_another_order_than_the_next():
    numbers = np.arange(100, 164)
    epochs = [training_inputs(numbers, 16, seed=3, epoch=epoch, mixup=0.5) for epoch in (0, 1)]
    for inputs in epochs:
        assert sorted(inputs["number"].tolist()) == numbers.tolist()
        partners = inputs["partner"].reshape(-1, 16)
        assert (np.sort(partners, axis=1) == np.arange(16)).all()
        assert ((inputs["share"] >= 0) & (inputs["share"] <= 1)).all()
    assert (epochs[0]["number"] != epochs[1]["number"]).any() and (epochs[0]["draws"] != epochs[1]["draws"]).any()
    plain = training_inputs(numbers, 16, seed=3, epoch=0)
    np.testing.assert_array_equal(plain["draws"], epochs[0]["draws"])  # whether mixup is on or off
    np.testing.assert_array_equal(part_of(plain, 1, 3, 16)["number"], plain["number"][16:48])


IMAGES = np.random.default_rng(1).integers(256, size=(6, 5, 7, 2), dtype="uint8")
EDGES = np.array([[0.0] * DRAWS, [1 - 2**-24] * DRAWS], "float32")


@pytest.mark.parametrize("pad_mode", ["zero", "edge"])
@pytest.mark.parametrize("crop", [(3, 4), None])
def test_crops_and_flips_are_windows_of_the_padded_image(crop, pad_mode):
    draws = np.concatenate([np.random.default_rng(2).random((4, DRAWS), "float32"), EDGES])
    preprocessing = Preprocessing(
        resize=None, crop=crop, pad=2, pad_mode=pad_mode, normalize="none", **AUGMENTATIONS["crop_flip"]
    )
    found = ops.convert_to_numpy(prepare(IMAGES, preprocessing, draws))
    height, width = crop or IMAGES.shape[1:3]
    for image, draw, view in zip(IMAGES, draws, found, strict=True):
        padded = np.pad(image, [(2, 2), (2, 2), (0, 0)], "constant" if pad_mode == "zero" else "edge")
        top, left = int(draw[0] * (10 - height)), int(draw[1] * (12 - width))
        window = padded[top : top + height, left : left + width]
        expected = window[:, ::-1] if draw[2] < 0.5 else window
        np.testing.assert_allclose(view, expected / 255, atol=1e-6)


def test_light_changes_within_its_bounds_and_by_one_number_an_image():
    draws = np.concatenate([np.random.default_rng(2).random((4, DRAWS), "float32"), EDGES])
    preprocessing = Preprocessing(resize=None, crop=None)  # of NORB
    plain = Preprocessing(resize=None, crop=None, **AUGMENTATIONS["none"])
    found = ops.convert_to_numpy(prepare(IMAGES, preprocessing, draws))
    normal = ops.convert_to_numpy(prepare(IMAGES, plain))
    for image, view, draw in zip(normal, found, draws, strict=True):
        np.testing.assert_allclose([image.mean(), image.std()], [0, 1], atol=1e-5)
        bright = image + 4 * draw[3] - 2
        mean = bright.mean(axis=(0, 1))
        np.testing.assert_allclose(view, (bright - mean) * (0.5 + draw[4]) + mean, atol=1e-5)
    grey = ops.convert_to_numpy(prepare(np.full((1, 4, 4, 1), 9, "uint8"), plain))
    np.testing.assert_array_equal(grey, 0)


def test_weights_of_interpolation_sum_to_one_whatever_the_sizes():
    for old, new in ((5, 9), (9, 5), (7, 7), (1, 4), (4, 1)):
        np.testing.assert_allclose(bilinear_weights(old, new).sum(axis=1), 1, rtol=1e-6)


def test_mixup_blends_images_and_targets_alike():
    images = np.zeros((4, 1, 1, 1), "uint8")
    images[:, 0, 0, 0] = [0, 51, 102, 255]
    network = keras.Sequential([keras.Input((1, 1, 1)), keras.layers.Reshape((1,))])
    plain = Preprocessing(resize=None, crop=None, normalize="none", **AUGMENTATIONS["none"])
    learner = Learner(network, images, np.array([0, 1, 2, 3], "int32"), plain, lambda *_: None, num_classes=4)
    inputs = {"number": np.arange(4, dtype="int32"), "partner": np.array([1, 0, 3, 2], "int32")}
    inputs |= {"share": np.array([0.5, 1, 0, 0.25], "float32"), "draws": np.zeros((4, DRAWS), "float32")}
    found = learner(inputs, training=True)
    scores, targets = (ops.convert_to_numpy(found[name]) for name in ("scores", "compared"))
    np.testing.assert_allclose(scores[:, 0], [0.1, 0.2, 1.0, 0.55], atol=1e-6)
    np.testing.assert_allclose(targets, [[0.5, 0.5, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0.75, 0.25]], atol=1e-6)


def test_evaluation_counts_each_example_once(directories):
    inputs = evaluation_inputs(np.arange(5, 12), batch_size=4, margin=0.5)
    assert inputs["number"].tolist() == [*range(5, 12), 5] and inputs["weight"].sum() == 7
    assert set(inputs["margin"].tolist()) == {0.5}


def test_grey_and_deep_images_of_a_folder_are_bytes(tmp_path):
    from PIL import Image

    for split in ("train", "test"):
        for label in ("a", "b"):
            (tmp_path / split / label).mkdir(parents=True)
            Image.fromarray(np.full((3, 4), 0x1234, "uint16")).save(tmp_path / split / label / "0.png")
    images = read_images(tmp_path)
    assert images.image_shape == (3, 4, 1) and set(images.records["train"].images.reshape(-1).tolist()) == {0x12}


def test_what_cannot_be_trained_on_is_named_in_one_line(directories, tmp_path):
    def refused(*flags):
        return run_script(SCRIPT, f"--output={tmp_path / 'run'}", *flags, check=False, environment=ENVIRONMENT)

    expect_one_line(run_script(SCRIPT, check=False), "--output=DIR")
    expect_one_line(refused("--preset=tsai"), "tsai2020_cifar10")
    expect_one_line(refused("--num_gpus=2"), "--num_gpus", "train_val.py")
    expect_one_line(refused("--network=cnn_baseline", "--B=4"), "--B")
    expect_one_line(refused("--minutes=-1"), "minutes")
    expect_one_line(refused("--network=heinsen_sst", f"--data={directories['norb']}"), "heinsen_sst", "embedding")
    assert not (tmp_path / "run" / "params.json").exists()


def test_directories_that_cannot_be_read_are_named(directories, tmp_path):
    with pytest.raises(UserError, match="no such directory"):
        read_images(tmp_path / "nowhere")
    with pytest.raises(UserError, match="neither train/<class>"):
        read_images(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x01")
    with pytest.raises(UserError, match="train-labels-idx1-ubyte"):
        read_images(tmp_path)
    write_coloured_folder(tmp_path / "mixed", train=2, test=1)
    write_coloured_folder(tmp_path / "other", train=1, test=1, size=(18, 16))
    source = tmp_path / "other" / "train" / "kind0" / "0000.png"
    os.replace(source, tmp_path / "mixed" / "train" / "kind0" / "0009.png")
    with pytest.raises(UserError, match="differ in size"):
        read_images(tmp_path / "mixed")
    broken = tmp_path / "mixed" / "train" / "kind0" / "0009.png"
    broken.write_bytes((tmp_path / "mixed" / "train" / "kind0" / "0001.png").read_bytes()[:200])
    with pytest.raises(UserError, match="0009.png: cannot be decoded"):
        read_images(tmp_path / "mixed")
    with pytest.raises(UserError, match="neither toys nor viewpoints"):
        make_trainer(directories, "folder", tmp_path, viewpoints="azimuth", **TINY)
    with pytest.raises(UserError, match="no whole batch of 16"):
        make_trainer(directories, "idx", tmp_path, val_prop=0.9, **TINY)


def test_states_of_others_damaged_states_and_nan_are_named(directories, tmp_path, monkeypatch):
    trainer = make_trainer(directories, "idx", tmp_path, epoch=1, **TINY)
    trainer.run()
    other = make_trainer(directories, "idx", tmp_path, optimizer="sgd", **TINY)
    with pytest.raises(UserError, match="another network or optimiser"):
        other.restore()
    (tmp_path / "state.npz").write_bytes((tmp_path / "state.npz").read_bytes()[:100])
    with pytest.raises(UserError, match="delete it"):
        load_state(tmp_path / "state.npz", trainer.network.weights)
    diverged = make_trainer(directories, "idx", tmp_path / "new", optimizer="sgd", lrn_rate=1e30, **TINY)
    with pytest.raises(UserError, match="lower --lrn_rate"):
        diverged.run()
    assert not (tmp_path / "new" / "state.npz").exists()


def test_a_log_keeps_what_is_before_the_step(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\nnonsense\n{"step": 3}\n{"st')
    assert RunLog(path, 2).lines == [{"step": 1}, {"step": 2}]
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
