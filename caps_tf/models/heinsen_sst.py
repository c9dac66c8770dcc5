"""Heinsen's sentiment classifier (2019): capsules read from the token embeddings of a language model, routed twice."""

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from caps_tf.errors import UserError
from caps_tf.layers import HeinsenRouting
from caps_tf.layers.capsule_layer import CountedLayer, LayerCost
from caps_tf.layers.precision import routing_dtype


@keras.saving.register_keras_serializable(package="caps_tf")
class DepthFeatures(CountedLayer):
    """A dense layer with SiLU that knows which layer of the language model an embedding comes from.

    Computes silu((X + E) W + b), E being a learned embedding of the depth that starts at zero, as
    silu(X W + (E W + b)): X, by far the largest tensor of the network, is read as it is and needs no gradient.

    Args:
        units: numbers in a feature.
        kernel_regularizer: regularizer of the weights W.
        **kwargs: `keras.layers.Layer` arguments.

    Call arguments:
        embeddings: X, [b, tokens, depth, width].

    Returns:
        [b, tokens, depth, units].

    Example:
        >>> tuple(DepthFeatures(64)(np.zeros((2, 9, 7, 384), "float32")).shape)
        (2, 9, 7, 64)
    """

    def __init__(self, units: int, kernel_regularizer: keras.regularizers.Regularizer | str | None = None, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)

    def build(self, input_shape):
        depth, width = input_shape[-2:]
        self.kernel = self.add_weight(
            shape=(width, self.units),
            initializer=keras.initializers.HeNormal(),
            regularizer=self.kernel_regularizer,
            name="kernel",
        )
        self.bias = self.add_weight(shape=(self.units,), initializer="zeros", name="bias")
        self.embedding = self.add_weight(shape=(depth, width), initializer="zeros", name="embedding")

    def call(self, embeddings):
        of_depth = ops.matmul(self.embedding, self.kernel) + self.bias
        return ops.silu(ops.matmul(embeddings, self.kernel) + of_depth)

    def layer_cost(self, inputs, outputs) -> LayerCost:
        return LayerCost(math.prod(inputs[0]) * self.units)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)

    def get_config(self):
        regularizer = keras.regularizers.serialize(self.kernel_regularizer)
        return {**super().get_config(), "units": self.units, "kernel_regularizer": regularizer}


@keras.saving.register_keras_serializable(package="caps_tf")
class TokenScores(keras.layers.Layer):
    """Turns a mask into the scores of capsules, log(mask / (1 - mask)), one for each layer of the language model.

    A score's sigmoid is the mask again. Masks of 0 and 1 get the scores of the nearest numbers that have finite ones,
    whose sigmoids are 0 and 1 to the last digit, so that gradients stay finite too.

    Args:
        depth: embeddings per token.
        **kwargs: `keras.layers.Layer` arguments.

    Call arguments:
        masks: [b, tokens], 1 for tokens, 0 for padding, and between where sentences are mixed.

    Returns:
        [b, tokens * depth], token by token.

    Example:
        >>> TokenScores(2, dtype="float64")(np.array([[0.5, 0.75]])).numpy().round(3).tolist()
        [[0.0, 0.0, 1.099, 1.099]]
    """

    def __init__(self, depth: int, **kwargs):
        super().__init__(**kwargs)
        self.depth = depth

    def call(self, masks):
        precision = routing_dtype(self)
        tiny = float(np.finfo(precision).tiny)
        masks = ops.cast(masks, precision)
        scores = ops.log(ops.maximum(masks, tiny)) - ops.log(ops.maximum(1.0 - masks, tiny))
        return ops.repeat(scores, self.depth, axis=-1)

    def compute_output_shape(self, input_shape):
        batch, tokens = input_shape
        return batch, None if tokens is None else tokens * self.depth

    def get_config(self):
        return {**super().get_config(), "depth": self.depth}


def heinsen_sst(
    depth: int,
    width: int,
    num_classes: int,
    features: int = 64,
    parts: int = 64,
    pose_size: int = 2,
    iterations: int = 3,
    weight_reg: float = 0.0,
    votes_at_a_time: int | None = None,
    dtype: str | None = None,
) -> keras.Model:
    """Builds a dense layer that reads a capsule from each embedding, knowing its depth, and two routings.

    With the 37 embeddings of 1,280 numbers that the large GPT-2 gives for each token, 138,944 parameters for two
    classes and 140,480 for five.

    Args:
        depth: embeddings per token, one for each layer of the language model (d_depth in the published code).
        width: numbers in an embedding (d_emb).
        num_classes: number of classes, at least 2.
        features: numbers in the pose of a capsule that is read from an embedding, a row vector (d_inp).
        parts: parents of the first routing (n_parts).
        pose_size: numbers in the pose of a part and of a class (d_cap).
        iterations: routing iterations.
        weight_reg: L2 penalty on the dense layer's kernel.
        votes_at_a_time: bytes of votes that may exist at the same time, see `HeinsenRouting`; only where the number of
            tokens is known. Votes are so small here that routing weights fill the cache beside them.
        dtype: dtype policy of the layers, such as "mixed_bfloat16"; Keras's global policy by default. Routing and
            the result stay in float32.

    Returns:
        A Keras functional model from a dictionary of "embedding" [b, tokens, depth, width] and "mask" [b, tokens],
        between 0 (padding) and 1, to class scores [b, num_classes] in float32: real numbers, whose softmax are the
        class probabilities. The number of tokens may differ from call to call. Layers `part_capsules` and
        `class_capsules` each put out scores, poses and variances; capsules are ordered by token, then depth.

    Raises:
        UserError: if there are less than two classes.

    Example:
        >>> model = heinsen_sst(depth=37, width=1280, num_classes=2)
        >>> model.count_params()
        138944
        >>> sentence = {"embedding": np.zeros((1, 9, 37, 1280), "float32"), "mask": np.ones((1, 9), "float32")}
        >>> tuple(model(sentence).shape)
        (1, 2)

    References:
        Heinsen, "An Algorithm for Routing Capsules in All Domains", 2019, section 4.2.
    """
    if num_classes < 2:
        raise UserError(f"heinsen_sst tells classes apart, and there is only {num_classes}: give at least two")
    embeddings = keras.Input((None, depth, width), name="embedding")
    mask = keras.Input((None,), name="mask")
    scores = TokenScores(depth, dtype="float32", name="token_scores")(mask)
    x = DepthFeatures(
        features,
        kernel_regularizer=keras.regularizers.L2(weight_reg) if weight_reg else None,
        dtype=dtype,
        name="features",
    )(embeddings)
    x = keras.layers.LayerNormalization(epsilon=1e-5, dtype=dtype, name="features_norm")(x)
    poses = keras.layers.Reshape((-1, 1, features), dtype=dtype, name="token_poses")(x)
    routing: dict[str, Any] = {"d_cov": 1, "d_out": pose_size, "iterations": iterations, "dtype": "float32"}
    routing |= {"votes_at_a_time": votes_at_a_time}
    capsules = HeinsenRouting(d_inp=features, n_inp=None, n_out=parts, **routing, name="part_capsules")((scores, poses))
    scores, _, _ = HeinsenRouting(d_inp=pose_size, n_inp=parts, n_out=num_classes, **routing, name="class_capsules")(
        capsules[:2]
    )
    return keras.Model({"embedding": embeddings, "mask": mask}, scores, name="heinsen_sst")
