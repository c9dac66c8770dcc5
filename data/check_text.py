"""Tells what a logistic regression makes of sentences, from the mean of their tokens' embeddings.

    python data/check_text.py --data_dir=data/sst2

Fits on the training split, chooses the strength of its penalty on the validation split, and judges the test split
once. What a network adds to that, it gets from more than the average of the encoder's output.
"""

import os
import sys
from pathlib import Path

import numpy as np
from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported: its start-up chatter

from caps_tf.data.baselines import logistic_regression
from caps_tf.data.datasets import SentenceDataset, open_dataset
from caps_tf.data.sentences import mean_pooled
from caps_tf.data.splits import make_sentence_splits
from caps_tf.errors import UserError, run_script

FLAGS = flags.FLAGS
flags.DEFINE_string("data_dir", None, "directory that data/convert_text_to_tfrecord.py wrote", required=True)
flags.DEFINE_list("penalties", ["0.01", "0.03", "0.1", "0.3", "1", "3", "10"], "strengths to choose from")


def main(argv: list[str]) -> None:
    del argv
    try:
        penalties = [float(penalty) for penalty in FLAGS.penalties]
    except ValueError:
        raise UserError(f"--penalties must be numbers such as 0.01,0.1, not {','.join(FLAGS.penalties)}") from None
    dataset = open_dataset(FLAGS.data_dir)
    if not isinstance(dataset, SentenceDataset):
        raise UserError(f"{FLAGS.data_dir}: holds no sentences: run data/convert_text_to_tfrecord.py")
    pooled = {name: mean_pooled(split) for name, split in make_sentence_splits(dataset).items()}
    features, labels = pooled["train"]

    fitted = []
    for penalty in penalties:
        predict = logistic_regression(features, labels, len(dataset.class_names), penalty)
        right = {name: np.mean(predict(pooled[name][0]) == pooled[name][1]) for name in ("train", "validation")}
        print(f"penalty {penalty:g}: train {right['train']:.2%}, validation {right['validation']:.2%}")
        fitted.append((right["validation"], penalty, predict))
    _, penalty, predict = max(fitted, key=lambda each: each[:2])
    features, labels = pooled["test"]
    print(f"penalty {penalty:g}: test {np.mean(predict(features) == labels):.2%} of {len(labels)} sentences")


if __name__ == "__main__":
    run_script(main)
