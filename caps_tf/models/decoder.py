"""The decoder that draws an image from the pose of its class capsule, and what the drawing is compared with."""

import math
from collections.abc import Sequence

import keras
from keras import ops

from caps_tf.layers.capsule_layer import CountedLayer, LayerCost
from caps_tf.tensors import Tensor


@keras.saving.register_keras_serializable(package="caps_tf")
class ReconstructionDecoder(CountedLayer):
    """Draws images from class capsules: two dense layers with ReLU, then one with a sigmoid and a unit for each value.

    The poses of all classes stand side by side in one vector, and only those of the classes to be drawn are kept: the
    rest is zero. In training that is the true class, so that its pose has to hold what the image looks like, and
    afterwards the class with the highest score. Two objects in one image are drawn one by one, by two calls.

    1,411,344 parameters for images of 28x28x1 and 10 classes with poses of 16 elements. The paper does not say what they
    start from: as in its authors' code, weights from a normal distribution of deviation 0.1, cut off at two deviations,
    and biases from 0.1.

    Args:
        image_shape: rows, columns and channels.
        units: of the first and the second dense layer, as published by default.
        **kwargs: `keras.layers.Layer` arguments. The last layer is in float32 under any dtype policy.

    Call arguments:
        poses: of the class capsules, [b, j, x, y] or [b, j, d].
        kept: float [b, j], how much of each class's pose is kept: 1 of the class that is drawn, else 0; of a blended
            image the share of each of its classes.

    Returns:
        Images [b, rows, columns, channels] in float32, values between 0 and 1.

    Example:
        >>> decoder = ReconstructionDecoder((28, 28, 1))
        >>> poses, label = np.ones((2, 10, 16), "float32"), np.array([3, 7])
        >>> images = decoder(poses, ops.one_hot(label, 10))
        >>> tuple(images.shape), decoder.count_params()
        ((2, 28, 28, 1), 1411344)

    References:
        Sabour, Frosst, Hinton, "Dynamic Routing Between Capsules", NIPS 2017, section 4.1 and figure 2.
    """

    def __init__(self, image_shape: Sequence[int], units: tuple[int, int] = (512, 1024), **kwargs):
        super().__init__(**kwargs)
        self.image_shape, self.units = tuple(image_shape), tuple(units)
        first, second = self.units
        self.first = _dense(first, "relu", self.dtype_policy, "first")
        self.second = _dense(second, "relu", self.dtype_policy, "second")
        self.pixels = _dense(math.prod(self.image_shape), "sigmoid", "float32", "pixels")

    def build(self, poses_shape, kept_shape):
        shape = (None, math.prod(poses_shape[1:]))
        for layer in (self.first, self.second, self.pixels):
            layer.build(shape)
            shape = layer.compute_output_shape(shape)

    def call(self, poses, kept):
        size = math.prod(poses.shape[2:])
        x = ops.reshape(poses, (-1, poses.shape[1], size)) * ops.cast(kept, poses.dtype)[..., None]
        x = ops.reshape(x, (-1, poses.shape[1] * size))
        return ops.reshape(self.pixels(self.second(self.first(x))), (-1, *self.image_shape))

    def compute_output_spec(self, poses, kept):
        return keras.KerasTensor((poses.shape[0], *self.image_shape), "float32")

    def layer_cost(self, inputs, outputs) -> LayerCost:
        poses, _ = inputs
        first, second = self.units
        within = poses[0] * second * (first + math.prod(self.image_shape))
        return LayerCost(math.prod(poses) * first, within)

    def get_config(self):
        return {**super().get_config(), "image_shape": self.image_shape, "units": self.units}


def _dense(units: int, activation: str, dtype, name: str) -> keras.layers.Dense:
    return keras.layers.Dense(
        units,
        activation=activation,
        kernel_initializer=keras.initializers.TruncatedNormal(stddev=0.1),
        bias_initializer=keras.initializers.Constant(0.1),
        dtype=dtype,
        name=name,
    )


def unit_range(images: Tensor) -> Tensor:
    """Images [b, h, w, c] stretched one by one: the lowest value of each becomes 0 and its highest 1.

    It undoes any normalisation and any change of brightness and contrast, as far as a picture shows them.

    Example:
        >>> ops.convert_to_numpy(unit_range(np.array([-1.0, 0.0, 3.0]).reshape((1, 1, 3, 1)))).ravel().tolist()
        [0.0, 0.25, 1.0]
    """
    low, high = (limit(images, axis=(1, 2, 3), keepdims=True) for limit in (ops.amin, ops.amax))
    return ops.subtract(images, low) / ops.maximum(high - low, 1e-12)


def squared_error(images: Tensor, drawn: Tensor) -> Tensor:
    """Squared differences of images [b, h, w, c], summed over all values of each, [b].

    Example:
        >>> float(squared_error(np.zeros((1, 2, 2, 1)), np.full((1, 2, 2, 1), 0.5))[0])
        1.0
    """
    difference = ops.subtract(images, drawn)
    return ops.einsum("bhwc,bhwc->b", difference, difference)
