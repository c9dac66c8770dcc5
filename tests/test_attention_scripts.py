"""The attention network on a folder of colour images and on NORB, and EM routing on that folder, by the scripts."""

import json

import pytest

from tests.coloured_folder import write_coloured_folder
from tests.networks import ATTENTION
from tests.runs import start_training
from tests.small_norb import SMALL_CAPSULES, SMALL_DATA, expect_one_line, run_script

QUICK = ("--epoch=1", "--batch_size=16", "--jit_compile=off", "--log_every=2", "--val_prop=0.2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    directory = tmp_path_factory.mktemp("images") / "coloured"
    write_coloured_folder(directory)
    return directory


def train(storage, *flags):
    """Trains a run; returns its directory and the losses of its log."""
    directory = start_training(f"--storage={storage}", *flags)
    lines = [json.loads(line) for line in (directory / "train" / "log.jsonl").read_text().splitlines()]
    return directory, [line["loss"] for line in lines]


def test_attention_trains_on_colour_images_in_the_published_regime_and_is_tested(folder, tmp_path):
    directory, losses = train(
        tmp_path,
        *("--network=attention", f"--dataset={folder}", f"--config_path={ATTENTION}", "--backbone=simple"),
        *("--num_routing=2", "--sequential_routing", "--capsule_dropout=0.1", *QUICK),
        *("--optimizer=sgd", "--lrn_rate=0.1", "--schedule=steps", "--weight_decay=5e-4"),
        *("--pad=4", "--pad_mode=zero", "--image_size=20x16", "--augment=crop_flip", "--normalize=channel"),
    )
    assert all(loss < 10 for loss in losses)
    run_script("test.py", f"--load_dir={directory}")
    [report] = (directory / "test").glob("*/report.json")
    assert json.loads(report.read_text())["parts"]["test"]["num_examples"] == 24


@pytest.mark.campaign
def test_em_routing_trains_on_colour_images(folder, tmp_path):
    _, losses = train(tmp_path, f"--dataset={folder}", "--resize=17", *SMALL_CAPSULES, *QUICK)
    assert all(loss < 10 for loss in losses)


@pytest.mark.campaign
def test_attention_trains_on_norb(storage):
    flags = [flag for flag in SMALL_DATA if not flag.startswith("--margin_steps")]
    _, losses = train(
        storage, *flags, "--network=attention", f"--config_path={ATTENTION}", "--backbone=simple", "--epoch=1"
    )
    assert losses[0] > 0 and all(loss < 10 for loss in losses)


def test_a_configuration_that_is_wrong_or_missing_is_one_clear_line(folder, tmp_path):
    flags = ("--network=attention", f"--dataset={folder}", f"--storage={tmp_path}")
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps({**json.loads(ATTENTION.read_text()), "routing": 2}))
    expect_one_line(
        run_script("train_val.py", *flags, f"--config_path={wrong}", check=False), "wrong.json", "unknown key routing"
    )
    missing = run_script("train_val.py", *flags, "--config_path=nowhere.json", check=False)
    expect_one_line(missing, "nowhere.json", "cifar10, cifar100")
    assert not (tmp_path / "logs").exists()
