"""--reconstruction of train_val.py: what it adds to the loss of every capsule network, and what a run with it leaves."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from caps_tf.evaluation.predictions import Predictions
from caps_tf.evaluation.reconstructions import pose_elements, reconstructions
from caps_tf.networks import NETWORKS, ROUTINGS
from caps_tf.training.checkpoints import restore
from caps_tf.training.config import RunConfig
from caps_tf.training.data import make_training_data
from caps_tf.training.factories import class_poses, cross_entropy, make_model
from caps_tf.training.params import load_params
from caps_tf.training.reconstruction import make_decoder, with_decoder
from caps_tf.training.steps import make_train_step, model_inputs
from caps_tf.training.trainer import Trainer
from tests.decoder_reference import drawn_by_hand
from tests.evaluation_examples import assert_drawn
from tests.networks import CLASSES, random_batch, tiny_config, tiny_run_model
from tests.refusals import refused
from tests.runs import assert_same_weights, log_lines, train, weights
from tests.small_norb import expect_one_line, run_script

LONG = ("matrix_capsules", "vb_capsules", "heinsen_norb", "attention")
"""Networks that take longest to trace."""
WEIGHT = 0.5
"""Far larger than published, so that the gradient of the error is not lost in that of the loss."""


@pytest.mark.parametrize(
    "name, options",
    [
        *(
            pytest.param(name, {"iter_routing": 1}, marks=pytest.mark.campaign if name in LONG else ())
            for name, network in NETWORKS.items()
            if network.routes and network.reads == "image" and name != "self_routing"  # whose classes have no poses
        ),
        ("conv_capsules", {"routing": "attention", "normalize": "none", "mixup": 1.0}),
    ],
)
def test_an_examples_squared_error_is_added_to_its_loss(name, options):
    config = tiny_config(name, reconstruction=WEIGHT, **options)
    model = tiny_run_model(name, reconstruction=WEIGHT, **options)
    decoder = make_decoder(config, model)
    trained = with_decoder(config, model, decoder)
    batch = {key: tf.constant(value) for key, value in random_batch(name, 4).items()}
    kept = np.eye(CLASSES, dtype="float32")[batch["label"]]
    if config.mixup:
        kept = 0.75 * kept + 0.25 * kept[::-1]
        batch["target"] = tf.constant(kept)
    with tf.GradientTape() as tape:
        scores, errors = trained(model_inputs(trained, batch), training=True)
        loss = tf.reduce_mean(cross_entropy(batch.get("target", batch["label"]), scores, 0.0))
        objective = loss + WEIGHT * tf.reduce_mean(errors) + sum(model.losses)
    variables = trained.trainable_variables
    assert len(variables) == len(model.trainable_variables) + 6
    gradients = tape.gradient(objective, variables, unconnected_gradients="zero")
    wanted = [np.asarray(value) - np.asarray(gradient) for value, gradient in zip(variables, gradients, strict=True)]
    # A step moves the moving averages, and the poses with them: by hand in training mode too.
    poses = np.asarray(keras.Model(model.input, class_poses(model))(batch["image"], training=True))
    image = batch["image"].numpy()
    low, high = (limit(image, axis=(1, 2, 3), keepdims=True) for limit in (np.min, np.max))
    target = image if config.normalize == "none" else (image - low) / (high - low)
    error = ((drawn_by_hand(decoder, poses, kept) - target) ** 2).sum(axis=(1, 2, 3)).mean()

    optimizer = keras.optimizers.SGD(1.0)
    optimizer.build(variables)
    strategy = tf.distribute.get_strategy()
    step = make_train_step(strategy, trained, optimizer, cross_entropy, 4, False, reconstruction=WEIGHT)
    result = step(batch, tf.constant(0.0))
    np.testing.assert_allclose(float(result.reconstruction), error, rtol=1e-4)
    np.testing.assert_allclose(float(result.loss), float(loss), rtol=1e-4)
    for variable, value in zip(variables, wanted, strict=True):
        atol = 3e-4 * max(1.0, np.abs(value).max())
        np.testing.assert_allclose(np.asarray(variable), value, rtol=1e-3, atol=atol, err_msg=variable.path)


@pytest.mark.parametrize("routing", ROUTINGS)
def test_every_routing_draws_from_poses_of_its_classes_or_is_refused(routing):
    config, model = (
        make("conv_capsules", routing=routing, reconstruction=WEIGHT) for make in (tiny_config, tiny_run_model)
    )
    if routing in ("self", "none"):  # scores alone, without poses
        assert class_poses(model) is None
        with refused("conv_capsules with these flags has no class capsules", "`reconstruction`"):
            make_decoder(config, model)
        return
    assert class_poses(model).shape[1] == CLASSES and len(class_poses(model).shape) > 2
    trained = with_decoder(config, model, make_decoder(config, model))
    image, target = random_batch("conv_capsules", 2)["image"], np.eye(CLASSES, dtype="float32")[:2]
    _, errors = trained({"image": image, "target": target})
    assert errors.shape == (2,) and np.isfinite(errors).all()


@pytest.mark.parametrize("name, options", [("cnn_baseline", {}), ("self_routing", {}), ("heinsen_sst", {})])
def test_a_network_without_class_capsules_or_images_is_refused(name, options):
    config = tiny_config(name, reconstruction=0.1, **options)
    with refused(name, "no class capsules with poses", "leave out `reconstruction`"):
        make_decoder(config, tiny_run_model(name, **options))


def test_weights_below_zero_and_runs_on_other_backends_are_refused():
    with refused("reconstruction must not be negative"):
        RunConfig(reconstruction=-0.1)
    script, output = "examples/train_any_backend.py", "--output=nowhere"
    for flags, words in (
        (["--reconstruction=0.1"], ["--reconstruction is for train_val.py", "no decoder", "set --reconstruction=0"]),
        (
            ["--preset=sabour2017_mnist"],
            ["--reconstruction, of --preset=sabour2017_mnist,", "set --reconstruction=0"],
        ),
        (["--protocol=affine"], ["--protocol is for train_val.py; here images", "set --protocol="]),
    ):
        expect_one_line(run_script(script, output, *flags, check=False), *words)


@pytest.fixture(scope="module")
def run(storage):
    flags = ("--network=conv_capsules", "--routing=em", "--convolutions=4k5s2,8s2", "--capsules=2")
    return train(storage, "drawn", *flags, "--epoch=2", "--reconstruction=0.0005", "--checkpoint_every=12")


@pytest.mark.campaign
def test_a_run_logs_its_reconstruction_and_its_test_draws(run):
    lines = log_lines(run, "train")
    assert lines[0]["reconstruction"] > lines[-1]["reconstruction"] > 0
    assert all(line["reconstruction"] > 0 for line in log_lines(run, "validation"))
    [events] = (run / "train").glob("events.*")
    found = tf.compat.v1.train.summary_iterator(str(events))
    assert "train/reconstruction" in {value.tag for event in found for value in event.summary.value}
    run_script("test.py", f"--load_dir={run}")
    page = (run / "test" / "step-30" / "report.html").read_text()
    for picture in ("reconstructions.png", "pose_elements.png"):
        assert_drawn(run / "test" / "step-30" / picture)
        assert f'src="{picture}"' in page


@pytest.mark.campaign
def test_a_run_goes_on_as_it_would_have_and_its_network_needs_no_decoder(run, tmp_path, monkeypatch):
    config = RunConfig(**load_params(run / "train" / "params.json"))
    data, checkpoint = make_training_data(config), str(run / "train" / "checkpoints" / "step-12")

    def restored(**options):
        keras.utils.set_random_seed(config.seed)
        changed = dataclasses.replace(config, **options)
        trainer = Trainer(changed, data, tmp_path / "train", tf.distribute.get_strategy())
        trainer.checkpoints.restore(checkpoint)
        return trainer

    trainer = restored(routing_gauges=True)
    monkeypatch.setattr("caps_tf.training.trainer.start_from", lambda *given: "starting from mine")
    assert trainer.start_from("mine") == "starting from mine; the decoder is new"
    trainer.run()
    assert any(name.startswith("decoder/") for name in weights(run))
    assert_same_weights(weights(tmp_path), weights(run))
    again, expected = log_lines(tmp_path, "train"), log_lines(run, "train")[2:]
    for name in ("loss", "accuracy", "reconstruction"):
        assert [line[name] for line in again] == [line[name] for line in expected]
    assert all("update_ratio/decoder/pixels/kernel" in line for line in again)
    with refused("another architecture"):
        restored(reconstruction=0.0)
    restore(tf.train.Checkpoint(model=make_model(config, data.input_shapes, data.num_classes)), checkpoint)


def tiles(axes, size):
    """The pictures in axes, by row and column."""
    picture = axes.images[0].get_array()
    return [
        [picture[row : row + size, column : column + size] for column in range(0, picture.shape[1], size + 2)]
        for row in range(0, picture.shape[0], size + 2)
    ]


def decode(poses, kept):
    """An image of one grey: the first element of the kept pose."""
    return np.einsum("nj,nj->n", kept, poses[..., 0]).reshape(-1, 1, 1, 1) * np.ones((1, 6, 6, 1))


def test_pictures_show_what_is_drawn_from_the_predicted_the_true_and_the_turned_pose():
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9]], np.float32)
    poses = np.array([[[0.5, 0], [0, 0]], [[0.25, 0], [0.75, 0]], [[0, 0], [1, 0]]])
    part = Predictions(scores, np.array([0, 1, 1]), 0.1, ("cat", "dog"), poses=poses)
    images = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.ones((1, 6, 6, 1), np.uint8)
    right, wrong = reconstructions(part, images, decode).axes
    assert [[int(tile[0, 0]) for tile in row] for row in tiles(right, 6)] == [[0, 2], [128, 255]]
    assert [[int(tile[0, 0]) for tile in row] for row in tiles(wrong, 6)] == [[1], [64], [191]]
    cat, dog = pose_elements(part, decode).axes
    first, second = ([int(tile[0, 0]) for tile in row] for row in tiles(cat, 6))
    assert first == np.round(255 * (0.5 + np.linspace(-0.25, 0.25, 11))).tolist() and second == [128] * 11
    assert (cat.get_title(), dog.get_title()) == ("cat", "dog")
