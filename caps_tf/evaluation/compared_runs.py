"""Compares tested runs on one page, compare.html."""

import dataclasses
import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from caps_tf.errors import UserError
from caps_tf.evaluation.comparison import (
    FEW,
    McNemar,
    SignTest,
    compared_curves,
    mcnemar,
    p_text,
    paired,
    sign_test,
)
from caps_tf.evaluation.figures import accuracy_over_viewpoint
from caps_tf.evaluation.metrics import INTERVAL_NOTE, report
from caps_tf.evaluation.page import accuracies, embedded, folded, heading, page, paragraph, picture, share, table
from caps_tf.evaluation.predictions import Predictions, objects_of
from caps_tf.evaluation.stored import FILE, load_predictions
from caps_tf.evaluation.training_log import read_log
from caps_tf.files import write_atomically
from caps_tf.presets import OF_A_RUN
from caps_tf.scripts import how_to_call
from caps_tf.training.config import RunConfig
from caps_tf.training.params import current_names

PathLike = str | os.PathLike[str]

METHOD_NOTE = (
    f"McNemar's test looks at the examples that only one of two networks gets right: exact (binomial) where they are "
    f"fewer than {FEW}, else chi-square with Edwards' correction for continuity. Its p-value is how often as large a "
    "difference, either way, would come by chance if both made equally many errors."
)
OBJECTS_NOTE = (
    "It takes examples as independent. Images of one object are not, so its p-values are too small. The sign test counts "
    "each object once, for the network that gets more of its images right; trust it where the two disagree."
)
INDEPENDENCE_NOTE = (
    "It takes examples as independent. Where several show the same object they are not, and its p-values are too small."
)
NETWORKS_NOTE = (
    "Compared are these trained networks, not their kinds: runs of one network with other seeds differ too. Several seeds "
    "of each say more than any test of two runs."
)


class TestedRun(NamedTuple):
    """What a run's test has left behind.

    Attributes:
        name: short, and another for each of the runs that are compared.
        directory: of the test: <run>/test/<checkpoint>.
        details: of report.json: the run's parameters, and what is known of its test.
        parts: "test", or "familiar" and "novel" -> predictions, of which those of all runs are in the same order.
        log: records of its training.
    """

    name: str
    directory: Path
    details: Mapping[str, Any]
    parts: Mapping[str, Predictions]
    log: Sequence[Mapping[str, Any]]


class Pair(NamedTuple):
    """Two runs on the same examples.

    Attributes:
        first, second: names of the runs.
        part: of the test.
        difference: of the accuracies, first less second.
        mcnemar: over examples.
        sign_test: over objects, where they are known.
    """

    first: str
    second: str
    part: str
    difference: float
    mcnemar: McNemar
    sign_test: SignTest | None


def read_tested(runs: Sequence[PathLike]) -> list[TestedRun]:
    """Reads the tests of runs that are to be compared.

    Args:
        runs: two directories of runs or more, of each of which the test of its latest checkpoint counts, or directories
            of tests, <run>/test/<checkpoint>.

    Raises:
        UserError: there are fewer than two or one is given twice, one was not tested or by an earlier version, its files
            are damaged, or the examples are not those of the first.
    """
    if len(runs) < 2:
        raise UserError("a comparison takes at least two runs, with a comma between them")
    directories = [_test_directory(Path(run)) for run in runs]
    for number, directory in enumerate(directories):
        if directory.resolve() in (other.resolve() for other in directories[:number]):
            raise UserError(f"{runs[number]}: is given twice: drop one")
    names = _names(directories)
    tested = [_read(name, directory) for name, directory in zip(names, directories, strict=True)]
    return [run._replace(parts=_like(run, tested[0])) for run in tested]


def _test_directory(run: Path) -> Path:
    if (run / "report.json").is_file():
        return run
    if not run.is_dir():
        raise UserError(f"{run}: no such directory: name one that train_val.py wrote")
    reports = sorted(run.glob("test/step-*/report.json"), key=lambda path: int(path.parent.name[5:]))
    if not reports:
        raise UserError(f"{run}: was not tested: run {how_to_call('test.py')} --load_dir={run}")
    return reports[-1].parent


def _names(directories: Sequence[Path]) -> list[str]:
    """The shortest names that tell the runs apart: without the date, with it, with the checkpoint, or whole paths.

    Example:
        >>> _names([Path("logs/20261127_215641_em/test/step-9"), Path("logs/20261127_220617_cnn/test/step-9")])
        ['em', 'cnn']
    """
    whole = [directory.resolve() for directory in directories]
    dated = [each.parent.parent.name for each in whole]
    for names in (
        [re.sub(r"^\d{8}_\d{6}_(?=.)", "", name) for name in dated],
        dated,
        [f"{name}, {each.name}" for name, each in zip(dated, whole, strict=True)],
    ):
        if len(set(names)) == len(names):
            return names
    return [str(each) for each in whole]


def _read(name: str, directory: Path) -> TestedRun:
    path, run = directory / "report.json", directory.resolve().parent.parent
    try:
        details = json.loads(path.read_text(encoding="utf-8"))["details"]
        details = {
            **{option.name: option.default for option in dataclasses.fields(RunConfig)},
            **current_names(details),
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error}): test the checkpoint again") from None
    if not (directory / FILE).exists():
        again = f"{how_to_call('test.py')} --load_dir={run} --ckpt_name={directory.name}"
        raise UserError(f"{directory}: holds no {FILE}, an earlier version tested it: test it again: {again}")
    log = run / "train" / "log.jsonl"
    return TestedRun(
        name, directory, details, load_predictions(directory / FILE), read_log(log) if log.exists() else []
    )


def _like(run: TestedRun, first: TestedRun) -> dict[str, Predictions]:
    """The run's predictions in an order that is the same for all runs of these examples."""
    if run.parts.keys() != first.parts.keys():
        kinds = [" and ".join(each.parts) for each in (run, first)]
        raise UserError(
            f"{run.directory}: was tested on {kinds[0]} examples, {first.directory} on {kinds[1]}: compare runs with the "
            "same --viewpoints and --protocol"
        )
    try:
        return {name: paired(part, first.parts[name])[0] for name, part in run.parts.items()}
    except UserError as error:
        raise UserError(
            f"{run.directory}: was not tested on the examples of {first.directory} ({error}): compare runs that were "
            "tested on the same data with the same --views"
        ) from None


def pairs(runs: Sequence[TestedRun]) -> Iterator[Pair]:
    """Every two of the runs, in each part of the test that has examples."""
    for first, second in itertools.combinations(runs, 2):
        for name, part in first.parts.items():
            if len(part):
                right = part.correct, second.parts[name].correct
                objects = objects_of(part)
                yield Pair(
                    *(first.name, second.name, name),
                    part.accuracy - second.parts[name].accuracy,
                    mcnemar(*right),
                    None if objects is None else sign_test(*right, objects),
                )


def verdict(pair: Pair) -> str:
    """A comparison in a sentence or two.

    Example:
        >>> counts = McNemar(0, 7, 1, 0, p_value=18 / 256, is_exact=True)
        >>> print(verdict(Pair("em", "cnn", "test", 0.75, counts, sign_test=None)))
        test: em is 75.0 points ahead of cnn. em alone is right on 7 of 8 examples, cnn alone on 1: McNemar's p is 0.07.
    """
    counts, points = pair.mcnemar, round(100 * abs(pair.difference), 1)
    ahead, behind = (pair.first, pair.second) if pair.difference >= 0 else (pair.second, pair.first)
    lead = f"{ahead} is {points} points ahead of {behind}" if points else f"{ahead} and {behind} are level"
    text = (
        f"{pair.part}: {lead}. {pair.first} alone is right on {counts.only_first:,} of {sum(counts[:4]):,} examples, "
        f"{pair.second} alone on {counts.only_second:,}: McNemar's p is {p_text(counts.p_value)}."
    )
    if pair.sign_test is None:
        return text
    first, second, alike, p_value = pair.sign_test
    return (
        f"{text} Of {first + second + alike} objects {pair.first} is better on {first}, {pair.second} on {second}, neither "
        f"on {alike}: the sign test's p is {p_text(p_value)}."
    )


def write_comparison(
    path: PathLike, runs: Sequence[TestedRun], compared: Sequence[Pair], pictures: Mapping[str, Figure] | None = None
) -> Path:
    """Writes the page, which holds its pictures: accuracies, tests of each pair, viewpoints, curves, and flags.

    Args:
        path: of the page.
        runs: of `read_tested`.
        compared: their `pairs`.
        pictures: caption -> figure, of examples that only one of them gets right.

    Raises:
        UserError: the page cannot be written.
    """
    title = (" against " if len(runs) == 2 else ", ").join(run.name for run in runs)
    named = {_label(run, name): part for run in runs for name, part in run.parts.items()}
    results = report(named)
    body = [heading(title, level=1), accuracies(results), *_tests(compared)]
    viewpoints, stacked = (accuracy_over_viewpoint(named, stacked) for stacked in (False, True))
    if viewpoints and stacked:
        alt = "Accuracy of each run over azimuth and elevation."
        body += [heading("Viewpoints"), picture(viewpoints, alt, narrow=embedded(stacked))]
    curves = compared_curves({run.name: run.log for run in runs})
    if curves:
        body += [heading("Training"), picture(curves, "Loss and accuracy of each run over training steps.")]
    for caption, figure in (pictures or {}).items():
        body += [heading(caption), picture(figure, "Examples that only one of two runs gets right.")]
    body += [heading("Runs"), _runs(runs, results), *_flags(runs), heading("Accuracy by class"), _classes(results)]
    return write_atomically(path, page(title, [*body, paragraph(INTERVAL_NOTE, note=True)]))


def _label(run: TestedRun, part: str) -> str:
    """What a part of a run's test is called, beside those of other runs."""
    return f"{run.name}, {part}" if len(run.parts) > 1 else run.name


def _tests(compared: Sequence[Pair]) -> list[str]:
    """What the tests say: in words if there are one or two, in a table of several."""
    if not compared:
        return []
    by_objects = any(pair.sign_test for pair in compared)
    notes = [METHOD_NOTE, OBJECTS_NOTE if by_objects else INDEPENDENCE_NOTE, NETWORKS_NOTE]
    number = len(compared)
    if number > 1:
        notes.append(
            f"These are {number} tests: by chance alone one in twenty has p below 0.05; ask for {0.05 / number:.2g}."
        )
    header = ["", "part", "difference", "only first right", "only second right", "McNemar's p"]
    if by_objects:
        header += ["objects: first better", "second better", "alike", "sign test's p"]
    rows = []
    for pair in compared:
        counts = [f"{count:,}" for count in (pair.mcnemar.only_first, pair.mcnemar.only_second)]
        row = [f"{pair.first} against {pair.second}", pair.part, f"{100 * pair.difference:+.1f} points", *counts]
        row += [p_text(pair.mcnemar.p_value)]
        if pair.sign_test:
            row += [*map(str, pair.sign_test[:3]), p_text(pair.sign_test.p_value)]
        elif by_objects:
            row += ["–"] * 4
        rows.append(row)
    found = [paragraph(verdict(pair)) for pair in compared] if number <= 2 else [table(header, rows)]
    return [heading("Do they differ?"), *found, *(paragraph(note, note=True) for note in notes)]


def _runs(runs: Sequence[TestedRun], results: Mapping[str, Mapping[str, Any]]) -> str:
    """What was tested, one column a run."""
    facts = ("network", "preset", "dataset", "seed", "step", "parameters", "training_examples", "tested")
    rows = [(fact.replace("_", " "), *(_cell(run.details.get(fact, "")) for run in runs)) for fact in facts]
    rows += [(f"{name} accuracy", *(share(results[_label(run, name)]) for run in runs)) for name in runs[0].parts]
    return table(["", *(run.name for run in runs)], rows)


def _flags(runs: Sequence[TestedRun]) -> list[str]:
    """The flags whose values differ, one line a flag and one column a run."""
    names = [option.name for option in dataclasses.fields(RunConfig) if option.name not in (*OF_A_RUN, "checkpoint")]
    values = {name: [run.details[name] for run in runs] for name in names}
    differing = {name: each for name, each in values.items() if any(value != each[0] for value in each)}
    if not differing:
        return [paragraph("All flags agree.")]
    rows = [(name, *map(_cell, each)) for name, each in differing.items()]
    is_one = len(rows) == 1
    summary = f"{len(rows)} flag{'' if is_one else 's'} differ{'s' if is_one else ''}"
    return [folded(summary, table(["", *(run.name for run in runs)], rows), is_open=True)]


def _cell(value: Any) -> str:
    return "–" if value == "" else f"{value:,}" if type(value) is int else str(value)


def _classes(results: Mapping[str, Mapping[str, Any]]) -> str:
    by_class = {name: entry.get("accuracy_by_class", {}) for name, entry in results.items()}
    classes = dict.fromkeys(name for entry in by_class.values() for name in entry)
    return table(
        ["class", *by_class], [(name, *(share(entry.get(name)) for entry in by_class.values())) for name in classes]
    )
