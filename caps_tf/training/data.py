"""From parameters to data: what a run trains, validates and tests on."""

from collections.abc import Mapping
from typing import NamedTuple

import tensorflow as tf

from caps_tf.data.datasets import ImageDataset, open_dataset
from caps_tf.data.mixup import mixed_batches
from caps_tf.data.pipeline import evaluation_batches, num_examples, num_training_batches, training_batches
from caps_tf.data.preprocessing import AUGMENTATIONS, Preprocessing
from caps_tf.data.splits import Split, make_splits
from caps_tf.training.config import RunConfig, parse_size
from caps_tf.training.tester import TestPart
from caps_tf.training.trainer import TrainingData


class TestData(NamedTuple):
    """What a run is tested on.

    Attributes:
        input_shapes: shape of each feature that a network may read, by name.
        class_names: in the order of the labels.
        parts: "test", or "familiar" and "novel" viewpoints.
    """

    input_shapes: Mapping[str, tuple[int | None, ...]]
    class_names: tuple[str, ...]
    parts: dict[str, TestPart]


def make_training_data(config: RunConfig) -> TrainingData:
    """Opens the training and validation records of a run; the test records are never read.

    Raises:
        UserError: if the data are missing, or do not suit the parameters.
    """
    dataset, preprocessing, splits = _open(config)
    train, validation = splits["train"], splits.get("validation")

    input_shapes = {"image": preprocessing.input_shape(dataset)}
    num_classes = len(dataset.class_names)

    def training(epoch: int, skip_batches: int) -> tf.data.Dataset:
        place = {"epoch": epoch, "seed": config.seed, "skip_batches": skip_batches}
        batches = training_batches(train, preprocessing, config.batch_size, **place)
        if config.mixup:
            batches = mixed_batches(batches, tuple(input_shapes), num_classes, config.mixup, **place)
        return batches

    return TrainingData(
        input_shapes=input_shapes,
        num_classes=num_classes,
        steps_per_epoch=num_training_batches(train, preprocessing, config.batch_size),
        training=training,
        validation=validation and (lambda: evaluation_batches(validation, preprocessing, config.batch_size)),
    )


def make_test_data(config: RunConfig) -> TestData:
    """Opens the test records of a run.

    Raises:
        UserError: if the data are missing, or do not suit the parameters.
    """
    dataset, preprocessing, splits = _open(config)
    return TestData(
        input_shapes={"image": preprocessing.input_shape(dataset)},
        class_names=dataset.class_names,
        parts={
            name: TestPart(
                evaluation_batches(split, preprocessing, config.batch_size), num_examples(split, preprocessing)
            )
            for name, split in splits.items()
            if name not in ("train", "validation")
        },
    )


def _open(config: RunConfig) -> tuple[ImageDataset, Preprocessing, dict[str, Split]]:
    dataset = open_dataset(config.dataset, config.data_dir or None, config.storage)
    # NORB's published sizes are the default for NORB only; other images are taken as they are.
    crop = parse_size(config.image_size or ("32" if dataset.has_viewpoints else "0"), "image_size")
    halves = dataset.has_viewpoints and (crop is None or max(crop) <= 48)
    resize = parse_size(config.resize or ("48" if halves else "0"), "resize")
    augment = config.augment
    if augment == "auto":
        augment = "norb" if dataset.has_viewpoints and config.normalize != "none" else "crop"
    channel_mean, channel_std = config.channel_statistics()
    preprocessing = Preprocessing(
        resize=resize,
        pad=config.pad,
        pad_mode=config.pad_mode,
        crop=crop,
        normalize=config.normalize,
        channel_mean=channel_mean,
        channel_std=channel_std,
        views=config.views,
        **AUGMENTATIONS[augment],
    )
    splits = make_splits(dataset, config.val_prop, config.validation_instances(), config.viewpoints or None)
    return dataset, preprocessing, splits
