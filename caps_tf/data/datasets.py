"""Opens a data set of images or of sentences by name or path, through TensorFlow Datasets."""

import os
from dataclasses import dataclass
from pathlib import Path

import requests
import tensorflow_datasets as tfds

from caps_tf.data import conversion
from caps_tf.data.image_folder import inspect_folder
from caps_tf.data.viewpoints import DEGREES, STEPS
from caps_tf.errors import UserError
from caps_tf.scripts import how_to_call

PathLike = str | os.PathLike[str]

NORB_NAMES = ("smallNORB", "renderedNORB")
VIEWPOINT_FEATURES = ("instance", "label_elevation", "label_azimuth", "label_lighting")

_FETCH = {"smallNORB": "data/download.sh", "renderedNORB": "data/render_norb.py"}
"""The script of the repository that fetches or makes a data set."""


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """An image classification data set on disk.

    Attributes:
        name: as TensorFlow Datasets knows it; a folder's own name for an image folder.
        class_names: one per class, in the order of the labels.
        image_shape: (h, w, c) of one view; h and w are None where images differ in size.
        num_train, num_test: records; a stereo pair is one record.
        test_split: the split that `num_test` counts: "test", or "validation" in data sets whose test labels are
            secret (ImageNet, for one).
        has_stereo: whether a record holds two views, "image" and "image2".
        viewpoint_unit: None, or of the labels of elevation and azimuth where a record holds these, instance and
            lighting: "steps" as NORB counts them, or "degrees".
        record_bytes: average size of an undecoded record.
        builder: reads the records.
    """

    name: str
    class_names: tuple[str, ...]
    image_shape: tuple[int | None, int | None, int]
    num_train: int
    num_test: int
    test_split: str
    has_stereo: bool
    viewpoint_unit: str | None
    record_bytes: int
    builder: tfds.core.DatasetBuilder

    @property
    def has_viewpoints(self) -> bool:
        """Whether a record holds instance, elevation, azimuth and lighting."""
        return self.viewpoint_unit is not None


@dataclass(frozen=True, eq=False)
class SentenceDataset:
    """A classification data set of sentences, kept as the embeddings of their tokens.

    Attributes:
        name: as TensorFlow Datasets knows it.
        class_names: one per class, in the order of the labels.
        depth, width: embeddings per token, one for each layer of the encoder, and numbers in each.
        num_train, num_validation, num_test: records; there may be no validation split.
        record_bytes: average size of an undecoded record.
        builder: reads the records.
    """

    name: str
    class_names: tuple[str, ...]
    depth: int
    width: int
    num_train: int
    num_validation: int
    num_test: int
    record_bytes: int
    builder: tfds.core.DatasetBuilder


def open_dataset(
    name: str, data_dir: PathLike | None = None, storage: PathLike = "."
) -> ImageDataset | SentenceDataset:
    """Opens a data set, and downloads it if TensorFlow Datasets can.

    Args:
        name: one of
            - smallNORB or renderedNORB, converted by data/convert_to_tfrecord.py;
            - a directory that TensorFlow Datasets wrote (it holds dataset_info.json), such as those of our converters;
            - an image folder: train/<class>/*.png and test/<class>/*.png, or .jpg. If any image is in colour, all are
              read as colour;
            - a name of TensorFlow Datasets' catalogue, such as cifar10.
        data_dir: where the data is, instead of <storage>/data/<name>, or <storage>/data/tfds for the catalogue.
        storage: directory that holds data/.

    Raises:
        UserError: there is no such data set, it is not here (or only half) and cannot be fetched, or it is not one of
            labelled images or embedded sentences with a training and a test split.

    Example:
        >>> open_dataset("smallNORB").image_shape  # doctest: +SKIP
        (96, 96, 1)
    """
    if name in NORB_NAMES:
        return _open_norb(name, Path(data_dir or Path(storage, "data", name)))
    path = Path(name)
    if path.is_dir():
        if (path / "dataset_info.json").is_file():
            return _describe(_open_directory(path, "convert it again"))
        if (path / "train").is_dir():
            return _open_image_folder(path)
        raise UserError(f"{path}: holds neither dataset_info.json (TensorFlow Datasets) nor train/<class>/*.png")
    return _describe(_open_catalogue(name, Path(data_dir or Path(storage, "data", "tfds"))))


def _open_norb(name: str, directory: Path) -> ImageDataset | SentenceDataset:
    converted = directory / "tfrecord"
    convert = f"{how_to_call('data/convert_to_tfrecord.py')} --dataset={name}"
    if (converted / "dataset_info.json").is_file():
        return _describe(_open_directory(converted, f"run {convert}"))
    if converted.is_dir():
        raise UserError(
            f"{converted}: the conversion was interrupted: run {convert} again, it goes on where it stopped"
        )
    if any(directory.glob("*-dat.mat*")):
        raise UserError(f"{directory}: holds no TFRecords yet: run {convert}")
    raise UserError(f"{directory}: holds no data: run {how_to_call(_FETCH[name])}, then {convert}")


def _open_directory(directory: Path, remedy: str) -> tfds.core.DatasetBuilder:
    try:
        builder = tfds.builder_from_directory(directory)
        shards = {split.name: [Path(path) for path in split.filepaths] for split in builder.info.splits.values()}
    except Exception as error:  # the files pass through several parsers, each with its own errors
        raise UserError(f"{directory}: damaged metadata ({error}): {remedy}") from error
    for split, paths in shards.items():
        for path in paths:
            if not path.is_file():
                raise UserError(f"{path}: no such file: {remedy}")
        size, expected = sum(path.stat().st_size for path in paths), builder.info.splits[split].num_bytes
        # Others' metadata may count bytes in another way.
        if size != expected and (directory / conversion.MANIFEST).exists():
            raise UserError(f"{directory}: the {split} shards have {size} bytes instead of {expected}: {remedy}")
    return builder


def _open_catalogue(name: str, data_dir: Path) -> tfds.core.DatasetBuilder:
    accepted = f"{', '.join(NORB_NAMES)}, a directory, or a name from https://www.tensorflow.org/datasets/catalog"
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, ValueError):
        raise UserError(f"unknown data set {name!r}: give {accepted}") from None
    if not builder.is_prepared():
        _download(builder, data_dir)
    return builder


def _download(builder: tfds.core.DatasetBuilder, data_dir: Path) -> None:
    for url in list(builder.url_infos)[:1]:
        try:  # TensorFlow Datasets would try for minutes, with pages of warnings
            requests.head(url, timeout=10)
        except requests.ReadTimeout:
            pass
        except requests.ConnectionError:
            raise UserError(
                f"{builder.name}: is not in {data_dir}, and {url} cannot be reached: check the network, "
                "or copy there what TensorFlow Datasets prepared on another machine"
            ) from None
    try:
        builder.download_and_prepare()
    except Exception as error:  # there are as many ways to fail as there are servers and archive formats
        raise UserError(
            f"{builder.name}: could not be prepared in {data_dir} ({type(error).__name__}: {error})"
        ) from error


def _open_image_folder(directory: Path) -> ImageDataset | SentenceDataset:
    contents = inspect_folder(directory)
    builder = tfds.ImageFolder(os.fspath(directory), shape=contents.shape)
    record_bytes = contents.num_bytes // len(contents.paths)
    return _describe(builder, name=directory.resolve().name, record_bytes=record_bytes)


def _describe(
    builder: tfds.core.DatasetBuilder, name: str | None = None, record_bytes: int | None = None
) -> ImageDataset | SentenceDataset:
    info, name = builder.info, name or builder.info.name
    of_sentences = "embedding" in info.features
    try:
        _, label_key = info.supervised_keys
        class_names = tuple(info.features[label_key].names)
        first, second, third = info.features["embedding" if of_sentences else "image"].shape
    except (TypeError, ValueError, AttributeError, KeyError):
        raise UserError(f"{name}: is not a data set of labelled images or embedded sentences") from None
    test_split = "test" if of_sentences or "test" in info.splits else "validation"
    for split in ("train", test_split):
        if split not in info.splits or not info.splits[split].num_examples:
            raise UserError(f"{name}: has no {split} split (it has {', '.join(info.splits) or 'none'})")
    train, num_test = info.splits["train"], info.splits[test_split].num_examples
    record_bytes = record_bytes or int(train.num_bytes) // train.num_examples
    if of_sentences:
        return SentenceDataset(
            name=name,
            class_names=class_names,
            depth=second,
            width=third,
            num_train=train.num_examples,
            num_validation=info.splits["validation"].num_examples if "validation" in info.splits else 0,
            num_test=num_test,
            record_bytes=record_bytes,
            builder=builder,
        )
    return ImageDataset(
        name=name,
        class_names=class_names,
        image_shape=(first, second, third),
        num_train=train.num_examples,
        num_test=num_test,
        test_split=test_split,
        has_stereo="image2" in info.features,
        viewpoint_unit=_viewpoint_unit(info.features),
        record_bytes=record_bytes,
        builder=builder,
    )


def _viewpoint_unit(features: tfds.features.FeaturesDict) -> str | None:
    """Features that describe themselves as degrees are; NORB's say nothing."""
    if any(key not in features for key in VIEWPOINT_FEATURES):
        return None
    return DEGREES if features["label_azimuth"].doc.desc == DEGREES else STEPS
