"""The networks of the rows, on any Keras backend: models from random inputs to scores, as the papers sized them."""

from typing import Any, NamedTuple

import keras
import numpy as np

import caps_tf.networks
from caps_tf import models
from caps_tf.layers import HeinsenRouting, HeinsenVectorRouting
from caps_tf.losses import margin_loss, spread_loss

WEIGHT_REG = 2e-7  # train_val.py's default


class Network(NamedTuple):
    """A model and what it learns from.

    Attributes:
        model: to scores [b, classes], from inputs with names.
        loss: (labels [b], scores) to the loss of each example [b].
        classes: number of classes.
    """

    model: keras.Model
    loss: Any
    classes: int


def spread(labels, scores):
    return spread_loss(labels, scores, 0.2)


def cross_entropy(labels, logits):
    return keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)


def cross_entropy_of_probabilities(labels, scores):
    return keras.losses.sparse_categorical_crossentropy(labels, scores)


def own_loss(network: str):
    """The loss that train_val.py takes for a network by itself."""
    entry = caps_tf.networks.NETWORKS[network]
    of_entropy = cross_entropy if entry.logits else cross_entropy_of_probabilities
    return {"spread": spread, "margin": margin_loss, "cross_entropy": of_entropy}[entry.loss]


def matrix_capsules(iterations: int, image_size: int = 32, dtype: str | None = None, **sizes: int) -> Network:
    shape = (image_size, image_size, 1)
    model = models.matrix_capsules(shape, 5, iterations=iterations, weight_reg=WEIGHT_REG, dtype=dtype, **sizes)
    return Network(model, own_loss("matrix_capsules"), 5)


def heinsen_norb(image_size: int = 96, iterations: int = 3, dtype: str | None = None, **sizes: int) -> Network:
    shape = (image_size, image_size, 2)
    model = models.heinsen_norb(shape, 5, iterations=iterations, weight_reg=WEIGHT_REG, dtype=dtype, **sizes)
    return Network(model, own_loss("heinsen_norb"), 5)


def heinsen_sst(
    tokens: int = 25, depth: int = 37, width: int = 1280, dtype: str | None = None, **sizes: int
) -> Network:
    model = models.heinsen_sst(depth, width, 2, weight_reg=WEIGHT_REG, dtype=dtype, **sizes)
    # The number of tokens is open in the network; here it is known.
    inputs = {
        "embedding": keras.Input((tokens, depth, width), name="embedding"),
        "mask": keras.Input((tokens,), name="mask"),
    }
    return Network(keras.models.clone_model(model, input_tensors=inputs), own_loss("heinsen_sst"), 2)


def attention(iterations: int, sequential: bool = False, dtype: str | None = None, **options: Any) -> Network:
    model = models.attention_capsules(
        (32, 32, 3), 10, iterations=iterations, sequential_routing=sequential, dtype=dtype, **options
    )
    return Network(model, own_loss("attention"), 10)


def cnn_baseline(image_size: int = 32, dtype: str | None = None) -> Network:
    model = models.cnn_baseline((image_size, image_size, 1), 5, weight_reg=WEIGHT_REG, dtype=dtype)
    return Network(model, own_loss("cnn_baseline"), 5)


def heinsen_routing(
    n_inp: int | None, children: int = 1000, parents: int = 64, iterations: int = 3, dtype: str | None = None
) -> Network:
    """The layer alone. Its scores, poses and variances all count in the loss, so that nothing can be left out."""
    scores, poses = keras.Input((children,), name="scores"), keras.Input((children, 4, 4), name="poses")
    routing = HeinsenRouting(n_inp=n_inp, n_out=parents, d_cov=4, d_inp=4, d_out=4, iterations=iterations, dtype=dtype)
    parent_scores, *matrices = routing((scores, poses))
    flat = [keras.layers.Reshape((parents, 16))(value) for value in matrices]
    features = keras.layers.Concatenate()([keras.layers.Reshape((parents, 1))(parent_scores), *flat])
    return _with_a_score_for_each_parent({"scores": scores, "poses": poses}, features, parents)


def vector_routing(
    n_inp: int = 1000, n_out: int = 100, d_inp: int = 256, d_out: int = 256, dtype: str | None = None
) -> Network:
    """The layer alone."""
    vectors = keras.Input((n_inp, d_inp), name="vectors")
    outputs = HeinsenVectorRouting(n_inp, n_out, d_inp, d_out, dtype=dtype)(vectors)
    return _with_a_score_for_each_parent(vectors, outputs, n_out)


def _with_a_score_for_each_parent(inputs, features, parents: int) -> Network:
    scores = keras.layers.Reshape((parents,))(keras.layers.Dense(1, dtype="float32", name="score")(features))
    return Network(keras.Model(inputs, scores), cross_entropy, parents)


NETWORKS = {
    function.__name__: function
    for function in (
        *(matrix_capsules, heinsen_norb, heinsen_sst, attention, cnn_baseline),
        *(heinsen_routing, vector_routing),
    )
}


def random_batch(network: Network, batch: int, generator: np.random.Generator) -> dict[str, Any]:
    """Inputs by name and "label", as tensors of the backend: normal numbers, all tokens real, all classes."""
    inputs = {
        tensor.name: np.ones((batch, *tensor.shape[1:]), np.float32)
        if tensor.name == "mask"
        else generator.standard_normal((batch, *tensor.shape[1:]), np.float32)
        for tensor in network.model.inputs
    }
    arrays = {**inputs, "label": generator.integers(network.classes, size=batch, dtype=np.int32)}
    return {name: keras.ops.convert_to_tensor(array) for name, array in arrays.items()}
