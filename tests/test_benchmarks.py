"""`python -m benchmarks` measures what it says, keeps what it measured, and tells bad input in a line."""

import dataclasses
import doctest
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from benchmarks import growth, results, whole_rows
from benchmarks.measure import Settings, measure_task
from benchmarks.networks import NETWORKS, cross_entropy, heinsen_routing, own_loss, random_batch, spread, vector_routing
from benchmarks.rows import NETWORK_ROWS, ROWS, Figures, Row
from benchmarks.steps import make_step
from caps_tf.losses import margin_loss
from tests.small_norb import ROOT

SIZES = {"n_inp": 5, "n_out": 3, "d_inp": 4, "d_out": 4}
TINY = Row("vector_routing", "tiny", "step", "vector_routing", SIZES, 2)
SETTINGS = Settings(steps=2, warm_up=1, jit_compile="off")


def run(*flags):
    command = [sys.executable, "-m", "benchmarks", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def line(name="em_2", **figures):
    kept = {
        "name": name,
        "backend": "tensorflow",
        "precision": "float32",
        "seconds": 0.5,
        "peak_mib": 1000,
        "load": 0.0,
    }
    kept |= {
        "before_mib": 400,
        "compile_seconds": 3,
        "per_second": 128.0,
        "machine": "one",
        "commit": "abc",
        "date": "today",
    }
    kept |= {"versions": "keras 3", "multiplications": 10**9, "bytes": 10**8, "matmul_gflops": 100, "bandwidth_gbs": 20}
    return {**kept, **figures}


@pytest.mark.parametrize("kind", ["step", "forward"])
def test_a_row_is_measured_with_its_memory_and_costs(kind):
    # As a process of its own gets it, through JSON.
    row = dataclasses.asdict(dataclasses.replace(TINY, kind=kind))
    figures = measure_task(json.dumps([row, dataclasses.asdict(SETTINGS)]))
    assert figures["fastest"] <= figures["seconds"] <= figures["slowest"]
    assert figures["peak_mib"] > 0.99 * figures["before_mib"] > 0  # the system counts the two in different places
    assert figures["multiplications"] > 0 and figures["bytes"] > 0
    assert set(figures) <= set(results.COLUMNS)


def test_a_step_of_training_changes_the_weights_and_a_forward_pass_does_not():
    network = NETWORKS["vector_routing"](**SIZES)
    batch = random_batch(network, 2, np.random.default_rng(0))
    before = [np.array(weight) for weight in network.model.trainable_weights]
    make_step(network, "forward", 2, jit_compile="off")(batch)
    assert all((old == np.array(new)).all() for old, new in zip(before, network.model.trainable_weights, strict=True))
    make_step(network, "step", 2, jit_compile="off")(batch)
    assert any((old != np.array(new)).any() for old, new in zip(before, network.model.trainable_weights, strict=True))


def test_the_layers_alone_have_gradients_for_all_their_weights():
    for network in (heinsen_routing(7, children=7, parents=3), vector_routing(7, 3, 4, 5)):
        batch = random_batch(network, 2, np.random.default_rng(0))
        label = batch.pop("label")
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(network.loss(label, network.model(batch if len(batch) > 1 else batch["vectors"])))
        for gradient in tape.gradient(loss, network.model.trainable_weights):
            assert gradient is not None and np.isfinite(gradient).all()


def test_a_new_result_takes_the_place_of_the_old_one_and_of_no_other():
    old = results.merge([], [line("em_2"), line("em_1"), line("em_2", backend="jax")])
    assert [(each["name"], each["backend"]) for each in old] == [
        ("em_2", "jax"),
        ("em_1", "tensorflow"),
        ("em_2", "tensorflow"),
    ]
    new = results.merge(old, [line("em_2", seconds=0.25)])
    assert [each["seconds"] for each in new] == ["0.5", "0.5", "0.25"]


def test_results_survive_their_file(tmp_path):
    kept = results.merge([], [line()])
    results.write(tmp_path / "results.csv", kept)
    assert results.read(tmp_path / "results.csv") == kept
    assert results.read(tmp_path / "none.csv") == []


def test_the_table_compares_with_the_published_figures_and_with_the_limit_of_the_machine():
    [kept] = results.merge([], [line(seconds=0.522, peak_mib=1000)])
    # 10^9 multiplications at 100 GFLOP/s take 20 ms, and 10^8 bytes at 20 GB/s 5 ms.
    assert results.lower_limit(kept) == pytest.approx(0.02)
    cells = [cell.strip() for cell in results.tables([kept]).splitlines()[-1].split("|")]
    row = ROWS["em_2"]
    assert cells[1:5] == [row.title, "64", "5.22", "6.8"]
    assert cells[7:14] == ["1.04", "1.36", "**0.522**", "**1.05**", "10.0", "6.5", "0.419"]
    assert cells[15:17] == ["0.02", "26.1"]


def test_figures_of_a_busy_machine_are_marked_preliminary():
    assert "preliminary" not in results.tables(results.merge([], [line(load=0.02)]))
    assert "preliminary" in results.tables(results.merge([], [line(load=1.4)]))


def test_the_input_pipeline_is_compared_with_the_fastest_network_that_it_feeds():
    lines = [
        line("em_1", per_second=500.0),
        line("em_2", per_second=100.0),
        line("input_png", per_second=10_000.0, remark=""),
    ]
    table = results.tables(results.merge([], lines))
    assert "20.0 times what em_1 consumes" in table


def test_whole_commands_are_divided_into_their_parts():
    assert doctest.testmod(whole_rows).failed == 0
    [kept] = results.merge([], [line("start", remark="the second start (start 6.0)")])
    assert "until its first step is taken | 0.5 | 1000 | the second start (start 6.0) |" in results.tables([kept])


def test_a_command_whose_lines_are_not_wanted_any_more_is_killed(tmp_path):
    script = "import os, sys, time; print(os.getpid(), flush=True); time.sleep(60)"
    lines = whole_rows._listen([sys.executable, "-c", script], dict(os.environ))
    _, pid = next(lines)
    lines.close()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)
    with pytest.raises(subprocess.CalledProcessError):
        list(whole_rows._listen([sys.executable, "-c", "sys.exit(3)"], dict(os.environ)))


def test_the_tables_go_between_the_marks_of_the_readme_and_nothing_else_moves(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{results.BEGIN}\nold\n{results.END}\nafter\n")
    results.put_into(readme, results.merge([], [line()]))
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n")
    assert "old" not in text and ROWS["em_2"].title in text
    readme.write_text("no marks")
    with pytest.raises(ValueError, match="put them where the tables go"):
        results.put_into(readme, [])


def test_the_readme_has_the_marks():
    text = (ROOT / "benchmarks" / "README.md").read_text()
    assert text.index(results.BEGIN) < text.index(results.END)


def test_every_published_figure_has_something_to_be_compared_with():
    for row in NETWORK_ROWS:
        if row.published != Figures():
            assert row.wanted.seconds <= row.published.seconds
    assert ROWS["attention_2"].wanted.seconds == pytest.approx(1.4)


def test_an_unknown_row_is_told_in_one_line():
    process = run("--rows=em_9")
    assert process.returncode == 1
    assert process.stderr.count("\n") == 1 and "em_9" in process.stderr


def test_the_points_of_growth_differ_in_what_their_axis_says():
    rows = growth.points(small=False)
    assert len({row.name for *_, row in rows}) == len(rows)
    for _, axis, value, row in rows:
        assert value == row.batch if axis == "batch" else value in row.options.values()


def test_growth_is_drawn_from_what_was_measured(tmp_path):
    header = ",".join(growth.COLUMNS)
    values = "matrix_capsules,batch,{0},{0},0.{0},{0}0.0,1,0.0,tensorflow,abc,one machine,keras 3"
    source = tmp_path / "growth.csv"
    source.write_text("\n".join([header, values.format(1), values.format(2)]) + "\n")
    growth.draw(source, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_a_network_is_measured_with_the_loss_that_it_was_published_with():
    assert [own_loss(name) for name in ("capsnet", "matrix_capsules", "attention")] == [
        margin_loss,
        spread,
        cross_entropy,
    ]
