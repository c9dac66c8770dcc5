"""What augmentations draw: from keys of their own, so that a run goes on with what it would have drawn."""

import numpy as np
import pytest
import tensorflow as tf

from caps_tf.data import augmentation
from caps_tf.data.augmentation import augment, draw_key
from caps_tf.data.preprocessing import AUGMENTATIONS, Preprocessing

IMAGE = np.arange(6 * 5 * 3, dtype=np.float32).reshape(6, 5, 3) * 2


def augmented(name, seed):
    preprocessing = Preprocessing(resize=None, crop=(3, 3), pad=1, normalize="none", **AUGMENTATIONS[name])
    return augment(tf.constant(IMAGE), tf.constant([seed, 7]), preprocessing).numpy()


@pytest.mark.parametrize(
    "name, seed, corner, middle",
    [
        ("norb", 1, [-0.92, -0.9121, -0.9043], [-0.6954, -0.6875, -0.6797]),
        ("norb", 2, [-1.279, -1.2711, -1.2633], [-0.9015, -0.8936, -0.8858]),
        ("crop_flip", 1, [0.4471, 0.4549, 0.4627], [0.6588, 0.6667, 0.6745]),
        ("crop_flip", 2, [0.0471, 0.0549, 0.0627], [0.2588, 0.2667, 0.2745]),
    ],
)
def test_an_image_is_augmented_as_it_was_in_earlier_versions(name, seed, corner, middle):
    view = augmented(name, seed)
    assert view.shape == (3, 3, 3)
    np.testing.assert_allclose(view[0, 0], corner, atol=6e-5)
    np.testing.assert_allclose(view[2, 1], middle, atol=6e-5)


@pytest.mark.parametrize("where", ["SHAPES", "LIGHT"])
def test_another_augmentation_leaves_the_draws_of_the_others_as_they_were(where, monkeypatch):
    before = {name: augmented(name, 3) for name in ("norb", "crop_flip")}
    drawn = []

    def rotate(view, key, preprocessing):
        drawn.append(key.numpy().tolist())
        return view

    monkeypatch.setattr(augmentation, where, (rotate, *getattr(augmentation, where)))
    for name, view in before.items():
        np.testing.assert_array_equal(augmented(name, 3), view)
    assert drawn[0] == drawn[1]


def test_draws_of_other_names_or_images_have_other_keys():
    names = ("crop", "brightness", "contrast", "flip", "rotate", "zoom")
    keys = {tuple(draw_key(tf.constant([seed, 7]), name).numpy().tolist()) for name in names for seed in range(4)}
    assert len(keys) == 4 * len(names)
