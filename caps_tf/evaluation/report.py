"""Writes a test's report: report.json for programs, PNG figures and report.html for people."""

import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from caps_tf.evaluation.figures import accuracy_over_viewpoint, confusion, learning_curves
from caps_tf.evaluation.metrics import INTERVAL_NOTE, PAIRS_NOTE, report, write_json
from caps_tf.evaluation.mistakes import worst_mistakes
from caps_tf.evaluation.predictions import Predictions, concatenate
from caps_tf.evaluation.reconstructions import Decode, pose_elements, reconstructions
from caps_tf.evaluation.robustness import Robustness, attack_figure, attack_json
from caps_tf.evaluation.style import save_figure
from caps_tf.evaluation.training_log import read_log
from caps_tf.evaluation.trajectories import pose_trajectory
from caps_tf.files import write_atomically

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2.5rem }
table { border-collapse: collapse; margin: .8rem 0 }
th, td { padding: .25rem .9rem .25rem 0; text-align: left; border-bottom: 1px solid #e4e4e4 }
td { font-variant-numeric: tabular-nums }
img { max-width: 100%; height: auto } .note { color: #666 } summary { cursor: pointer }
"""


def write_report(
    directory: str | os.PathLike,
    parts: Mapping[str, Predictions],
    log_path: str | os.PathLike | None = None,
    images: Mapping[str, Sequence[np.ndarray]] | None = None,
    title: str = "Test report",
    details: Mapping[str, Any] | None = None,
    decode: Decode | None = None,
    robustness: Robustness | None = None,
) -> dict[str, Path]:
    """Writes report.json, the figures that the data allow, and report.html which shows them.

    Figures left over from an earlier report of the same parts are replaced or removed.

    Args:
        directory: where to; made if missing.
        parts: name ("test", or "familiar" and "novel") -> its predictions.
        log_path: the run's log.jsonl; without it, or where it does not exist, there are no learning curves.
        images: part name -> its images, as `mistakes.worst_mistakes` takes them; parts without images have no
            figure of mistakes.
        title: of the page.
        details: JSON values shown at the top of the page and in report.json (data set, network, checkpoint, ...).
        decode: the decoder of class capsules' poses, where the network was trained with one.
        robustness: results of an attack, for attack.json and its figure; without it, those of an earlier one stay.

    Returns:
        name -> path of every file written: "json", "html", and the figures "learning_curves", "confusion",
        "accuracy_over_viewpoint", "worst_mistakes_<part>", "pose_trajectory", with a decoder "reconstructions" and
        "pose_elements", as far as there are any, and of an attack "attack_json" and the figure "attack".

    Raises:
        UserError: the log is damaged (nothing is written then), or a file cannot be written.

    Example:
        >>> import tempfile
        >>> part = Predictions(np.eye(2, dtype=np.float32), np.array([0, 1]), 0.5, ("cat", "dog"))
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     sorted(path.name for path in write_report(directory, {"test": part}).values())
        ['confusion.png', 'report.html', 'report.json']
    """
    directory, details = Path(directory), dict(details or {})
    records = read_log(log_path) if log_path is not None and Path(log_path).exists() else []
    results = report(parts)
    figures = {
        "accuracy_over_viewpoint": accuracy_over_viewpoint(parts),
        "confusion": confusion(parts),
        "learning_curves": learning_curves(records),
        **{
            f"worst_mistakes_{name}": worst_mistakes(part, images[name], name)
            for name, part in parts.items()
            if images is not None and name in images
        },
        "pose_trajectory": pose_trajectory(parts),
        **_drawn(parts, images, decode),
        **({"attack": attack_figure(robustness)} if robustness else {}),
    }
    notes = [INTERVAL_NOTE] + [PAIRS_NOTE] * any(part.label2 is not None for part in parts.values())
    content = {"title": title, "details": details, "intervals": INTERVAL_NOTE, "parts": results}
    paths = {"json": write_json(directory / "report.json", content)}
    for name, figure in figures.items():
        path = directory / f"{name}.png"
        if figure is None:
            path.unlink(missing_ok=True)
        else:
            paths[name] = save_figure(figure, path)
    page = _page(title, details, results, notes, [path for name, path in paths.items() if name != "json"])
    if robustness:
        paths["attack_json"] = write_json(directory / "attack.json", attack_json(robustness))
    paths["html"] = write_atomically(directory / "report.html", page.encode())
    return paths


def _drawn(
    parts: Mapping[str, Predictions], images: Mapping[str, Sequence[np.ndarray]] | None, decode: Decode | None
) -> dict[str, Figure | None]:
    """The figures of a decoder, of all parts together."""
    if decode is None or images is None:
        return {"reconstructions": None, "pose_elements": None}
    whole = concatenate(parts.values())
    shown = [image for name in parts for image in images[name]]
    return {"reconstructions": reconstructions(whole, shown, decode), "pose_elements": pose_elements(whole, decode)}


def _page(
    title: str,
    details: Mapping[str, Any],
    results: Mapping[str, dict],
    notes: Sequence[str],
    figures: Sequence[Path],
) -> str:
    """Everything on one page; the images are referred to by name, so the directory can be moved."""
    measured = {name: entry for name, entry in results.items() if entry["num_examples"]}
    body = [f"<h1>{html.escape(title)}</h1>"]
    if details:
        body.append(_table([], details.items()))
    body.append(
        _table(
            ["", "accuracy", "loss", "views averaged"],
            [
                (name, _share(entry), entry.get("loss", "–"), _share(entry.get("accuracy_views_averaged")))
                for name, entry in results.items()
            ],
        )
    )
    body.extend(f'<p class="note">{html.escape(note)}</p>' for note in notes)
    for path in figures:
        caption = path.stem.replace("_", " ").capitalize()
        body.append(f"<h2>{html.escape(caption)}</h2>")
        body.append(f'<img src="{html.escape(path.name)}" alt="{html.escape(caption)}">')
    body.append("<h2>Accuracy in groups</h2>")
    groups = {"class": {name: entry["accuracy_by_class"] for name, entry in measured.items()}}
    for name, entry in measured.items():
        for factor, values in entry["accuracy_by"].items():
            groups.setdefault(factor, {})[name] = values
    for factor, by_part in groups.items():
        unit = " (degrees)" if factor in ("azimuth", "elevation") else ""
        values = dict.fromkeys(value for by_value in by_part.values() for value in by_value)
        if unit:
            values = sorted(values, key=int)
        rows = [(value, *(_share(by_value.get(value)) for by_value in by_part.values())) for value in values]
        table = _table([factor + unit, *by_part], rows)
        body.append(f"<details open><summary>by {html.escape(factor)}</summary>\n{table}</details>")
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{html.escape(title)}</title>\n'
        f"<style>{_STYLE}</style></head>\n<body>\n" + "\n".join(body) + "\n</body>\n</html>\n"
    )


def _share(entry: Mapping[str, Any] | None) -> str:
    """93.2 % (92.1 to 94.0) of 5,400; a dash where there is nothing."""
    if entry is None or not entry["num_examples"]:
        return "–"
    low, high = entry["interval"]
    return f"{100 * entry['accuracy']:.1f} % ({100 * low:.1f} to {100 * high:.1f}) of {entry['num_examples']:,}"


def _table(header: Sequence[str], rows) -> str:
    """Rows of cells, the first of each its heading; everything is escaped."""
    lines = ["<table>"]
    if header:
        lines.append("<tr>" + "".join(f"<th>{html.escape(str(cell))}</th>" for cell in header) + "</tr>")
    for first, *rest in rows:
        cells = "".join(f"<td>{html.escape(str(cell))}</td>" for cell in rest)
        lines.append(f"<tr><th>{html.escape(str(first))}</th>{cells}</tr>")
    return "\n".join([*lines, "</table>"])
