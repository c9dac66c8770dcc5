"""Bytes to batches: the NORB file format, the renderer, the TFRecord schema and tf.data pipelines."""
