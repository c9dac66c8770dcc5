"""`python -m benchmarks.accuracy` runs what is missing, keeps one line a run, and the README's table says what the file says."""

import doctest
import re
import signal
import subprocess
import sys
import types

import numpy as np
import pytest

from benchmarks import accuracy, results, runs
from caps_tf.data.datasets import open_dataset
from caps_tf.data.images import evaluation_batches
from caps_tf.data.preprocessing import Preprocessing
from caps_tf.data.splits import make_splits
from caps_tf.errors import UserError
from caps_tf.files import locked
from caps_tf.presets import load_preset
from tests.benchmark_commands import run_here, run_process
from tests.small_norb import ROOT

PRESET = "norb_cnn"
# 300 training pairs of both cameras, 17 pixels; two steps of 256.
SMALL = "--image_size=17 --resize=0 --views=both --batch_size=256 --jit_compile=off --epoch=1 --log_every=1"


def command(output, *flags):
    return [sys.executable, "-m", "benchmarks.accuracy", f"--output={output}", *flags]


def run(output, *flags):
    return run_here(accuracy, f"--output={output}", *flags)


def line(**values):
    kept = dict.fromkeys(accuracy.COLUMNS, "")
    kept |= {"preset": "demo", "data": "toys", "seed": "0", "train_images": "1080", "test_images": "2700"}
    kept |= {"parameters": "24434", "steps": "450", "seconds": "90", "familiar": "0.7", "commit": "abc"}
    return kept | {"machine": "one", "date": "2026-11-27"} | values


@pytest.fixture(
    scope="module", params=[pytest.param(run, marks=pytest.mark.campaign) for run in (run_here, run_process)]
)
def measured(request, tmp_path_factory, small_norb):
    """Two seeds, trained and tested by the command, and the command's output."""
    storage = tmp_path_factory.mktemp("storage")
    (storage / "data").symlink_to(small_norb / "data")
    output = storage / "accuracy.csv"
    flags = (f"--presets={PRESET}", f"--storage={storage}", f"--flags={SMALL}")
    if request.param is run_here:
        process = run(output, *flags, "--seeds=2")
    else:
        process = run_process(accuracy, f"--output={output}", *flags, "--seeds=2")
    assert process.returncode == 0, process.stderr[-4000:]
    return output, flags, process


def test_each_seed_gets_a_line_with_what_its_run_and_its_report_say(measured):
    output, _, process = measured
    storage = output.parent
    lines = results.read(output)
    assert [each["seed"] for each in lines] == ["0", "1"]
    runs = sorted((storage / "logs" / "smallNORB").glob(f"*_{PRESET}_seed*"))
    assert len(runs) == 2
    for seed, (each, directory) in enumerate(zip(lines, runs, strict=True)):
        assert directory.name.endswith(f"seed{seed}")
        assert (each["preset"], each["data"], each["flags"]) == (PRESET, "smallNORB", SMALL)
        # Five categories, five toys, three elevations, four azimuths, two cameras; two whole batches of 256.
        assert each["train_images"] == each["test_images"] == str(5 * 5 * 3 * 4 * 2)
        assert (each["steps"], each["novel"], each["novel_images"]) == ("2", "", "")
        assert 0 <= float(each["familiar"]) <= 1 and float(each["seconds"]) > 1
        assert re.fullmatch(r"[0-9a-f]{7,}\+?|\+?", each["commit"]) and "cores" in each["machine"]
        assert f'"seed": {seed},' in (directory / "train" / "params.json").read_text()
    assert lines[0]["parameters"] == lines[1]["parameters"]
    assert accuracy.table(lines) in process.stdout


def test_the_parameters_counted_are_the_trainable_ones_of_the_network(measured):
    from caps_tf.models import cnn_baseline

    model = cnn_baseline((17, 17, 1), 5)
    expected = sum(int(weights.numpy().size) for weights in model.trainable_weights)
    assert results.read(measured[0])[0]["parameters"] == str(expected)


def test_what_is_in_the_file_is_not_run_again_and_a_run_that_is_stopped_adds_nothing(measured):
    output, flags, _ = measured
    before = output.read_bytes()
    # Seeds 0 and 1 are there: at once it trains seed 2. SIGTERM to this process only must stop the training too.
    process = subprocess.Popen(command(output, *flags, "--seeds=3"), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    lines = []
    for text in process.stderr:
        lines.append(text)
        if text.startswith("training in "):
            process.send_signal(signal.SIGTERM)
            break
    assert sum("is in accuracy.csv" in text for text in lines) == 2
    assert process.wait(60) == 128 + signal.SIGTERM
    process.stderr.close()
    assert output.read_bytes() == before
    directory = re.match(r"training in (.*) on ", lines[-1]).group(1)
    assert directory.endswith("_seed2")
    with locked(directory, "still trains"):
        pass


@pytest.mark.campaign
def test_the_nearest_neighbour_is_measured_on_familiar_and_novel_views_like_a_network(storage, tmp_path):
    output = tmp_path / "accuracy.csv"
    flags = (
        "--presets=plain_classifiers",
        "--dataset=smallNORB",
        f"--storage={storage}",
        "--flags=--viewpoints=azimuth",
    )
    process = run(output, *flags, "--seeds=2")
    assert process.returncode == 0, process.stderr[-4000:]
    [each] = results.read(output)
    splits = make_splits(open_dataset("smallNORB", storage=storage), val_prop=0.0, viewpoints="azimuth")
    train, *tests = (pixels(splits[name]) for name in ("train", "familiar", "novel"))
    expected = []
    for images, labels in tests:
        distance = ((images[:, None] - train[0][None]) ** 2).sum(axis=-1)
        expected.append(np.mean(train[1][distance.argmin(axis=1)] == labels))
    np.testing.assert_allclose([float(each["familiar"]), float(each["novel"])], expected)
    sizes = [len(labels) for _, labels in (train, *tests)]
    assert [each[name] for name in ("train_images", "test_images", "novel_images")] == [str(size) for size in sizes]
    assert "`python data/plain_classifiers.py --dataset=smallNORB --viewpoints=azimuth`" in process.stdout


def pixels(split):
    """Both views of every pair, in 48x48 grey levels, and their classes."""
    batches = list(evaluation_batches(split, Preprocessing(resize=(48, 48), crop=None, normalize="none"), 1))
    images = np.concatenate([np.round(255 * batch["image"].numpy()).ravel()[None] for batch in batches])
    return images, np.concatenate([batch["label"] for batch in batches])


def test_a_run_that_fails_adds_nothing_and_is_named(measured, tmp_path):
    output, flags, _ = measured
    before = output.read_bytes()
    process = run(output, *flags[:1], f"--storage={tmp_path}", "--flags=--epoch=1", "--seeds=1")
    assert process.returncode == 1 and "Traceback" not in process.stderr
    assert f"error: {PRESET}, seed 0: train_val.py failed" in process.stderr and "download.sh" in process.stderr
    assert output.read_bytes() == before


def test_other_flags_data_or_presets_are_other_runs_and_again_replaces_a_line():
    lines = []
    for values in ({}, {"flags": "--epoch=1"}, {"data": "others"}, {"preset": "x"}, {"seed": "10"}, {"seed": "9"}):
        lines = accuracy.merge(lines, line(**values))
    assert len(lines) == 6
    assert [each["seed"] for each in lines if accuracy._key(each)[:3] == ("toys", "demo", "")] == ["0", "9", "10"]
    replaced = accuracy.merge(lines, line(familiar="0.9"))
    assert len(replaced) == 6 and [each["familiar"] for each in replaced].count("0.9") == 1


def test_a_report_on_novel_viewpoints_gives_both_accuracies():
    details = {"training_examples": 10, "parameters": 7, "step": 3}
    parts = {"familiar": {"num_examples": 4, "accuracy": 0.75}, "novel": {"num_examples": 8, "accuracy": 0.5}}
    found = runs.figures({"details": details, "parts": parts})
    assert (found["familiar"], found["novel"]) == ("0.75", "0.5")
    assert (found["test_images"], found["novel_images"]) == ("4", "8")


def test_the_table_has_mean_deviation_minutes_and_command():
    # 70, 72 and 74 %: mean 72, deviation 2. 60 and 62 %: mean 61, deviation sqrt(2).
    views = {"flags": "--viewpoints=azimuth", "dataset": "toys", "novel_images": "5400"}
    lines = [line(seed=str(seed), familiar=str(0.7 + 0.02 * seed), seconds=str(60 * (seed + 1))) for seed in range(3)]
    lines += [line(seed=str(seed), novel=str(0.6 + 0.02 * seed), **views) for seed in range(2)]
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in accuracy.table(lines).splitlines()[2:4]]
    assert rows[0][0] == "toys (1,080 to train, 2,700 to test)"
    assert rows[0][1:] == ["demo", "24,434", "72.0 ± 2.0 %", "", "3", "2.0", "`python train_val.py --preset=demo`"]
    assert rows[1][0].endswith("5,400 novel)") and rows[1][3:6] == ["70.0 ± 0.0 %", "61.0 ± 1.4 %", "2"]
    assert rows[1][-1] == "`python train_val.py --preset=demo --dataset=toys --viewpoints=azimuth`"


def test_the_examples_in_its_docstrings_are_right():
    assert doctest.testmod(accuracy).failed == 0


def test_seeds_of_a_preset_that_has_changed_are_not_averaged():
    with pytest.raises(UserError, match="differ in parameters.*--again"):
        accuracy.table([line(), line(seed="1", parameters="9")])


def test_an_unknown_preset_and_flags_that_the_command_gives_itself_are_refused_in_one_line(tmp_path):
    output = tmp_path / "accuracy.csv"
    for flags, word in (("--presets=dmo", "demo"), ("--presets=demo --flags=--seed=3", "--seed=3")):
        process = run(output, *flags.split())
        assert process.returncode == 1 and process.stderr.count("\n") == 1 and word in process.stderr
    assert not output.exists()


@pytest.mark.parametrize(
    ("document", "begin", "end", "table"),
    [
        ("docs/RESULTS.md", accuracy.BEGIN, accuracy.END, accuracy.table),
        ("README.md", accuracy.BEST_BEGIN, accuracy.BEST_END, accuracy.best_table),
    ],
)
def test_the_tables_say_what_the_file_says_and_nothing_else(document, begin, end, table):
    between = (ROOT / document).read_text(encoding="utf-8").partition(begin)[2].partition(end)[0]
    assert between.strip() == table(results.read(accuracy.ACCURACIES)), "python -m benchmarks.accuracy --table"


def test_the_best_of_each_kind_are_those_with_the_highest_mean_on_novel_views_where_there_are_any():
    lines = [line(preset="demo", seed=str(seed), familiar=each) for seed, each in enumerate(("0.5", "0.7"))]
    lines += [line(preset="norb_em", familiar="0.55"), line(preset="demo_cnn", familiar="0.4")]
    views = {"flags": "--viewpoints=azimuth --epoch=2", "novel_images": "9"}
    lines += [
        line(preset="demo", familiar="0.9", novel="0.1", **views),
        line(preset="norb_em", familiar="0.2", novel="0.3", **views),
    ]
    # Of a preset whose flags name no protocol; the flag may be written in two ways, and another one says another thing.
    for flags, familiar, novel in (("--protocol=affine", "0.9", "0.35"), ("--protocol overlap", "0.25", "")):
        lines.append(line(preset="demo", flags=flags, familiar=familiar, novel=novel))
    table = accuracy.best_table(lines)
    assert "| toys, protocol affine | 35.0 % (`demo`, one seed) |  |" in table
    assert "| toys, protocol overlap | 25.0 % (`demo`, one seed) |  |" in table
    assert "| toys | 60.0 ± 14.1 % (`demo`) | 40.0 % (`demo_cnn`, one seed) |" in table
    assert "| toys, novel azimuths | 30.0 % (`norb_em`, one seed) |  |" in table


def test_the_task_of_a_run_is_also_what_its_preset_says(monkeypatch):
    monkeypatch.setattr(accuracy, "load_preset", lambda _: types.SimpleNamespace(flags={"viewpoints": "azimuth"}))
    assert accuracy.task_of(line()) == "toys, novel azimuths"
    assert accuracy.task_of(line(flags="--viewpoints= --protocol=affine")) == "toys, protocol affine"


def test_the_readme_is_a_front_page():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_every_line_of_the_file_is_of_a_preset_that_exists():
    for name in {each["preset"] for each in results.read(accuracy.ACCURACIES)} - {accuracy.PLAIN}:
        load_preset(name)
