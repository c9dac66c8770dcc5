"""`python -m benchmarks.compare` trains every network in the same regime, once for each budget, and says what it found."""

import doctest
import sys

import pytest

from benchmarks import compare, comparison, results
from caps_tf.errors import UserError
from caps_tf.networks import ROUTINGS
from caps_tf.presets import load_preset
from tests.benchmark_commands import run_here, run_process
from tests.small_norb import ROOT

SMALL = (
    "--image_size=17 --resize=0 --convolutions=4k5s2,8s2 --capsules=2 --batch_size=256 --jit_compile=off --log_every=1"
)


def run(output, *flags):
    return run_here(compare, f"--output={output}", *flags)


def line(network="em", budget="2 epochs", seed="0", **values):
    kept = dict.fromkeys(comparison.COLUMNS, "")
    kept |= {"data": "toys", "preset": "demo", "network": network, "budget": budget, "seed": seed, "epochs": "2"}
    kept |= {"train_images": "1080", "test_images": "2700", "parameters": "24434", "steps": "84", "familiar": "0.7"}
    kept |= {"images_per_second": "300", "train_seconds": "9.0", "peak_mib": "900", "curve": "4.5:0.5 9.0:0.6"}
    return kept | {"machine": "one", "date": "2026-11-28"} | values


@pytest.fixture(
    scope="module", params=[pytest.param(run, marks=pytest.mark.campaign) for run in (run_here, run_process)]
)
def compared(request, tmp_path_factory, small_norb):
    """One seed of one routing, and the output of the command."""
    storage = tmp_path_factory.mktemp("storage")
    (storage / "data").symlink_to(small_norb / "data")
    output = storage / "compare.csv"
    flags = (
        f"--storage={storage}",
        "--dataset=smallNORB",
        "--networks=em",
        "--epochs=1",
        "--seeds=1",
        f"--flags={SMALL}",
    )
    if request.param is run_here:
        process = run(output, *flags, "--minutes=0.001")
    else:
        process = run_process(compare, f"--output={output}", *flags, "--minutes=0.001")
    assert process.returncode == 0, process.stderr[-4000:]
    return output, flags, process


def test_a_run_has_a_line_for_each_budget_with_what_train_val_and_test_say_of_it(compared):
    output, _, process = compared
    by_steps, by_time = results.read(output)
    assert (by_steps["budget"], by_time["budget"]) == ("1 epochs", "0.001 minutes")
    assert by_time["epochs"] == "1" and by_time["familiar"] == by_steps["familiar"]  # the same run, trained once
    assert process.stderr.count("training in") == 1
    assert 0 <= float(by_steps["familiar"]) <= 1 and float(by_steps["images_per_second"]) > 0
    assert float(by_steps["peak_mib"]) > 100 and int(by_steps["parameters"]) > 100
    [point] = by_steps["curve"].split()
    assert point.split(":")[0] == by_steps["train_seconds"]
    assert "| em |" in process.stdout and output.with_suffix(".png").stat().st_size > 10_000


def test_what_is_measured_already_is_not_run_again(compared):
    output, flags, _ = compared
    before = output.read_bytes()
    again = run(output, *flags)
    assert again.returncode == 0 and "is in compare.csv" in again.stderr and output.read_bytes() == before


def test_all_are_every_routing_and_the_cnn_in_one_regime():
    assert {*ROUTINGS, "cnn_baseline"} == set(compare.ALL)
    preset = load_preset("demo").flags
    flags = {name: compare.flags_of(name, preset) for name in compare.ALL}
    for name in ROUTINGS:
        assert flags[name] == {**preset, "routing": name}
    for flag in ("batch_size", "epoch", "image_size", "augment", "schedule"):
        assert flags["cnn_baseline"][flag] == preset[flag]
    assert "convolutions" not in flags["cnn_baseline"]


def test_the_table_has_a_row_for_each_network_with_its_budgets_side_by_side():
    lines = [line(seed=str(seed), familiar=familiar) for seed, familiar in enumerate(("0.5", "0.7"))]
    lines += [line(budget="1 minutes", epochs="8", train_seconds="60", familiar="0.9"), line("none", familiar="0.8")]
    text = comparison.table(lines)
    assert "toys (1,080 to train, 2,700 to test), regime of `--preset=demo`:" in text
    assert "| em | 24,434 | 300 | 900 | 60.0 ± 14.1 % | 2, 9 | 2 | 90.0 % | 8, 60 | 1 |" in text
    assert "| none: their average | 24,434 | 300 | 900 | 80.0 % | 2, 9 | 1 |  |  |  |" in text


def test_the_summary_has_a_row_for_each_network_and_a_column_for_each_data_set_and_budget():
    assert doctest.testmod(comparison).failed == 0
    lines = [line(), line("none", familiar="0.8"), line(data="garments", familiar="0.9"), line(budget="1 minutes")]
    heading, _, em, none = comparison.summary(lines).splitlines()
    assert heading == "| network | toys, 2 epochs | garments, 2 epochs | toys, 1 minutes |"
    assert em == "| em | 70.0 % | 90.0 % | 70.0 % |" and none == "| none: their average | 80.0 % |  |  |"


def test_two_budgets_of_a_kind_are_columns_of_the_table_and_the_longest_is_drawn():
    long, short = "1.0:0.2 2.0:0.3 3.0:0.4 4.0:0.5", "1.0:0.2 2.0:0.4"
    lines = [
        line(budget=f"{number} epochs", epochs=number, curve=curve) for number, curve in (("4", long), ("2", short))
    ]
    assert comparison.draw(lines).axes[0].lines[0].get_xdata().tolist() == [1, 2, 3, 4]
    assert "4 epochs: accuracy" in comparison.table(lines) and "2 epochs: accuracy" in comparison.table(lines)
    # Of times too, and these go before steps; 10 minutes are longer than 9.
    lines += [line(budget="10 minutes", epochs="2", curve=short), line(budget="9 minutes", epochs="4", curve=long)]
    assert comparison.draw(lines).axes[0].lines[0].get_xdata().tolist() == [1, 2]


def test_a_seed_that_is_added_later_trains_as_many_epochs_as_the_others_had_in_that_time(tmp_path, monkeypatch):
    output, trained = tmp_path / "compare.csv", []

    def train_and_test(_, name, epochs, seed):
        trained.append((seed, epochs))
        return {**line(), "epochs": str(epochs), "train_seconds": str((1 + seed) * epochs)}

    monkeypatch.setattr(compare.Comparison, "_train_and_test", train_and_test)
    for seeds in (1, 2):
        flags = ["--networks=em", "--epochs=2", "--minutes=0.2", f"--seeds={seeds}", f"--output={output}"]
        monkeypatch.setattr(sys, "argv", ["compare", *flags])
        assert compare.Comparison(compare.parse_arguments()).run() == 0
    # 12 seconds: 12 epochs of the first seed's one second. The second's two seconds do not change that.
    assert trained == [(0, 2), (0, 12), (1, 2), (1, 12)]
    assert "12, 18" in comparison.table(results.read(output))


def test_novel_views_have_a_column_of_their_own():
    assert "| 70.0 % | 40.0 % | 2, 9 | 1 |" in comparison.table([line(novel="0.4", novel_images="100")])


def test_seeds_of_unlike_networks_are_not_averaged():
    with pytest.raises(UserError, match="em on toys: its seeds differ in parameters"):
        comparison.table([line(), line(seed="1", parameters="7")])


def test_the_picture_has_a_panel_for_each_data_set_and_a_line_for_each_network():
    names = ("em", "heinsen", "attention", "dynamic", "self", "vb", "none", "cnn_baseline")
    lines = [line(name, data=data) for data in ("toys", "garments") for name in names]
    figure = comparison.draw(lines)
    assert [axes.get_title() for axes in figure.axes] == ["toys", "garments"]
    looks = {(each.get_color(), each.get_linestyle()) for each in figure.axes[0].lines}
    assert len(looks) == len(names)
    assert figure.axes[0].lines[0].get_xdata().tolist() == [4.5, 9.0]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--networks=emm"], "there is no network 'emm'"),
        (["--networks=em", "--preset=demo_cnn"], "em routes conv_capsules, but the preset is of cnn_baseline"),
        (["--flags=--seed=3"], "--flags takes no --seed"),
        (["--preset=domo"], "demo"),
    ],
)
def test_what_cannot_be_compared_is_one_line(flags, words, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["compare", *flags, f"--output={tmp_path / 'compare.csv'}"])
    assert compare.main() == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and words in error


@pytest.mark.campaign
def test_a_failed_run_leaves_no_line_and_a_bad_exit(tmp_path):
    output = tmp_path / "compare.csv"
    flags = ("--dataset=smallNORB", f"--storage={tmp_path}", "--networks=em", "--seeds=1")
    process = run_process(compare, f"--output={output}", *flags)
    assert process.returncode == 1 and "train_val.py failed" in process.stderr and not output.exists()


@pytest.mark.parametrize("module", [compare, comparison])
def test_examples_run(module):
    assert doctest.testmod(module).failed == 0


def test_the_file_in_the_repository_is_what_the_readme_and_the_results_page_show():
    lines = results.read(compare.COMPARED)
    for page, text in (("README.md", comparison.summary(lines)), ("docs/RESULTS.md", comparison.table(lines))):
        assert f"{compare.BEGIN}\n\n{text}\n\n{compare.END}" in (ROOT / page).read_text(encoding="utf-8")
