"""Records of sentences to batches (tf.data): decoded, and padded to one of a few lengths.

As with images, training batches are a function of the seed and the epoch, and evaluation counts every sentence once.
"""

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from caps_tf.data.batches import SHUFFLE_BYTES, as_written, fingerprint, finish, record_id
from caps_tf.data.datasets import SentenceDataset
from caps_tf.data.splits import Split
from caps_tf.errors import UserError

LENGTH_STEP = 32
"""Batches are padded to a multiple of so many tokens, so that a step is compiled for a few lengths only."""


def input_shapes(dataset: SentenceDataset) -> dict[str, tuple[int | None, ...]]:
    """Shape of each feature that a network may read, by name; sentences differ in their number of tokens.

    Example:
        >>> input_shapes(open_dataset("data/sst2"))  # doctest: +SKIP
        {'embedding': (None, 1, 256), 'mask': (None,)}
    """
    return {"embedding": (None, dataset.depth, dataset.width), "mask": (None,)}


@as_written
def training_sentences(
    split: Split[SentenceDataset], batch_size: int, *, epoch: int, seed: int = 0, skip_batches: int = 0
) -> tf.data.Dataset:
    """One epoch of shuffled batches, a function of (seed, epoch) and of TensorFlow's global seed, if set.

    Args:
        split: the records.
        batch_size: the global batch, over all replicas.
        epoch: counted from 0.
        seed: of the run.
        skip_batches: how many batches of the epoch a resumed run has already seen.

    Returns:
        `num_records // batch_size - skip_batches` dicts of embedding float32 [b, n, depth, width], mask float32 [b, n]
        (1 for tokens, 0 for padding), label int32 [b] and id int64 [b]. Padding repeats the embedding of the
        sentence's last token, which is the end-of-text token; n is a multiple of `LENGTH_STEP`.

    Raises:
        UserError: the split holds less than one batch.
    """
    count = split.num_records
    if count < batch_size:
        raise UserError(f"{split.dataset.name}: {count} {split.name} sentences are less than a batch of {batch_size}")
    shuffle_seed = int(np.random.SeedSequence([seed, epoch]).generate_state(1).view(np.int32)[0])
    buffer = min(count, max(1, SHUFFLE_BYTES // split.dataset.record_bytes))
    sentences = _sentences(split).shuffle(buffer, seed=shuffle_seed, reshuffle_each_iteration=False)
    return _batches(sentences.skip(skip_batches * batch_size), split.dataset, batch_size)


@as_written
def evaluation_sentences(split: Split[SentenceDataset], batch_size: int) -> tf.data.Dataset:
    """All sentences of a split, once each, in the order of the files.

    The last batch is filled up with sentences of weight 0, so that every batch has the same number.

    Args:
        split: the records.
        batch_size: the global batch, over all replicas.

    Returns:
        Dicts as those of `training_sentences`, with weight float32 [b] (1, or 0 for filling) and fingerprint int32 [b],
        of the undecoded embeddings. An id is the line in the text file.
    """

    def prepare(sentence: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return sentence | {"weight": tf.constant(1.0), "fingerprint": fingerprint(sentence["embedding"])}

    sentences = _sentences(split).map(prepare)
    filling = -split.num_records % batch_size
    filler = sentences.take(1).cache().repeat(filling).map(lambda sentence: sentence | {"weight": tf.constant(0.0)})
    return _batches(sentences.concatenate(filler), split.dataset, batch_size)


def mean_pooled(split: Split[SentenceDataset]) -> tuple[np.ndarray, np.ndarray]:
    """Each sentence as the mean of its tokens' embeddings, one after the other for every layer.

    Returns:
        float32 [n, depth * width], and labels int32 [n].
    """
    features, labels = [], []
    for batch in evaluation_sentences(split, batch_size=32).as_numpy_iterator():
        mask = batch["mask"] / batch["mask"].sum(axis=1, keepdims=True)
        pooled = np.einsum("bnlw,bn->blw", batch["embedding"], mask)
        real = batch["weight"] > 0
        features.append(pooled.reshape(len(pooled), -1)[real])
        labels.append(batch["label"][real])
    return np.concatenate(features), np.concatenate(labels)


def _sentences(split: Split[SentenceDataset]) -> tf.data.Dataset:
    """Undecoded sentences: embedding string, label and id."""
    label_key = split.dataset.builder.info.supervised_keys[1]

    def select(record: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        label = tf.cast(record[label_key], tf.int32)
        return {"embedding": record["embedding"], "label": label, "id": record_id(record)}

    return split.records().map(select, num_parallel_calls=tf.data.AUTOTUNE)


def _batches(sentences: tf.data.Dataset, dataset: SentenceDataset, batch_size: int) -> tf.data.Dataset:
    depth, width = dataset.depth, dataset.width

    def decode(batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        token_bytes = tf.float16.size * depth * width
        lengths = tf.strings.length(batch["embedding"]) // token_bytes
        longest = LENGTH_STEP * (-(-tf.reduce_max(lengths) // LENGTH_STEP))
        # There is no kernel that decodes float16.
        bits = tf.io.decode_raw(batch["embedding"], tf.uint16, fixed_length=longest * token_bytes)
        embedding = tf.reshape(tf.bitcast(bits, tf.float16), (batch_size, longest, depth, width))
        token = tf.minimum(tf.range(longest), lengths[:, None] - 1)  # past the end, the last one again
        embedding = tf.gather(embedding, token, batch_dims=1)
        mask = tf.sequence_mask(lengths, longest, tf.float32)
        return {**batch, "embedding": tf.cast(embedding, tf.float32), "mask": mask}

    batches = sentences.batch(batch_size, drop_remainder=True)
    return finish(batches.map(decode, num_parallel_calls=tf.data.AUTOTUNE))
