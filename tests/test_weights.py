"""Trained networks by name: those that are shipped keep what their cards say, and a directory of one's own is read alike."""

import dataclasses
import hashlib
import threading

import keras
import numpy as np
import pytest
from keras import ops

from caps_tf import weights
from caps_tf.any_backend.augmentation import prepare
from caps_tf.any_backend.data import read_images
from caps_tf.any_backend.trainer import AnyBackendTrainer
from caps_tf.data.preprocessing import AUGMENTATIONS, Preprocessing
from caps_tf.errors import UserError
from caps_tf.export import TrainedRun, export_run, scores_of
from caps_tf.models import conv_capsules, from_preset
from caps_tf.models.from_preset import network_of
from caps_tf.trained_runs import read_run
from caps_tf.training.config import RunConfig
from caps_tf.training.initial_weights import start_from
from caps_tf.training.params import save_params
from caps_tf.weights.card import read_card
from tests.coloured_folder import write_coloured_folder
from tests.networks import tiny_config
from tests.norb_mirror import Server

SHIPPED = weights.list_weights()
PREPROCESSING = Preprocessing(resize=(20, 24), crop=(16, 20), **AUGMENTATIONS["none"])
SIZES = {"convolutions": "4k5s2,8s2", "capsules": 2}


def write_trained(output, routing="attention", seed=0):
    """A network of random weights as if it had been trained; returns it and its sample."""
    rng = np.random.default_rng(seed)
    network = conv_capsules((16, 20, 1), num_classes=3, routing=routing, **SIZES)
    for weight in network.weights:
        weight.assign(rng.uniform(0.1, 1, size=weight.shape))
    sample = {"image": rng.integers(256, size=(5, 25, 30, 1), dtype=np.uint8), "label": rng.integers(3, size=5)}
    accuracy = {"test": {"accuracy": 0.5, "interval": [0.25, 0.75], "num_examples": 12}}
    config = tiny_config("conv_capsules", routing=routing, seed=4)
    run = TrainedRun(config, network, ("a", "b", "c"), PREPROCESSING, sample, accuracy, {"seed": 4}, "All.")
    export_run(run, output, {"licence": "of a test"})
    return network, sample


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_network_gives_the_scores_and_the_accuracy_of_its_card(name):
    directory, card = weights.find_weights(name), weights.load_card(name)
    assert card.name == name and (directory / "card.md").read_text() == card.to_markdown()
    assert card.licence and card.not_for and card.data
    if card.sample is None:
        assert card.file["url"]  # nothing is here but the card
        return
    model, sample = from_preset(name), weights.load_sample(name)
    scores = scores_of(model, weights.inputs_of(sample))
    np.testing.assert_allclose(scores, sample["scores"], rtol=0, atol=1e-3 * np.abs(sample["scores"]).max())
    right = int((scores.argmax(axis=-1) == sample["label"]).sum())
    assert len(scores) == card.sample["num_examples"] and abs(right - card.sample["correct"]) <= 1  # a tie, at most


def test_what_is_shipped_is_small():
    sizes = [path.stat().st_size for path in weights.DIRECTORY.rglob("*") if path.suffix != ".py" and path.is_file()]
    assert sum(sizes) < 5e6


def test_a_network_of_ones_own_is_a_keras_model_with_preparation_classes_and_card(tmp_path):
    network, sample = write_trained(tmp_path / "mine")
    model = from_preset(tmp_path / "mine")
    expected = network(prepare(sample["image"], PREPROCESSING), training=False)
    np.testing.assert_allclose(
        np.array(model(sample["image"], training=False)), np.array(expected), rtol=1e-4, atol=1e-5
    )
    assert isinstance(model, keras.Model) and model.input_shape == (None, 25, 30, 1)
    assert model.class_names == ("a", "b", "c") and model.card.accuracy["test"]["num_examples"] == 12
    assert network_of(model, model.card).count_params() == network.count_params()
    batch = model.preprocess([np.zeros((50, 60), "uint8"), np.full((10, 40, 3), 9, "uint8"), sample["image"][0]])
    assert batch.shape == (3, 25, 30, 1) and batch.dtype == np.float32
    np.testing.assert_array_equal(batch[2], sample["image"][0])
    text = (tmp_path / "mine" / "card.md").read_text()
    for words in ("50.0 % (25.0 to 75.0) of 12 examples", "of a test", "--seed=4", "a, b, c", "not use it"):
        assert words in text
    with pytest.raises(UserError, match="is there already"):
        write_trained(tmp_path / "mine")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]  # nothing half-written
    model.save(tmp_path / "again.keras")
    again = keras.saving.load_model(tmp_path / "again.keras")
    np.testing.assert_array_equal(np.array(again(sample["image"])), np.array(model(sample["image"])))


def test_names_that_there_are_not_and_damaged_directories_are_one_clear_error(tmp_path):
    with pytest.raises(UserError, match="nearest are heinsen2019_smallnorb"):
        from_preset("heinsen2019_smalnorb")
    write_trained(tmp_path / "mine")
    model, card = tmp_path / "mine" / "model.keras", tmp_path / "mine" / "card.json"
    whole = model.read_bytes()
    model.write_bytes(whole[:-1])
    with pytest.raises(UserError, match="not the file that its card describes"):
        from_preset(tmp_path / "mine")
    model.unlink()
    with pytest.raises(UserError, match="no such file"):
        from_preset(tmp_path / "mine")
    for damaged in ("{", "[]", '{"format": 1}', '{"format": 9}', card.read_text().replace('"sha256"', '"md5"')):
        card.write_text(damaged)
        with pytest.raises(UserError, match=r"card\.json"):
            from_preset(tmp_path / "mine")


def test_a_large_file_is_fetched_from_a_mirror_resumed_verified_and_kept(tmp_path, monkeypatch, capsys):
    write_trained(tmp_path / "mine")
    card, model = read_card(tmp_path / "mine" / "card.json"), tmp_path / "mine" / "model.keras"
    whole = model.read_bytes()
    model.unlink()
    file = {**card.file, "url": "http://nowhere.invalid/model.keras"}
    (tmp_path / "mine" / "card.json").write_text(dataclasses.replace(card, file=file).to_json())
    monkeypatch.setattr("caps_tf.weights.fetching.time.sleep", lambda seconds: None)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("CAPS_TF_CACHE", str(tmp_path / "cache"))
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("CAPS_TF_WEIGHTS_URL", server.url)
        with pytest.raises(UserError, match="404.*CAPS_TF_WEIGHTS_URL"):
            weights.model_file(tmp_path / "mine")
        server.files["mine/model.keras"] = whole[:-1] + b"?"
        with pytest.raises(UserError, match="wrong checksum"):
            weights.model_file(tmp_path / "mine")
        server.files["mine/model.keras"] = whole
        server.break_after = [3000]
        server.requests.clear()
        found = weights.model_file(tmp_path / "mine")
        assert found.read_bytes() == whole and [asked for _, asked in server.requests] == [None, "bytes=3000-"]
        assert f"{len(whole) / 1e6:.1f} MB" in capsys.readouterr().err
        server.requests.clear()
        assert from_preset(tmp_path / "mine").output_shape == (None, 3) and not server.requests
        server.shutdown()
    assert hashlib.sha256(whole).hexdigest() == card.file["sha256"]


def test_training_starts_from_the_weights_that_fit(tmp_path):
    trained, _ = write_trained(tmp_path / "mine", routing="em")
    other = conv_capsules((32, 32, 1), num_classes=4, routing="em", **SIZES)
    said = start_from(other, tmp_path / "mine")
    new = [weight.path for weight in other.weights if weight.path in said]
    assert new and all(path.startswith("class_capsules/") for path in new)
    for mine, theirs in zip(other.weights, trained.weights, strict=True):
        if mine.path not in new:
            np.testing.assert_array_equal(ops.convert_to_numpy(mine), ops.convert_to_numpy(theirs))
    same = conv_capsules((16, 20, 1), num_classes=3, routing="em", **SIZES)
    assert "new" not in start_from(same, tmp_path / "mine")
    with pytest.raises(UserError, match="no weight"):
        start_from(conv_capsules((16, 20, 3), 4, "none", convolutions="5"), tmp_path / "mine")


def test_a_run_on_any_backend_is_exported_with_its_test_accuracy(tmp_path):
    write_coloured_folder(tmp_path / "folder")
    flags = {"routing": "none", "convolutions": "4k5s4", "epoch": 1, "batch_size": 16, "jit_compile": "off"}
    config = RunConfig(network="conv_capsules", dataset=str(tmp_path / "folder"), **flags)
    with pytest.raises(UserError, match="no such|No such"):
        read_run(tmp_path / "run", "latest", 4, {})
    trainer = AnyBackendTrainer(config, read_images(tmp_path / "folder"), tmp_path / "run")
    save_params(config, tmp_path / "run" / "params.json", minutes=None, steps=None)
    with pytest.raises(UserError, match="not at its end"):
        read_run(tmp_path / "run", "latest", 4, {})
    last = trainer.run()
    (tmp_path / "data").mkdir()
    (tmp_path / "folder").rename(tmp_path / "data" / "folder")
    run = read_run(tmp_path / "run", "latest", 4, {"storage": str(tmp_path)})
    run = run._replace(config=dataclasses.replace(run.config, reconstruction=0.1))
    export_run(run, tmp_path / "mine", {})
    assert "not part of the file" in (tmp_path / "mine" / "card.md").read_text()
    model, sample = from_preset(tmp_path / "mine"), weights.load_sample(tmp_path / "mine")
    assert model.card.accuracy["test"]["accuracy"] == last["test_accuracy"] and sample["image"].shape == (4, 20, 16, 3)
    np.testing.assert_allclose(scores_of(model, weights.inputs_of(sample)), sample["scores"], rtol=1e-4, atol=1e-5)
