"""Runs compared over paired examples: hand-worked tests, what is refused, the page, and test.py --compare itself."""

import dataclasses
import json
import math
import shutil

import numpy as np
import pytest
import scipy.stats

from caps_tf.evaluation.compared_runs import pairs, read_tested, verdict, write_comparison
from caps_tf.evaluation.comparison import compared_curves, mcnemar, paired, sign_test
from caps_tf.evaluation.predictions import Predictions
from caps_tf.evaluation.report import write_report
from caps_tf.evaluation.stored import load_predictions, save_predictions
from tests.evaluation_examples import Page, assert_drawn, log_records, turning_toys, write_log
from tests.refusals import refused
from tests.small_norb import expect_one_line, run_script


def right(both, only_first, only_second, neither):
    """What each of two networks gets right, with these counts, in no particular order."""
    first = np.repeat([True, True, False, False], [both, only_first, only_second, neither])
    second = np.repeat([True, False, True, False], [both, only_first, only_second, neither])
    order = np.random.default_rng(0).permutation(len(first))
    return first[order], second[order]


# The tests


def test_mcnemar_has_the_values_worked_by_hand():
    # Of ten fair coins at most one falls the rarer way with (1 + 10) / 2^10; both ways, twice that.
    few = mcnemar(*right(80, 9, 1, 10))
    assert few == (80, 9, 1, 10, 22 / 1024, True)
    assert few.p_value == scipy.stats.binomtest(1, 10).pvalue
    # 180 discordant pairs, 121 against 59: (62 - 1)^2 / 180 = 20.672, far above 10.83, that one in a thousand exceeds.
    many = mcnemar(*right(101, 121, 59, 33))
    assert many[:4] == (101, 121, 59, 33) and not many.is_exact
    assert many.p_value == pytest.approx(scipy.stats.chi2.sf(61**2 / 180, df=1)) and 5e-6 < many.p_value < 6e-6
    # At the border both are nearly the same: 24 pairs are exact, 25 are not.
    exact, approximate = mcnemar(*right(0, 17, 7, 0)), mcnemar(*right(0, 17, 8, 0))
    assert exact.is_exact and not approximate.is_exact
    assert approximate.p_value == pytest.approx(scipy.stats.binomtest(8, 25).pvalue, abs=0.004)


def test_mcnemar_of_networks_that_never_or_equally_often_disagree_sees_no_difference():
    assert mcnemar(*right(5, 0, 0, 5)).p_value == 1
    assert mcnemar(*right(5, 3, 3, 5)).p_value == 1
    assert mcnemar(*right(5, 30, 30, 5)).p_value == 1
    with pytest.raises(ValueError, match="same examples"):
        mcnemar(np.ones(3, bool), np.ones(4, bool))


def test_the_sign_test_counts_each_object_once_however_many_images_it_has():
    # Object 7 has 50 images, all for the first network; objects 1 to 5 have two each: four are for the second, one for both.
    objects = np.repeat([7, 1, 2, 3, 4, 5], [50, 2, 2, 2, 2, 2])
    first = np.repeat([True, False, True], [50, 8, 2])
    second = np.repeat([False, True], [50, 10])
    assert sign_test(first, second, objects) == (1, 4, 1, 2 * (1 + 5) / 32)
    assert mcnemar(first, second).p_value < 1e-6  # what the images would have one believe


# What a test leaves behind


def numbered(part, **changes) -> Predictions:
    """With ids and fingerprints, as test.py has them."""
    number = np.arange(len(part))
    return dataclasses.replace(part, ids=number.astype(str), fingerprints=number * 3, poses=None, **changes)


def shuffled(part) -> Predictions:
    return part.take(np.random.default_rng(1).permutation(len(part)))


def test_predictions_are_read_as_they_were_written(tmp_path):
    toys = numbered(turning_toys(range(4)))
    parts = {"familiar": toys, "novel": dataclasses.replace(toys, label2=(toys.label + 1) % 5, factors={}, ids=None)}
    for name, part in load_predictions(save_predictions(tmp_path / "predictions.npz", parts)).items():
        for field in ("scores", "label", "label2", "ids", "fingerprints"):
            np.testing.assert_array_equal(getattr(part, field), getattr(parts[name], field))
        assert (part.class_names, part.loss) == (toys.class_names, toys.loss)
        assert part.factors.keys() == parts[name].factors.keys()
        for factor, values in part.factors.items():
            np.testing.assert_array_equal(values, parts[name].factors[factor])
    whole = (tmp_path / "predictions.npz").read_bytes()
    for damage in (b"", b"PK", whole[: len(whole) // 2], whole[:-40]):
        (tmp_path / "predictions.npz").write_bytes(damage)
        with refused("predictions.npz", "test the checkpoint again"):
            load_predictions(tmp_path / "predictions.npz")


def test_examples_are_paired_by_record_and_camera_in_whatever_order_they_were_tested():
    part = numbered(turning_toys(range(4)))
    part = dataclasses.replace(  # the two cameras of a record share its number
        part, ids=(np.arange(len(part)) // 2).astype(str), factors={**part.factors, "view": np.arange(len(part)) % 2}
    )
    first, second = paired(part, shuffled(part))
    np.testing.assert_array_equal(first.fingerprints, second.fingerprints)
    np.testing.assert_array_equal(first.scores, second.scores)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda part: {"fingerprints": part.fingerprints + 1}, "images or sentences"),
        (lambda part: {"fingerprints": None}, "images or sentences"),
        (lambda part: {"label": (part.label + 1) % 5}, "labels"),
        (lambda part: {"ids": np.char.add(part.ids, "0")}, "numbers"),
        (lambda part: {"factors": {"view": np.ones(len(part), int)}}, "cameras"),
        (lambda part: {"class_names": tuple("abcde")}, "classes"),
    ],
)
def test_other_examples_are_not_paired(change, words):
    part = numbered(turning_toys(range(4)))
    with refused(words):
        paired(part, dataclasses.replace(part, **change(part)))


# The page


def write_run(directory, parts, step=30, **parameters):
    """What train_val.py and test.py leave of a run with these predictions."""
    details = {"step": step, "network": "conv_capsules", "preset": "demo", "tested": "2026-11-28 12:00", **parameters}
    write_report(directory / "test" / f"step-{step}", parts, details=details)
    (directory / "train").mkdir(exist_ok=True)
    write_log(directory / "train" / "log.jsonl", log_records(range(10, 610, 10)))
    return directory


@pytest.fixture(scope="module")
def toys():
    return numbered(turning_toys(range(6)))


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory, toys):
    """Runs that differ in iterations and in their scores of an object, tested in another order."""
    logs = tmp_path_factory.mktemp("logs")
    worse = toys.scores.copy()
    worse[(toys.label == 3) & (toys.factors["instance"] == 7)] = [1, 0, 0, 0, 0]
    other = shuffled(dataclasses.replace(toys, scores=worse))
    write_run(logs / "20261127_215641_em", {"test": numbered(turning_toys(range(3)))}, step=9)
    one = write_run(logs / "20261127_215641_em", {"test": toys}, iter_routing=2, step=100)
    return one, write_run(logs / "20261127_220617_cnn", {"test": other}, iter_routing=3)


def test_the_page_tells_accuracies_tests_flags_and_shows_viewpoints_and_curves(two_runs, toys, tmp_path):
    runs = read_tested(two_runs)
    assert [run.name for run in runs] == ["em", "cnn"]
    assert runs[0].directory.name == "step-100"  # the latest, though 9 comes after 100 as text
    np.testing.assert_array_equal(runs[0].parts["test"].ids, runs[1].parts["test"].ids)
    [pair] = pairs(runs)
    spoilt = toys.correct & (toys.label == 3) & (toys.factors["instance"] == 7)
    assert pair.mcnemar.only_first == spoilt.sum() > 0 == pair.mcnemar.only_second
    assert pair.difference == pytest.approx(spoilt.mean())
    assert pair.sign_test == (1, 0, 9, 1.0)

    page = Page(write_comparison(tmp_path / "compare.html", runs, list(pairs(runs))).read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["compare.html"]  # one page: it holds its pictures
    assert len(page.sources) == 2 and all(source.startswith("data:image/png;base64,") for source in page.sources)
    for run in runs:
        assert f"{100 * run.parts['test'].accuracy:.1f} %" in page.text
    for expected in (
        "em against cnn",
        verdict(pair),
        "1 flag differs",
        "iter_routing",
        "fewer than 25",
        "counts each object",
    ):
        assert expected in page.text


def test_each_pair_of_three_runs_is_tested_in_each_part(two_runs, toys, tmp_path):
    parts = {"familiar": toys, "novel": dataclasses.replace(toys, factors={})}
    runs = read_tested([write_run(tmp_path / name, parts, seed=seed) for seed, name in enumerate("abc")])
    assert [(pair.first + pair.second, pair.part) for pair in pairs(runs)] == [
        (names, part) for names in ("ab", "ac", "bc") for part in parts
    ]
    text = Page(write_comparison(tmp_path / "compare.html", runs, list(pairs(runs))).read_text()).text
    assert "These are 6 tests" in text and "ask for 0.0083" in text


def test_what_cannot_be_compared_is_one_line(two_runs, toys, tmp_path):
    one, other = two_runs
    for runs, words in (
        ([one], ["at least two"]),
        ([one, one], ["em", "given twice"]),
        ([one, one / "test" / "step-100"], ["step-100", "given twice"]),
        ([one, tmp_path / "none"], ["none", "no such directory"]),
        ([one, tmp_path], [str(tmp_path), "was not tested", f"test.py --load_dir={tmp_path}"]),
        ([one / "test" / "step-9", other], ["there are 240 and 120 examples"]),
    ):
        with refused(*words):
            read_tested(runs)
    changed = write_run(tmp_path / "changed", {"test": dataclasses.replace(toys, fingerprints=toys.fingerprints + 1)})
    with refused("changed", "not tested on the examples of", "images or sentences", "same data"):
        read_tested([one, changed])
    novel = write_run(tmp_path / "viewpoints", {"familiar": toys, "novel": toys})
    with refused("viewpoints", "familiar and novel", "--viewpoints"):
        read_tested([one, novel])
    (novel / "test" / "step-30" / "predictions.npz").unlink()
    with refused("holds no predictions.npz", f"--load_dir={novel} --ckpt_name=step-30"):
        read_tested([one, novel])
    (changed / "test" / "step-30" / "report.json").write_text("{}")
    with refused("report.json", "cannot be read"):
        read_tested([one, changed])


def test_checkpoints_of_one_run_are_told_apart_and_compared(tmp_path, toys):
    for step in (9, 30):
        write_run(tmp_path / "run", {"test": toys}, step=step)
    runs = read_tested([tmp_path / "run" / "test" / name for name in ("step-9", "step-30")])
    assert [run.name for run in runs] == ["run, step-9", "run, step-30"]


def test_curves_of_runs_share_their_axes(tmp_path):
    from caps_tf.evaluation.style import save_figure

    figure = compared_curves(
        {"em": log_records(range(10, 1210, 10)), "cnn": log_records(range(10, 510, 10)), "new": []}
    )
    assert_drawn(save_figure(figure, tmp_path / "curves.png"))
    loss, accuracy = figure.axes
    assert [len(line.get_xdata()) for line in accuracy.lines] == [2, 1, 0]  # validated every 500 steps
    assert [line.get_label() for line in loss.lines] == ["em", "cnn", "new"]
    assert compared_curves({"em": [], "cnn": []}) is None


def test_test_py_compares_what_it_tested(trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "pair")
    for path in run.glob("train/checkpoints/step-*"):
        if path.name.split(".")[0] not in ("step-12", "step-15"):
            path.unlink()
    run_script("test.py", f"--load_dir={run}", "--ckpt_name=all", "--batch_size=37")
    tests = [run / "test" / name for name in ("step-12", "step-15")]
    assert sorted((run / "test").iterdir()) == tests
    given = f"--compare={tests[0]},{tests[1]}"
    process = run_script("test.py", given)
    page = Page((run / "test" / "compare.html").read_text())
    parts = [json.loads((test / "report.json").read_text())["parts"]["test"] for test in tests]
    assert parts[0]["num_examples"] == 600 and f"of 600 examples, {run.name}, step-15 alone on" in process.stdout
    for part in parts:
        assert f"{100 * part['accuracy']:.1f} %" in page.text
    assert len(page.sources) == 3 and "Only one is right, test" in page.text
    assert process.stdout.strip() in page.text and "Of 25 objects" in process.stdout
    predictions = load_predictions(tests[0] / "predictions.npz")["test"]
    assert math.isclose(predictions.accuracy, parts[0]["accuracy"], rel_tol=1e-5)
    assert len(np.unique(predictions.fingerprints)) == 600  # each camera's image has its own

    for flags, words in (
        ([given, f"--load_dir={run}"], ["leave out --load_dir"]),
        ([f"--compare={run}"], ["at least two runs"]),
        ([f"--load_dir={run}", f"--output={tmp_path}"], ["--output is of --compare"]),
    ):
        expect_one_line(run_script("test.py", *flags, check=False), *words)
