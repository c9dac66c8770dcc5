"""Converts MNIST-like files (IDX), or affNIST's, into a TFRecord directory that `--dataset` accepts.

    apt-get install dataset-fashion-mnist
    python data/convert_idx_to_tfrecord.py --source=/usr/share/datasets/fashion-mnist --data_dir=data/fashion_mnist
    python train_val.py --dataset=data/fashion_mnist

The source holds {train,t10k}-images-idx3-ubyte[.gz] and {train,t10k}-labels-idx1-ubyte[.gz], or affNIST's
training_and_validation.mat and test.mat (docs/PROTOCOLS.md).
"""

import re
import sys
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from caps_tf.data import affnist_format, conversion, idx_records
from caps_tf.errors import UserError
from caps_tf.scripts import run_script

FLAGS = flags.FLAGS
flags.DEFINE_string("source", None, "directory that holds the four IDX files, or affNIST's two", required=True)
flags.DEFINE_string("data_dir", None, "directory to write", required=True)
flags.DEFINE_list(
    "class_names",
    None,
    "names of the classes, in order [Fashion-MNIST's if the source's name has 'fashion', else digits]",
)
flags.DEFINE_integer("train_images", None, "keep the first so many training images only [all]", lower_bound=1)
flags.DEFINE_integer("num_shards", 16, "files a split", lower_bound=1, upper_bound=99999)
flags.DEFINE_integer("seed", 0, "of the order of the records", lower_bound=0)
flags.DEFINE_integer("num_threads", None, "threads that encode [all cores]", lower_bound=1)
flags.DEFINE_bool("overwrite", False, "start from scratch, whatever is there")


def read_split(source: Path, split: str) -> idx_records.IdxRecords:
    """The records of a split, from files of either kind."""
    if any((source / name).exists() for name in affnist_format.NAMES.values()):
        return idx_records.IdxRecords(*affnist_format.read_affnist_split(source, split), split)
    return idx_records.IdxRecords.read(source, split)


def main(argv: list[str]) -> None:
    del argv
    source, output = Path(FLAGS.source), Path(FLAGS.data_dir)
    splits = {split: read_split(source, split) for split in ("train", "test")}
    if FLAGS.train_images is not None:
        splits["train"] = splits["train"].first(FLAGS.train_images)
    num_classes = 1 + max(int(split.labels.max()) for split in splits.values())
    class_names = FLAGS.class_names
    if class_names is None and "fashion" in source.name:
        class_names = idx_records.FASHION_MNIST_CLASSES
    elif class_names is None:
        class_names = [str(label) for label in range(num_classes)]
    if len(class_names) < num_classes:
        raise UserError(f"{source}: has {num_classes} classes, --class_names gives {len(class_names)}")
    height, width = splits["train"].images.shape[1:]
    if splits["test"].images.shape[1:] != (height, width):
        raise UserError(f"{source}: training images are {height}x{width}, test images are of another size")
    name = re.sub(r"\W+", "_", output.resolve().name).lower()
    written = conversion.convert(
        output,
        idx_records.idx_schema(name, height, width, class_names),
        splits,
        num_shards=FLAGS.num_shards,
        seed=FLAGS.seed,
        num_threads=FLAGS.num_threads,
        overwrite=FLAGS.overwrite,
    )
    counts = " and ".join(f"{len(records)} {split}" for split, records in splits.items())
    print(f"{output}: {counts} images, {f'{written} shards written' if written else 'verified'}")


if __name__ == "__main__":
    run_script(main)
