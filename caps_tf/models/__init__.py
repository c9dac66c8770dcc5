"""Whole networks, one file per paper and one of our own, as Keras functional models from images or sentences to class scores."""

from caps_tf.models.attention_capsules import attention_capsules
from caps_tf.models.attention_config import check_attention_config, load_attention_config
from caps_tf.models.cnn_baseline import cnn_baseline
from caps_tf.models.conv_capsules import conv_capsules, parse_convolutions
from caps_tf.models.from_preset import from_preset
from caps_tf.models.heinsen_norb import heinsen_norb
from caps_tf.models.heinsen_sst import heinsen_sst
from caps_tf.models.matrix_capsules import matrix_capsules
from caps_tf.models.preparation import ImagePreparation

__all__ = [
    "ImagePreparation",
    "attention_capsules",
    "check_attention_config",
    "cnn_baseline",
    "conv_capsules",
    "from_preset",
    "heinsen_norb",
    "heinsen_sst",
    "load_attention_config",
    "matrix_capsules",
    "parse_convolutions",
]
