"""Times training steps, evaluation, the input pipeline, scripts and the whole demo, each row in a process of its own.

    python -m benchmarks                                     every row; minutes on two cores
    python -m benchmarks --rows=em_2,attention_2             some
    python -m benchmarks --rows=render,convert_png --full    data scripts at full size
    KERAS_BACKEND=jax python -m benchmarks --precision=mixed_bfloat16

One line of JSON for each row; then the results are merged into benchmarks/results.csv, which keeps what was measured
before of other rows, and written as a table to the screen and into benchmarks/README.md. With --output=<file> they go to
that CSV file and the README stays as it is.
"""

import argparse
import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import results
from benchmarks.measure import Settings, measure_in_a_process, measure_task
from benchmarks.process import describe_machine
from benchmarks.rows import NETWORK_ROWS, ROWS, Row

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results.csv"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", help=f"names with commas between them, all by default: {', '.join(ROWS)}")
    defaults = Settings()
    parser.add_argument("--steps", type=int, default=defaults.steps, help="timed steps of a row [%(default)s]")
    parser.add_argument("--warm_up", type=int, default=defaults.warm_up, help="steps after the first [%(default)s]")
    policies = ("float32", "mixed_bfloat16", "mixed_float16")
    parser.add_argument("--precision", choices=policies, default=defaults.precision)
    parser.add_argument("--jit_compile", choices=("on", "off"), default=defaults.jit_compile)
    parser.add_argument("--full", action="store_true", help="render and convert all 2 x 24,300 pairs")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="measure nothing: write the tables of what was measured")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    return parser.parse_args()


def chosen_rows(names: str | None, backend: str) -> list[Row]:
    if names is None:  # all but the networks' rows are TensorFlow's
        return list(ROWS.values()) if backend == "tensorflow" else list(NETWORK_ROWS)
    unknown = sorted(set(names.split(",")) - set(ROWS))
    if unknown:
        sys.exit(f"error: no row is called {unknown[0]!r}: --rows takes {', '.join(ROWS)}")
    return [ROWS[name] for name in names.split(",")]


def main() -> int:
    arguments = parse_arguments()
    if arguments.measure:
        print(json.dumps(measure_task(arguments.measure)))
        return 0
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    rows = [] if arguments.table else chosen_rows(arguments.rows, backend)
    settings = Settings(arguments.steps, arguments.warm_up, arguments.precision, arguments.jit_compile, arguments.full)
    new, failed = [], 0
    if rows:
        place = {"backend": backend, "precision": settings.precision}
        place |= {"date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), **describe_machine()}
        place |= measure_in_a_process(Row("ceilings", "", "ceilings"), settings) or {}
        print(json.dumps(place), flush=True)
    for row in rows:
        figures = measure_in_a_process(row, settings)
        failed += figures is None
        if figures is not None:
            print(json.dumps({"name": row.name, **figures}), flush=True)
            new.append({"name": row.name, **place, **figures})
            merged = results.merge(results.read(arguments.output), new[-1:])
            results.write(arguments.output, merged)
    merged = results.read(arguments.output)
    print(results.tables(merged))
    if arguments.output == RESULTS and not failed:
        results.put_into(HERE / "README.md", merged)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
