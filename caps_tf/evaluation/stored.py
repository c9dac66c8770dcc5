"""Predictions as a file, predictions.npz, from which a test can be read again and compared with another.

The archive holds no pickled objects. Its arrays:

    class_names            [classes] str, in the order of the scores
    <part>/scores          [n, classes] float
    <part>/label           [n] int, the true class
    <part>/label2          [n] int, the other true class, where two overlap
    <part>/loss            the mean over the part
    <part>/ids             [n] str, the record, by its row or position in the files
    <part>/fingerprints    [n] int, of the record's bytes: other images have others
    <part>/factors/<name>  [n] int: view, instance, elevation, azimuth, lighting, as far as they are known

Parts are "test", or "familiar" and "novel". Examples stand in the order in which they were tested.
"""

import io
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from caps_tf.errors import UserError
from caps_tf.evaluation.predictions import Predictions
from caps_tf.files import write_atomically

FILE = "predictions.npz"
_OPTIONAL = ("label2", "ids", "fingerprints")


def save_predictions(path: str | os.PathLike, parts: Mapping[str, Predictions]) -> Path:
    """Writes the predictions of a test atomically; poses are left out.

    Args:
        path: where to.
        parts: name -> predictions, of the same classes.

    Raises:
        UserError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> part = Predictions(np.eye(2, dtype=np.float32), np.array([0, 0]), 0.5, ("cat", "dog"))
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     load_predictions(save_predictions(f"{directory}/predictions.npz", {"test": part}))["test"].accuracy
        0.5
    """
    arrays: dict[str, np.ndarray] = {}
    for name, part in parts.items():
        known = {"scores": part.scores, "label": part.label, "loss": np.array(part.loss)}
        known |= {key: value for key in _OPTIONAL if (value := getattr(part, key)) is not None}
        known |= {f"factors/{factor}": values for factor, values in part.factors.items()}
        arrays["class_names"] = np.array(part.class_names)
        arrays |= {f"{name}/{key}": values for key, values in known.items()}
    packed = io.BytesIO()
    np.savez_compressed(packed, allow_pickle=False, **arrays)
    return write_atomically(path, packed.getvalue())


def load_predictions(path: str | os.PathLike) -> dict[str, Predictions]:
    """Reads what `save_predictions` wrote.

    Returns:
        part -> its predictions, without poses.

    Raises:
        UserError: the file cannot be read, or is damaged.
    """
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
        return {name: _part(name, arrays) for name in dict.fromkeys(key.split("/")[0] for key in arrays if "/" in key)}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file: test the checkpoint again") from None
    except (OSError, EOFError, ValueError, KeyError, IndexError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}): test the checkpoint again") from None


def _part(name: str, arrays: Mapping[str, np.ndarray]) -> Predictions:
    known = {key.removeprefix(f"{name}/"): values for key, values in arrays.items() if key.startswith(f"{name}/")}
    factors = {key.removeprefix("factors/"): values for key, values in known.items() if key.startswith("factors/")}
    return Predictions(
        scores=known["scores"],
        label=known["label"],
        loss=float(known["loss"]),
        class_names=tuple(arrays["class_names"].tolist()),
        factors=factors,
        **{key: known.get(key) for key in _OPTIONAL},
    )
