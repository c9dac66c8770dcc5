"""Whole networks, one file per paper and one of our own, as Keras functional models from images or sentences to class scores."""

from caps_tf.models.attention_capsules import attention_capsules
from caps_tf.models.attention_config import check_attention_config, load_attention_config
from caps_tf.models.capsnet import capsnet
from caps_tf.models.cnn_baseline import cnn_baseline
from caps_tf.models.conv_capsules import conv_capsules, parse_convolutions
from caps_tf.models.decoder import ReconstructionDecoder
from caps_tf.models.from_preset import from_preset
from caps_tf.models.heinsen_norb import heinsen_norb
from caps_tf.models.heinsen_sst import heinsen_sst
from caps_tf.models.matrix_capsules import matrix_capsules
from caps_tf.models.preparation import ImagePreparation
from caps_tf.models.self_routing import self_routing
from caps_tf.models.vb_capsules import vb_capsules

__all__ = [
    "ImagePreparation",
    "ReconstructionDecoder",
    "attention_capsules",
    "capsnet",
    "check_attention_config",
    "cnn_baseline",
    "conv_capsules",
    "from_preset",
    "heinsen_norb",
    "heinsen_sst",
    "load_attention_config",
    "matrix_capsules",
    "parse_convolutions",
    "self_routing",
    "vb_capsules",
]
