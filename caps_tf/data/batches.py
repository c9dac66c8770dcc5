"""What the batches of all kinds of data have in common."""

from collections.abc import Mapping

import tensorflow as tf

SHUFFLE_BYTES = 1 << 30
"""How much of a split, undecoded, may wait in the buffer that shuffles it."""

as_written = tf.autograph.experimental.do_not_convert
"""Of a function that makes a pipeline: its stages have no Python branches on tensors, and AutoGraph, which looks for them
at every start and in every epoch, takes longer than all else there."""


def record_id(record: Mapping[str, tf.Tensor]) -> tf.Tensor:
    """The row that an id such as "train_00042" names, else the record's position: numbers, which fit every device."""
    if "id" not in record or record["id"].dtype != tf.string:
        return record["position"]
    return tf.cond(
        tf.strings.regex_full_match(record["id"], r"(train|validation|test)_\d{1,18}"),
        lambda: tf.strings.to_number(tf.strings.regex_replace(record["id"], r"^[a-z]+_", ""), tf.int64),
        lambda: record["position"],
    )


def fingerprint(encoded: tf.Tensor) -> tf.Tensor:
    """int32, of the bytes of an undecoded example, string [] or [n]: the same everywhere, and of others another.

    Example:
        >>> int(fingerprint(tf.constant([b"left", b"right"]))) == int(fingerprint(tf.constant(b"leftright")))
        True
    """
    return tf.cast(tf.strings.to_hash_bucket_fast(tf.strings.reduce_join(encoded), 2**31 - 1), tf.int32)


def finish(batches: tf.data.Dataset) -> tf.data.Dataset:
    """Batches as every replica and worker wants them, prepared ahead."""
    options = tf.data.Options()
    # Every worker reads all records and takes its part of each batch: sharding by files would change the batches.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return batches.with_options(options).prefetch(tf.data.AUTOTUNE)
