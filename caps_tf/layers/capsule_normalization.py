"""Batch normalisation of capsules, for networks whose routing does not keep the scale of poses and activations."""

import keras
from keras import ops

from caps_tf.layers.capsule_layer import CapsuleLayer, LayerCost
from caps_tf.layers.precision import activations_dtype, routing_dtype


@keras.saving.register_keras_serializable(package="caps_tf")
class CapsuleNormalization(CapsuleLayer):
    """Batch-normalises poses and the logits of activations, both by capsule type, and activates the capsules.

    A type has one mean and variance for all elements of its poses, over batch and positions, and another for its logits.
    Epsilon and momentum are PyTorch's defaults, as in the code that the networks of Ribeiro et al. were published with.
    Capsules are normalised in at least float32, and taken as they come: logits that routing hands over are not rounded.

    Args:
        affine: whether the results are scaled and shifted by learned numbers, four for each type.
        return_logits: whether to return normalised logits instead of activations.
        **kwargs: `keras.layers.Layer` arguments.

    Call arguments:
        capsules: poses [b, ..., i, x, y] and logits [b, ..., i].
        training: whether to normalise by the batch, instead of by the moving averages.

    Returns:
        poses and activations of the same shapes, in the compute dtype; logits in at least float32.

    Example:
        >>> capsules = np.ones((2, 7, 7, 8, 4, 4), "float32"), np.zeros((2, 7, 7, 8), "float32")
        >>> poses, activations = CapsuleNormalization()(capsules)
        >>> tuple(poses.shape), float(activations[0, 0, 0, 0])
        ((2, 7, 7, 8, 4, 4), 0.5)

    References:
        Ribeiro, Leontidis, Kollias, "Capsule Routing via Variational Bayes", AAAI 2020.
    """

    def __init__(self, affine: bool = False, return_logits: bool = False, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.affine = affine
        self.return_logits = return_logits
        options = {
            "momentum": 0.9,
            "epsilon": 1e-5,
            "center": affine,
            "scale": affine,
            # Backends other than TensorFlow have no replicas to agree with.
            "synchronized": keras.config.backend() == "tensorflow",
            "dtype": routing_dtype(self),
        }
        self.of_poses = keras.layers.BatchNormalization(axis=-2, name="poses", **options)
        self.of_logits = keras.layers.BatchNormalization(axis=-1, name="logits", **options)

    def build(self, input_shape):
        poses, logits = input_shape
        self.of_poses.build((*poses[:-2], poses[-2] * poses[-1]))
        self.of_logits.build(logits)

    def call(self, capsules, training=None):
        poses, logits = capsules
        shape = (*ops.shape(logits), *poses.shape[-2:])
        poses = self.of_poses(ops.reshape(poses, (*shape[:-2], shape[-2] * shape[-1])), training=training)
        logits = self.of_logits(logits, training=training)
        activations = logits if self.return_logits else ops.sigmoid(logits)
        return ops.cast(ops.reshape(poses, shape), self.compute_dtype), ops.cast(activations, activations_dtype(self))

    def compute_output_spec(self, *args, **kwargs):
        poses, activations = super().compute_output_spec(*args, **kwargs)
        return poses, keras.KerasTensor(activations.shape, activations_dtype(self))

    def layer_cost(self, inputs, outputs) -> LayerCost:
        return LayerCost(0)

    def compute_output_shape(self, input_shape):
        poses, logits = input_shape
        return tuple(poses), tuple(logits)

    def get_config(self):
        return {**super().get_config(), "affine": self.affine, "return_logits": self.return_logits}
