"""What was measured, as Markdown: a section for each backend."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from benchmarks.accelerator.networks import PRECISIONS, WORTH
from benchmarks.results import markdown

Line = dict[str, Any]
MOST_EPOCHS = 12
"""Of a run, that the table shows; evenly spread, with the last."""


def tables(lines: Sequence[Line]) -> str:
    """All lines as Markdown; of what was measured more than once, the last."""
    measured = [line for line in lines if not line.get("tiny")] or list(lines)
    backends = dict.fromkeys(line["backend"] for line in measured if "backend" in line)
    sections = [
        _section(backend, [line for line in measured if line.get("backend") == backend]) for backend in backends
    ]
    return "\n\n".join(sections) or "Nothing has been measured yet."


def _section(backend: str, lines: Sequence[Line]) -> str:
    parts = [f"### {backend}", _about(lines), _ceilings(lines), _networks(lines), _cifar10(lines), _norb(lines)]
    return "\n\n".join(filter(None, [*parts, _failures(lines)]))


def _of(lines: Iterable[Line], part: str, *names: str) -> list[Line]:
    """The lines of a part that hold all these figures."""
    return [line for line in lines if line["part"] == part and all(line.get(name) is not None for name in names)]


def _about(lines: Sequence[Line]) -> str:
    found = []
    if any(line.get("tiny") for line in lines):
        found.append("- **--tiny: these figures say nothing of the machine**")
    for line in {line["run"]: line for line in _of(lines, "start")}.values():
        cards = f"; {line['cards']} ({line['cards_columns']})" if line.get("cards") else ""
        found.append(
            f"- {line['run']}, {line['minutes']:g} minutes, commit {line['commit']}, {line['machine']}{cards}; "
            f"{line['versions']}"
        )
    for line in _of(lines, "device", "device")[-1:]:
        memory = f", {line['memory_gb']:g} GB" if line.get("memory_gb") else ""
        found.append(f"- device: {line['device']}{memory}")
    return "\n".join(found)


def _ceilings(lines: Sequence[Line]) -> str:
    rows = {}
    for line in _of(lines, "device", "name"):
        for unit, text in (
            ("gflops", "GFLOP/s"),
            ("gigabytes_per_second", "GB/s"),
            ("microseconds", "microseconds"),
        ):
            if unit in line:
                rows[line["name"]] = [line["name"].replace("_", " "), f"{line[unit]:,.1f} {text}"]
    return markdown(("ceiling", "measured"), list(rows.values())) if rows else ""


def _networks(lines: Sequence[Line]) -> str:
    """A row for each network and precision, forward and step side by side."""
    found: dict[tuple[str, str], dict[str, Line]] = {}
    for line in _of(lines, "networks", "seconds", "kind"):
        found.setdefault((line["name"], line["precision"]), {})[line["kind"]] = line
    if not found:
        return ""
    order = {name: number for number, name in enumerate(WORTH)}
    keys = sorted(found, key=lambda key: (order.get(key[0], len(order)), PRECISIONS.index(key[1])))
    heading = (
        *("network", "batch", "precision", "forward s", "GB", "gap"),
        *("**step s**", "**GB**", "examples/s", "compile s", "least s", "gap"),
    )
    return markdown(heading, [_network(found[key]) for key in keys])


def _network(kinds: dict[str, Line]) -> list[str]:
    any_kind, forward, step = next(iter(kinds.values())), kinds.get("forward", {}), kinds.get("step", {})
    bold = [f"**{text}**" if text else "" for text in (_figure(step, "seconds"), _gigabytes(step))]
    return [
        *(any_kind["title"], str(any_kind["batch"]), any_kind["precision"]),
        *(_figure(forward, "seconds"), _gigabytes(forward), _figure(forward, "gap", "{:.1f}")),
        *(*bold, _figure(step, "per_second", "{:,.0f}"), _figure(step, "compile_seconds", "{:.1f}")),
        *(_figure(step, "least_seconds"), _figure(step, "gap", "{:.1f}")),
    ]


def _figure(line: Line, name: str, form: str = "{:.3g}") -> str:
    return "" if line.get(name) is None else form.format(line[name])


def _gigabytes(line: Line) -> str:
    """Peak of the device's memory, or of the process on a CPU."""
    mib = line.get("device_peak_mib") or line.get("peak_mib")
    return "" if mib is None else f"{mib * 2**20 / 1e9:.3g}"


def _cifar10(lines: Sequence[Line]) -> str:
    return _runs(lines, "cifar10", lambda line: ["" if (value := line.get("test_accuracy")) is None else _percent(value)],
                 ("test accuracy",))  # fmt: skip


def _norb(lines: Sequence[Line]) -> str:
    def accuracies(line):
        return [
            line.get("viewpoints", ""),
            *(_percent(line[name]) if name in line else "" for name in ("familiar", "novel")),
        ]

    return _runs(lines, "norb", accuracies, ("viewpoints", "familiar", "novel"))


def _runs(lines: Sequence[Line], part: str, results: Callable[[Line], list[str]], heading: Sequence[str]) -> str:
    """A row for each training run: its results, and the accuracy on training images by epoch."""
    runs: dict[tuple[str, str], list[Line]] = {}
    for line in _of(lines, part, "step"):
        key = (line["name"], line.get("viewpoints", ""))
        if runs.get(key) and (line["run"] != runs[key][-1]["run"] or line["step"] < runs[key][-1]["step"]):
            runs[key] = []  # measured anew
        runs.setdefault(key, []).append(line)
    rows = []
    for (name, _), of_run in runs.items():
        epochs = [line for line in of_run if "epoch" in line]
        last = of_run[-1]
        rate = epochs[-1].get("images_per_second") if epochs else None
        seconds = sum(line.get("seconds", 0.0) for line in epochs)
        rows.append([
            *(name, str(epochs[-1]["epoch"]) if epochs else "", str(last["step"]), f"{seconds:.1f}"),
            *("" if rate is None else f"{rate:,.0f}", *results(last), _by_epoch(epochs)),
        ])  # fmt: skip
    columns = ("run", "epochs", "steps", "s of training", "images/s", *heading, "accuracy in training by epoch")
    return markdown(columns, rows) if rows else ""


def _by_epoch(epochs: Sequence[Line]) -> str:
    step = max(1, -(-len(epochs) // MOST_EPOCHS))
    shown = [line for number, line in enumerate(epochs, 1) if (len(epochs) - number) % step == 0]
    return ", ".join(f"{line['epoch']}: {_percent(line['accuracy'])}" for line in shown if "accuracy" in line)


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _failures(lines: Sequence[Line]) -> str:
    """What is not in the tables, and why."""
    found = {}
    for line in lines:
        key = tuple(line.get(name, "") for name in ("part", "name", "precision", "viewpoints"))
        reason = line.get("failed") or line.get("skipped")
        if reason:
            found[key] = f"- {' '.join(filter(None, key))}: {'failed: ' if line.get('failed') else 'skipped: '}{reason}"
        else:
            for measured_since in (key, (line["part"], "", "", "")):
                found.pop(measured_since, None)
    return "\n".join(found.values())
