"""What `python -m benchmarks.compare` measured, as a table and as a picture of accuracy over time."""

import statistics
from collections.abc import Iterable, Sequence

from matplotlib.figure import Figure

from benchmarks import results
from benchmarks.results import Result
from caps_tf.errors import UserError
from caps_tf.evaluation.style import COLORS, INK, add_legend, new_figure, style_axes

_SAME = ("parameters", "train_images", "test_images", "novel_images", "epochs")
"""What the seeds of a network have in common; where it differs, something has changed meanwhile."""
COLUMNS = (
    *("data", "dataset", "preset", "flags", "network", "budget", "seed"),
    *("epochs", "train_images", "test_images", "novel_images", "parameters", "steps"),
    *("images_per_second", "train_seconds", "peak_mib", "familiar", "novel", "curve", "commit", "machine", "date"),
)
_NAMES = {"none": "none: their average", "cnn_baseline": "CNN baseline"}
_DASHES = ("-", "--", ":")
"""Of lines that share a color; colors alone would not do for more networks than there are colors."""


def table(lines: Sequence[Result]) -> str:
    """The lines as Markdown: for each data set a row a network, with both budgets side by side.

    Raises:
        UserError: if the seeds of a network are not of the same network and data.
    """
    if not lines:
        return "Nothing has been compared yet."
    parts = [_table_of(list(group)) for group in _grouped(lines, ("data", "preset", "flags")).values()]
    machines, dates = (sorted({line[name] for line in lines}) for name in ("machine", "date"))
    parts.append(
        "Test accuracy of the last checkpoint, mean ± standard deviation over the seeds; seconds of training without start, "
        "compilation and validation; peak of a whole process. "
        f"Measured on {' and on '.join(machines)}, {' to '.join(dict.fromkeys([dates[0], dates[-1]]))}; "
        "benchmarks/compare.csv has each run with its commit."
    )
    return "\n\n".join(parts)


def summary(lines: Sequence[Result]) -> str:
    """The accuracies alone, one table of all data sets: a row a network, a column for each data set and budget.

    Example:
        >>> line = {"network": "em", "familiar": "0.5", "novel": "0.25", "budget": "1 minutes", "data": "toys"}
        >>> print(summary([{**line, "preset": "demo", "flags": ""}]))
        | network | toys, 1 minutes | novel |
        | --- | --- | --- |
        | em | 50.0 % | 25.0 % |
    """
    if not lines:
        return "Nothing has been compared yet."
    columns = []
    for (data, _, _, budget), runs in _grouped(lines, ("data", "preset", "flags", "budget")).items():
        columns.append((f"{data}, {budget}", runs, "familiar"))
        if runs[0]["novel"]:
            columns.append(("novel", runs, "novel"))
    rows = []
    for (name,), _ in _grouped(lines, ("network",)).items():
        cells = []
        for _, runs, kind in columns:
            found = [run[kind] for run in runs if run["network"] == name]
            cells.append(results.mean_and_deviation(found) if found else "")
        rows.append([_NAMES.get(name, name), *cells])
    return results.markdown(["network", *(heading for heading, *_ in columns)], rows)


def _table_of(lines: Sequence[Result]) -> str:
    first = lines[0]
    budgets = list(dict.fromkeys(line["budget"] for line in lines))
    has_novel = bool(first["novel"])
    heading = ["network", "parameters", "images/s", "peak MiB"]
    for budget in budgets:
        heading += [f"{budget}: accuracy", *(["novel"] if has_novel else []), "epochs, seconds", "seeds"]
    rows = []
    for name, of_network in _grouped(lines, ("network",)).items():
        row = [_NAMES.get(*name, *name), f"{int(of_network[0]['parameters']):,}"]
        row += [f"{statistics.median(float(line[column]) for line in of_network):.0f}" for column in _SPEEDS]
        for budget in budgets:
            row += _figures([line for line in of_network if line["budget"] == budget], has_novel)
        rows.append(row)
    sizes = f"{int(first['train_images']):,} to train, {int(first['test_images']):,} to test"
    sizes += f", {int(first['novel_images']):,} novel" if first["novel_images"] else ""
    regime = f"`--preset={first['preset']}`" + (f" with `{first['flags']}`" if first["flags"] else "")
    return f"{first['data']} ({sizes}), regime of {regime}:\n\n" + results.markdown(heading, rows)


_SPEEDS = ("images_per_second", "peak_mib")


def _figures(lines: Sequence[Result], has_novel: bool) -> list[str]:
    if not lines:
        return [""] * (3 + has_novel)
    for name in _SAME:
        if len({line[name] for line in lines}) > 1:
            raise UserError(
                f"{lines[0]['network']} on {lines[0]['data']}: its seeds differ in {name}, so something has changed since: "
                "remove its lines from the file and measure them again"
            )
    columns = ("familiar", "novel") if has_novel else ("familiar",)
    seconds = statistics.mean(float(line["train_seconds"]) for line in lines)
    accuracies = [results.mean_and_deviation([line[column] for line in lines]) for column in columns]
    return [*accuracies, f"{lines[0]['epochs']}, {seconds:.0f}", str(len(lines))]


def draw(lines: Sequence[Result]) -> Figure:
    """A panel for each data set: accuracy on held-out training images over seconds of training, mean over seeds.

    Of each network the runs of one budget: of the longest time where there is any, else of the most steps.
    """
    panels = _grouped(lines, ("data", "preset", "flags"))
    figure = new_figure(5.5 * len(panels), 4.2)
    names = list(dict.fromkeys(line["network"] for line in lines))
    looks = {
        name: {"color": COLORS[place % len(COLORS)], "linestyle": _DASHES[place // len(COLORS)]}
        for place, name in enumerate(names)
    }
    for place, ((data, *_), of_data) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, len(panels), place)
        for (name,), runs in _grouped(of_data, ("network",)).items():
            runs = _of_one_budget(runs)
            seconds, accuracies = _mean_curve([run["curve"] for run in runs if run["curve"]])
            axes.plot(seconds, accuracies, label=_NAMES.get(name, name), linewidth=1.6, **looks[name])
        style_axes(axes, "seconds of training", "accuracy on held-out images, %", data)
        axes.title.set_color(INK)
        if place == len(panels):
            add_legend(axes, loc="lower right")
    return figure


def _of_one_budget(lines: Sequence[Result]) -> list[Result]:
    budgets = {line["budget"] for line in lines}
    longest = max(budgets, key=lambda budget: (budget.endswith("minutes"), float(budget.split()[0])))
    return [line for line in lines if line["budget"] == longest]


def _mean_curve(curves: Sequence[str]) -> tuple[list[float], list[float]]:
    """Mean seconds and mean accuracy in percent after each epoch.

    Example:
        >>> _mean_curve(["1.0:0.2 2.0:0.4", "3.0:0.4 6.0:0.6"])
        ([2.0, 4.0], [30.0, 50.0])
    """
    points = [[tuple(map(float, point.split(":"))) for point in each.split()] for each in curves]
    means = [[statistics.mean(values) for values in zip(*epoch, strict=True)] for epoch in zip(*points, strict=True)]
    return [seconds for seconds, _ in means], [round(100 * accuracy, 6) for _, accuracy in means]


def _grouped(lines: Iterable[Result], columns: Sequence[str]) -> dict[tuple[str, ...], list[Result]]:
    groups: dict[tuple[str, ...], list[Result]] = {}
    for line in lines:
        groups.setdefault(tuple(line[column] for column in columns), []).append(line)
    return groups
