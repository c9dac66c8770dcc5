"""Finds the record or the image that cannot be read, once reading has failed: the reader itself seldom names it."""

from collections.abc import Iterator
from pathlib import Path

import tensorflow as tf
import tensorflow_datasets as tfds

from caps_tf.data import records
from caps_tf.data.datasets import ImageDataset, SentenceDataset
from caps_tf.data.image_folder import image_paths


def find_damage(dataset: ImageDataset | SentenceDataset) -> str | None:
    """Reads a data set up to the first damage; says what is damaged, where, and what to do, or None if nothing is.

    Example:
        >>> find_damage(open_dataset("data/fashion_mnist"))  # doctest: +SKIP
        'data/fashion_mnist/fashion_mnist-train.tfrecord-00003-of-00016: record 17 is damaged: convert the set again'
    """
    complaints = _image_complaints(dataset) if isinstance(dataset.builder, tfds.ImageFolder) else _complaints(dataset)
    return next(complaints, None)


def _image_complaints(dataset: ImageDataset | SentenceDataset) -> Iterator[str]:
    decode = dataset.builder.info.features["image"].decode_example
    for path in image_paths(Path(dataset.builder.data_dir)):
        try:
            decode(path.read_bytes())
        except (OSError, tf.errors.OpError, ValueError) as error:
            yield f"{path}: cannot be decoded ({_reason(error)}): fix or remove it"


def _complaints(dataset: ImageDataset | SentenceDataset) -> Iterator[str]:
    for split in dataset.builder.info.splits.values():
        for path, length in zip(split.filepaths, split.shard_lengths, strict=True):
            count = 0
            try:
                for record in records.read_records(path):
                    if reason := _undecodable(record, dataset):
                        yield f"{path}: record {count} cannot be decoded ({reason}): convert or download the set again"
                    count += 1
            except OSError as error:
                yield f"{path}: cannot be read: {error.strerror or error}: convert or download the set again"
            except ValueError:
                yield f"{path}: record {count} is damaged: its checksum is wrong: convert or download the set again"
            if count < length:
                yield f"{path}: holds {count} records instead of {length}: convert or download the set again"


def _undecodable(record: bytes, dataset: ImageDataset | SentenceDataset) -> str | None:
    features = dataset.builder.info.features
    try:
        example = features.deserialize_example(record, decoders={name: tfds.decode.SkipDecoding() for name in features})
        for name in ("image", "image2"):
            if name in features:
                features[name].decode_example(example[name])
    except (tf.errors.OpError, ValueError, TypeError, KeyError) as error:
        return _reason(error)
    return None


def _reason(error: Exception) -> str:
    """The first line of what an error says, without the names of TensorFlow's operations."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    text = str(getattr(error, "message", error)).strip() or type(error).__name__
    return text.splitlines()[0].split("}} ")[-1].removesuffix(" [Op:DecodeImage]")
