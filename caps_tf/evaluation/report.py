"""Writes a test's report: report.json and predictions.npz for programs, PNG figures and report.html for people."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from caps_tf.evaluation.figures import accuracy_over_viewpoint, confusion, learning_curves
from caps_tf.evaluation.metrics import INTERVAL_NOTE, PAIRS_NOTE, report, write_json
from caps_tf.evaluation.mistakes import worst_mistakes
from caps_tf.evaluation.page import accuracies, folded, heading, page, paragraph, picture, share, table
from caps_tf.evaluation.predictions import Predictions, concatenate
from caps_tf.evaluation.reconstructions import Decode, pose_elements, reconstructions
from caps_tf.evaluation.robustness import Robustness, attack_figure, attack_json
from caps_tf.evaluation.stored import FILE, save_predictions
from caps_tf.evaluation.style import save_figure
from caps_tf.evaluation.training_log import read_log
from caps_tf.evaluation.trajectories import pose_trajectory
from caps_tf.files import write_atomically
from caps_tf.presets import departures
from caps_tf.training.config import RunConfig

_SHOWN = {
    "accuracy_over_viewpoint": "Accuracy over azimuth and elevation, with 95 % intervals; tables below have the numbers.",
    "confusion": "Confusion matrix: true classes in rows, predicted ones in columns.",
    "learning_curves": "Loss and accuracy of training and validation over steps, and the schedules.",
    "worst_mistakes": "The test images of the worst mistakes, each with its true and its predicted class.",
    "pose_trajectory": "Elements of the winning capsule's pose over azimuth, and their path in the principal plane.",
    "reconstructions": "Test images, and what the decoder draws from their poses.",
    "pose_elements": "What the decoder draws as one element of a pose is changed.",
    "attack": "Accuracy over the size of the attack.",
}
"""What figures show, in words, by the beginning of their names."""
_NARROW = "accuracy_over_viewpoint_narrow"


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
    """Writes predictions.npz, report.json, the figures that the data allow, and report.html which shows them.

    The page opens with the accuracy, its interval, what was tested, and the main figure: accuracy over viewpoint where
    viewpoints are known, else the confusion matrix. Figures left over from an earlier report of the same parts are
    replaced or removed.

    Args:
        directory: where to; made if missing.
        parts: name ("test", or "familiar" and "novel") -> its predictions.
        log_path: the run's log.jsonl; without it, or where it does not exist, there are no learning curves.
        images: part name -> its images, as `mistakes.worst_mistakes` takes them; parts without images have no
            figure of mistakes.
        title: of the page.
        details: JSON values for report.json. Parameters of the run, by the fields of `RunConfig`, are folded on the
            page, and those that are not its preset's come first; "checkpoint", "parameters", "training_examples" and
            "tested" (when) are told at its top.
        decode: the decoder of class capsules' poses, where the network was trained with one.
        robustness: results of an attack, for attack.json and its figure; without it, those of an earlier one stay.

    Returns:
        name -> path of every file written: "predictions", "json", "html", and the figures "learning_curves",
        "confusion", "accuracy_over_viewpoint" and "accuracy_over_viewpoint_narrow" (the same for narrow screens),
        "worst_mistakes_<part>", "pose_trajectory", with a decoder "reconstructions" and "pose_elements", as far as
        there are any, and of an attack "attack_json" and the figure "attack".

    Raises:
        UserError: the log is damaged (nothing is written then), or a file cannot be written.

    Example:
        >>> import tempfile
        >>> part = Predictions(np.eye(2, dtype=np.float32), np.array([0, 1]), 0.5, ("cat", "dog"))
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     sorted(path.name for path in write_report(directory, {"test": part}).values())
        ['confusion.png', 'predictions.npz', 'report.html', 'report.json']
    """
    directory, details = Path(directory), dict(details or {})
    records = read_log(log_path) if log_path is not None and Path(log_path).exists() else []
    results = report(parts)
    figures = {
        "accuracy_over_viewpoint": accuracy_over_viewpoint(parts),
        _NARROW: accuracy_over_viewpoint(parts, stacked=True),
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
    content = {"title": title, "details": details, "intervals": INTERVAL_NOTE, "parts": results}
    paths = {"predictions": save_predictions(directory / FILE, parts)}
    paths["json"] = write_json(directory / "report.json", content)
    for name, figure in figures.items():
        path = directory / f"{name}.png"
        if figure is None:
            path.unlink(missing_ok=True)
        else:
            paths[name] = save_figure(figure, path)
    if robustness:
        paths["attack_json"] = write_json(directory / "attack.json", attack_json(robustness))
    shown = {name: figure for name, figure in figures.items() if figure is not None}
    notes = [INTERVAL_NOTE] + [PAIRS_NOTE] * any(part.label2 is not None for part in parts.values())
    body = _body(title, details, results, shown, notes, "examples" if images is None else "images")
    paths["html"] = write_atomically(directory / "report.html", page(title, body))
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


def _body(
    title: str,
    details: Mapping[str, Any],
    results: Mapping[str, dict],
    figures: Mapping[str, Figure],
    notes: Sequence[str],
    examples: str,
) -> list[str]:
    """The page from top to bottom; pictures are referred to by name, so the directory can be moved."""
    pictures = {name: _picture(name, figure, figures) for name, figure in figures.items() if name != _NARROW}
    main, *others = pictures or [""]
    rows = [
        (name, share(entry), entry.get("loss", "–"), share(entry.get("accuracy_views_averaged")))
        for name, entry in results.items()
    ]
    body = [
        heading(title, level=1),
        accuracies({f"{name} accuracy": entry for name, entry in results.items()}),
        paragraph(_what_was_tested(details, results, examples)),
        *([pictures[main]] if main else []),
        table(["", "accuracy", "loss", "views averaged"], rows),
        *(paragraph(note, note=True) for note in notes),
        *_parameters(details),
    ]
    for name in others:
        body += [heading(name.replace("_", " ").capitalize()), pictures[name]]
    return [*body, heading("Accuracy in groups"), *_groups(results)]


def _picture(name: str, figure: Figure, figures: Mapping[str, Figure]) -> str:
    caption = name.replace("_", " ").capitalize()
    alt = next((text for beginning, text in _SHOWN.items() if name.startswith(beginning)), caption)
    narrow = f"{name}_narrow"
    return picture(figure, alt, f"{name}.png", f"{narrow}.png" if narrow in figures else "")


def _what_was_tested(details: Mapping[str, Any], results: Mapping[str, dict], examples: str) -> str:
    """Data, checkpoint and date, as far as they are known."""
    counts = " and ".join(f"{entry['num_examples']:,} {name}" for name, entry in results.items())
    told = f"{counts} {examples}" + (f" of {Path(details['dataset']).name}" if "dataset" in details else "")
    if "checkpoint" in details:
        checkpoint = Path(details["checkpoint"])  # <run>/train/checkpoints/<checkpoint>, or in best/
        run = next((each.parent.name for each in checkpoint.parents if each.name == "train"), "")
        told += f", judged by checkpoint {checkpoint.name}" + (f" of {run}" if run else "")
    if "parameters" in details:
        told += f" ({details['parameters']:,} parameters"
        told += f", trained on {details['training_examples']:,} {examples})" if "training_examples" in details else ")"
    return told + (f", tested {details['tested']}." if "tested" in details else ".")


def _parameters(details: Mapping[str, Any]) -> list[str]:
    """Folded: the parameters that are not the preset's, and in another fold everything."""
    if not details:
        return []
    against, differing = departures(details)
    known = details.keys() & {option.name for option in dataclasses.fields(RunConfig)}
    everything = folded(f"All {len(details)} details", table([], details.items()))
    if not known:
        return [everything]
    number = f"{len(differing)} differ" if len(differing) != 1 else "1 differs"
    rows = [(name, *(_value(value) for value in values)) for name, values in differing.items()]
    shown = table(["", "this run", against], rows) if rows else paragraph(f"All as in the {against}.")
    return [folded(f"Parameters: {number} from the {against}", shown, everything)]


def _value(value: Any) -> str:
    """A parameter in a cell: nothing is told as such."""
    return "–" if value == "" else str(value)


def _groups(results: Mapping[str, dict]) -> list[str]:
    """A table of accuracies for the classes and for each factor, one column a part."""
    measured = {name: entry for name, entry in results.items() if entry["num_examples"]}
    groups = {"class": {name: entry["accuracy_by_class"] for name, entry in measured.items()}}
    for name, entry in measured.items():
        for factor, values in entry["accuracy_by"].items():
            groups.setdefault(factor, {})[name] = values
    body = []
    for factor, by_part in groups.items():
        unit = " (degrees)" if factor in ("azimuth", "elevation") else ""
        values = list(dict.fromkeys(value for by_value in by_part.values() for value in by_value))
        if unit:
            values.sort(key=int)
        rows = [(value, *(share(by_value.get(value)) for by_value in by_part.values())) for value in values]
        body.append(folded(f"by {factor}", table([factor + unit, *by_part], rows), is_open=True))
    return body
