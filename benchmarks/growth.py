"""How time and memory of a training step grow with the batch, the image, the number of capsules and the iterations.

    python -m benchmarks.growth            # measures into benchmarks/growth.csv, draws benchmarks/growth.png
    python -m benchmarks.growth --small    # small ranges, in minutes
    python -m benchmarks.growth --draw     # only draws

Each point is a process of its own, as in `python -m benchmarks`. Memory is the peak of the steps less what the process
held before the network was made.
"""

import argparse
import csv
import json
import os
from pathlib import Path

from benchmarks.measure import Settings, measure_in_a_process
from benchmarks.process import describe_machine
from benchmarks.rows import Row

HERE = Path(__file__).resolve().parent
COLUMNS = (
    *("network", "axis", "value", "batch", "seconds", "memory_mib", "compile_seconds", "load"),
    *("backend", "commit", "machine", "versions"),
)

AXES = ("batch", "image size", "capsules", "iterations")

# What varies, with the option that it varies and what stays as it is.
NETWORKS = {
    "matrix_capsules": {
        "batch": (None, (8, 16, 32, 64, 128), {"iterations": 2}),
        "image size": ("image_size", (32, 48, 64, 96), {"iterations": 2}),
        "capsules": ("BCD", (4, 8, 16, 32), {"iterations": 2}),
        "iterations": ("iterations", (1, 2, 3, 4), {}),
    },
    "heinsen_norb": {
        "batch": (None, (4, 8, 16, 32), {}),
        "image size": ("image_size", (32, 48, 64, 96), {}),
        "capsules": ("parts", (16, 32, 64, 128), {}),
        "iterations": ("iterations", (1, 2, 3, 4), {}),
    },
    "attention": {
        "batch": (None, (8, 16, 32, 64, 128), {"iterations": 2}),
        "iterations": ("iterations", (1, 2, 3, 4), {}),
    },
}
BATCH = {"matrix_capsules": 16, "heinsen_norb": 8, "attention": 8}


def points(small: bool) -> list[tuple[str, str, int, Row]]:
    """Network, axis, value and row of each point; of the small ranges, the first three values of each axis."""
    found = []
    for network, axes in NETWORKS.items():
        for axis, (option, values, fixed) in axes.items():
            for value in values[: 3 if small else None]:
                sizes = {"BCD": dict.fromkeys("BCD", value), None: {}}.get(option, {option: value})
                batch = value if axis == "batch" else BATCH[network]
                name = f"{network}, {axis} {value}"
                found.append((network, axis, value, Row(name, name, "step", network, {**fixed, **sizes}, batch)))
    return found


def measure_growth(path: Path, small: bool, settings: Settings) -> None:
    """Writes the file anew, line by line."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        place = {"backend": os.environ.get("KERAS_BACKEND", "tensorflow"), **describe_machine()}
        for network, axis, value, row in points(small):
            figures = measure_in_a_process(row, settings)
            if figures is None:
                continue
            memory = float(figures["peak_of_steps_mib"] or figures["peak_mib"]) - float(figures["before_mib"])
            line = {
                "network": network,
                "axis": axis,
                "value": value,
                **figures,
                "memory_mib": round(memory, 1),
                **place,
            }
            print(json.dumps(line), flush=True)
            writer.writerow(line)
            file.flush()


def draw(source: Path, target: Path) -> None:
    """Time above, memory below, an axis a column, both logarithmic: a straight line of slope 1 is linear growth."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    from caps_tf.evaluation.style import COLORS, add_legend, new_figure, save_figure, style_axes

    with open(source, newline="") as file:
        lines = list(csv.DictReader(file))
    if not lines:
        raise SystemExit(f"error: {source} holds no measurement: run python -m benchmarks.growth first")
    busy = max(float(line["load"] or 0) for line in lines)
    state = (
        f"preliminary: others used up to {busy:.1f} cores meanwhile" if busy > 0.1 else "measured on an idle machine"
    )
    figure = new_figure(13, 6, f"A training step as its work grows ({lines[0]['machine']}; {state})")
    grid = figure.subplots(2, len(AXES), squeeze=False)
    for column, axis in enumerate(AXES):
        for (quantity, label), axes in zip(
            (("seconds", "seconds a step"), ("memory_mib", "MiB")), grid[:, column], strict=True
        ):
            for color, network in zip(COLORS, NETWORKS, strict=False):
                found = [line for line in lines if (line["network"], line["axis"]) == (network, axis)]
                if found:
                    values, measured = ([float(line[key]) for line in found] for key in ("value", quantity))
                    axes.plot(values, measured, "o-", color=color, markersize=4, label=network)
            style_axes(axes, axis, label if column == 0 else "")
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
            ticks = sorted({int(line["value"]) for line in lines if line["axis"] == axis})
            axes.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
    add_legend(grid[0, 0])
    save_figure(figure, target)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--draw", action="store_true")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--output", type=Path, default=HERE / "growth.csv")
    arguments = parser.parse_args()
    if not arguments.draw:
        measure_growth(arguments.output, arguments.small, Settings(steps=arguments.steps, warm_up=1))
    draw(arguments.output, arguments.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
