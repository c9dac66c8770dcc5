"""Trained networks by name: a directory each, here or wherever `python -m caps_tf.export` wrote one.

    model.keras    the network, from pixels 0 to 255 to scores; or the card says from where it is fetched
    card.json      what it is, for programs: `caps_tf.weights.card`
    card.md        the same for people
    sample.npz     a few test examples, with their labels and the scores that the network gave them

`caps_tf.models.from_preset` makes a Keras model of one.
"""

import difflib
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from caps_tf.errors import UserError
from caps_tf.weights.card import CARD, Card, read_card
from caps_tf.weights.fetching import fetch, sha256_of

__all__ = ["Card", "find_weights", "list_weights", "load_card", "load_sample", "model_file"]

DIRECTORY = Path(__file__).parent
SAMPLE = "sample.npz"


def list_weights() -> list[str]:
    """Names of the trained networks that the package knows.

    Example:
        >>> "heinsen2019_smallnorb" in list_weights()
        True
    """
    return sorted(path.parent.name for path in DIRECTORY.glob(f"*/{CARD}"))


def find_weights(source: str | os.PathLike[str]) -> Path:
    """The directory of a trained network.

    Args:
        source: its name, or a directory that `python -m caps_tf.export` wrote.

    Raises:
        UserError: there is none, with the nearest names.

    Example:
        >>> find_weights("heinsen2019_smallnorb").name
        'heinsen2019_smallnorb'
    """
    names = list_weights()
    if source in names:
        return DIRECTORY / source
    if (Path(source) / CARD).is_file():
        return Path(source)
    nearest = difflib.get_close_matches(str(source), names, cutoff=0.4)
    hint = f"the nearest are {', '.join(nearest)}" if nearest else f"there are {', '.join(names)}"
    raise UserError(
        f"no trained network is called {str(source)!r}: {hint}; or give a directory that python -m caps_tf.export wrote"
    )


def load_card(source: str | os.PathLike[str]) -> Card:
    """The card of a trained network, see `find_weights`.

    Example:
        >>> load_card("heinsen2019_smallnorb").network
        'heinsen_norb'
    """
    return read_card(find_weights(source) / CARD)


def load_sample(source: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The sample of a trained network: what it reads, by name ("image" uint8 [n, h, w, c]), "label" [n] and "scores";
    "label2" of pairs of classes.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = find_weights(source) / SAMPLE
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: cannot be read ({error}): export the run again") from None


def model_file(source: str | os.PathLike[str]) -> Path:
    """The file with the weights of a trained network, fetched into the cache if it is not beside its card.

    Raises:
        UserError: it is damaged, or cannot be fetched.
    """
    directory, card = find_weights(source), load_card(source)
    beside = directory / card.file["name"]
    if beside.is_file():
        if sha256_of(beside) != card.file["sha256"]:
            raise UserError(f"{beside}: is not the file that its card describes: export the run again")
        return beside
    if not card.file.get("url"):
        raise UserError(f"{beside}: no such file: export the run again")
    return fetch(card.file["url"], card.name, card.file["bytes"], card.file["sha256"])


def inputs_of(sample: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What of a sample the network reads."""
    return {name: values for name, values in sample.items() if name not in ("label", "label2", "scores")}
