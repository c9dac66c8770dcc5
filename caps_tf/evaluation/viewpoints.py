"""Compares networks on novel viewpoints, matched on familiar ones (Hinton et al. 2018, section 5.1)."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from caps_tf.errors import UserError

PathLike = str | os.PathLike[str]


class ViewpointResult(NamedTuple):
    """What a checkpoint gets right.

    Attributes:
        network: name of the architecture.
        step: training step of the checkpoint.
        familiar: share of right answers on viewpoints like those trained on.
        novel: share of right answers on all others.
    """

    network: str
    step: int
    familiar: float
    novel: float


def read_results(run: PathLike) -> list[ViewpointResult]:
    """Reads the reports that test.py wrote for the checkpoints of a run.

    Args:
        run: directory of a run trained with `--viewpoints` and tested with `--ckpt_name=all`.

    Returns:
        One result a tested checkpoint, in the order of their steps.

    Raises:
        UserError: if there is no report, or one without familiar and novel viewpoints.
    """
    reports = sorted(Path(run, "test").glob("*/report.json"))
    if not reports:
        raise UserError(f"{run}: holds no reports: run python test.py --load_dir={run} --ckpt_name=all")
    results = []
    for path in reports:
        report = json.loads(path.read_text())
        parts, details = report["parts"], report["details"]
        if not {"familiar", "novel"} <= parts.keys():
            raise UserError(f"{path}: not of a run on novel viewpoints: train with --viewpoints=azimuth or elevation")
        accuracies = (parts[name]["accuracy"] for name in ("familiar", "novel"))
        results.append(ViewpointResult(details["network"], details["step"], *accuracies))
    return sorted(results, key=lambda result: result.step)


def match_on_familiar(runs: Sequence[Sequence[ViewpointResult]]) -> list[ViewpointResult]:
    """Picks of each run the checkpoint that is as good on familiar viewpoints as the weakest run becomes.

    A network that is better on familiar viewpoints is better on novel ones too; only at equal familiar accuracy does
    the novel accuracy tell how it generalises. The paper stopped the capsules' training where they met the baseline.

    Args:
        runs: results of each run's checkpoints.

    Returns:
        One result a run: the one whose familiar accuracy is nearest to the best that all runs reach.

    Example:
        >>> weak = [ViewpointResult("cnn", 1, 0.6, 0.4), ViewpointResult("cnn", 2, 0.8, 0.5)]
        >>> strong = [ViewpointResult("capsules", 1, 0.79, 0.6), ViewpointResult("capsules", 2, 0.95, 0.8)]
        >>> [result.step for result in match_on_familiar([weak, strong])]
        [2, 1]
    """
    target = min(max(result.familiar for result in run) for run in runs)
    return [min(run, key=lambda result: abs(result.familiar - target)) for run in runs]


def comparison_table(runs: Sequence[Sequence[ViewpointResult]]) -> str:
    """A Markdown table of each run's last checkpoint and of the one matched on familiar viewpoints."""
    lines = [
        "| network | last step: familiar | novel | matched step | familiar | novel |",
        "|---|---|---|---|---|---|",
    ]
    for run, matched in zip(runs, match_on_familiar(runs), strict=True):
        last = run[-1]
        lines.append(
            f"| {last.network} | {last.familiar:.1%} | {last.novel:.1%} "
            f"| {matched.step} | {matched.familiar:.1%} | {matched.novel:.1%} |"
        )
    return "\n".join(lines)
