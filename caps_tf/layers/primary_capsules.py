"""Primary capsules: the first poses and activations, read from ordinary features."""

import math

import keras
from keras import ops

from caps_tf.layers.capsule_layer import CapsuleLayer, LayerCost


@keras.saving.register_keras_serializable(package="caps_tf")
class PrimaryCapsules(CapsuleLayer):
    """Turns features into capsules with a linear map for poses and a sigmoid for activations.

    Args:
        capsules: number of capsule types, B in the paper.
        pose_shape: rows and columns of a pose matrix.
        kernel_size: side of the convolution; 1 in the paper.
        strides: stride of the convolution.
        kernel_regularizer: regularizer of the two convolution kernels.
        **kwargs: `keras.layers.Layer` arguments.

    Call arguments:
        features: [b, height, width, channels].

    Returns:
        poses [b, h, w, i, x, y] and activations [b, h, w, i] in the compute dtype; i = `capsules`, (x, y) =
        `pose_shape`, (h, w) what a "valid" convolution leaves.

    Raises:
        ValueError: if an argument is not positive.

    Example:
        >>> poses, activations = PrimaryCapsules(8)(np.zeros((2, 14, 14, 64), "float32"))
        >>> tuple(poses.shape), tuple(activations.shape)
        ((2, 14, 14, 8, 4, 4), (2, 14, 14, 8))

    References:
        Hinton, Sabour, Frosst, "Matrix capsules with EM routing", ICLR 2018, section 4.
    """

    def __init__(
        self,
        capsules: int,
        pose_shape: tuple[int, int] = (4, 4),
        kernel_size: int = 1,
        strides: int = 1,
        kernel_regularizer: keras.regularizers.Regularizer | str | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.capsules = capsules
        self.pose_shape = tuple(pose_shape)
        self.kernel_size = kernel_size
        self.strides = strides
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        if min(capsules, kernel_size, strides, *self.pose_shape) < 1:
            raise ValueError(
                f"capsules, pose_shape, kernel_size and strides must be positive, "
                f"not {capsules}, {self.pose_shape}, {kernel_size}, {strides}"
            )
        shared = {
            "kernel_size": kernel_size,
            "strides": strides,
            "data_format": "channels_last",
            "kernel_regularizer": self.kernel_regularizer,
            "dtype": self.dtype_policy,
        }
        pose_elements = self.pose_shape[0] * self.pose_shape[1]
        self.pose = keras.layers.Conv2D(capsules * pose_elements, name="pose", **shared)
        self.activation = keras.layers.Conv2D(capsules, activation="sigmoid", name="activation", **shared)

    def build(self, input_shape):
        self.pose.build(input_shape)
        self.activation.build(input_shape)

    def call(self, features):
        poses = self.pose(features)
        batch, height, width = ops.shape(poses)[:3]
        poses = ops.reshape(poses, (batch, height, width, self.capsules, *self.pose_shape))
        return poses, self.activation(features)

    def layer_cost(self, inputs, outputs) -> LayerCost:
        [[*_, channels]] = inputs
        return LayerCost(sum(map(math.prod, outputs)) * channels * self.kernel_size**2)

    def compute_output_shape(self, input_shape):
        shape = self.activation.compute_output_shape(input_shape)
        return (*shape, *self.pose_shape), shape

    def get_config(self):
        return {
            **super().get_config(),
            "capsules": self.capsules,
            "pose_shape": self.pose_shape,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
        }
