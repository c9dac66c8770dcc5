"""Results of testing that are easy to work out by hand, a log of training, and whether a figure shows anything."""

import html.parser
import itertools
import json
from pathlib import Path

import numpy as np
from PIL import Image

from caps_tf.evaluation.predictions import Predictions

NAMES = ("animal", "human", "airplane", "truck", "car")


def hand_made() -> Predictions:
    """Six examples of three classes (the third never seen) whose results are easy to work out by hand."""
    return Predictions(
        scores=np.array(
            [[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.4, 0.6, 0.0], [0.1, 0.2, 0.7], [0.8, 0.15, 0.05], [0.3, 0.35, 0.35]],
            np.float32,
        ),
        label=np.array([0, 0, 1, 1, 1, 1]),
        loss=1 / 3,
        class_names=("cat", "dog", "fox"),
        factors={"elevation": np.array([30, 30, 30, 70, 70, 70]), "azimuth": np.array([340, 0, 340, 340, 340, 340])},
    )


def turning_toys(azimuths=range(18), lightings=range(2), categories=range(5)) -> Predictions:
    """Two toys a category at every azimuth, in steps of 20 degrees; the pose of each class runs round an ellipse."""
    rng = np.random.default_rng(0)
    toys = np.array(list(itertools.product(categories, (2, 7), (30, 50), [20 * step for step in azimuths], lightings)))
    label, instance, elevation, azimuth, lighting = toys.T
    scores = rng.uniform(0, 0.6, (len(toys), 5)).astype(np.float32)
    scores[np.arange(len(toys)), label] += 0.35
    angle = np.deg2rad(azimuth)
    axes = np.random.default_rng(1).normal(size=(5, 2, 16))
    poses = np.einsum("na,cap->ncp", np.stack([3 * np.cos(angle), np.sin(angle)], axis=1), axes)
    factors = {"instance": instance, "elevation": elevation, "azimuth": azimuth, "lighting": lighting}
    return Predictions(scores, label, 0.5, NAMES, factors, poses.astype(np.float32))


def log_records(steps=range(10, 2010, 10)) -> list[dict]:
    records = []
    for step in steps:
        record = {"step": step, "epoch": step // 500, "loss": 1000 / (step + 1000), "accuracy": step / 4000}
        extra = {"margin": 0.2, "inverse_temperature": 0.002, "learning_rate": 3e-3, "images_per_second": 50.0}
        records.append({**record, **extra, "split": "train", "time": 1.0})
        if step % 500 == 0:
            records.append({**record, "split": "validation"})
    return records


def write_log(path: Path, records: list[dict], tail: str = "") -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + tail)
    return path


class Page(html.parser.HTMLParser):
    """The pictures a page shows, its text, and the text that no click is needed for; fails on tags that are not closed."""

    def __init__(self, source: str):
        super().__init__()
        self.images, self.narrow, self.open, self._text, self._shown = [], [], [], [], []
        self.feed(source)
        assert not self.open
        assert all(image["alt"] for image in self.images)

    @property
    def sources(self) -> list[str]:
        return [image["src"] for image in self.images]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self._text).split())

    @property
    def shown(self) -> str:
        return " ".join(" ".join(self._shown).split())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "img":
            self.images.append(attributes)
        elif tag == "source":
            self.narrow.append(attributes["srcset"])
        elif tag != "meta":
            self.open.append("folded" if tag == "details" and "open" not in attributes else tag)

    def handle_endtag(self, tag):
        assert self.open.pop() in (tag, "folded" if tag == "details" else tag)

    def handle_data(self, data):
        if "style" in self.open:
            return
        self._text.append(data)
        if "folded" not in self.open or self.open[-1] == "summary":
            self._shown.append(data)


def assert_drawn(path: Path, smallest_side: int = 200) -> None:
    """The PNG is whole, of a readable size, and neither blank nor flat."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    assert min(pixels.shape) >= smallest_side
    assert pixels.std() > 5
    assert np.mean(pixels < 250) > 0.005  # something besides white paper
