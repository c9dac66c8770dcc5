"""What routes the parts of conv_capsules to class scores: one entry for each routing, in the form that trains well."""

from collections.abc import Callable
from typing import NamedTuple

import keras

from caps_tf.errors import UserError
from caps_tf.initializers import NearIdentity
from caps_tf.layers import (
    AttentionClassCapsules,
    CapsuleStack,
    DynamicClassCapsules,
    EMClassCapsules,
    HeinsenRouting,
    SelfRoutingClassCapsules,
    SquashedCapsules,
    VBClassCapsules,
)

INITIAL_TEMPERATURE = 2.0
"""Inverse temperature that EM routing starts from, in units of a pose's mean cost."""
VARIANCE_FLOOR = 1e-3
"""Of EM routing between normalised poses, whose own variance is one."""


class Parts(NamedTuple):
    """Part capsules at each position, symbolic tensors.

    Attributes:
        poses: [b, h, w, i, x, y].
        activations: [b, h, w, i], or None for a head without.
    """

    poses: keras.KerasTensor
    activations: keras.KerasTensor | None


class HeadOptions(NamedTuple):
    """What `conv_capsules` passes on to a head; its arguments of the same names, `iterations` at least 1."""

    num_classes: int
    iterations: int
    coordinates: bool
    votes_at_a_time: int | None
    dtype: str | None


class ClassHead(NamedTuple):
    """How a routing makes class scores of parts.

    Attributes:
        scores: parts and options to logits [b, classes] in float32.
        iterations: how many, unless the user says.
        activation: what parts' activations are passed through before they are routed, as Keras names it; their poses
            are batch-normalised then. None for parts without activations, whose poses are routed as the convolution
            makes them.
        coordinates: whether votes can carry the position of their part.
    """

    scores: Callable[[Parts, HeadOptions], keras.KerasTensor]
    iterations: int
    activation: str | None
    coordinates: bool = False


def attention_scores(parts: Parts, options: HeadOptions) -> keras.KerasTensor:
    """A linear map of each class capsule's pose, whose weights all classes share (Tsai et al. 2020)."""
    layer = AttentionClassCapsules(options.num_classes, normalize=False, dtype=options.dtype, name="class_capsules")
    x = CapsuleStack([layer], options.iterations, dtype=options.dtype, name="capsules")(parts.poses)
    elements = x.shape[-2] * x.shape[-1]
    x = keras.layers.Reshape((options.num_classes, elements), dtype="float32", name="class_poses")(x)
    x = keras.layers.Dense(1, dtype="float32", name="score")(x)
    return keras.layers.Reshape((options.num_classes,), dtype="float32", name="scores")(x)


def dynamic_scores(parts: Parts, options: HeadOptions) -> keras.KerasTensor:
    """A linear map of each class capsule's vector (Sabour et al. 2017), whose weights all classes share."""
    *grid, rows, columns = parts.poses.shape[1:]
    x = keras.layers.Reshape((*grid[:2], -1), dtype=options.dtype, name="part_vectors")(parts.poses)
    x = SquashedCapsules(rows * columns, dtype=options.dtype, name="part_capsules")(x)
    x = DynamicClassCapsules(
        options.num_classes,
        share_positions=True,
        pose_elements=rows * columns,
        iterations=options.iterations,
        votes_at_a_time=options.votes_at_a_time,
        dtype="float32",
        name="class_capsules",
    )(x)
    x = keras.layers.Dense(1, dtype="float32", name="score")(x)
    return keras.layers.Reshape((options.num_classes,), dtype="float32", name="scores")(x)


def em_scores(parts: Parts, options: HeadOptions) -> keras.KerasTensor:
    """The logits of EM routing's class activations (Hinton et al. 2018), with learned inverse temperatures."""
    _, scores = EMClassCapsules(
        options.num_classes,
        coordinate_addition=options.coordinates,
        return_logits=True,
        iterations=options.iterations,
        initial_temperature=INITIAL_TEMPERATURE,
        variance_floor=VARIANCE_FLOOR,
        kernel_initializer=NearIdentity(),
        beta_u_initializer="zeros",
        votes_at_a_time=options.votes_at_a_time,
        dtype="float32",
        name="class_capsules",
    )(tuple(parts))
    return scores


def vb_scores(parts: Parts, options: HeadOptions) -> keras.KerasTensor:
    """The logits of the class activations of variational-Bayes routing (Ribeiro et al. 2020), not normalised."""
    _, scores = VBClassCapsules(
        options.num_classes,
        coordinate_addition=options.coordinates,
        coordinate_scale=1.0,
        return_logits=True,
        iterations=options.iterations,
        kernel_initializer=NearIdentity(),
        votes_at_a_time=options.votes_at_a_time,
        dtype="float32",
        name="class_capsules",
    )(tuple(parts))
    return scores


def heinsen_scores(parts: Parts, options: HeadOptions) -> keras.KerasTensor:
    """The scores of Heinsen's routing (2019)."""
    rows, columns = parts.poses.shape[-2:]
    activations = keras.layers.Reshape((-1,), dtype="float32", name="part_scores")(parts.activations)
    poses = keras.layers.Reshape((-1, rows, columns), dtype="float32", name="part_poses")(parts.poses)
    scores, _, _ = HeinsenRouting(
        d_cov=rows,
        d_inp=columns,
        d_out=columns,
        n_inp=None,
        n_out=options.num_classes,
        iterations=options.iterations,
        votes_at_a_time=options.votes_at_a_time,
        dtype="float32",
        name="class_capsules",
    )((activations, poses))
    return scores


def self_scores(parts: Parts, options: HeadOptions) -> keras.KerasTensor:
    """The logarithms of self-routed class activations (Hahn et al. 2019), whose softmax are the activations."""
    if options.iterations > 1:
        raise UserError(f"self-routing has no iterations: leave out `iter_routing`, which is {options.iterations}")
    return SelfRoutingClassCapsules(
        options.num_classes, with_poses=False, return_logits=True, dtype="float32", name="class_capsules"
    )(tuple(parts))


HEADS: dict[str, ClassHead] = {
    "em": ClassHead(em_scores, iterations=2, activation="sigmoid", coordinates=True),
    "vb": ClassHead(vb_scores, iterations=3, activation="sigmoid", coordinates=True),
    "heinsen": ClassHead(heinsen_scores, iterations=3, activation="linear"),
    "attention": ClassHead(attention_scores, iterations=2, activation=None),
    "dynamic": ClassHead(dynamic_scores, iterations=3, activation=None),
    "self": ClassHead(self_scores, iterations=1, activation="sigmoid"),
}
"""By the name that --routing gives them; `caps_tf.networks.ROUTINGS` lists the same names, without Keras."""
