"""Bytes to batches: the NORB file format, the TFRecord schema and tf.data pipelines."""
