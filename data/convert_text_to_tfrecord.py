"""Converts labelled sentences into TFRecords of token embeddings that `--dataset` accepts.

    python data/convert_text_to_tfrecord.py --train=stsa.binary.train --validation=stsa.binary.dev \\
      --test=stsa.binary.test --class_names=negative,positive --data_dir=data/sst2
    python train_val.py --network=heinsen_sst --dataset=data/sst2

Each file has a label and a sentence a line. An encoder turns a sentence into the embeddings of its tokens at every
layer, kept in half precision: tokens x depth x width x 2 bytes. It can be killed and started again at any time.
"""

import sys
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from caps_tf.startup import start_keras

start_keras()

from caps_tf.data.sentence_records import convert_text
from caps_tf.data.text_encoders import WORDLLAMA, open_encoder
from caps_tf.scripts import run_script

FLAGS = flags.FLAGS
flags.DEFINE_string("train", None, "text file of training sentences, 'label text' a line", required=True)
flags.DEFINE_string("validation", None, "text file of validation sentences [a share of the training sentences]")
flags.DEFINE_string("test", None, "text file of test sentences", required=True)
flags.DEFINE_string("data_dir", None, "directory to write", required=True)
flags.DEFINE_string(
    "encoder", WORDLLAMA, "wordllama, a local directory of Hugging Face, or a Keras model file with its tokenizer"
)
flags.DEFINE_list("class_names", None, "names of the classes, in the order of their sorted labels [the labels]")
flags.DEFINE_integer("num_shards", 16, "files a split", lower_bound=1, upper_bound=99999)
flags.DEFINE_integer("seed", 0, "of the order of the records", lower_bound=0)
flags.DEFINE_bool("overwrite", False, "start from scratch, whatever is there")


def main(argv: list[str]) -> None:
    del argv
    output = Path(FLAGS.data_dir)
    files = {"train": FLAGS.train, "validation": FLAGS.validation, "test": FLAGS.test}
    encoder = open_encoder(FLAGS.encoder)
    splits, written = convert_text(
        output,
        {split: path for split, path in files.items() if path},
        encoder,
        FLAGS.class_names,
        num_shards=FLAGS.num_shards,
        seed=FLAGS.seed,
        overwrite=FLAGS.overwrite,
    )
    counts = ", ".join(f"{len(records)} {split}" for split, records in splits.items())
    size = sum(path.stat().st_size for path in output.iterdir())
    print(
        f"{output}: {counts} sentences of {encoder.depth} x {encoder.width} a token, {size / 1e6:.1f} MB, "
        f"{f'{written} shards written' if written else 'verified'}"
    )


if __name__ == "__main__":
    run_script(main)
