"""Converts the six NORB files into sharded TFRecords that our pipeline and TensorFlow Datasets both read.

    python data/convert_to_tfrecord.py --dataset=smallNORB

reads data/smallNORB/*.mat[.gz] and writes data/smallNORB/tfrecord/. It can be killed and started again at any time.
"""

from pathlib import Path

from absl import flags

from caps_tf.data import conversion, norb_format, norb_records
from caps_tf.errors import UserError
from caps_tf.scripts import run_script

flags.disclaim_key_flags()  # they belong to what is run: --help lists its own
FLAGS = flags.FLAGS


def define_flags() -> None:
    flags.DEFINE_enum("dataset", "smallNORB", ["smallNORB", "renderedNORB"], "which set to convert")
    flags.DEFINE_string("storage", ".", "directory that holds data/ and logs/")
    flags.DEFINE_string("data_dir", None, "where the .mat files are [<storage>/data/<dataset>]")
    flags.DEFINE_enum("encoding", "png", list(norb_records.ENCODINGS), "png is half the size, raw is faster to read")
    flags.DEFINE_integer("num_shards", 16, "files a split", lower_bound=1, upper_bound=99999)
    flags.DEFINE_integer("seed", 0, "of the order of the records", lower_bound=0)
    flags.DEFINE_integer("num_threads", None, "threads that encode [all cores]", lower_bound=1)
    flags.DEFINE_bool("overwrite", False, "start from scratch, whatever is there")


def main(argv: list[str]) -> None:
    del argv
    directory = Path(FLAGS.data_dir or Path(FLAGS.storage, "data", FLAGS.dataset))
    norb_format.verify(directory)
    splits = {}
    for split, file_split in (("train", "training"), ("test", "testing")):
        splits[split] = norb_format.read_split(directory, file_split)
    shapes = {split: norb.images.shape[2:] for split, norb in splits.items()}
    if shapes["train"] != shapes["test"]:
        raise UserError(
            f"{splits['test'].images_path}: images are {shapes['test']}, "
            f"those of the training files are {shapes['train']}: put the files of one set there"
        )
    height, width = shapes["train"]
    output = directory / "tfrecord"
    written = conversion.convert(
        output,
        norb_records.norb_schema(FLAGS.dataset.lower(), height, width, FLAGS.encoding),
        {split: norb_records.NorbRecords(norb, split, FLAGS.encoding) for split, norb in splits.items()},
        num_shards=FLAGS.num_shards,
        seed=FLAGS.seed,
        num_threads=FLAGS.num_threads,
        overwrite=FLAGS.overwrite,
    )
    counts = " and ".join(f"{len(norb)} {split}" for split, norb in splits.items())
    size = sum(path.stat().st_size for path in output.iterdir())
    print(f"{output}: {counts} pairs, {size / 1e6:.1f} MB, {f'{written} shards written' if written else 'verified'}")


def run() -> None:
    """data/convert_to_tfrecord.py and caps-tf-convert."""
    define_flags()
    run_script(main, __doc__)
