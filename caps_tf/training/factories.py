"""From parameters to parts: network, loss and preprocessing, which all scripts share, on any Keras backend."""

import functools
from collections.abc import Callable, Mapping

import keras

from caps_tf.data.preprocessing import AUGMENTATIONS, Preprocessing
from caps_tf.errors import UserError
from caps_tf.layers import CapsuleLayer
from caps_tf.losses import margin_loss, spread_loss
from caps_tf.networks import NETWORKS
from caps_tf.tensors import Tensor
from caps_tf.training.config import RunConfig, parse_size

LossFunction = Callable[[Tensor, Tensor, Tensor | float], Tensor]
"""Labels int [b] or targets float [b, classes], scores [b, classes] and margin to the loss of each example [b]."""

_EXAMPLE_SHAPE = {"image": lambda shape: [shape], "embedding": lambda shape: shape[1:]}
"""The sizes of a feature that builders are called with: an image's shape; depth and width of sentence embeddings."""
_VALUES = {
    "iter_routing": lambda config: config.routing_iterations,
    "votes_mib": lambda config: config.votes_mib * 2**20,
}
"""Arguments of builders whose values differ from the flags'; 0 MiB selects the builder's default."""


def make_model(config: RunConfig, input_shapes: Mapping[str, tuple[int | None, ...]], num_classes: int) -> keras.Model:
    """Builds the network that a run trains.

    Args:
        config: the run's parameters.
        input_shapes: shape of each feature that the input pipeline delivers, by name: an example's, without batch.
        num_classes: number of classes.

    Returns:
        A model to scores [b, num_classes], from inputs that have the names of features.

    Raises:
        UserError: if the data lack what the network reads, or images are too small for it.
    """
    network = NETWORKS[config.network]
    shape = _EXAMPLE_SHAPE[network.reads](_shape_of(network.reads, input_shapes, config))
    arguments = {
        argument: _VALUES[flag](config) if flag in _VALUES else getattr(config, flag)
        for flag, argument in network.flags.items()
        if flag != "votes_mib" or config.votes_mib
    }
    return network.load()(*shape, num_classes, dtype=config.precision, **arguments)


def _shape_of(
    feature: str, input_shapes: Mapping[str, tuple[int | None, ...]], config: RunConfig
) -> tuple[int | None, ...]:
    if feature not in input_shapes:
        raise UserError(
            f"{config.network} reads {feature!r}, but {config.dataset} holds {', '.join(input_shapes)}: "
            "choose another --network or --dataset"
        )
    return input_shapes[feature]


def make_loss(config: RunConfig) -> LossFunction:
    """Returns the loss of each example as a function of labels or soft targets, scores and margin."""
    from_logits = NETWORKS[config.network].logits
    if config.loss_name == "cross_entropy":
        classes = 2 if config.protocol == "overlap" else 1
        return functools.partial(cross_entropy, from_logits=from_logits, classes=classes)
    return functools.partial(spread if config.uses_spread_loss else margins, from_logits=from_logits)


def cross_entropy(
    labels: Tensor, scores: Tensor, margin: Tensor | float, from_logits: bool = False, classes: int = 1
) -> Tensor:
    """Cross-entropy of each example, [b].

    Args:
        labels: int [b], or targets float [b, classes] that say how much of each class an example is; they sum to
            `classes`.
        scores: [b, classes]; unless they are logits, divided by their sum they are probabilities, which a softmax's
            already are.
        margin: not used.
        from_logits: whether scores are logits.
        classes: of how many classes an example is; each is as probable as the others.

    Example:
        >>> scores = keras.ops.array([[0.5, 0.25, 0.25]])
        >>> hard, soft = keras.ops.array([1]), keras.ops.array([[0.5, 0.5, 0.0]])
        >>> [round(float(cross_entropy(labels, scores, 0.0)[0]), 4) for labels in (hard, soft)]
        [1.3863, 1.0397]
    """
    if len(labels.shape) == 2:
        return keras.losses.categorical_crossentropy(labels / classes, scores, from_logits=from_logits)
    return keras.losses.sparse_categorical_crossentropy(labels, scores, from_logits=from_logits)


def spread(labels: Tensor, scores: Tensor, margin: Tensor | float, from_logits: bool = False) -> Tensor:
    """Spread loss of each example, [b], summed over true classes; of a softmax of the scores, if they are logits."""
    return spread_loss(labels, keras.ops.softmax(scores) if from_logits else scores, margin)


def margins(
    labels: Tensor,
    scores: Tensor,
    margin: Tensor | float,
    from_logits: bool = False,
    present: float = 0.9,
    absent: float = 0.1,
) -> Tensor:
    """Margin loss of each example, [b], which needs no `margin`; of a softmax of the scores, if they are logits."""
    return margin_loss(labels, keras.ops.softmax(scores) if from_logits else scores, present, absent)


def capsule_outputs(model: keras.Model) -> dict[str, tuple[keras.KerasTensor, keras.KerasTensor]]:
    """Poses and activations (or scores) of each capsule layer of a model, by layer name, in order; empty for a plain CNN."""
    found = {layer.name: layer.capsules_of(layer.output) for layer in model.layers if isinstance(layer, CapsuleLayer)}
    return {name: capsules for name, capsules in found.items() if capsules}


def class_poses(model: keras.Model) -> keras.KerasTensor | None:
    """Poses [b, classes, ...] of the class capsules, the last of a model; None where classes are no capsules, or have no poses.

    Example:
        >>> from caps_tf.models import cnn_baseline, conv_capsules
        >>> class_poses(conv_capsules((28, 28, 1), 10, routing="attention")).shape, class_poses(cnn_baseline((8, 8, 1), 3))
        ((None, 10, 4, 4), None)
    """
    layers = [layer for layer in model.layers if isinstance(layer, CapsuleLayer)]
    if not layers:
        return None
    output = layers[-1].output
    capsules = layers[-1].capsules_of(output)
    poses = capsules[0] if capsules else output  # which has no activations
    of_classes = len(poses.shape) > 2 and poses.shape[1] == model.output.shape[-1]  # with two axes they are scores
    return poses if of_classes else None


def make_preprocessing(config: RunConfig, is_norb: bool) -> Preprocessing:
    """What is done to the images of a run; the published sizes and augmentation of NORB are the default for NORB only.

    Example:
        >>> make_preprocessing(RunConfig(), is_norb=True).crop, make_preprocessing(RunConfig(), is_norb=False).crop
        ((32, 32), None)
    """
    crop = parse_size(config.image_size or ("32" if is_norb else "0"), "image_size")
    halves = is_norb and (crop is None or max(crop) <= 48)
    resize = parse_size(config.resize or ("48" if halves else "0"), "resize")
    augment = config.augment
    if augment == "auto":
        augment = "norb" if is_norb and config.normalize != "none" else "crop"
    channel_mean, channel_std = config.channel_statistics()
    return Preprocessing(
        resize=resize,
        protocol=config.protocol,
        pad=config.pad,
        pad_mode=config.pad_mode,
        crop=crop,
        normalize=config.normalize,
        channel_mean=channel_mean,
        channel_std=channel_std,
        views=config.views,
        **AUGMENTATIONS[augment],
    )
