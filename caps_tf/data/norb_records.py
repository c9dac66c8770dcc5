"""NORB splits as records in TensorFlow Datasets' schema for smallnorb, version 2.1.0.

    image, image2     [h, w, 1] uint8: the left and the right camera
    label_category    0-4, see `norb_format.CATEGORIES`
    instance          0-9
    label_elevation   0-8, 30 + 5e degrees
    label_azimuth     0-17, 20a degrees (half of what the info file holds)
    label_lighting    0-5
    id                "train_00042": the row in the .mat files, counted from 0

A record is a stereo pair.
"""

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import google_crc32c
import numpy as np
import tensorflow_datasets as tfds

from caps_tf.data.conversion import Schema
from caps_tf.data.norb_format import CATEGORIES, NorbSplit
from caps_tf.data.records import encode_png

ENCODINGS = ("png", "raw")

_HOMEPAGE = "https://cs.nyu.edu/~ylclab/data/norb-v1.0-small/"
_OVERHEAD = 1024  # bytes a record, at most, beside its pixels


def norb_schema(name: str, height: int, width: int, encoding: str) -> Schema:
    """The schema of a NORB set.

    Args:
        name: "smallnorb" or another identifier.
        height, width: of one camera's image.
        encoding: "png", or "raw" for uncompressed pixels, which are faster to read and about twice as large.

    Example:
        >>> norb_schema("smallnorb", 96, 96, "png").features["image2"].shape
        (96, 96, 1)
    """
    shape = (height, width, 1)
    if encoding == "png":
        image = tfds.features.Image(shape=shape)
    elif encoding == "raw":
        image = tfds.features.Tensor(shape=shape, dtype=np.uint8, encoding=tfds.features.Encoding.BYTES)
    else:
        raise ValueError(f"encoding must be one of {', '.join(ENCODINGS)}, not {encoding!r}")
    features = tfds.features.FeaturesDict(
        {
            "image": image,
            "image2": image,
            "label_category": tfds.features.ClassLabel(names=CATEGORIES),
            "instance": tfds.features.ClassLabel(num_classes=10),
            "label_elevation": tfds.features.ClassLabel(num_classes=9),
            "label_azimuth": tfds.features.ClassLabel(num_classes=18),
            "label_lighting": tfds.features.ClassLabel(num_classes=6),
            "id": tfds.features.Text(),
        }
    )
    return Schema(
        name=name,
        version="2.1.0",
        features=features,
        supervised_keys=("image", "label_category"),
        description="Stereo pairs of toys of five categories, seen from 162 viewpoints under 6 lightings.",
        homepage=_HOMEPAGE if name == "smallnorb" else "",
    )


@dataclass(frozen=True)
class NorbRecords:
    """The rows of a NORB split as records (a `conversion.RecordSource`).

    Attributes:
        norb: the split; its images are a memory map.
        split: "train" or "test", for the ids.
        encoding: "png" or "raw".
    """

    norb: NorbSplit
    split: str
    encoding: str

    def __len__(self) -> int:
        return len(self.norb)

    def examples(self, rows: Sequence[int]) -> Iterator[dict[str, bytes | str | int]]:
        """The features of the pairs at `rows`."""
        encode = encode_png if self.encoding == "png" else np.ndarray.tobytes
        for row in rows:
            left, right = self._read(row, row + 1)[0]
            instance, elevation, azimuth, lighting = self.norb.info[row].tolist()
            yield {
                "image": encode(left),
                "image2": encode(right),
                "label_category": int(self.norb.category[row]),
                "instance": instance,
                "label_elevation": elevation,
                "label_azimuth": azimuth // 2,
                "label_lighting": lighting,
                "id": f"{self.split}_{row:05d}",
            }

    def fingerprint(self) -> str:
        """A checksum of images and labels, the same whether the files are compressed or not."""
        crc = google_crc32c.value(self.norb.category.tobytes() + self.norb.info.tobytes())
        for row in range(0, len(self), 64):
            crc = google_crc32c.extend(crc, self._read(row, row + 64).tobytes())
        return f"{list(self.norb.images.shape)} {crc:08x}"

    def max_bytes(self) -> int:
        """Space for uncompressed images."""
        return self.norb.images.nbytes + len(self) * _OVERHEAD

    def _read(self, start: int, stop: int) -> np.ndarray:
        """Copies rows and gives their mapped pages back, which otherwise count as our memory until the end."""
        images = self.norb.images
        rows = np.array(images[start:stop])
        if isinstance(images.base, mmap.mmap):
            images.base.madvise(mmap.MADV_DONTNEED)  # type: ignore[unreachable] # NumPy's stubs: bases are arrays
        return rows
