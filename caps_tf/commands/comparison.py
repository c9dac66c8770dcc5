"""test.py --compare: one page about runs that were tested."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from caps_tf.errors import UserError
from caps_tf.evaluation.compared_runs import TestedRun, pairs, read_tested, verdict, write_comparison
from caps_tf.evaluation.mistakes import disagreement_figure, disagreements
from caps_tf.limits import check_address_space
from caps_tf.networks import NETWORKS
from caps_tf.startup import start_keras
from caps_tf.training.config import RunConfig
from caps_tf.training.params import whole_numbers_as_floats


def compare_runs(runs: Sequence[str], output: str | None, places: Mapping[str, str]) -> None:
    """Writes compare.html, and says on the terminal what it says of each pair.

    Args:
        runs: directories of runs, or of tests.
        output: directory for the page; None for that of the first run's tests.
        places: "storage", "data_dir" where they are now others.

    Raises:
        UserError: as `read_tested` does, or the page cannot be written.
    """
    tested = read_tested(runs)
    pictures = {}
    if len(tested) == 2:
        try:
            pictures = _disagreements(tested[0], tested[1], places)
        except UserError as error:
            print(f"no pictures of examples: {error}", file=sys.stderr)
    directory = Path(output) if output else tested[0].directory.parent
    compared = list(pairs(tested))
    path = write_comparison(directory / "compare.html", tested, compared, pictures)
    for pair in compared:
        print(verdict(pair))
    print(f"comparison: {path}", file=sys.stderr)


def _disagreements(one: TestedRun, other: TestedRun, places: Mapping[str, str]) -> dict[str, Figure]:
    """Pictures of examples that only one of two runs gets right, by their captions; of each part of the test."""
    params = {option.name: one.details[option.name] for option in dataclasses.fields(RunConfig)}
    config = RunConfig(**whole_numbers_as_floats({**params, **places}))
    if NETWORKS[config.network].reads != "image":
        return {}
    check_address_space()
    start_keras()
    from caps_tf.training.data import make_test_data
    from caps_tf.training.tester import find_images

    pictures = {}
    for name, part in make_test_data(config).parts.items():
        first, second = one.parts[name], other.parts[name]
        numbers = np.concatenate(disagreements(first, second))
        found = find_images(part, first.take(numbers))
        images = {int(number): found[place] for place, number in enumerate(numbers) if place in found}
        figure = disagreement_figure(first, second, (one.name, other.name), images)
        if figure is not None:
            pictures[f"Only one is right, {name}"] = figure
    return pictures
