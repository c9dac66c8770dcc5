"""Capsule layers for Keras: they own weights, shapes and config, and call `caps_tf.routing`."""

from caps_tf.layers.attention_capsules import (
    AttentionClassCapsules,
    AttentionConvCapsules,
    AttentionDenseCapsules,
)
from caps_tf.layers.capsule_stack import CapsuleStack
from caps_tf.layers.em_capsules import EMClassCapsules, EMConvCapsules
from caps_tf.layers.heinsen_routing import HeinsenRouting
from caps_tf.layers.heinsen_vector_routing import DefinableVectorRouting, HeinsenVectorRouting
from caps_tf.layers.primary_capsules import PrimaryCapsules

__all__ = [
    "AttentionClassCapsules",
    "AttentionConvCapsules",
    "AttentionDenseCapsules",
    "CapsuleStack",
    "DefinableVectorRouting",
    "EMClassCapsules",
    "EMConvCapsules",
    "HeinsenRouting",
    "HeinsenVectorRouting",
    "PrimaryCapsules",
]
