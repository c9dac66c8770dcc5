"""Results: a CSV file with one line for each row and place, and the table that the README shows."""

import csv
import io
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.rows import DATA_ROWS, NETWORK_ROWS, ROWS, WHOLE_ROWS, Figures, Row
from caps_tf.files import write_atomically

COLUMNS = (
    *("name", "batch", "seconds", "fastest", "slowest", "steps", "per_second", "compile_seconds"),
    *("peak_mib", "peak_of_steps_mib", "before_mib", "estimated_mib", "device_peak_mib"),
    *("multiplications", "bytes", "matmul_gflops", "bandwidth_gbs", "ceilings_by"),
    *("megabytes_read", "megabytes_written", "cores_used", "remark", "load"),
    *("backend", "precision", "date", "commit", "machine", "versions"),
)
BEGIN, END = "<!-- results: python -m benchmarks -->", "<!-- end of results -->"
BUSY = 0.1
"""Processors kept busy by other programs, above which a figure counts as taken on a busy machine."""

Result = dict[str, str]


def read(path: Path) -> list[Result]:
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def merge(old: Sequence[Result], new: Iterable[dict[str, object]]) -> list[Result]:
    """Puts new results in the place of old ones of the same row, backend and precision.

    Example:
        >>> old = [{"name": "em_2", "backend": "jax", "precision": "float32", "seconds": "2.0"}]
        >>> merge(old, [{"name": "em_2", "backend": "jax", "precision": "float32", "seconds": 1.0}])[0]["seconds"]
        '1.0'
    """

    def key(result):
        return result["name"], result["backend"], result["precision"]

    by_key = {key(result): result for result in old}
    for result in new:
        by_key[key(result)] = {name: str(result.get(name, "")) for name in COLUMNS}
    order = list(ROWS)
    return sorted(by_key.values(), key=lambda result: (*key(result)[1:], order.index(result["name"])))


def write(path: Path, results: Sequence[Result], columns: Sequence[str] = COLUMNS) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(results)
    write_atomically(path, text.getvalue().encode())


def lower_limit(result: Result) -> float | None:
    """Seconds that a step must take: its multiplications at the speed of a large matrix product, or its bytes."""
    if not (result.get("multiplications") and result.get("matmul_gflops")):
        return None
    by_arithmetic = 2 * float(result["multiplications"]) / (float(result["matmul_gflops"]) * 1e9)
    return max(by_arithmetic, float(result["bytes"]) / (float(result["bandwidth_gbs"]) * 1e9))


def tables(results: Sequence[Result]) -> str:
    """All results as Markdown, a section for each backend and precision."""
    sections = []
    for place in dict.fromkeys((result["backend"], result["precision"]) for result in results):
        here = {result["name"]: result for result in results if (result["backend"], result["precision"]) == place}
        sections.append(_section(place, here))
    return "\n\n".join(sections)


def _section(place: tuple[str, str], results: dict[str, Result]) -> str:
    parts = [f"### {place[0]}, {place[1]}", "\n".join(_about(results))]
    networks = [_network_line(row, results[row.name]) for row in NETWORK_ROWS if row.name in results]
    if networks:
        heading = (
            *("network", "batch", "published s", "GB", "by hand s", "GB", "wanted s", "GB"),
            *("**ours s**", "**GB**", "faster", "smaller", "before GB", "compile s", "least s", "gap"),
        )
        parts.append(markdown(heading, networks))
    data = [_data_line(row, results) for row in DATA_ROWS if row.name in results]
    if data:
        heading = ("data", "images/s", "seconds", "peak MB", "MB/s written", "cores used", "against training")
        parts.append(markdown(heading, data))
    whole = [_whole_line(row, results[row.name]) for row in WHOLE_ROWS if row.name in results]
    if whole:
        parts.append(markdown(("command", "seconds", "peak MB", "seconds in it"), whole))
    return "\n\n".join(parts)


def _about(results: dict[str, Result]) -> list[str]:
    """Where, when and how the figures were taken, a line for each sitting."""
    lines = {}
    for result in results.values():
        where = (result["machine"], result["versions"], result["commit"], result["date"])
        lines.setdefault(where, []).append(result)
    found = []
    for (machine, versions, commit, date), of_sitting in lines.items():
        busy = max(float(result["load"] or 0) for result in of_sitting)
        gflops, bandwidth = of_sitting[0]["matmul_gflops"], of_sitting[0]["bandwidth_gbs"]
        names = "all rows" if len(lines) == 1 else ", ".join(result["name"] for result in of_sitting)
        state = (
            f"**preliminary, on a busy machine (others used up to {busy:.1f} cores)**"
            if busy > BUSY
            else "the machine was idle"
        )
        found.append(
            f"- {names}: {date}, commit {commit}, {machine}; {versions}; {state}. Ceilings: {gflops} GFLOP/s, "
            f"{bandwidth} GB/s."
        )
    return found


def _network_line(row: Row, result: Result) -> list[str]:
    seconds, gigabytes = float(result["seconds"]), float(result["peak_mib"]) * 2**20 / 1e9
    published, limit = row.published, lower_limit(result)
    return [
        row.title,
        str(row.batch),
        *_figures(published),
        *_figures(row.tuned),
        *_figures(row.wanted),
        f"**{_number(seconds)}**",
        f"**{_number(gigabytes)}**",
        _times(published.seconds, seconds),
        _times(published.gigabytes, gigabytes),
        _number(float(result["before_mib"]) * 2**20 / 1e9),
        _number(float(result["compile_seconds"])),
        "" if limit is None else _number(limit),
        "" if limit is None else _times(seconds, limit),
    ]


def _data_line(row: Row, results: dict[str, Result]) -> list[str]:
    result = results[row.name]
    times = []
    for networks in _FED_BY.get(row.name, ()):
        rates = {name: float(results[name]["per_second"]) for name in networks if name in results}
        if rates:
            fastest = max(rates, key=rates.get)
            times.append(f"{float(result['per_second']) / rates[fastest]:.1f} times what {fastest} consumes")
    against = ", ".join(times) or result["remark"]
    seconds = float(result["seconds"] or 0)
    written = float(result["megabytes_written"] or 0)
    return [
        row.title,
        result["per_second"],
        result["seconds"],
        result["peak_mib"],
        f"{written / seconds:.1f}" if written else "",
        result["cores_used"],
        against,
    ]


def _whole_line(row: Row, result: Result) -> list[str]:
    return [row.title, result["seconds"], result["peak_mib"], result["remark"]]


_SMALL, _LARGE = (("em_1", "em_2", "em_3"), ("cnn",)), (("heinsen_norb",),)
_FED_BY = {"input_png": _SMALL, "input_raw": _SMALL, "input_png_96": _LARGE, "input_raw_96": _LARGE}
"""The networks that read what an input pipeline delivers, those of capsules and the baseline apart."""


def _figures(figures: Figures) -> list[str]:
    return ["" if value is None else _number(value) for value in (figures.seconds, figures.gigabytes)]


def _number(value: float) -> str:
    """Three significant digits.

    Example:
        >>> [_number(value) for value in (0.02812, 1.666, 13.4, 1234.5)]
        ['0.0281', '1.67', '13.4', '1234']
    """
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _times(one: float | None, other: float) -> str:
    return "" if one is None else f"{one / other:.1f}"


def mean_and_deviation(fractions: Sequence[str]) -> str:
    """Accuracies as text: mean and, of several, standard deviation in percent.

    Example:
        >>> mean_and_deviation(["0.5"]), mean_and_deviation(["0.5", "0.7"])
        ('50.0 %', '60.0 ± 14.1 %')
    """
    percent = [100 * float(fraction) for fraction in fractions]
    deviation = f" ± {statistics.stdev(percent):.1f}" if len(percent) > 1 else ""
    return f"{statistics.mean(percent):.1f}{deviation} %"


def markdown(heading: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (heading, ["---"] * len(heading), *lines))


def put_into(readme: Path, results: Sequence[Result]) -> None:
    """Writes the tables between the two marks of a README."""
    put_between(readme, BEGIN, END, tables(results))


def put_between(readme: Path, begin: str, end: str, text: str) -> None:
    """Replaces what stands between two marks of a README, and nothing else."""
    before, _, rest = readme.read_text(encoding="utf-8").partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"{readme}: lacks the lines {begin!r} and {end!r}: put them where the tables go")
    write_atomically(readme, f"{before}{begin}\n\n{text}\n\n{end}{after}".encode())
