"""Trains presets with several seeds, tests them, and keeps the accuracies: benchmarks/accuracy.csv, one line per run.

The tables of docs/RESULTS.md and the README are written from that file.

    python -m benchmarks.accuracy --presets=demo --seeds=3 --dataset=renderedNORB --storage=build/demo
    python -m benchmarks.accuracy --presets=demo --dataset=renderedNORB --flags="--viewpoints=azimuth"
    python -m benchmarks.accuracy --table                    # runs nothing: only writes the tables

A run is train_val.py and then test.py with its last checkpoint, each a process of its own. What is in the file already
(the same preset, data, seed and flags) is not run again, so that a command that was interrupted goes on when it is
given again; a run that failed or was interrupted leaves no line. After a change of a preset measure it with --again.
With --output=<file> the lines go to that CSV file and no table is written into a document.

The preset plain_classifiers is what a network has to beat, data/plain_classifiers.py on the same data: the nearest
neighbour in pixels, or a logistic regression on sentences. It has no seeds.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks import results, runs
from benchmarks.process import ROOT, exit_code
from benchmarks.results import Result
from caps_tf.errors import UserError
from caps_tf.networks import NETWORKS
from caps_tf.presets import OF_A_RUN, load_preset
from caps_tf.training.config import RunConfig

ACCURACIES = Path(__file__).resolve().parent / "accuracy.csv"
KEY = ("data", "preset", "flags", "seed")
SAME = ("train_images", "test_images", "novel_images", "parameters", "steps")
"""What the seeds of a preset have in common; where it differs, the preset or the data have changed meanwhile."""
COLUMNS = (
    *("preset", "data", "dataset", "flags", "seed", *SAME),
    *("seconds", "familiar", "novel", "commit", "machine", "date"),
)
PLAIN = "plain_classifiers"
"""Stands in the place of a preset; data/plain_classifiers.py is run."""
BEGIN, END = "<!-- accuracy:begin -->", "<!-- accuracy:end -->"
BEST_BEGIN, BEST_END = "<!-- best:begin -->", "<!-- best:end -->"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--presets", default="", help="names with commas between them")
    parser.add_argument("--seeds", type=int, default=3, help="how many, counted from 0 [%(default)s]")
    parser.add_argument("--dataset", default="", help="instead of the preset's")
    parser.add_argument("--data_dir", default="", help="where the data set is, as train_val.py takes it")
    parser.add_argument("--storage", default="", help="directory that holds data/ and logs/, as train_val.py takes it")
    parser.add_argument("--flags", type=shlex.split, default=[], help="more flags of train_val.py, in one argument")
    parser.add_argument("--label", default="", help="what the table calls the data, instead of the data set's name")
    parser.add_argument("--again", action="store_true", help="run also what is in the file; the new lines replace it")
    parser.add_argument("--table", action="store_true", help="run nothing: write the table of what was measured")
    parser.add_argument("--output", type=Path, default=ACCURACIES)
    arguments = parser.parse_args()
    if arguments.seeds < 1 or not (arguments.presets or arguments.table):
        parser.error("give --presets=<names> and at least one seed, or --table")
    return arguments


def measure(arguments: argparse.Namespace) -> int:
    """Runs what is not in the file yet, and appends a line after each run.

    Returns:
        How many runs failed.
    """
    refused = {*OF_A_RUN, "dataset", "seed", "load_dir", "params_path"}
    for flag in arguments.flags:
        if flag.lstrip("-").partition("=")[0] in refused:
            raise UserError(f"--flags takes no {flag}: this command gives that flag itself")
    presets = {name: None if name == PLAIN else load_preset(name) for name in arguments.presets.split(",")}
    failed = 0
    for name, preset in presets.items():
        dataset = arguments.dataset or (preset.flags.get("dataset", RunConfig.dataset) if preset else "")
        about = {"preset": name, "data": arguments.label or Path(dataset).name, "dataset": arguments.dataset}
        for seed in range(arguments.seeds if preset else 1):
            line = {**about, "flags": shlex.join(arguments.flags), "seed": str(seed)}
            if not arguments.again and any(_key(line) == _key(old) for old in results.read(arguments.output)):
                print(f"{name}, seed {seed}: is in {arguments.output.name}", file=sys.stderr)
                continue
            try:
                line |= run(name, seed, arguments) if preset else run_plain(arguments)
            except subprocess.CalledProcessError as error:
                script, failed = Path(error.cmd[1]).name, failed + 1
                print(f"error: {name}, seed {seed}: {script} failed, as it says above", file=sys.stderr)
                continue
            print(json.dumps(line), flush=True)
            # Read anew: another process may have appended meanwhile.
            results.write(arguments.output, merge(results.read(arguments.output), line), COLUMNS)
    return failed


def run(preset: str, seed: int, arguments: argparse.Namespace) -> Result:
    """Trains and tests one seed.

    Returns:
        The rest of its line.

    Raises:
        subprocess.CalledProcessError: if a script fails.
    """
    name = f"--name={preset}_seed{seed}"
    measured_at = runs.origin()
    trained = runs.train_and_test(
        f"--preset={preset}", *runs.places(arguments), *arguments.flags, f"--seed={seed}", name
    )
    return {**trained.figures, "seconds": f"{trained.seconds:.1f}", **measured_at}


def run_plain(arguments: argparse.Namespace) -> Result:
    """The rest of the line of the plain classifiers.

    Raises:
        subprocess.CalledProcessError: if the script fails.
    """
    measured_at = runs.origin()
    script = runs.run_script(f"data/{PLAIN}.py", *runs.places(arguments), *arguments.flags)
    output = json.loads(script.output.splitlines()[-1])
    details = {name: output.get(name, "") for name in ("training_examples", "parameters", "step")}
    found = runs.figures({"parts": output["parts"], "details": details})
    return {**found, "seconds": f"{script.seconds:.1f}", **measured_at}


def _key(line: Result) -> tuple[str, ...]:
    return tuple(line[name] for name in KEY)


def merge(lines: Iterable[Result], new: Result) -> list[Result]:
    """Adds a line in the place of an old one of the same preset, data, flags and seed; sorted by them.

    Example:
        >>> line = {"preset": "demo", "data": "toys", "flags": "", "seed": "0", "familiar": "0.5"}
        >>> [each["familiar"] for each in merge([line, {**line, "seed": "1"}], {**line, "familiar": "0.75"})]
        ['0.75', '0.5']
    """
    kept = [line for line in lines if _key(line) != _key(new)]
    return sorted([*kept, new], key=lambda line: (*_key(line)[:-1], int(line["seed"])))


def table(lines: Sequence[Result]) -> str:
    """The lines as Markdown, a row for each data set, preset and flags: mean and deviation over their seeds.

    Raises:
        UserError: if the lines of a row are not of the same network and data.
    """
    if not lines:
        return "Nothing has been measured yet."
    rows: dict[tuple[str, ...], list[Result]] = {}
    for line in lines:
        rows.setdefault(_key(line)[:-1], []).append(line)
    heading = ("data", "preset", "parameters", "test accuracy", "novel", "seeds", "minutes", "command")
    machines, dates = (sorted({line[name] for line in lines}) for name in ("machine", "date"))
    days = " to ".join(dict.fromkeys([dates[0], dates[-1]]))
    return (
        results.markdown(heading, [_row(row) for row in rows.values()])
        + "\n\nMean ± standard deviation over the seeds, of the last checkpoint; trainable parameters; minutes of training. "
        + f"Measured on {' and on '.join(machines)}, {days}; benchmarks/accuracy.csv has each run with its commit."
    )


def _row(lines: Sequence[Result]) -> list[str]:
    first = lines[0]
    for name in SAME:
        if len({line[name] for line in lines}) > 1:
            raise UserError(
                f"{first['preset']} on {first['data']}: its seeds differ in {name}, so the preset or the data have changed "
                "since: measure all of them with --again"
            )
    train, test, novel, parameters = (f"{int(first[name]):,}" if first[name] else "" for name in SAME[:4])
    sizes = f"{train} to train, {test} to test" + (f", {novel} novel" if novel else "")
    dataset = [f"--dataset={first['dataset']}"] if first["dataset"] else []
    plain = first["preset"] == PLAIN
    start = [f"data/{PLAIN}.py"] if plain else ["train_val.py", f"--preset={first['preset']}"]
    command = ["python", *start, *dataset, *shlex.split(first["flags"])]
    return [
        f"{first['data']} ({sizes})",
        first["preset"],
        parameters,
        results.mean_and_deviation([line["familiar"] for line in lines]),
        results.mean_and_deviation([line["novel"] for line in lines]) if novel else "",
        str(len(lines)),
        f"{statistics.mean(float(line['seconds']) for line in lines) / 60:.1f}",
        f"`{shlex.join(command)}`",
    ]


def best_table(lines: Sequence[Result]) -> str:
    """The best network of capsules and the best without, of each data set and protocol, as Markdown.

    The best is the one with the highest mean accuracy, on what is novel where anything is.
    """
    tasks: dict[str, dict[bool, dict[str, list[Result]]]] = {}
    for line in lines:
        kinds = tasks.setdefault(task_of(line), {True: {}, False: {}})
        kinds[has_capsules(line["preset"], line["flags"])].setdefault(line["preset"] + line["flags"], []).append(line)
    rows = [
        [task, *(_best_cell(max(kinds[capsules].values(), key=_mean, default=[])) for capsules in (True, False))]
        for task, kinds in tasks.items()
    ]
    return results.markdown(("test accuracy", "capsules", "without capsules"), rows)


def task_of(line: Result) -> str:
    """What a run was asked: its data, and its viewpoints or its protocol.

    Example:
        >>> [task_of({"data": "toys", "preset": "demo", "flags": flags}) for flags in ("", "--viewpoints=azimuth")]
        ['toys', 'toys, novel azimuths']
        >>> task_of({"data": "digits", "preset": "demo", "flags": "--epoch=2 --protocol affine"})
        'digits, protocol affine'
    """
    flags = _flags_of(line["preset"], line["flags"])
    task = [line["data"]]
    if trained := flags.get("viewpoints"):
        task.append(f"novel views (trained on {trained})" if ":" in trained else f"novel {trained}s")
    if protocol := flags.get("protocol"):
        task.append(f"protocol {protocol}")
    return ", ".join(task)


def _flags_of(preset: str, given: str) -> dict[str, str]:
    """A preset's flags, and in their place those that are given beside it: "--name=value" or "--name value"."""
    flags = {} if preset == PLAIN else {name: str(value) for name, value in load_preset(preset).flags.items()}
    words = shlex.split(given)
    for word, following in zip(words, [*words, ""][1:], strict=True):
        if word.startswith("-"):
            name, sign, value = word.lstrip("-").partition("=")
            flags[name] = value if sign else following
    return flags


def has_capsules(preset: str, given: str = "") -> bool:
    """Whether a preset's network, with the flags given beside it, routes capsules.

    Example:
        >>> [has_capsules(name) for name in ("demo", "norb_average", "demo_cnn", "plain_classifiers")]
        [True, False, False, False]
        >>> has_capsules("demo", "--routing=none")
        False
    """
    if preset == PLAIN:
        return False
    flags = _flags_of(preset, given)
    network = flags.get("network", RunConfig.network)
    return NETWORKS[network].routes and not (network == "conv_capsules" and flags.get("routing") == "none")


def _mean(lines: Sequence[Result]) -> float:
    return statistics.mean(float(line["novel"] or line["familiar"]) for line in lines)


def _best_cell(lines: Sequence[Result]) -> str:
    if not lines:
        return ""
    accuracy = results.mean_and_deviation([line["novel"] or line["familiar"] for line in lines])
    seeds = "" if len(lines) > 1 or lines[0]["preset"] == PLAIN else ", one seed"
    return f"{accuracy} (`{lines[0]['preset']}`{seeds})"


def main() -> int:
    arguments = parse_arguments()

    def run_all() -> int:
        failed = 0 if arguments.table else measure(arguments)
        lines = results.read(arguments.output)
        print(table(lines))
        if arguments.output == ACCURACIES:
            results.put_between(ROOT / "docs" / "RESULTS.md", BEGIN, END, table(lines))
            results.put_between(ROOT / "README.md", BEST_BEGIN, BEST_END, best_table(lines))
        return 1 if failed else 0

    return exit_code(run_all)


if __name__ == "__main__":
    sys.exit(main())
