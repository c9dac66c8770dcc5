"""From parameters to data: what a run trains, validates and tests on."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from caps_tf.data import sentences
from caps_tf.data.damage import find_damage
from caps_tf.data.datasets import ImageDataset, SentenceDataset, open_dataset
from caps_tf.data.images import evaluation_batches, num_examples, training_batches
from caps_tf.data.mixup import mixed_batches
from caps_tf.data.preprocessing import Preprocessing
from caps_tf.data.splits import Split, make_sentence_splits, make_splits
from caps_tf.data.viewpoints import STEPS
from caps_tf.errors import UserError
from caps_tf.training.config import RunConfig
from caps_tf.training.factories import make_preprocessing


class TrainingData(NamedTuple):
    """What a run learns from.

    Attributes:
        input_shapes: shape of each feature that a network may read, by name, such as "image": (32, 32, 2).
        num_classes: number of classes.
        steps_per_epoch: whole batches in an epoch.
        training: batches of an epoch from some batch on, a pure function of (epoch, skipped batches).
        validation: batches to validate on, or None.
        find_damage: reads all the data and names what cannot be read, or returns None.
    """

    input_shapes: Mapping[str, tuple[int | None, ...]]
    num_classes: int
    steps_per_epoch: int
    training: Callable[[int, int], tf.data.Dataset]
    validation: Callable[[], tf.data.Dataset] | None
    find_damage: Callable[[], str | None] = lambda: None


class TestPart(NamedTuple):
    """Test examples that are reported together.

    Attributes:
        batches: dictionaries of what the network reads, "label", "weight", "id" and any factors, such as "azimuth";
            where two classes overlap, "label2" and "target" too.
        num_examples: how many there are, padding left out.
    """

    batches: tf.data.Dataset
    num_examples: int


class TestData(NamedTuple):
    """What a run is tested on.

    Attributes:
        input_shapes: shape of each feature that a network may read, by name.
        class_names: in the order of the labels.
        num_training: examples that the run trains on.
        parts: "test", or "familiar" and "novel" viewpoints or images.
        find_damage: names what cannot be read, or None.
    """

    input_shapes: Mapping[str, tuple[int | None, ...]]
    class_names: tuple[str, ...]
    num_training: int
    parts: dict[str, TestPart]
    find_damage: Callable[[], str | None]


def make_training_data(config: RunConfig) -> TrainingData:
    """Opens the training and validation records of a run; the test records are never read.

    Raises:
        UserError: if the data are missing, or do not suit the parameters.
    """
    source = _open(config)
    train, validation = source.splits["train"], source.splits.get("validation")
    num_classes = len(train.dataset.class_names)

    def training(epoch: int, skip_batches: int) -> tf.data.Dataset:
        place = {"epoch": epoch, "seed": config.seed, "skip_batches": skip_batches}
        batches = source.training(train, **place)
        if config.mixup:
            batches = mixed_batches(batches, tuple(source.input_shapes), num_classes, config.mixup, **place)
        return batches

    return TrainingData(
        input_shapes=source.input_shapes,
        num_classes=num_classes,
        steps_per_epoch=source.num_examples(train) // config.batch_size,
        training=training,
        validation=None if validation is None else functools.partial(source.evaluation, validation),
        find_damage=functools.partial(find_damage, train.dataset),
    )


def make_test_data(config: RunConfig, whole: bool = False) -> TestData:
    """Opens the test records of a run.

    Args:
        config: the run's parameters.
        whole: whether images are as they are before the crop, and pixels from 0 to 1.

    Raises:
        UserError: if the data are missing, or do not suit the parameters.
    """
    source = _open(config, whole)
    train = source.splits["train"]
    return TestData(
        input_shapes=source.input_shapes,
        class_names=train.dataset.class_names,
        num_training=source.num_examples(train),
        parts={
            name: TestPart(source.evaluation(split), source.num_examples(split))
            for name, split in source.splits.items()
            if name not in ("train", "validation")
        },
        find_damage=functools.partial(find_damage, train.dataset),
    )


def image_preprocessing(config: RunConfig) -> Preprocessing:
    """What is done to the images of a run.

    Raises:
        UserError: if the data are missing, or are sentences.
    """
    dataset = open_dataset(config.dataset, config.data_dir or None, config.storage)
    if isinstance(dataset, SentenceDataset):
        raise UserError(f"{dataset.name}: holds sentences, no images")
    return make_preprocessing(config, dataset.viewpoint_unit == STEPS)


class _Source(NamedTuple):
    """A data set as a run reads it.

    Attributes:
        input_shapes: shape of each feature that a network may read, by name.
        splits: by name.
        num_examples: of a split.
        training: batches of a split, by epoch, seed and skip_batches.
        evaluation: batches of a split.
    """

    input_shapes: Mapping[str, tuple[int | None, ...]]
    splits: dict[str, Split]
    num_examples: Callable[[Split], int]
    training: Callable[..., tf.data.Dataset]
    evaluation: Callable[[Split], tf.data.Dataset]


def _open(config: RunConfig, whole: bool = False) -> _Source:
    dataset = open_dataset(config.dataset, config.data_dir or None, config.storage)
    return _sentences(config, dataset) if isinstance(dataset, SentenceDataset) else _images(config, dataset, whole)


def _sentences(config: RunConfig, dataset: SentenceDataset) -> _Source:
    if config.viewpoints or config.val_instances:
        raise UserError(
            f"{dataset.name}: sentences have neither toys nor viewpoints: drop --viewpoints, --val_instances"
        )
    if config.protocol:
        raise UserError(
            f"{dataset.name}: holds sentences, and protocol={config.protocol} is for images: drop --protocol"
        )
    return _Source(
        input_shapes=sentences.input_shapes(dataset),
        splits=make_sentence_splits(dataset, config.val_prop),
        num_examples=lambda split: split.num_records,
        training=functools.partial(sentences.training_sentences, batch_size=config.batch_size),
        evaluation=functools.partial(sentences.evaluation_sentences, batch_size=config.batch_size),
    )


def _images(config: RunConfig, dataset: ImageDataset, whole: bool) -> _Source:
    preprocessing = make_preprocessing(config, dataset.viewpoint_unit == STEPS)
    if whole:
        preprocessing = dataclasses.replace(preprocessing, crop=None, normalize="none")
    batches: dict[str, Any] = {"preprocessing": preprocessing, "batch_size": config.batch_size}
    input_shape = preprocessing.input_shape(dataset)
    splits = make_splits(dataset, config.val_prop, config.validation_instances(), config.viewpoints)
    if config.protocol == "affine":
        test = splits.pop("test")
        splits |= {name: dataclasses.replace(test, name=name) for name in ("familiar", "novel")}
    if config.protocol == "overlap" and len(dataset.class_names) < 3:
        raise UserError(f"{dataset.name}: protocol=overlap asks which two of at least three classes an image shows")
    return _Source(
        input_shapes={"image": input_shape},
        splits=splits,
        num_examples=functools.partial(num_examples, preprocessing=preprocessing),
        training=functools.partial(training_batches, **batches),
        evaluation=functools.partial(evaluation_batches, **batches),
    )
