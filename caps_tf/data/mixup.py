"""Mixup: batches whose examples are blends of two, with targets that say how much of each.

Zhang, Cisse, Dauphin, Lopez-Paz, "mixup: Beyond Empirical Risk Minimization" (ICLR 2018).
"""

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from caps_tf.data.batches import as_written


def mix_examples(
    batch: Mapping[str, tf.Tensor], features: Sequence[str], num_classes: int, alpha: float, key: tf.Tensor
) -> dict[str, tf.Tensor]:
    """Blends each example of a batch with another one of it: x = w x_i + (1 - w) x_j, w ~ Beta(alpha, alpha).

    The partner j comes from a random permutation of the batch. The weight w is drawn for each example; all of its
    features and its target are blended with the same one.

    Args:
        batch: by name, each [b, ...]; "label" is int [b].
        features: names of what is blended, floating.
        num_classes: number of classes.
        alpha: positive; the smaller, the more examples stay nearly as they are.
        key: seed of a stateless random function, int [2].

    Returns:
        The batch with blended features and "target" float32 [b, num_classes]; anything else is that of example i.

    Example:
        >>> batch = {"image": tf.constant([[0.0], [1.0]]), "label": tf.constant([0, 1])}
        >>> mixed = mix_examples(batch, ["image"], num_classes=2, alpha=0.2, key=tf.constant([0, 1]))
        >>> bool(tf.reduce_all(tf.abs(mixed["image"][:, 0] - mixed["target"][:, 1]) < 1e-6))
        True
    """
    partner_key, first_key, second_key = tf.unstack(tf.random.split(key, 3))
    size = tf.shape(batch["label"])[0]
    partner = tf.random.experimental.stateless_shuffle(tf.range(size), partner_key)
    # Beta(a, a) is the share of one of two gamma variables in their sum. Small alphas need the range of float64.
    first = tf.random.stateless_gamma([size], first_key, alpha, dtype=tf.float64)
    second = tf.random.stateless_gamma([size], second_key, alpha, dtype=tf.float64)
    weight = tf.cast(tf.math.divide_no_nan(first, first + second), tf.float32)

    def blend(values: tf.Tensor) -> tf.Tensor:
        w = tf.cast(tf.reshape(weight, [-1] + [1] * (values.shape.rank - 1)), values.dtype)
        return w * values + (1 - w) * tf.gather(values, partner)

    target = blend(tf.one_hot(batch["label"], num_classes))
    return {**batch, **{name: blend(batch[name]) for name in features}, "target": target}


@as_written
def mixed_batches(
    batches: tf.data.Dataset,
    features: Sequence[str],
    num_classes: int,
    alpha: float,
    *,
    epoch: int,
    seed: int = 0,
    skip_batches: int = 0,
) -> tf.data.Dataset:
    """Applies `mix_examples` to the batches of an epoch, as a function of (seed, epoch, number of the batch).

    Args:
        batches: global batches, so that the result does not depend on the number of devices.
        features: see `mix_examples`.
        num_classes: see `mix_examples`.
        alpha: see `mix_examples`.
        epoch: counted from 0.
        seed: of the run.
        skip_batches: number of the first of `batches` within the epoch.

    Example:
        >>> data = {"image": tf.zeros((4, 3)), "label": tf.constant([0, 1, 0, 1])}
        >>> batches = tf.data.Dataset.from_tensor_slices(data).batch(2)
        >>> [batch["target"].shape[1] for batch in mixed_batches(batches, ["image"], 5, 0.2, epoch=0)]
        [5, 5]
    """
    # The third word keeps these draws apart from those of the augmentation, which come from the same seed and epoch.
    epoch_key = np.random.SeedSequence([seed, epoch, 1]).generate_state(2).view(np.int32).tolist()

    def mix(number: tf.Tensor, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return mix_examples(batch, features, num_classes, alpha, tf.random.fold_in(epoch_key, number))

    return batches.enumerate(skip_batches).map(mix, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
