"""Records as bytes: PNG images, `tf.train.Example` messages and TFRecord files, without TensorFlow.

Importing TensorFlow takes over 500 MB of memory, more than a conversion may use. What it would do here is little:
a TFRecord file is a sequence of frames,

    uint64  length            little-endian, like the checksums
    uint32  checksum of those 8 bytes
    bytes   the record
    uint32  checksum of the record

with `google-crc32c` for the checksums (CRC-32C, rotated and shifted as the format wants), Pillow for PNG and TensorFlow
Datasets' copy of the `tf.train.Example` message.
Source: https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details
"""

import io
import os
import struct
from collections.abc import Iterable, Iterator, Mapping

import google_crc32c
import numpy as np
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

PathLike = str | os.PathLike[str]


def encode_png(image: np.ndarray) -> bytes:
    """Encodes an image ([h, w] grey or [h, w, 3] colour, uint8) as PNG.

    Example:
        >>> encode_png(np.zeros([2, 2], np.uint8))[:4]
        b'\\x89PNG'
    """
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    return buffer.getvalue()


def encode_example(values: Mapping[str, bytes | str | int]) -> bytes:
    """Encodes one record as a `tf.train.Example`: bytes and text as bytes lists, integers as int64 lists.

    Equal values give equal bytes.

    Example:
        >>> encode_example({"label": 3})
        b'\\n\\x10\\n\\x0e\\n\\x05label\\x12\\x05\\x1a\\x03\\n\\x01\\x03'
    """
    features = tf_feature_pb2.Features(feature={key: _feature(value) for key, value in values.items()})
    return tf_example_pb2.Example(features=features).SerializeToString(deterministic=True)


def _feature(value: bytes | str | int) -> tf_feature_pb2.Feature:
    if isinstance(value, int):
        return tf_feature_pb2.Feature(int64_list=tf_feature_pb2.Int64List(value=[value]))
    data = value.encode() if isinstance(value, str) else value
    return tf_feature_pb2.Feature(bytes_list=tf_feature_pb2.BytesList(value=[data]))


def write_records(path: PathLike, records: Iterable[bytes]) -> None:
    """Writes a TFRecord file and flushes it to the disk.

    Raises:
        OSError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     write_records(file.name, [b"one", b"two"])
        ...     list(read_records(file.name))
        [b'one', b'two']
    """
    with open(path, "wb") as file:
        for record in records:
            length = struct.pack("<Q", len(record))
            file.write(length + _checksum(length) + record + _checksum(record))
        file.flush()
        os.fsync(file.fileno())


def read_records(path: PathLike) -> Iterator[bytes]:
    """Reads a TFRecord file, one record after the other, and checks every checksum.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is damaged or cut short.
    """
    with open(path, "rb") as file:
        while head := file.read(12):
            if len(head) < 12 or head[8:] != _checksum(head[:8]):
                raise ValueError(f"{path}: damaged record length before byte {file.tell()}")
            (length,) = struct.unpack("<Q", head[:8])
            record, checksum = file.read(length), file.read(4)
            if len(record) < length or checksum != _checksum(record):
                raise ValueError(f"{path}: damaged record before byte {file.tell()}")
            yield record


def _checksum(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
