"""Networks compared on novel viewpoints at equal familiar accuracy: hand-worked numbers, seeds, the picture."""

import json

import numpy as np
import pytest
from PIL import Image

from caps_tf.errors import UserError
from caps_tf.evaluation.viewpoints import (
    ViewpointResult,
    at_familiar,
    common_familiar,
    comparison_figure,
    comparison_table,
    read_networks,
)
from tests.small_norb import expect_one_line, run_script


def run_of(*shares, network="cnn"):
    """Checkpoints at steps 10, 20, ... with these (familiar, novel) accuracies."""
    return [ViewpointResult(network, 10 * number, *pair) for number, pair in enumerate(shares, start=1)]


def write_run(directory, shares, **parameters):
    """What test.py leaves of a run with these (familiar, novel) accuracies."""
    for result in run_of(*shares):
        report = {
            "details": {"network": "cnn_baseline", "step": result.step, "checkpoint": str(directory), **parameters},
            "parts": {"familiar": {"accuracy": result.familiar}, "novel": {"accuracy": result.novel}},
        }
        path = directory / "test" / f"step-{result.step}" / "report.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(report))
    return str(directory)


def test_novel_accuracy_is_interpolated_where_familiar_accuracy_is_first_reached():
    run = run_of((0.4, 0.3), (0.6, 0.5), (0.5, 0.1), (0.8, 0.6))
    assert at_familiar(run, 0.45) == ("cnn", 12.5, 0.45, 0.35)
    assert at_familiar(run, 0.6) == ("cnn", 20, 0.6, 0.5)
    assert at_familiar(run, 0.7) == ("cnn", pytest.approx(36.666666667), 0.7, pytest.approx(0.433333333))
    assert at_familiar(run, 0.2) == run[0]  # unmatched: no checkpoint is as weak
    with pytest.raises(UserError, match="a run of cnn reaches a familiar accuracy of 80.0%, not 90.0%"):
        at_familiar(run, 0.9)


def test_runs_are_matched_at_the_best_that_all_reach_though_some_fall_back_later():
    assert common_familiar([run_of((0.7, 0), (0.6, 0)), run_of((0.5, 0), (0.9, 0))]) == 0.7


def test_the_table_tells_mean_and_deviation_between_seeds():
    seeds = [run_of((0.4, 0.2), (0.8, 0.6)), run_of((0.4, 0.4), (0.8, 0.4))]
    table = comparison_table({"cnn": seeds, "em": [run_of((0.6, 0.3))]})
    # At 60 % the seeds have 40 % and 40 %, at their last steps 60 % and 40 %: deviation 14.1 points.
    assert table.splitlines()[2:] == [
        "| cnn | 2 | 80.0 ± 0.0 % | 50.0 ± 14.1 % | 15 | 60.0 ± 0.0 % | 40.0 ± 0.0 % |",
        "| em | 1 | 60.0 % | 30.0 % | 10 | 60.0 % | 30.0 % |",
    ]


def test_runs_that_differ_in_their_seed_only_are_put_together_and_others_told_apart(tmp_path):
    shares = [(0.4, 0.3), (0.6, 0.5)]
    runs = [
        write_run(tmp_path / "a", shares, seed=0, A=32, name="a"),
        write_run(tmp_path / "b", shares, seed=0, A=64, name="b"),
        write_run(tmp_path / "c", shares, seed=1, A=32, name="c"),
    ]
    networks = read_networks(runs)
    assert {name: len(group) for name, group in networks.items()} == {
        "cnn_baseline (A=32)": 2,
        "cnn_baseline (A=64)": 1,
    }
    with pytest.raises(UserError, match="is given twice"):
        read_networks([*runs, runs[0]])


def test_the_picture_has_a_line_a_network_and_a_dot_a_checkpoint():
    seeds = [run_of((0.4, 0.2), (0.8, 0.6)), run_of((0.5, 0.4), (0.9, 0.4))]
    figure = comparison_figure({"cnn": seeds, "em": [run_of((0.7, 0.3), (0.85, 0.5))]})
    axes = figure.axes[0]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["cnn, mean of 2 runs", "em", "matched at 80.0 %"]
    assert [len(dots.get_offsets()) for dots in axes.collections if hasattr(dots, "get_offsets")][0] == 4
    line = next(line for line in axes.lines if line.get_label() == labels[0])
    assert (line.get_xdata()[0], line.get_xdata()[-1]) == (0.5, 0.8)
    np.testing.assert_allclose(line.get_ydata()[[0, -1]], [(0.3 + 0.4) / 2, (0.6 + 0.4) / 2])


def test_a_network_whose_weakest_checkpoint_beats_the_other_runs_best_is_drawn_all_the_same():
    figure = comparison_figure({"cnn": [run_of((0.4, 0.2)), run_of((0.8, 0.3), (0.9, 0.4))]}, familiar=0.4)
    line = next(line for line in figure.axes[0].lines if line.get_label() == "cnn, mean of 2 runs")
    assert set(line.get_xdata()) == {0.4} and set(line.get_ydata()) == {0.25}


def test_the_script_prints_the_table_and_draws_the_picture(tmp_path):
    first = write_run(tmp_path / "first", [(0.4, 0.3), (0.6, 0.5)], seed=0)
    second = write_run(tmp_path / "second", [(0.5, 0.3), (0.7, 0.5)], seed=1)
    picture = tmp_path / "compared.png"
    process = run_script(
        "examples/compare_viewpoints.py", f"--runs={first},{second}", "--familiar=0.55", f"--picture={picture}"
    )
    last = process.stdout.splitlines()[-1]
    assert last.startswith("| cnn_baseline | 2 | 65.0 ± 7.1 % | 50.0 ± 0.0 % | 15 | 55.0 ± 0.0 %")
    with Image.open(picture) as image:
        assert min(image.size) > 400 and np.asarray(image.convert("L")).std() > 5
    out_of_reach = run_script(
        "examples/compare_viewpoints.py", f"--runs={first},{second}", "--familiar=0.65", check=False
    )
    expect_one_line(out_of_reach, "reaches a familiar accuracy of 60.0%, not 65.0%")


def test_a_network_is_called_by_its_preset_unless_flags_beside_it_differ(tmp_path):
    shares = [(0.5, 0.4)]
    parameters = [{"preset": "a", "C": 1}, {"preset": "b", "C": 2}, {"preset": "b", "C": 3}, {"preset": "", "C": 4}]
    runs = [write_run(tmp_path / str(number), shares, **each) for number, each in enumerate(parameters)]
    names = list(read_networks(runs))
    assert names[0] == "a" and list(read_networks(runs[:2])) == ["a", "b"]
    assert names[1:] == [f"cnn_baseline (C={C}, preset={preset})" for preset, C in (("b", 2), ("b", 3), ("", 4))]


def test_a_run_tested_before_iterations_had_one_name_is_of_the_same_network(tmp_path):
    shares = [(0.5, 0.4)]
    parameters = [
        {"network": "attention", "iter_routing": 0, "num_routing": 2},
        {"network": "attention", "iter_routing": 0},
    ]
    parameters += [{"network": "attention", "iter_routing": 3}]
    runs = [write_run(tmp_path / str(number), shares, **each) for number, each in enumerate(parameters)]
    networks = read_networks(runs)
    assert [len(group) for group in networks.values()] == [2, 1]


def test_a_run_tested_before_a_parameter_existed_is_of_the_same_network_as_one_with_its_default(tmp_path):
    now = {"protocol": "", "channels": 256, "capsule_layers": 1, "reconstruction": 0.0, "init_from": ""}
    parameters = [{"seed": 0}, {**now, "seed": 1, "routing_gauges": True}, {**now, "reconstruction": 0.1}]
    runs = [write_run(tmp_path / str(number), [(0.5, 0.4)], **each) for number, each in enumerate(parameters)]
    found = {name: len(group) for name, group in read_networks(runs).items()}
    assert found == {"cnn_baseline (reconstruction=0.0)": 2, "cnn_baseline (reconstruction=0.1)": 1}


def test_runs_of_a_protocol_are_labelled_so(tmp_path):
    parameters = [
        {"preset": "demo_cnn", "viewpoints": "azimuth"},
        {"preset": "demo", "network": "conv_capsules", "protocol": "affine"},
        {"preset": "", "network": "matrix_capsules", "protocol": "affine"},
    ]
    runs = [write_run(tmp_path / str(number), [(0.5, 0.4)], **each) for number, each in enumerate(parameters)]
    assert list(read_networks(runs)) == ["demo_cnn", "demo (protocol=affine)", "matrix_capsules (protocol=affine)"]
