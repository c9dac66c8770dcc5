"""Capsule layers for Keras: they own weights, shapes and config, and call `caps_tf.routing`."""

from caps_tf.layers.attention_capsules import (
    AttentionCapsules,
    AttentionConvCapsules,
    AttentionDenseCapsules,
)
from caps_tf.layers.attention_class_capsules import AttentionClassCapsules
from caps_tf.layers.capsule_layer import CapsuleLayer, CountedLayer, LayerCost, RoutingLayer
from caps_tf.layers.capsule_normalization import CapsuleNormalization
from caps_tf.layers.capsule_stack import CapsuleStack
from caps_tf.layers.dynamic_capsules import (
    DynamicCapsules,
    DynamicClassCapsules,
    DynamicConvCapsules,
    SquashedCapsules,
)
from caps_tf.layers.em_capsules import EMCapsules, EMClassCapsules, EMConvCapsules
from caps_tf.layers.heinsen_routing import HeinsenRouting
from caps_tf.layers.heinsen_vector_routing import DefinableVectorRouting, HeinsenVectorRouting, VectorRouting
from caps_tf.layers.matrix_capsules import MatrixCapsules
from caps_tf.layers.primary_capsules import PrimaryCapsules
from caps_tf.layers.self_routing_capsules import (
    SelfRoutingCapsules,
    SelfRoutingClassCapsules,
    SelfRoutingConvCapsules,
)
from caps_tf.layers.vb_capsules import VBCapsules, VBClassCapsules, VBConvCapsules

__all__ = [
    "AttentionCapsules",
    "AttentionClassCapsules",
    "AttentionConvCapsules",
    "AttentionDenseCapsules",
    "CapsuleLayer",
    "CapsuleNormalization",
    "CapsuleStack",
    "CountedLayer",
    "DefinableVectorRouting",
    "DynamicCapsules",
    "DynamicClassCapsules",
    "DynamicConvCapsules",
    "EMCapsules",
    "EMClassCapsules",
    "EMConvCapsules",
    "HeinsenRouting",
    "HeinsenVectorRouting",
    "LayerCost",
    "MatrixCapsules",
    "PrimaryCapsules",
    "RoutingLayer",
    "SelfRoutingCapsules",
    "SelfRoutingClassCapsules",
    "SelfRoutingConvCapsules",
    "SquashedCapsules",
    "VBCapsules",
    "VBClassCapsules",
    "VBConvCapsules",
    "VectorRouting",
]
