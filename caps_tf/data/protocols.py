"""Protocols that make other images of a data set's, on the fly: affine generalisation, and pairs that overlap.

S. Sabour, N. Frosst, G. E. Hinton, "Dynamic Routing Between Capsules" (NeurIPS 2017), sections 5.2 and 6.
docs/PROTOCOLS.md has what is drawn, the commands and the published figures.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from caps_tf.data.augmentation import draw_key
from caps_tf.data.canvas import overlay, place_anywhere, transform_anywhere
from caps_tf.errors import UserError

Example = dict[str, tf.Tensor]
"""What is known of one example, by name: "image" float32 [h, w, c] from 0 to 255, "label" int32, ..."""
Stage = Callable[[Example, tf.Tensor], Example]
"""What a protocol makes of an example, as a function of the example's own key, int32 [2]."""

_EVALUATION = (2017, 1710)
"""What examples that are never trained on have their keys from: they are the same in every run."""


def evaluation_key(example: Example) -> tf.Tensor:
    """The key of an example that is not trained on: a function of its id, so that neither run nor batch matters."""
    return tf.random.fold_in(_EVALUATION, example["id"])


def unchanged(example: Example, key: tf.Tensor) -> Example:
    """No protocol."""
    return example


def affine_stage(size: tuple[int, int], novel: bool) -> Stage:
    """Places images anywhere on a canvas; novel ones are also turned, sheared and stretched as affNIST's are.

    Example:
        >>> example = {"image": tf.ones((28, 28, 1)), "label": tf.constant(3)}
        >>> affine_stage((40, 40), novel=True)(example, tf.constant([0, 1]))["image"].shape
        TensorShape([40, 40, 1])
    """
    name, change = ("affine", transform_anywhere) if novel else ("place", place_anywhere)
    return lambda example, key: example | {"image": change(example["image"], draw_key(key, name), size)}


class Partners:
    """The undecoded images of a split by class, of which one of another class is drawn for each example.

    Args:
        examples: all of the split, with "image", "label" and "id"; read once and kept in memory.
        name: of the split, for errors.

    Raises:
        UserError: all of them are of one class.

    Example:
        >>> examples = {"image": [[b"two"], [b"one"]], "label": [2, 1], "id": [0, 1]}
        >>> image, label = Partners(tf.data.Dataset.from_tensor_slices(examples), "test").draw(2, tf.constant([0, 1]))
        >>> int(label), image.numpy()
        (1, array([b'one'], dtype=object))
    """

    def __init__(self, examples: tf.data.Dataset, name: str):
        # In an order of their own, so that pairs do not depend on that of the files.
        known = sorted(examples.as_numpy_iterator(), key=lambda example: (example["label"], example["id"]))
        labels = np.array([example["label"] for example in known], np.int32)
        counts = np.bincount(labels)
        if np.count_nonzero(counts) < 2:
            raise UserError(
                f"{name}: all images are of one class, and a pair needs two: add another, or less `val_prop`"
            )
        with tf.device("CPU"):
            self._images = tf.constant([example["image"].tolist() for example in known])
            self._labels = tf.constant(labels)
            self._counts = tf.constant(counts, tf.int32)
            self._first = tf.constant(np.cumsum(counts) - counts, tf.int32)

    def draw(self, label: tf.Tensor, key: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """An image of another class and its label; each of them is as likely as any other."""
        others = tf.size(self._labels) - self._counts[label]
        row = tf.random.stateless_uniform([], key, 0, others, tf.int32)
        row += tf.where(row >= self._first[label], self._counts[label], 0)  # past those of the same class
        return self._images[row], self._labels[row]


def overlap_stage(
    size: tuple[int, int], partners: Partners, decode: Callable[[tf.Tensor], tf.Tensor], num_classes: int
) -> Stage:
    """Lays an image of another class over each; both are anywhere on the canvas.

    Args:
        size: of the canvas.
        partners: of the same split.
        decode: undecoded images of a partner to what "image" is.
        num_classes: number of classes.

    Returns:
        A stage that adds "label2" int32, the partner's class, and "target" float32 [classes], 1 for both.
    """

    def overlap(example: Example, key: tf.Tensor) -> Example:
        partner, label = partners.draw(example["label"], draw_key(key, "partner"))
        first = place_anywhere(example["image"], draw_key(key, "place"), size)
        second = place_anywhere(decode(partner), draw_key(key, "place_partner"), size)
        target = tf.reduce_sum(tf.one_hot(tf.stack([example["label"], label]), num_classes), axis=0)
        return example | {"image": overlay(first, second), "label2": label, "target": target}

    return overlap
