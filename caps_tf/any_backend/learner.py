"""A network together with the examples that it learns from, in device memory, as a Keras model to `fit`."""

from collections.abc import Mapping

import keras
import numpy as np
from keras import ops

from caps_tf.any_backend.augmentation import prepare
from caps_tf.data.preprocessing import Preprocessing
from caps_tf.tensors import Tensor
from caps_tf.training.factories import LossFunction

Inputs = Mapping[str, np.ndarray]
"""What a learner is fitted to, one row an example: "number" int32 [n], which example it is; "weight" float32 [n], zero for
padding; "margin" float32 [n] of the loss; in training "draws" float32 [n, DRAWS], what augmentation is a function of; and
with mixup "partner" int32 [n], the place in its batch of the example that it is blended with, and "share" float32 [n], how
much of it stays."""


class Bank(keras.layers.Layer):
    """Holds an array on the device, as a weight that is neither trained nor saved; gives the rows of a batch.

    Args:
        values: [n, ...].

    Call arguments:
        numbers: int [b].

    Example:
        >>> rows = Bank(np.array([[1, 2], [3, 4]], "uint8"))(np.array([1, 1, 0], "int32"))
        >>> ops.convert_to_numpy(rows).tolist()
        [[3, 4], [3, 4], [1, 2]]
    """

    def __init__(self, values: np.ndarray, **kwargs):
        super().__init__(**kwargs)
        self.row_shape, self.row_dtype = values.shape[1:], str(values.dtype)
        self.bank = self.add_weight(
            shape=values.shape,
            dtype=self.row_dtype,
            initializer=lambda shape, dtype: ops.convert_to_tensor(values, dtype),
            trainable=False,
            autocast=False,
            name="bank",
        )
        self.built = True

    def call(self, numbers: Tensor) -> Tensor:
        return ops.take(self.bank, numbers, axis=0)

    def compute_output_spec(self, numbers: keras.KerasTensor) -> keras.KerasTensor:
        return keras.KerasTensor((*numbers.shape, *self.row_shape), self.row_dtype)

    def save_own_variables(self, store) -> None:
        pass

    def load_own_variables(self, store) -> None:
        pass


class Learner(keras.Model):
    """From numbers of examples to scores and what they are compared with.

    Args:
        network: to scores [b, classes], from an image.
        images: uint8 [n, h, w, c], all examples.
        labels: int32 [n].
        preprocessing: what is done to the images.
        loss_function: loss of each example.
        num_classes: number of classes.

    Call arguments:
        inputs: `Inputs` of a batch.
        training: whether images are augmented and units dropped.

    Example:
        >>> keras.utils.set_random_seed(0)
        >>> network = keras.Sequential([keras.Input((2, 2, 1)), keras.layers.Flatten(), keras.layers.Dense(3)])
        >>> loss = lambda labels, scores, margin: keras.losses.sparse_categorical_crossentropy(labels, scores, True)
        >>> plain = Preprocessing(resize=None, crop=None, normalize="none")
        >>> learner = Learner(network, np.zeros((4, 2, 2, 1), "uint8"), np.zeros(4, "int32"), plain, loss, num_classes=3)
        >>> learner.compile("sgd")
        >>> learner.evaluate(evaluation_inputs(np.arange(4), batch_size=3), batch_size=3, verbose=0, return_dict=True)[
        ...     "accuracy"]
        1.0
    """

    def __init__(
        self,
        network: keras.Model,
        images: np.ndarray,
        labels: np.ndarray,
        preprocessing: Preprocessing,
        loss_function: LossFunction,
        num_classes: int,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.network = network
        # Integers as the backend likes them: TensorFlow has no int32 variables on GPUs.
        integers = labels.astype(keras.backend.standardize_dtype("int"))
        self.images, self.labels = Bank(images, name="images"), Bank(integers, name="labels")
        self.preprocessing = preprocessing
        self.loss_function = loss_function
        self.num_classes = num_classes
        self.example_loss = keras.metrics.Mean(name="example_loss")
        self.example_accuracy = keras.metrics.Mean(name="accuracy")

    def call(self, inputs: Mapping[str, Tensor], training: bool = False) -> dict[str, Tensor]:
        """Scores [b, classes]; labels int [b], and with mixup targets [b, classes] in "compared"."""
        labels = ops.cast(self.labels(inputs["number"]), "int32")
        images = prepare(self.images(inputs["number"]), self.preprocessing, inputs.get("draws") if training else None)
        compared = labels
        if training and "partner" in inputs:
            partner, share = inputs["partner"], inputs["share"]
            images = _blend(images, partner, share)
            compared = _blend(ops.one_hot(labels, self.num_classes, dtype="float32"), partner, share)
        return {"scores": self.network(images, training=training), "compared": compared}

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True) -> Tensor:
        """Mean loss of the batch, and penalties on weights."""
        losses, weight = self._example_losses(x, y_pred), x["weight"]
        loss = ops.sum(losses * weight) / ops.sum(weight)
        for penalty in self.losses:
            loss = loss + ops.cast(penalty, loss.dtype)
        return loss

    def compute_metrics(self, x, y, y_pred, sample_weight=None) -> dict[str, Tensor]:
        """Mean loss without penalties, and accuracy; of a blended example, whether its main class is found."""
        compared, scores = y_pred["compared"], y_pred["scores"]
        answer = compared if len(compared.shape) == 1 else ops.argmax(compared, axis=-1)
        correct = ops.cast(ops.argmax(scores, axis=-1), "int32") == ops.cast(answer, "int32")
        self.example_loss.update_state(self._example_losses(x, y_pred), sample_weight=x["weight"])
        self.example_accuracy.update_state(ops.cast(correct, "float32"), sample_weight=x["weight"])
        return {metric.name: metric.result() for metric in (self.example_loss, self.example_accuracy)}

    def _example_losses(self, x: Mapping[str, Tensor], y_pred: Mapping[str, Tensor]) -> Tensor:
        scores = ops.cast(y_pred["scores"], "float32")
        return self.loss_function(y_pred["compared"], scores, x["margin"][:, None])


def _blend(values: Tensor, partner: Tensor, share: Tensor) -> Tensor:
    """share x_i + (1 - share) x_j, of values [b, ...]; j is `partner`."""
    share = ops.reshape(share, (-1, *[1] * (len(values.shape) - 1)))
    return share * values + (1 - share) * ops.take(values, partner, axis=0)


def evaluation_inputs(numbers: np.ndarray, batch_size: int, margin: float = 0.0) -> Inputs:
    """Examples in whole batches, the last filled up with examples of weight zero: every batch has the same shape.

    Example:
        >>> inputs = evaluation_inputs(np.array([5, 6, 7]), batch_size=2)
        >>> inputs["number"].tolist(), inputs["weight"].tolist()
        ([5, 6, 7, 5], [1.0, 1.0, 1.0, 0.0])
    """
    filling = -len(numbers) % batch_size
    return {
        "number": np.concatenate([numbers, np.repeat(numbers[:1], filling)]).astype("int32"),
        "weight": np.repeat(np.array([1, 0], "float32"), [len(numbers), filling]),
        "margin": np.full(len(numbers) + filling, margin, "float32"),
    }
