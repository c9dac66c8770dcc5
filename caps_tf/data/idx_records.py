"""IDX files (`idx_format`) as records with the features image, label and id."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import google_crc32c
import numpy as np
import tensorflow_datasets as tfds

from caps_tf.data.conversion import Schema
from caps_tf.data.idx_format import PathLike, read_idx_split
from caps_tf.data.records import encode_png
from caps_tf.errors import UserError

FASHION_MNIST_CLASSES = (
    "t-shirt_top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle_boot",
)  # fmt: skip

_OVERHEAD = 512  # bytes a record, at most, beside its pixels


@dataclass(frozen=True, eq=False)
class IdxRecords:
    """A pair of IDX files as records (a `conversion.RecordSource`).

    Attributes:
        images: [n, h, w] uint8.
        labels: [n] uint8.
        split: "train" or "test", for the ids.
    """

    images: np.ndarray
    labels: np.ndarray
    split: str

    @classmethod
    def read(cls, directory: PathLike, split: str) -> "IdxRecords":
        """Reads `train-images-idx3-ubyte` and `train-labels-idx1-ubyte`, or the `t10k-` files for "test".

        Raises:
            UserError: a file is missing or damaged, or the two disagree.
        """
        return cls(*read_idx_split(directory, split), split)

    def first(self, count: int) -> "IdxRecords":
        """The first records, as files of their own.

        Raises:
            UserError: there are fewer.
        """
        if count > len(self):
            raise UserError(f"the {self.split} files hold {len(self)} images, not {count}: ask for fewer")
        return IdxRecords(self.images[:count], self.labels[:count], self.split)

    def __len__(self) -> int:
        return len(self.images)

    def examples(self, rows: Sequence[int]) -> Iterator[dict[str, bytes | str | int]]:
        """The features of the images at `rows`."""
        for row in rows:
            yield {
                "image": encode_png(self.images[row]),
                "label": int(self.labels[row]),
                "id": f"{self.split}_{row:05d}",
            }

    def fingerprint(self) -> str:
        """A checksum of images and labels."""
        crc = google_crc32c.extend(google_crc32c.value(self.labels.tobytes()), self.images.tobytes())
        return f"{list(self.images.shape)} {crc:08x}"

    def max_bytes(self) -> int:
        """Space for uncompressed images."""
        return self.images.nbytes + len(self) * _OVERHEAD


def idx_schema(name: str, height: int, width: int, class_names: Sequence[str]) -> Schema:
    """The schema of TensorFlow Datasets' mnist and its kin, with an id.

    Example:
        >>> idx_schema("fashion_mnist", 28, 28, FASHION_MNIST_CLASSES).features["label"].num_classes
        10
    """
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(height, width, 1)),
            "label": tfds.features.ClassLabel(names=class_names),
            "id": tfds.features.Text(),
        }
    )
    return Schema(
        name=name,
        version="1.0.0",
        features=features,
        supervised_keys=("image", "label"),
        description=f"{len(class_names)} classes of grey images.",
    )
