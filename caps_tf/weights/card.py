"""The card of a trained network: what it is, what it was trained on, what it reached, what it must not be used for."""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from caps_tf.data.preprocessing import Preprocessing
from caps_tf.errors import UserError

CARD, TEXT = "card.json", "card.md"
FORMAT = 1

NOT_FOR = (
    "It names one of its classes for any image, also for images of nothing that it knows: its scores are no "
    "probabilities that have been calibrated, and say nothing of how unlike its training data an image is. Do not use it "
    "where a mistake harms, nor for decisions about people."
)


@dataclass(frozen=True)
class Card:
    """What is known of a trained network.

    Attributes:
        name: of the network.
        summary: one line.
        network: a name of `caps_tf.networks.NETWORKS`.
        class_names: in the order of the scores.
        reads: "image" or "embedding".
        shape: of an example that the model takes, an image's (h, w, c) of pixels from 0 to 255.
        logits: whether a softmax makes probabilities of its scores; otherwise they are between 0 and 1.
        parameters: trainable ones.
        file: "name", "sha256" and "bytes" of the file with the weights, and "url" if it is not beside the card.
        data: what it was trained on.
        regime: the command line that trains it, in flags that differ from the defaults.
        training: facts of the run: seed, epochs, steps, examples, checkpoint, backend.
        preprocessing: fields of `Preprocessing`; None for embeddings. With a protocol `resize` is the size of the images
            that lay on its canvas.
        accuracy: part of the test set -> "accuracy", its 95 % Wilson "interval" and "num_examples".
        accuracy_note: what else is to be said of it.
        other_seeds: the same of runs that differ in their seed: "seed" and "accuracy".
        viewpoints: what it was trained on, and how its accuracy depends on the viewpoint, in words.
        sample: "correct" and "num_examples" of sample.npz; None without one.
        licence: of the weights.
        not_for: what it must not be used for.
        versions: of caps_tf and Keras that wrote it.
    """

    name: str
    summary: str
    network: str
    class_names: Sequence[str]
    reads: str
    shape: Sequence[int | None]
    logits: bool
    parameters: int
    file: Mapping[str, Any]
    data: str
    regime: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    preprocessing: Mapping[str, Any] | None = None
    accuracy: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    accuracy_note: str = ""
    other_seeds: Sequence[Mapping[str, Any]] = ()
    viewpoints: str = ""
    sample: Mapping[str, int] | None = None
    licence: str = ""
    not_for: str = NOT_FOR
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(h, w, c) of the images that it takes.

        Raises:
            UserError: it takes none.
        """
        if self.reads != "image":
            raise UserError(f"{self.name} reads {self.reads}s, not images: choose another `model`")
        rows, columns, channels = (int(size or 0) for size in self.shape)
        return rows, columns, channels

    @property
    def part_of_canvas(self) -> tuple[int, int] | None:
        """(h, w) of the images that lay on the black canvas of a protocol when it was trained; None without one."""
        preprocessing = self.preprocessing or {}
        return tuple(preprocessing["resize"]) if preprocessing.get("protocol") and preprocessing["resize"] else None

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=2) + "\n"

    def to_markdown(self) -> str:
        """The card for people."""
        shape = "x".join("any" if size is None else str(size) for size in self.shape)
        lines = [f"# {self.name}", "", self.summary, ""]
        lines += [f"- network: `{self.network}`, {self.parameters:,} trainable parameters, {_size(self.file)}"]
        lines += [f"- classes: {', '.join(self.class_names)}"]
        lines += [f"- reads: {self.reads} {shape}" + (", pixels from 0 to 255" if self.reads == "image" else "")]
        kind = "logits, whose softmax are probabilities" if self.logits else "numbers between 0 and 1"
        lines += [f"- gives: a score a class, {kind}"]
        lines += ["", "## Data", "", self.data, "", "## Accuracy", ""]
        lines += [f"- {name}: {told_accuracy(found)}" for name, found in self.accuracy.items()]
        for other in self.other_seeds:
            found = "; ".join(f"{name} {told_accuracy(part)}" for name, part in other["accuracy"].items())
            lines += [f"- with seed {other['seed']} (not this file): {found}"]
        if self.sample:
            lines += [f"- sample.npz: {self.sample['correct']} of {self.sample['num_examples']} examples right"]
        intervals = "Intervals are 95 % Wilson score intervals, which take the examples as independent."
        said = [self.accuracy_note, intervals if self.accuracy else "Not measured here."]
        lines += ["", " ".join(filter(None, said))] if lines[-1] else [" ".join(filter(None, said))]
        if self.viewpoints:
            lines += ["", "## Viewpoints", "", self.viewpoints]
        lines += ["", "## Training", ""]
        lines += [f"    {self.regime}", ""] if self.regime else []
        lines += [f"- {name}: {value}" for name, value in self.training.items()]
        lines += ["", "## Licence", "", self.licence, "", "## Not for", "", self.not_for, ""]
        return "\n".join(lines)


def told_accuracy(found: Mapping[str, Any]) -> str:
    """An accuracy with its interval.

    Example:
        >>> told_accuracy({"accuracy": 0.5, "interval": [0.25, 0.75], "num_examples": 1200})
        '50.0 % (25.0 to 75.0) of 1,200 examples'
    """
    low, high = (100 * bound for bound in found["interval"])
    return f"{100 * found['accuracy']:.1f} % ({low:.1f} to {high:.1f}) of {found['num_examples']:,} examples"


def read_card(path: str | os.PathLike[str]) -> Card:
    """Reads a card.json.

    Raises:
        UserError: the file cannot be read, or is no card that this version knows.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("format") != FORMAT:
            raise UserError(f"{path}: was written by another version of caps_tf: use that version, or export again")
        if content.get("preprocessing"):
            read_preprocessing(content["preprocessing"])
        card = Card(**content)
        missing = {"name", "sha256", "bytes"} - set(card.file)
        if missing or "/" in card.file["name"] or "/" in card.name:
            raise ValueError("its file has no name, size or checksum")
        return card
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}: give a directory that python -m caps_tf.export wrote") from None
    except UserError:
        raise
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise UserError(f"{path}: is no card of a trained network ({error}): export the run again") from None


def read_preprocessing(fields: Mapping[str, Any]) -> Preprocessing:
    """The preprocessing that a card holds: JSON has lists where it has tuples.

    Example:
        >>> read_preprocessing({"resize": None, "crop": [24, 32]}).crop
        (24, 32)
    """
    read: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    return Preprocessing(**read)


def _size(file: Mapping[str, Any]) -> str:
    where = f" at {file['url']}" if file.get("url") else ""
    return f"{file['bytes'] / 1e6:.2f} MB{where}"
