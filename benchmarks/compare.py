"""Compares routings on one data set: each trained for the same number of steps, and each for the same time.

    python -m benchmarks.compare --networks=all --dataset=renderedNORB --storage=build/demo --minutes=2 --seeds=3
    python -m benchmarks.compare --table                     # runs nothing: only writes the tables and the picture

A name of --networks is a routing of conv_capsules (em, ..., none for the same convolutions without capsules) or another
network of train_val.py; all is every routing and the CNN baseline. All of them get the images, the augmentation, the batches
and the schedule of --preset, the routings its convolutions too. First each trains --epochs epochs, seed by seed; what it
took on average says how many epochs fit into --minutes of training, and these are trained from the start, with a schedule of
their own length; seeds that are added later get as many. Start, compilation and validation are not counted as training.

One line a run goes to benchmarks/compare.csv: the accuracy that test.py finds with the last checkpoint, images/s, and the
accuracy on held-out training images after each epoch, which the picture shows. What is there already is not run again. The
README gets the accuracies, docs/RESULTS.md all figures. Run it alone on the machine: its seconds decide how long a network
trains.
"""

import argparse
import dataclasses
import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.comparison import COLUMNS, draw, summary, table
from benchmarks.process import ROOT, exit_code
from benchmarks.results import Result
from benchmarks.runs import origin, places, train_and_test
from caps_tf.errors import UserError
from caps_tf.evaluation.style import save_figure
from caps_tf.evaluation.training_log import read_log
from caps_tf.networks import NETWORKS, ROUTINGS
from caps_tf.presets import OF_A_RUN, load_preset
from caps_tf.training.config import RunConfig

COMPARED = Path(__file__).resolve().parent / "compare.csv"
PICTURE = ROOT / "docs" / "compare.png"
ALL = (*ROUTINGS, "cnn_baseline")
BEGIN, END = "<!-- compare:begin -->", "<!-- compare:end -->"
_RATES = {"cnn_baseline": 0.001}
"""Learning rates of networks that do not learn with that of the capsules: found as those of the presets were."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", default="all", help=f"all, or of {', '.join((*ROUTINGS, *NETWORKS))}")
    parser.add_argument("--preset", default="demo", help="the regime of all of them [%(default)s]")
    parser.add_argument("--epochs", type=int, default=0, help="of the same number of steps [the preset's]")
    parser.add_argument("--minutes", type=float, default=0.0, help="of the same time; without it only the same steps")
    parser.add_argument("--seeds", type=int, default=3, help="how many, counted from 0 [%(default)s]")
    parser.add_argument("--dataset", default="", help="instead of the preset's")
    parser.add_argument("--data_dir", default="", help="where the data set is, as train_val.py takes it")
    parser.add_argument("--storage", default="", help="directory that holds data/ and logs/, as train_val.py takes it")
    parser.add_argument("--flags", type=shlex.split, default=[], help="more flags of train_val.py, in one argument")
    parser.add_argument("--label", default="", help="what the table calls the data, instead of the data set's name")
    parser.add_argument("--table", action="store_true", help="run nothing: write the table of what was measured")
    parser.add_argument("--output", type=Path, default=COMPARED)
    arguments = parser.parse_args()
    if arguments.seeds < 1 or arguments.epochs < 0 or arguments.minutes < 0:
        parser.error("--seeds must be positive, --epochs and --minutes must not be negative")
    return arguments


def flags_of(name: str, preset: Mapping[str, Any]) -> dict[str, Any]:
    """The flags of train_val.py that give a network the regime of a preset.

    Args:
        name: a routing of conv_capsules, or a network.
        preset: the preset's flags.

    Raises:
        UserError: for a name that is neither, or a routing with a preset of another network than conv_capsules.

    Example:
        >>> preset = {"network": "conv_capsules", "capsules": 8, "epoch": 9, "lrn_rate": 0.003}
        >>> flags_of("heinsen", preset)
        {'network': 'conv_capsules', 'capsules': 8, 'epoch': 9, 'lrn_rate': 0.003, 'routing': 'heinsen'}
        >>> flags_of("cnn_baseline", preset)
        {'epoch': 9, 'lrn_rate': 0.001, 'network': 'cnn_baseline', 'loss': 'auto'}
    """
    if name in ROUTINGS:
        if preset.get("network") != "conv_capsules":
            raise UserError(
                f"{name} routes conv_capsules, but the preset is of {preset.get('network')}: choose another"
            )
        return {**preset, "routing": name}
    if name not in NETWORKS:
        raise UserError(f"there is no network {name!r}: choose of {', '.join((*ROUTINGS, *NETWORKS))}")
    groups = {option.name: option.metadata["group"] for option in dataclasses.fields(RunConfig)}
    regime = {flag: value for flag, value in preset.items() if groups[flag] != "network"}
    rate = {"lrn_rate": _RATES[name]} if name in _RATES else {}
    return {**regime, **rate, "network": name, "loss": "auto"}


class Comparison:
    """The runs of one data set and regime, and the file that they are kept in."""

    def __init__(self, arguments: argparse.Namespace):
        self._arguments = arguments
        for flag in arguments.flags:
            if flag.lstrip("-").partition("=")[0] in {*OF_A_RUN, "dataset", "seed", "epoch", "network", "routing"}:
                raise UserError(f"--flags takes no {flag}: this command gives that flag itself")
        preset = load_preset(arguments.preset).flags
        self._epochs = arguments.epochs or int(preset.get("epoch", RunConfig.epoch))
        names = ALL if arguments.networks == "all" else arguments.networks.split(",")
        self._flags = {name: flags_of(name, preset) for name in names}
        self._about = {
            "data": arguments.label or Path(arguments.dataset or preset.get("dataset", RunConfig.dataset)).name,
            "dataset": arguments.dataset,
            "preset": arguments.preset,
            "flags": shlex.join(arguments.flags),
        }

    def run(self) -> int:
        """Runs what is not in the file yet, and adds a line after each run; returns how many failed."""
        failed = 0
        for name in self._flags:
            failed += self._seeds(name, f"{self._epochs} epochs", self._epochs)
            budget = f"{self._arguments.minutes:g} minutes"
            epochs = self._epochs_within(name, budget) if self._arguments.minutes else 0
            if epochs:
                failed += self._seeds(name, budget, epochs)
        return failed

    def _epochs_within(self, name: str, budget: str) -> int:
        """How many epochs a time is for a network: as many as its other seeds have had; 0 where nothing is known."""
        if same := self._lines(network=name, budget=budget):
            return int(same[0]["epochs"])
        if not (measured := self._lines(network=name, budget=f"{self._epochs} epochs")):
            return 0
        seconds_an_epoch = statistics.mean(float(line["train_seconds"]) / self._epochs for line in measured)
        return max(1, round(60 * self._arguments.minutes / seconds_an_epoch))

    def _lines(self, **wanted: str) -> list[Result]:
        wanted |= self._about
        return [line for line in results.read(self._arguments.output) if wanted.items() <= line.items()]

    def _seeds(self, name: str, budget: str, epochs: int) -> int:
        output, failed = self._arguments.output, 0
        for seed in range(self._arguments.seeds):
            run = {"network": name, "seed": str(seed)}
            if self._lines(**run, budget=budget):
                print(f"{name}, {budget}, seed {seed}: is in {output.name}", file=sys.stderr)
                continue
            # A run of as many epochs is the same run.
            same = [line for line in self._lines(**run) if line["epochs"] == str(epochs)]
            try:
                found = same[0] if same else self._train_and_test(name, epochs, seed)
            except subprocess.CalledProcessError as error:
                failed += 1
                print(
                    f"error: {name}, seed {seed}: {Path(error.cmd[1]).name} failed, as it says above", file=sys.stderr
                )
                continue
            line = {**found, **self._about, **run, "budget": budget}
            print(json.dumps(line), flush=True)
            results.write(output, [*results.read(output), line], COLUMNS)
        return failed

    def _train_and_test(self, name: str, epochs: int, seed: int) -> Result:
        """Raises subprocess.CalledProcessError if a script fails."""
        run = {"epoch": epochs, "seed": seed, "name": f"compare_{name}_seed{seed}"}
        flags = [
            f"--{flag}={str(value).lower() if isinstance(value, bool) else value}"
            for flag, value in {**self._flags[name], **run}.items()
        ]
        directory, found, peak, _ = train_and_test(*flags, *places(self._arguments), *self._arguments.flags)
        log = read_log(directory / "train" / "log.jsonl")
        params = json.loads((directory / "train" / "params.json").read_text(encoding="utf-8"))
        rate = statistics.median(record["images_per_second"] for record in log if record["split"] == "train")
        seconds = int(found["steps"]) * int(params["batch_size"]) / rate
        return {
            **found,
            "epochs": str(epochs),
            "images_per_second": f"{rate:.1f}",
            "train_seconds": f"{seconds:.1f}",
            "peak_mib": f"{peak:.0f}",
            "curve": curve(log, seconds),
            **origin(),
        }


def curve(log: Sequence[Mapping[str, Any]], seconds: float) -> str:
    """Seconds of training and accuracy on held-out images after each epoch, "seconds:accuracy ...".

    Example:
        >>> log = [{"split": "validation", "step": step, "accuracy": step / 40} for step in (10, 20)]
        >>> curve(log, seconds=8.0)
        '4.0:0.2500 8.0:0.5000'
    """
    points = [(record["step"], record["accuracy"]) for record in log if record["split"] == "validation"]
    return " ".join(f"{seconds * step / points[-1][0]:.1f}:{accuracy:.4f}" for step, accuracy in points)


def main() -> int:
    arguments = parse_arguments()

    def run() -> int:
        failed = 0 if arguments.table else Comparison(arguments).run()
        lines = results.read(arguments.output)
        print(table(lines))
        picture = PICTURE if arguments.output == COMPARED else arguments.output.with_suffix(".png")
        if lines:
            save_figure(draw(lines), picture)
        if arguments.output == COMPARED:
            results.put_between(ROOT / "README.md", BEGIN, END, summary(lines))
            results.put_between(ROOT / "docs" / "RESULTS.md", BEGIN, END, table(lines))
        return 1 if failed else 0

    return exit_code(run)


if __name__ == "__main__":
    sys.exit(main())
