"""`python -m benchmarks.accelerator` measures in order of worth until its time is over, and loses nothing that it has."""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from benchmarks.accelerator import networks, tables, training
from benchmarks.accelerator.__main__ import parse_arguments
from benchmarks.accelerator.frame import (
    AT_LEAST,
    OUT_OF_TIME,
    RESULTS,
    SHARES,
    Deadline,
    Log,
    Part,
    read_lines,
    run_parts,
)
from benchmarks.accelerator.processes import Process, Workers
from benchmarks.accelerator.tiny import write_image_folder, write_norb
from benchmarks.rows import NETWORK_ROWS, Row
from caps_tf.errors import UserError
from tests.compiling import in_campaign

ROOT = Path(__file__).parent.parent
TINY_MINUTES = 8
"""For machines that also do other work; on two idle cores --tiny takes a quarter of that."""


measures = [] if os.environ.get("KERAS_BACKEND", "tensorflow") != "tensorflow" else [pytest.mark.campaign]
"""Marks what the tests of the other backends measure in any case."""


class Clock:
    """Time that passes when a test says so."""

    def __init__(self):
        self.time = 0.0

    def __call__(self):
        return self.time


def log_of(directory):
    return Log(directory / RESULTS, backend="any", run="now")


def start(*flags):
    command = [sys.executable, "-m", "benchmarks.accelerator", *flags]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(*flags):
    process = start(*flags)
    stdout, stderr = process.communicate(timeout=60 * TINY_MINUTES + 60)
    return process.returncode, stdout, stderr


@pytest.fixture(scope="module", params=[pytest.param("tiny", marks=measures)])
def tiny(tmp_path_factory):
    """The lines of --tiny on the backend at hand, and where they are."""
    directory = tmp_path_factory.mktemp("tiny")
    code, _, stderr = run("--tiny", f"--minutes={TINY_MINUTES}", f"--output={directory}")
    assert code == 0, stderr
    return read_lines(directory), directory


def test_tiny_gives_figures_for_each_part_on_this_backend(tiny):
    lines, _ = tiny
    assert not [line for line in lines if "failed" in line or "skipped" in line]
    names = {line.get("name") for line in lines if line["part"] == "device"}
    assert {"device", "matmul_bfloat16", "matmul_tf32", "matmul_float32", "bandwidth"} <= names
    rows = [line for line in lines if line["part"] == "networks"]
    assert {(line["precision"], line["kind"]) for line in rows} == {
        (precision, kind) for precision in networks.PRECISIONS for kind in ("forward", "step")
    }
    for line in rows:
        assert line["fastest"] <= line["seconds"] <= line["slowest"]
        assert line["gap"] == pytest.approx(line["seconds"] / line["least_seconds"], rel=0.01)
        assert line["peak_mib"] > 0 and line["compile_seconds"] >= 0
    assert [line for line in lines if line["part"] == "cifar10" and line.get("epoch") == 1]
    assert 0 <= [line for line in lines if line["part"] == "cifar10"][-1]["test_accuracy"] <= 1
    norb = [line for line in lines if line["part"] == "norb"][-1]
    assert 0 <= norb["familiar"] <= 1 and 0 <= norb["novel"] <= 1
    assert [line["part"] for line in lines][-1] == "end"
    assert list(dict.fromkeys(line["part"] for line in lines)) == ["start", *SHARES, "end"]


def test_the_table_holds_what_was_measured(tiny):
    _, directory = tiny
    code, stdout, _ = run("--table", f"--output={directory}")
    assert code == 0
    for text in ("matmul bfloat16", "vector routing, tiny | 2 | mixed_bfloat16", "| tiny |", "| norb_cnn |", "novel"):
        assert text in stdout, text
    assert "--tiny" in stdout  # a warning
    widths = {line.count("|") for line in stdout.splitlines() if line.startswith("| vector")}
    assert widths == {13}


def test_parts_run_in_order_and_share_the_time_that_is_left(tmp_path):
    clock, given = Clock(), {}

    def part(name, takes):
        def measure(deadline, log):
            given[name] = deadline.remaining()
            clock.time += takes

        return Part(name, measure)

    parts = [part("device", 2), Part("networks", pytest.fail, "not today"), part("cifar10", 60), part("norb", 38)]
    assert run_parts(parts, Deadline(100, clock), log_of(tmp_path)) == 0
    assert list(given) == ["device", "cifar10", "norb"]
    # Who cannot run leaves its share to the others; the ceilings get what they need, if there is as much.
    assert given["device"] == pytest.approx(AT_LEAST["device"])
    assert given["cifar10"] == pytest.approx(98 * SHARES["cifar10"] / (SHARES["cifar10"] + SHARES["norb"]))
    assert given["norb"] == pytest.approx(38)
    assert [(line["part"], line["skipped"]) for line in read_lines(tmp_path)] == [("networks", "not today")]


def test_a_part_is_skipped_when_the_time_is_over_and_one_that_fails_is_a_line(tmp_path):
    clock = Clock()

    def spends_all(deadline, log):
        clock.time += 99
        raise RuntimeError("RESOURCE_EXHAUSTED: of the card")

    def fails(deadline, log):
        raise UserError("no data")

    parts = [Part("device", fails), Part("networks", spends_all), Part("norb", pytest.fail)]
    assert run_parts(parts, Deadline(100, clock), log_of(tmp_path)) == 2
    failed, exhausted, skipped = read_lines(tmp_path)
    assert (failed["part"], failed["failed"]) == ("device", "no data")
    assert exhausted["failed"].startswith("out of memory: RuntimeError")
    assert (skipped["part"], skipped["skipped"]) == ("norb", OUT_OF_TIME)


@in_campaign
def test_a_row_that_fails_or_crashes_or_hangs_is_a_line_and_not_the_end(tmp_path):
    # One worker a precision: what a row's process does is in its command here.
    crash = "import sys, os; sys.stdin.readline(); os.abort()"
    hang = 'import time; print(\'{"kind": "forward", "seconds": 1.0}\', flush=True); time.sleep(100)'
    memory = "raise MemoryError('no more')"
    rows = [Row(name, name, "step", "vector_routing", {}, 2) for name in ("crash", "hang", "memory")]
    for row, code in zip(rows, (crash, hang, memory), strict=True):
        workers = Workers(tmp_path / row.name, (sys.executable, "-c", code))
        networks.measure_rows([row], Deadline(8), log_of(tmp_path), {}, tmp_path, workers=workers)
    lines = {(line["name"], line["precision"], "failed" in line): line for line in read_lines(tmp_path)}
    assert "SIGABRT" in lines["crash", "float32", True]["failed"]
    assert lines["hang", "float32", False]["seconds"] == 1.0  # said before it was ended
    assert lines["hang", "float32", True]["failed"] == OUT_OF_TIME
    assert lines["memory", "mixed_bfloat16", True]["failed"].startswith("out of memory")


@pytest.mark.parametrize("rows", [pytest.param(networks.TINY_ROWS, marks=measures)], ids=["tiny"])
def test_a_row_that_raises_says_so_and_the_next_is_measured(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(networks, "PRECISIONS", ("float32",))
    bad = Row("bad", "bad", "step", "vector_routing", {"n_inp": -1}, 2)
    networks.measure_rows([bad, *rows], Deadline(60 * TINY_MINUTES), log_of(tmp_path), {}, tmp_path, {"seconds": 0.01})
    lines = read_lines(tmp_path)
    assert all("failed" in line for line in lines if line["name"] == "bad")
    assert [line["kind"] for line in lines if line["name"] != "bad"] == ["forward", "step"]


def test_rows_are_skipped_when_no_time_is_left(tmp_path):
    networks.measure_rows(networks.chosen_rows(), Deadline(0), log_of(tmp_path), {}, tmp_path)
    lines = read_lines(tmp_path)
    assert [line["skipped"] for line in lines] == [OUT_OF_TIME] * 2 * len(networks.WORTH)
    assert [line["name"] for line in lines[::2]] == list(networks.WORTH)


def test_every_network_of_the_benchmark_has_its_row():
    def measured(row):
        return row.network, tuple(sorted(row.options.items())), row.batch

    chosen = {measured(row) for row in networks.chosen_rows()}
    assert chosen == {measured(row) for row in NETWORK_ROWS} and len(chosen) == len(networks.WORTH)


@in_campaign
def test_lines_written_before_a_kill_remain(tmp_path):
    process = start("--tiny", "--parts=device", f"--output={tmp_path}")
    deadline = time.monotonic() + 120
    while "matmul" not in (path.read_text() if (path := tmp_path / RESULTS).exists() else ""):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert [line["part"] for line in read_lines(tmp_path)][:2] == ["start", "device"]
    for text in (tmp_path / RESULTS).read_text().splitlines():
        json.loads(text)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with the one that started it")
def test_what_was_started_ends_with_a_benchmark_that_is_killed(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from benchmarks.accelerator.processes import Process; "
        f"child = Process(['sleep', '100'], Path({str(tmp_path)!r}, 'errors')); "
        "print(child._process.pid, flush=True); time.sleep(100)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}/stat").exists() and Path(f"/proc/{child}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_benchmark_itself_imports_no_backend():
    code = (
        "import sys, benchmarks.accelerator.__main__; "
        "print(*{'keras', 'jax', 'torch', 'tensorflow'}.intersection(sys.modules))"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == ""


def test_training_runs_share_the_time_among_as_many_as_it_suffices_for(tmp_path, monkeypatch):
    clock, given = Clock(), []

    def train(part, common, flags, deadline, log, directory):
        given.append((common["name"], deadline.remaining()))
        clock.time += deadline.remaining()

    monkeypatch.setattr(training, "train", train)
    runs = [(name, "azimuth") for name in "abcd"]
    training.train_presets(runs, {}, tmp_path, Deadline(95, clock), log_of(tmp_path), tmp_path, least_seconds=40)
    assert given == [("a", pytest.approx(47.5)), ("b", pytest.approx(47.5))]
    assert [(line["name"], line["skipped"]) for line in read_lines(tmp_path)] == [
        ("c", OUT_OF_TIME),
        ("d", OUT_OF_TIME),
    ]


def test_a_training_run_that_fails_is_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SCRIPT", "examples/none.py")
    training.train("norb", {"name": "norb_em"}, (), Deadline(60), log_of(tmp_path), tmp_path / "run")
    [line] = read_lines(tmp_path)
    assert line["failed"].startswith("exit code 2") and "none.py" in line["failed"]


@in_campaign
def test_norb_is_rendered_where_it_is_not_given(tmp_path, monkeypatch):
    pytest.importorskip("embreex")
    few = ("--instances_per_split=1", "--elevations=1", "--azimuths=2", "--image_size=16", "--num_processes=1")
    monkeypatch.setattr(training, "RENDERING_FLAGS", few)
    directory = training.render(Deadline(120), log_of(tmp_path), tmp_path)
    assert len(list(directory.glob("*.mat"))) == 6
    [line] = read_lines(tmp_path)
    assert line["name"] == "rendering" and 1 <= line["lightings"] <= 6
    with pytest.raises(UserError, match="the time ran out"):
        training.render(Deadline(0.1), log_of(tmp_path), tmp_path / "late")


def test_a_process_that_ends_well_has_no_failure(tmp_path):
    process = Process([sys.executable, "-c", "print('noise'); print(input())"], tmp_path / "errors")
    assert list(process.results(60, {"kind": "none"})) == [{"kind": "none"}]
    assert process.failure is None


@pytest.mark.parametrize(
    "flags, words",
    [
        (("--minutes=0",), "positive"),
        (("--minutes=-1",), "positive"),
        (("--minutes=soon",), "soon"),
        (("--parts=all",), "all"),
        (("--rows=em_9",), "em_9"),
        (("--cifar10=nowhere",), "nowhere"),
        (("--cifar10=tests",), "train"),
        (("--cifar10=README.md",), "zip"),
        (("--norb=nowhere",), "nowhere"),
        (("--norb=tests",), "missing"),
    ],
)
def test_bad_input_is_told_before_anything_is_measured(flags, words, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=words) as error:
        parse_arguments([*flags, f"--output={tmp_path}"])
    assert "\n" not in str(error.value)


def test_bad_input_is_one_line_and_exit_code_1(tmp_path):
    code, stdout, stderr = run(f"--output={tmp_path}", "--parts=all")
    assert (code, stdout, stderr.count("\n")) == (1, "", 1) and stderr.startswith("error: ")
    code, _, stderr = run("--table", f"--output={tmp_path}/none")
    assert code == 1 and stderr.count("\n") == 1 and "none" in stderr


def test_data_are_found_where_they_are(tmp_path):
    folder = write_image_folder(tmp_path / "outer" / "images")
    assert training.find_image_folder(tmp_path / "outer") == folder.resolve()
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as file:
        for path in folder.rglob("*.png"):
            file.write(path, path.relative_to(folder.parent))
    training.check_data(tmp_path / "images.zip", write_norb(tmp_path / "norb"))


def test_a_part_without_its_data_says_what_it_lacks(monkeypatch, tmp_path):
    monkeypatch.setattr(training.importlib.util, "find_spec", lambda name: None)
    lacking = {part.name: part.missing for part in training.make_parts(None, None, tmp_path, tiny=False)}
    assert "--cifar10" in lacking["cifar10"] and "trimesh" in lacking["norb"]


def test_half_a_line_at_the_end_is_no_line(tmp_path):
    log_of(tmp_path).write("start", minutes=1)
    with (tmp_path / RESULTS).open("a") as file:
        file.write('{"part": "dev')
    assert [line["part"] for line in read_lines(tmp_path)] == ["start"]


def test_the_table_takes_the_last_of_what_was_measured_twice_and_tells_failures():
    common = {"part": "networks", "name": "em_2", "title": "em", "batch": 64, "backend": "jax", "precision": "float32"}
    first = {**common, "kind": "step", "seconds": 2.0, "peak_mib": 100, "run": "a"}
    lines = [first, {**first, "seconds": 1.0}, {**common, "name": "em_3", "failed": "out of memory"}]
    text = tables.tables(lines)
    assert "**1**" in text and "**2**" not in text
    assert "- networks em_3 float32: failed: out of memory" in text
    assert tables.tables([]) == "Nothing has been measured yet."
