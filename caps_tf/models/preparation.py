"""What stands between the pixels of an image and a network that was trained on prepared ones."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from caps_tf.any_backend.augmentation import prepare
from caps_tf.data.preprocessing import Preprocessing
from caps_tf.tensors import Tensor
from caps_tf.weights.card import read_preprocessing


@keras.saving.register_keras_serializable(package="caps_tf")
class ImagePreparation(keras.layers.Layer):
    """Resizes, crops and normalises images as a run does to those that it is tested on.

    Args:
        preprocessing: a `Preprocessing`, or its fields.

    Call arguments:
        images: [b, rows, columns, channels], pixels from 0 to 255.

    Returns:
        float32 [b, rows, columns, channels] of the crop.

    Example:
        >>> prepared = ImagePreparation({"resize": None, "crop": [2, 2], "normalize": "none"})(np.full((1, 4, 4, 1), 51.0))
        >>> keras.ops.convert_to_numpy(prepared).ravel()
        array([0.2, 0.2, 0.2, 0.2], dtype=float32)
    """

    def __init__(self, preprocessing: Preprocessing | Mapping[str, Any], **kwargs):
        super().__init__(**{"dtype": "float32", **kwargs})
        if not isinstance(preprocessing, Preprocessing):
            preprocessing = read_preprocessing(preprocessing)
        self.preprocessing = preprocessing

    def call(self, images: Tensor) -> Tensor:
        return prepare(images, self.preprocessing)

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        batch, *size, channels = input_shape
        return (batch, *(self.preprocessing.crop or self.preprocessing.resize or size), channels)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "preprocessing": dataclasses.asdict(self.preprocessing)}


def on_pixels(
    network: keras.Model, preprocessing: Preprocessing, image_shape: Sequence[int], name: str | None = None
) -> keras.Model:
    """A model from pixels to what a network says of prepared images.

    Args:
        network: from "image" [b, rows, columns, channels].
        preprocessing: that the network was trained with.
        image_shape: (h, w, c) of the images before it.
        name: of the model.

    Example:
        >>> network = keras.Sequential([keras.Input((2, 2, 1), name="image"), keras.layers.Flatten()], name="flat")
        >>> on_pixels(network, Preprocessing(resize=None, crop=(2, 2)), (4, 4, 1)).output_shape
        (None, 4)
    """
    pixels = keras.Input(tuple(image_shape), name="pixels")
    prepared = ImagePreparation(preprocessing, name="preparation")(pixels)
    return keras.Model(pixels, network(prepared), name=name)
