"""What is measured: the rows of the table, with the figures of the published implementations."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Figures:
    """Seconds per step and peak gigabytes (10^9 bytes); None if not published."""

    seconds: float | None = None
    gigabytes: float | None = None


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        name: what --rows calls it.
        title: what the table calls it.
        kind: "step" (forward, backward and optimiser), "forward" (as test.py evaluates), or a kind of `data_rows` or
            `whole_rows`.
        network: a function of `networks`.
        options: its arguments.
        batch: examples a step.
        published: the published implementation on a machine of 2 cores, as it is.
        tuned: the same with its einsum order optimised by hand.
        wanted: what ours is meant not to exceed.
    """

    name: str
    title: str
    kind: str
    network: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    batch: int = 0
    published: Figures = Figures()
    tuned: Figures = Figures()
    wanted: Figures = Figures()


def _em(iterations: int, seconds: float, gigabytes: float) -> Row:
    return Row(
        f"em_{iterations}",
        f"matrix capsules, EM, 32x32x1, {iterations} iteration{'s' * (iterations > 1)}",
        "step",
        "matrix_capsules",
        {"iterations": iterations},
        64,
        published=Figures(seconds, gigabytes),
        wanted=Figures(seconds / 5, gigabytes / 5),
    )


def _attention(iterations: int, published: Figures, tuned: Figures, wanted: float) -> Row:
    return Row(
        f"attention_{iterations}",
        f"attention, ResNet, CIFAR-10, concurrent, {iterations} iteration{'s' * (iterations > 1)}",
        "step",
        "attention",
        {"iterations": iterations},
        32,
        published,
        tuned,
        Figures(wanted, published.gigabytes / 3),
    )


NETWORK_ROWS = (
    _em(1, 2.67, 3.6),
    _em(2, 5.22, 6.8),
    _em(3, 7.96, 8.9),
    Row(
        "em_forward",
        "matrix capsules, EM, 32x32x1, 2 iterations, forward only",
        "forward",
        "matrix_capsules",
        {"iterations": 2},
        64,
        published=Figures(1.72, 2.5),
        wanted=Figures(1.72 / 5),
    ),
    Row(
        "em_96",
        "matrix capsules, EM, 96x96x1, 2 iterations",
        "step",
        "matrix_capsules",
        {"image_size": 96, "iterations": 2},
        64,
        wanted=Figures(None, 8.0),
    ),
    Row(
        "heinsen_norb",
        "Heinsen's smallNORB classifier, 2x96x96, 3 iterations",
        "step",
        "heinsen_norb",
        {},
        20,
        published=Figures(13.4, 6.6),
        wanted=Figures(13.4 / 5, 6.6 / 5),
    ),
    Row(
        "heinsen_norb_forward",
        "Heinsen's smallNORB classifier, forward only",
        "forward",
        "heinsen_norb",
        {},
        20,
        published=Figures(7.0),
        wanted=Figures(7.0 / 5),
    ),
    Row(
        "heinsen_routing",
        "Heinsen 2019 routing, 1000 to 64 capsules of 4x4, 3 iterations",
        "step",
        "heinsen_routing",
        {"n_inp": 1000},
        8,
        published=Figures(0.48, 1.1),
        wanted=Figures(0.48 / 3),
    ),
    Row(
        "heinsen_routing_open",
        "the same, weights shared by the children (n_inp left open)",
        "step",
        "heinsen_routing",
        {"n_inp": None},
        8,
    ),
    Row(
        "vector_routing",
        "Heinsen 2022 vector routing, 1000x256 to 100x256",
        "step",
        "vector_routing",
        {},
        4,
        published=Figures(0.028, 0.3),
        wanted=Figures(0.028),
    ),
    Row(
        "heinsen_sst",
        "Heinsen's SST classifier, 25 tokens of 37x1280",
        "step",
        "heinsen_sst",
        {},
        20,
        published=Figures(0.28, 0.9),
        wanted=Figures(0.28 / 2),
    ),
    _attention(1, Figures(2.9, 2.7), Figures(0.94, 0.8), 0.94),
    _attention(2, Figures(8.1, 5.5), Figures(4.2, 4.2), 4.2 / 3),
    _attention(3, Figures(17.8, 8.4), Figures(13.7, 7.2), 13.7 / 5),
    Row(
        "attention_sequential_2",
        "attention, ResNet, CIFAR-10, sequential, 2 iterations",
        "step",
        "attention",
        {"iterations": 2, "sequential": True},
        32,
        published=Figures(13.2, 6.0),
        wanted=Figures(13.2 / 5),
    ),
    Row(
        "attention_2_batch_128",
        "attention, ResNet, CIFAR-10, concurrent, 2 iterations",
        "step",
        "attention",
        {"iterations": 2},
        128,
        published=Figures(50.6, 20.5),
        wanted=Figures(50.6 / 5, 5.0),
    ),
    Row("cnn", "convolutional baseline, 32x32x1", "step", "cnn_baseline", {}, 64),
)

DATA_ROWS = (
    Row("render", "renderer", "render"),
    Row("convert_png", "converter, PNG", "convert", options={"encoding": "png"}),
    Row("convert_raw", "converter, raw", "convert", options={"encoding": "raw"}),
    Row("input_png", "input pipeline, PNG, 32x32 of 48x48", "input", options={"encoding": "png"}, batch=64),
    Row("input_raw", "input pipeline, raw, 32x32 of 48x48", "input", options={"encoding": "raw"}, batch=64),
    Row(
        "input_png_96",
        "input pipeline, PNG, pairs of 96x96",
        "input",
        options={"encoding": "png", "pairs": True},
        batch=20,
    ),
    Row(
        "input_raw_96",
        "input pipeline, raw, pairs of 96x96",
        "input",
        options={"encoding": "raw", "pairs": True},
        batch=20,
    ),
    Row("input_wait", "share of training that waits for images (EM, 1 iteration, PNG)", "wait", batch=64),
)

WHOLE_ROWS = (
    Row("demo", "`make demo`, installed, from its first command to the report", "demo"),
    Row("start", "`train_val.py --preset=demo` until its first step is taken", "start"),
)

ROWS = {row.name: row for row in (*NETWORK_ROWS, *DATA_ROWS, *WHOLE_ROWS)}
