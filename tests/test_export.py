"""A run of train_val.py, tested, exported and used again: as a Keras model, and to start another run from."""

import json

import numpy as np
import pytest
import tensorflow as tf

from caps_tf.errors import UserError
from caps_tf.models import conv_capsules, from_preset
from caps_tf.trained_runs import read_run
from caps_tf.training.config import RunConfig
from caps_tf.training.data import make_test_data
from caps_tf.training.params import load_params
from caps_tf.weights import load_card, load_sample
from tests.runs import train
from tests.small_norb import expect_one_line, run_script

NETWORK = ("--network=conv_capsules", "--routing=em", "--convolutions=4k5s2,8s2", "--capsules=2", "--epoch=1")


@pytest.fixture(scope="module")
def run(storage):
    return train(storage, "exported", *NETWORK, "--seed=3")


@pytest.fixture(scope="module")
def exported(run):
    output = run.parent / "mine"
    export = ("-m", "caps_tf.export", f"--load_dir={run}", f"--output={output}", "--sample=30")
    with pytest.raises(UserError, match=r"test\.py --load_dir=.* --ckpt_name=step-15"):
        read_run(run, "latest", 1, {})
    run_script("test.py", f"--load_dir={run}")
    said = run_script(*export, "--licence=of a test", f"--other_runs={run}").stdout
    assert said.startswith(f"{output}: conv_capsules, ") and "of 600 examples" in said
    expect_one_line(run_script(*export, check=False), "is there already")
    return output


def test_an_exported_run_gives_the_scores_that_test_py_gives(run, exported):
    config = RunConfig(**load_params(run / "train" / "params.json"))
    [part] = make_test_data(config).parts.values()
    network = read_run(run, "latest", 1, {}).network
    wanted = np.arange(10, 600, 20)  # 30 evenly spread over 600
    prepared = np.concatenate([batch["image"][batch["weight"] > 0] for batch in part.batches.as_numpy_iterator()])
    expected = np.array(network(prepared[wanted], training=False))
    sample, model = load_sample(exported), from_preset(exported)
    np.testing.assert_allclose(sample["scores"], expected, rtol=1e-3, atol=1e-4)
    scores = np.array(model(sample["image"], training=False))
    np.testing.assert_allclose(scores, sample["scores"], rtol=1e-4, atol=1e-5)
    right = int((scores.argmax(axis=-1) == sample["label"]).sum())
    assert model.card.sample == {"correct": right, "num_examples": 30}


def test_the_card_says_what_the_files_of_the_run_say(run, exported):
    card = load_card(exported)
    report = json.loads((run / "test" / "step-15" / "report.json").read_text())["parts"]["test"]
    assert card.accuracy == {"test": {name: report[name] for name in ("accuracy", "interval", "num_examples")}}
    assert card.other_seeds == [{"seed": 3, "accuracy": card.accuracy}]
    assert card.training["seed"] == 3 and card.training["checkpoint"] == "step-15" and card.licence == "of a test"
    assert "--seed=3" in card.regime and str(run.parent) not in card.to_json()
    assert "lowest" in card.viewpoints and "azimuth" in card.viewpoints
    assert tuple(card.shape) == (24, 24, 1) and tuple(card.class_names)[0] == "animal"


def test_a_run_starts_from_an_exported_one_and_an_unknown_name_is_told_with_the_nearest(storage, exported):
    started = train(storage, "started", *NETWORK, f"--init_from={exported}", "--lrn_rate=1e-12")
    assert json.loads((started / "train" / "params.json").read_text())["init_from"] == str(exported)
    before = from_preset(exported)
    after = conv_capsules((17, 17, 1), 5, "em", convolutions="4k5s2,8s2", capsules=2)
    tf.train.Checkpoint(model=after).read(str(started / "train" / "checkpoints" / "step-15")).expect_partial()
    for trained, found in zip(
        before.get_layer("conv_capsules").trainable_weights, after.trainable_weights, strict=True
    ):
        np.testing.assert_allclose(np.array(found), np.array(trained), atol=1e-6, err_msg=found.path)
    process = run_script("train_val.py", "--init_from=heinsen2019_smalnorb", check=False)
    expect_one_line(process, "nearest are heinsen2019_smallnorb")
