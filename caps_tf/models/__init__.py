"""Whole networks, one file per paper, as Keras functional models from images to class scores."""

from caps_tf.models.cnn_baseline import cnn_baseline
from caps_tf.models.heinsen_norb import heinsen_norb
from caps_tf.models.matrix_capsules import matrix_capsules

__all__ = ["cnn_baseline", "heinsen_norb", "matrix_capsules"]
