"""Reconstruction as a regulariser: a network and the decoder of its class capsules, as one model to train.

Sabour, Frosst, Hinton, "Dynamic Routing Between Capsules" (NIPS 2017), section 4.1: to the loss of an example comes
`reconstruction`, 0.0005 as published, times the squared error of the image that the decoder draws from the pose of the
true class, summed over the image's values. Any network whose classes are capsules can have a decoder.

What the drawing is compared with has values from 0 to 1: the image itself with normalize=none, and otherwise the image
stretched from its darkest value to its brightest. For the paper's MNIST, whose regime has no normalisation:

    python train_val.py --dataset=mnist --normalize=none --pad=2 --network=conv_capsules --reconstruction=0.0005
"""

import keras

from caps_tf.errors import UserError
from caps_tf.models.decoder import ReconstructionDecoder, squared_error, unit_range
from caps_tf.networks import NETWORKS
from caps_tf.training.config import RunConfig
from caps_tf.training.factories import class_poses


def make_decoder(config: RunConfig, model: keras.Model) -> ReconstructionDecoder | None:
    """The decoder of a run, built; None for a run without.

    Args:
        config: the run's parameters.
        model: its network.

    Raises:
        UserError: if the network has no class capsules, or reads no images.
    """
    if not config.reconstruction:
        return None
    poses = class_poses(model)
    if poses is None or NETWORKS[config.network].reads != "image":
        raise UserError(
            f"{config.network} with these flags has no class capsules with poses to reconstruct images from: leave out "
            "`reconstruction`, or choose a network and a routing that have (most do, such as --network=capsnet)"
        )
    decoder = ReconstructionDecoder(model.inputs[0].shape[1:], dtype=config.precision, name="decoder")
    decoder.build(poses.shape, poses.shape[:2])
    return decoder


def with_decoder(config: RunConfig, model: keras.Model, decoder: ReconstructionDecoder | None) -> keras.Model:
    """A network together with its decoder, as `make_train_step` trains it; the network itself without a decoder.

    Args:
        config: the run's parameters.
        model: the network.
        decoder: from `make_decoder`.

    Returns:
        A model from "image" and "target" [b, classes], how much of each class an image is, to scores [b, classes] and
        the squared error of each reconstruction [b]. It shares the layers of both.

    Example:
        >>> from caps_tf.training.factories import make_model
        >>> config = RunConfig(network="conv_capsules", reconstruction=0.0005)
        >>> model = make_model(config, {"image": (28, 28, 1)}, num_classes=10)
        >>> trained = with_decoder(config, model, make_decoder(config, model))
        >>> trained.count_params() - model.count_params(), trained.output_shape
        (1411344, [(None, 10), (None,)])
    """
    if decoder is None:
        return model
    poses, [image] = class_poses(model), model.inputs
    assert poses is not None, "make_decoder refuses a network without class capsules"
    target = keras.Input(poses.shape[1:2], name="target")
    wanted = image if config.normalize == "none" else unit_range(image)
    errors = squared_error(wanted, decoder(poses, target))
    return keras.Model({"image": image, "target": target}, [model.output, errors], name=model.name)
