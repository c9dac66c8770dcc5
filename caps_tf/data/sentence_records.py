"""Labelled sentences as records of token embeddings.

    embedding   [tokens, depth, width] float16: each token at every layer of an encoder, the end-of-text token last
    label       the class
    text        the sentence
    id          "train_00042": the line in the text file, counted from 0

Half precision halves the files; its rounding, 0.05 % of a number, is far below what separates two tokens.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import numpy as np
import tensorflow_datasets as tfds

from caps_tf.data.conversion import Schema, convert
from caps_tf.data.text_encoders import TextEncoder
from caps_tf.errors import UserError

_OVERHEAD = 512  # bytes a record, at most, beside its embeddings and its text
_WINDOW = 128  # sentences encoded at a time, which bounds the memory
_BATCH = 32


def read_labelled_text(path: str | os.PathLike[str]) -> tuple[list[str], list[str]]:
    """Reads a text file (UTF-8) of labelled sentences, "label text" a line; blank lines are left out.

    Returns:
        Labels and texts, one of each per sentence.

    Raises:
        UserError: the file cannot be read, holds no sentence, or a line has no text.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile("w+") as file:
        ...     _ = file.write("1 a joy from start to finish\\n0 dull\\n")
        ...     file.flush()
        ...     read_labelled_text(file.name)
        (['1', '0'], ['a joy from start to finish', 'dull'])
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8: convert the file (iconv -t utf-8)") from None
    labels, texts = [], []
    for number, line in enumerate(lines, start=1):
        match line.split(maxsplit=1):
            case [label, text]:
                labels.append(label)
                texts.append(text.strip())
            case [_]:
                raise UserError(f'{path}: line {number} has no text: expected "label text" on every line')
    if not texts:
        raise UserError(f'{path}: holds no sentences: expected "label text" on every line')
    return labels, texts


@dataclass(frozen=True, eq=False)
class SentenceRecords:
    """Sentences as records (a `conversion.RecordSource`).

    Attributes:
        texts: the sentences.
        labels: [n] int, their classes.
        tokens: of each sentence, as the encoder wants them.
        encoder: makes the embeddings.
        split: "train", "validation" or "test", for the ids.
    """

    texts: Sequence[str]
    labels: Sequence[int]
    tokens: Sequence[Sequence[int]]
    encoder: TextEncoder
    split: str

    @classmethod
    def read(
        cls, path: str | os.PathLike[str], split: str, class_labels: Sequence[str], encoder: TextEncoder
    ) -> "SentenceRecords":
        """Reads a text file.

        Args:
            path: see `read_labelled_text`.
            split: "train", "validation" or "test".
            class_labels: the labels in the order of the classes.
            encoder: makes the embeddings.

        Raises:
            UserError: the file cannot be read, or has a label that is not among `class_labels`.
        """
        labels, texts = read_labelled_text(path)
        unknown = sorted(set(labels) - set(class_labels))
        if unknown:
            raise UserError(
                f"{path}: label {unknown[0]!r} is not one of the training file's, {', '.join(class_labels)}"
            )
        return cls(texts, [class_labels.index(label) for label in labels], encoder.tokenize(texts), encoder, split)

    def __len__(self) -> int:
        return len(self.texts)

    def examples(self, rows: Sequence[int]) -> Iterator[dict[str, bytes | str | int]]:
        """The features of the sentences at `rows`, encoded in batches of about equal length."""
        for start in range(0, len(rows), _WINDOW):
            window = rows[start : start + _WINDOW]
            by_length = sorted(window, key=lambda row: len(self.tokens[row]))
            embeddings: dict[int, np.ndarray] = {}
            for first in range(0, len(window), _BATCH):
                batch = by_length[first : first + _BATCH]
                embeddings.update(zip(batch, self.encoder.embed([self.tokens[row] for row in batch]), strict=True))
            for row in window:
                yield {
                    "embedding": self._half(embeddings.pop(row), row).tobytes(),
                    "label": self.labels[row],
                    "text": self.texts[row],
                    "id": f"{self.split}_{row:05d}",
                }

    def _half(self, embedding: np.ndarray, row: int) -> np.ndarray:
        with np.errstate(over="ignore"):
            half = embedding.astype(np.float16)
        if not np.isfinite(half).all():
            raise UserError(
                f"sentence {row} of {self.split} has embeddings up to {np.abs(embedding).max():.3g}, which half "
                "precision cannot hold: use another encoder"
            )
        return half

    def fingerprint(self) -> str:
        """A checksum of sentences, labels and encoder."""
        text = "\n".join(f"{label} {text}" for label, text in zip(self.labels, self.texts, strict=True))
        return f"{len(self)} {google_crc32c.value(text.encode()):08x} {self.encoder.fingerprint()}"

    def max_bytes(self) -> int:
        """Space for embeddings and text."""
        token_bytes = 2 * self.encoder.depth * self.encoder.width
        text_bytes = sum(len(text.encode()) for text in self.texts)
        return sum(map(len, self.tokens)) * token_bytes + text_bytes + len(self) * _OVERHEAD


def sentence_schema(name: str, depth: int, width: int, class_names: Sequence[str]) -> Schema:
    """The schema of a set of sentences.

    Args:
        name: a lower-case identifier.
        depth, width: of the encoder's embeddings.
        class_names: in the order of the labels.

    Example:
        >>> sentence_schema("sst2", 1, 256, ("negative", "positive")).features["embedding"].shape
        (None, 1, 256)
    """
    features = tfds.features.FeaturesDict(
        {
            "embedding": tfds.features.Tensor(
                shape=(None, depth, width), dtype=np.float16, encoding=tfds.features.Encoding.BYTES
            ),
            "label": tfds.features.ClassLabel(names=class_names),
            "text": tfds.features.Text(),
            "id": tfds.features.Text(),
        }
    )
    return Schema(
        name=name,
        version="1.0.0",
        features=features,
        supervised_keys=("embedding", "label"),
        description=f"Sentences of {len(class_names)} classes as the embeddings of their tokens at {depth} layers.",
    )


def convert_text(
    directory: str | os.PathLike[str],
    files: Mapping[str, str | os.PathLike[str]],
    encoder: TextEncoder,
    class_names: Sequence[str] | None = None,
    *,
    num_shards: int = 16,
    seed: int = 0,
    overwrite: bool = False,
) -> tuple[dict[str, SentenceRecords], int]:
    """Writes text files as a directory that `datasets.open_dataset` opens; see `conversion.convert`.

    Args:
        directory: where to write; its name becomes the data set's.
        files: text file of "train", "test" and, if there is one, "validation"; see `read_labelled_text`.
        encoder: makes the embeddings.
        class_names: in the order of the sorted labels of the training file; by default these labels.
        num_shards, seed, overwrite: see `conversion.convert`.

    Returns:
        The records of each split, and the number of shards written.

    Raises:
        UserError: a file cannot be read, the labels or class names do not fit, or the directory cannot be written.
    """
    class_labels = sorted(set(read_labelled_text(files["train"])[0]))
    class_names = class_names or class_labels
    if len(class_labels) < 2 or len(class_names) != len(class_labels):
        raise UserError(
            f"{files['train']}: has {len(class_labels)} classes ({', '.join(class_labels[:10])}), and "
            f"{len(class_names)} names are given: two or more are needed, one name each (`class_names`)"
        )
    splits = {split: SentenceRecords.read(path, split, class_labels, encoder) for split, path in files.items()}
    name = re.sub(r"\W+", "_", Path(directory).resolve().name).lower()
    schema = sentence_schema(name, encoder.depth, encoder.width, class_names)
    # One thread: an encoder uses all cores by itself.
    return splits, convert(
        directory, schema, splits, num_shards=num_shards, seed=seed, num_threads=1, overwrite=overwrite
    )
