"""From parameters to data: what a run trains, validates and tests on."""

from collections.abc import Mapping
from typing import NamedTuple

from caps_tf.data.datasets import ImageDataset, open_dataset
from caps_tf.data.pipeline import (
    Preprocessing,
    evaluation_batches,
    num_examples,
    num_training_batches,
    training_batches,
)
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

    def training(epoch: int, skip_batches: int):
        return training_batches(
            train, preprocessing, config.batch_size, epoch=epoch, seed=config.seed, skip_batches=skip_batches
        )

    return TrainingData(
        input_shapes={"image": preprocessing.input_shape(dataset)},
        num_classes=len(dataset.class_names),
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
    resize = parse_size(config.resize or ("48" if dataset.has_viewpoints else "0"), "resize")
    crop = parse_size(config.image_size or ("32" if dataset.has_viewpoints else "0"), "image_size")
    augments = dataset.has_viewpoints if config.augment == "auto" else config.augment == "norb"
    preprocessing = Preprocessing(resize=resize, crop=crop, views=config.views)
    if not augments:
        preprocessing = Preprocessing(
            resize=resize, crop=crop, views=config.views, max_brightness_delta=0.0, contrast=(1.0, 1.0)
        )
    splits = make_splits(dataset, config.val_prop, config.validation_instances(), config.viewpoints or None)
    return dataset, preprocessing, splits
