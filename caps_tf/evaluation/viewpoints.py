"""Compares networks on novel viewpoints, matched on familiar ones (Hinton et al. 2018, section 5.1).

A network that is better on familiar viewpoints is better on novel ones too; only at equal familiar accuracy does the
novel accuracy tell how it generalises. The paper stopped the capsules' training where they met the baseline. Here each
run's novel accuracy is interpolated, between the two checkpoints around the moment at which it first reaches a familiar
accuracy that all runs reach.
"""

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from caps_tf.errors import UserError
from caps_tf.evaluation.style import COLORS, FAINT, add_legend, new_figure, style_axes
from caps_tf.networks import NETWORKS
from caps_tf.scripts import how_to_call
from caps_tf.training.config import RunConfig
from caps_tf.training.params import current_names

PathLike = str | os.PathLike[str]

# What may differ between runs of one network: who they are and where, not what they learn.
_NOT_THE_NETWORK = {
    *("checkpoint", "step", "tested", "seed", "name", "storage", "data_dir", "num_gpus", "cluster", "jit_compile"),
    *("votes_mib", "check_memory", "log_every", "checkpoint_every", "keep_checkpoints", "routing_gauges", "profile"),
}
_DEFAULTS = {option.name: option.default for option in dataclasses.fields(RunConfig)}
_GRID = 101


class ViewpointResult(NamedTuple):
    """What a checkpoint gets right.

    Attributes:
        network: name of the architecture.
        step: training step of the checkpoint; between two, where it is interpolated.
        familiar: share of right answers on viewpoints (or images, of a protocol) like those trained on.
        novel: share of right answers on all others.
    """

    network: str
    step: float
    familiar: float
    novel: float


Run = Sequence[ViewpointResult]
"""The results of a run's checkpoints, in the order of their steps."""


def read_results(run: PathLike) -> list[ViewpointResult]:
    """Reads the reports that test.py wrote for the checkpoints of a run.

    Args:
        run: directory of a run trained with `--viewpoints` and tested with `--ckpt_name=all`.

    Returns:
        One result for each tested checkpoint, in the order of their steps.

    Raises:
        UserError: if there is no report, or one without familiar and novel viewpoints.
    """
    return _results(_reports(run))


def read_networks(runs: Iterable[PathLike]) -> dict[str, list[Run]]:
    """Reads several runs, and puts those of one network together.

    Runs are of one network where all parameters but the seed, names, places and devices agree; one that a report of
    earlier code does not hold had what is the default today. A network is called by its preset, if it has one of its
    own, or by its architecture; if several groups share an architecture, their names say in which parameters they
    differ, and a protocol is named in any case: what is novel there are no viewpoints.

    Args:
        runs: directories, as `read_results` takes them.

    Returns:
        name -> its runs, in the order in which they were given.

    Raises:
        UserError: as `read_results` does, or a run is given twice.
    """
    groups: dict[str, tuple[dict[str, Any], list[Run]]] = {}
    seen = set()
    for run in runs:
        if Path(run).resolve() in seen:
            raise UserError(f"{run}: is given twice: drop one")
        seen.add(Path(run).resolve())
        reports = _reports(run)
        parameters = _DEFAULTS | current_names(reports[0]["details"])
        parameters = {key: value for key, value in parameters.items() if key not in _NOT_THE_NETWORK}
        if not parameters.get("iter_routing") and parameters["network"] in NETWORKS:
            parameters["iter_routing"] = NETWORKS[parameters["network"]].iterations
        group = groups.setdefault(json.dumps(parameters, sort_keys=True), (parameters, []))
        group[1].append(_results(reports))
    others = [parameters for parameters, _ in groups.values()]
    return {_name(parameters, others): runs_of_group for parameters, runs_of_group in groups.values()}


def _name(parameters: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> str:
    """The preset, where no other group has it; else the architecture, and in what groups of the same one differ."""
    name = preset = parameters["preset"]
    differing = []
    if not preset or sum(other["preset"] == preset for other in others) > 1:
        name = parameters["network"]
        same = [other for other in others if other["network"] == name]
        differing = [key for key in parameters if any(other.get(key) != parameters[key] for other in same)]
    if parameters["protocol"] and "protocol" not in differing:
        differing.append("protocol")
    values = ", ".join(f"{key}={parameters[key]}" for key in differing)
    return f"{name} ({values})" if values else name


def _reports(run: PathLike) -> list[dict[str, Any]]:
    paths = sorted(Path(run, "test").glob("*/report.json"))
    if not paths:
        raise UserError(f"{run}: holds no reports: run {how_to_call('test.py')} --load_dir={run} --ckpt_name=all")
    reports = [json.loads(path.read_text()) for path in paths]
    for path, report in zip(paths, reports, strict=True):
        if not {"familiar", "novel"} <= report["parts"].keys():
            raise UserError(f"{path}: not of a run on novel viewpoints: train with --viewpoints=azimuth, for one")
    return sorted(reports, key=lambda report: report["details"]["step"])


def _results(reports: Iterable[Mapping[str, Any]]) -> list[ViewpointResult]:
    return [
        ViewpointResult(
            report["details"]["network"],
            report["details"]["step"],
            *(report["parts"][name]["accuracy"] for name in ("familiar", "novel")),
        )
        for report in reports
    ]


def common_familiar(runs: Iterable[Run]) -> float:
    """The highest familiar accuracy that all runs reach.

    Example:
        >>> run = [ViewpointResult("cnn", 1, 0.6, 0.4), ViewpointResult("cnn", 2, 0.8, 0.5)]
        >>> common_familiar([run, run[:1]])
        0.6
    """
    return min(max(result.familiar for result in run) for run in runs)


def at_familiar(run: Run, familiar: float) -> ViewpointResult:
    """What a run would get right where it first reaches a familiar accuracy, on a line between its checkpoints.

    Args:
        run: its checkpoints.
        familiar: share of right answers on familiar viewpoints.

    Returns:
        The result there. If already the first checkpoint is better, that checkpoint as it is; its higher familiar
        accuracy shows that it is not matched.

    Raises:
        UserError: no checkpoint of the run reaches it.

    Example:
        >>> run = [ViewpointResult("cnn", 10, 0.5, 0.4), ViewpointResult("cnn", 20, 0.7, 0.5)]
        >>> at_familiar(run, 0.6)
        ViewpointResult(network='cnn', step=15.0, familiar=0.6, novel=0.45)
    """
    index = next((index for index, result in enumerate(run) if result.familiar >= familiar), None)
    if index is None:
        best = max(result.familiar for result in run)
        raise UserError(
            f"a run of {run[0].network} reaches a familiar accuracy of {best:.1%}, not {familiar:.1%}: "
            "lower the familiar accuracy to match, or leave that run out"
        )
    if index == 0:
        return run[0]
    before, after = run[index - 1], run[index]
    share = (familiar - before.familiar) / (after.familiar - before.familiar)
    step, novel = (round(a + share * (b - a), 9) for a, b in ((before.step, after.step), (before.novel, after.novel)))
    return ViewpointResult(after.network, step, familiar, novel)


def comparison_table(networks: Mapping[str, Sequence[Run]], familiar: float | None = None) -> str:
    """A Markdown table of each network's last checkpoints, and of the moment at which familiar accuracy is matched.

    Args:
        networks: name -> its runs; of several, means are given with the standard deviation between runs.
        familiar: accuracy to match; by default the highest that all runs reach.

    Example:
        >>> run = [ViewpointResult("cnn", 10, 0.5, 0.4), ViewpointResult("cnn", 20, 0.7, 0.5)]
        >>> print(comparison_table({"cnn": [run, run[:1]]}).splitlines()[-1])
        | cnn | 2 | 60.0 ± 14.1 % | 45.0 ± 7.1 % | 10 | 50.0 ± 0.0 % | 40.0 ± 0.0 % |
    """
    familiar = _target(networks, familiar)
    lines = [
        "| network | runs | last step: familiar | novel | matched step | familiar | novel |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, runs in networks.items():
        last, matched = [run[-1] for run in runs], [at_familiar(run, familiar) for run in runs]
        step = round(float(np.mean([result.step for result in matched])))
        shares = [
            _spread(accuracies)
            for part in (last, matched)
            for accuracies in ([result.familiar for result in part], [result.novel for result in part])
        ]
        lines.append(f"| {name} | {len(runs)} | {' | '.join(shares[:2])} | {step} | {' | '.join(shares[2:])} |")
    return "\n".join(lines)


def _target(networks: Mapping[str, Sequence[Run]], familiar: float | None) -> float:
    return common_familiar(run for runs in networks.values() for run in runs) if familiar is None else familiar


def _spread(shares: Sequence[float]) -> str:
    mean = 100 * np.mean(shares)
    return f"{mean:.1f} %" if len(shares) == 1 else f"{mean:.1f} ± {100 * np.std(shares, ddof=1):.1f} %"


def comparison_figure(networks: Mapping[str, Sequence[Run]], familiar: float | None = None) -> Figure:
    """Draws novel over familiar accuracy: a dot for each checkpoint, and a line for each network.

    The line is the mean over the network's runs of `at_familiar`; a diamond with the standard deviation between runs
    marks where familiar accuracy is matched.

    Args:
        networks: name -> its runs.
        familiar: accuracy to match; by default the highest that all runs reach.

    Example:
        >>> run = [ViewpointResult("cnn", 10, 0.5, 0.4), ViewpointResult("cnn", 20, 0.7, 0.5)]
        >>> comparison_figure({"cnn": [run]}).axes[0].get_xlabel()
        'familiar accuracy'
    """
    familiar = _target(networks, familiar)
    figure = new_figure(6.4, 4.8, "Novel against familiar accuracy")
    axes = figure.subplots()
    for number, (name, runs) in enumerate(networks.items()):
        color = COLORS[number % len(COLORS)]
        results = np.array([result[2:] for run in runs for result in run])
        x, y = results.T
        axes.scatter(x, y, s=12, color=color, alpha=0.45, linewidths=0)
        top = common_familiar(runs)
        grid = np.linspace(min(top, max(run[0].familiar for run in runs)), top, _GRID)
        curve = np.mean([[at_familiar(run, share).novel for share in grid] for run in runs], axis=0)
        label = name if len(runs) == 1 else f"{name}, mean of {len(runs)} runs"
        axes.plot(grid, curve, color=color, linewidth=1.6, label=label)
        matched = np.array([at_familiar(run, familiar)[2:] for run in runs])
        spread = matched[:, 1].std(ddof=1) if len(runs) > 1 else None
        x, y = matched.mean(axis=0)
        axes.errorbar(x, y, yerr=spread, color=color, marker="D", markersize=6, capsize=4, linewidth=1.6)
    axes.axvline(familiar, color=FAINT, linewidth=1, linestyle=(0, (4, 3)), label=f"matched at {100 * familiar:.1f} %")
    style_axes(axes, "familiar accuracy", "novel accuracy")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    add_legend(axes, loc="upper left")
    return figure
