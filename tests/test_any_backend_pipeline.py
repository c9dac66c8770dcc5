"""What the loop for any backend does to images and to data sets is what tf.data does for train_val.py."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from caps_tf.any_backend.augmentation import change_light, prepare, resize
from caps_tf.any_backend.data import arrange, read_images
from caps_tf.data import augmentation
from caps_tf.data.datasets import open_dataset
from caps_tf.data.images import evaluation_batches, num_examples
from caps_tf.data.preprocessing import AUGMENTATIONS, Preprocessing
from caps_tf.data.splits import make_splits
from caps_tf.training.config import RunConfig
from tests.coloured_folder import write_coloured_folder
from tests.compiling import IN_CAMPAIGN


def as_evaluated(dataset, preprocessing):
    """Images and labels of the test records, in the order of their ids and views."""
    batches = list(evaluation_batches(make_splits(dataset)["test"], preprocessing, batch_size=50).as_numpy_iterator())
    known = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    real = known["weight"] > 0
    order = np.lexsort((known.get("view", known["id"])[real], known["id"][real]))
    return known["image"][real][order], known["label"][real][order]


def as_prepared(directory, preprocessing):
    examples = arrange(read_images(directory), RunConfig(), preprocessing)
    numbers = examples.parts["test"]
    images = prepare(examples.images[numbers], preprocessing)
    return keras.ops.convert_to_numpy(images), examples.labels[numbers]


@pytest.mark.parametrize(
    "views", ["both", "stereo", *(pytest.param(each, marks=IN_CAMPAIGN) for each in ("left", "right"))]
)
@pytest.mark.parametrize(
    "size",
    [
        {"resize": (12, 12), "crop": (9, 8)},
        {"resize": (17, 11), "crop": None, "normalize": "none"},
        {"resize": (30, 40), "crop": (29, 40), "normalize": "channel", "channel_mean": (0.5,), "channel_std": (0.2,)},
        {"resize": None, "crop": (21, 24)},
    ],
)
def test_norb_is_evaluated_on_the_same_numbers(storage, views, size):
    preprocessing = Preprocessing(views=views, **size)
    expected, labels = as_evaluated(open_dataset("smallNORB", storage=storage), preprocessing)
    found, found_labels = as_prepared(storage / "data" / "smallNORB", preprocessing)
    np.testing.assert_array_equal(found_labels, labels)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


def test_a_folder_of_colour_images_is_evaluated_on_the_same_numbers(tmp_path):
    write_coloured_folder(tmp_path / "coloured")
    preprocessing = Preprocessing(resize=None, crop=(18, 16), normalize="channel")
    expected, labels = as_evaluated(open_dataset(str(tmp_path / "coloured")), preprocessing)
    found, found_labels = as_prepared(tmp_path / "coloured", preprocessing)
    # The folder's own order differs between the two: compare as sets.
    order, found_order = (np.lexsort(images.reshape(len(images), -1).T) for images in (expected, found))
    np.testing.assert_array_equal(found_labels[found_order], labels[order])
    np.testing.assert_allclose(found[found_order], expected[order], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(24, 24), (48, 40), (31, 29), (20, 50), (64, 61)])
def test_images_are_resized_as_tensorflow_resizes_them(size):
    image = np.random.default_rng(0).integers(256, size=(40, 48, 3), dtype="uint8")
    shrinks = size[0] <= 40 and size[1] <= 48
    method = tf.image.ResizeMethod.AREA if shrinks else tf.image.ResizeMethod.BILINEAR
    expected = tf.image.resize(image, size, method=method, antialias=True).numpy()
    found = keras.ops.convert_to_numpy(resize(keras.ops.cast(image[None], "float32"), size))[0]
    np.testing.assert_allclose(found, expected, atol=2e-3)  # of 255


def test_light_is_changed_by_the_formulas_of_tensorflow():
    image = np.random.default_rng(0).normal(size=(5, 6, 2)).astype("float32")
    expected = tf.image.adjust_contrast(tf.image.adjust_brightness(image, 0.7), 1.2)
    draws = np.array([[(0.7 / 2.0 + 1) / 2], [1.2 - 0.5]], "float32")
    found = change_light(image[None], Preprocessing(), *draws)
    np.testing.assert_allclose(np.asarray(found)[0], expected, atol=1e-5)


def test_draws_have_the_range_that_tensorflow_draws_from():
    preprocessing = Preprocessing(
        resize=None, crop=(1, 1), pad=1, pad_mode="zero", normalize="none", **AUGMENTATIONS["crop"]
    )
    image = np.arange(1, 10, dtype="float32").reshape(3, 3, 1)
    keys = [tf.constant([seed, 0]) for seed in range(400)]
    expected = {float(augmentation.augment(tf.constant(image), key, preprocessing)[0, 0, 0]) for key in keys}
    draws = np.random.default_rng(0).random((400, 5), "float32")
    found = prepare(np.repeat(image[None], 400, axis=0).astype("uint8"), preprocessing, draws)
    assert set(np.asarray(found).reshape(-1).tolist()) == expected and len(expected) == 10


@pytest.mark.parametrize("options", [{}, {"val_instances": "9"}, {"viewpoints": "azimuth"}, {"views": "left"}])
def test_parts_have_the_sizes_of_the_splits(storage, options):
    config = RunConfig(**options)
    preprocessing = Preprocessing(views=config.views)
    dataset = open_dataset("smallNORB", storage=storage)
    splits = make_splits(dataset, config.val_prop, config.validation_instances(), config.viewpoints)
    parts = arrange(read_images(storage / "data" / "smallNORB"), config, preprocessing).parts
    expected = {name: num_examples(split, preprocessing) for name, split in splits.items()}
    assert {name: len(numbers) for name, numbers in parts.items()} == expected
