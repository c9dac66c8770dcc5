"""Tells what plain classifiers make of a data set: what a network has to beat.

    python data/plain_classifiers.py --dataset=data/toys20
    python data/plain_classifiers.py --dataset=data/eth80 --viewpoints=azimuth:-67..67
    python data/plain_classifiers.py --dataset=data/sst2

Images are given the class of their nearest neighbour among the training images, by the pixels of the size that
networks see. Sentences are classified by a logistic regression on the mean of their tokens' embeddings; the strength of
its penalty is chosen on the validation split, and the test split is judged once. The last line is one JSON object.
"""

import json
import sys
from pathlib import Path

import numpy as np
from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from caps_tf.startup import start_keras

start_keras()

from caps_tf.data.baselines import logistic_regression, nearest_neighbours
from caps_tf.data.datasets import SentenceDataset, open_dataset
from caps_tf.data.images import evaluation_batches
from caps_tf.data.preprocessing import Preprocessing
from caps_tf.data.sentences import mean_pooled
from caps_tf.data.splits import Split, make_sentence_splits, make_splits
from caps_tf.errors import UserError
from caps_tf.progress import Progress
from caps_tf.scripts import run_script
from caps_tf.training.config import parse_size

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "dataset", None, "image folder, converted directory or name, as train_val.py takes it", required=True
)
flags.DEFINE_string("data_dir", "", "where the data set is [<storage>/data/<dataset>]")
flags.DEFINE_string("storage", ".", "directory that holds data/ and logs/")
flags.DEFINE_string("viewpoints", "", "familiar viewpoints, as train_val.py takes them; the others are novel")
flags.DEFINE_string("resize", "48", "pixels that images are compared in; 0 for all that they have")
flags.DEFINE_list("penalties", ["0.01", "0.03", "0.1", "0.3", "1", "3", "10"], "of the regression, to choose from")


def pixels(split: Split, resize: tuple[int, int] | None) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [n, pixels] and their classes [n]; of stereo pairs both views."""
    images, labels = [], []
    whole = Preprocessing(resize=resize, crop=None, normalize="none")
    for batch in evaluation_batches(split, whole, batch_size=64).as_numpy_iterator():
        real = batch["weight"] > 0
        images.append(np.round(255 * batch["image"][real]).astype(np.uint8).reshape(real.sum(), -1))
        labels.append(batch["label"][real])
    return np.concatenate(images), np.concatenate(labels)


def compare_images(splits: dict[str, Split], resize: tuple[int, int] | None) -> dict:
    """What the nearest neighbour in pixels gets right of each test part."""
    known, classes = pixels(splits["train"], resize)
    found = {"classifier": "nearest_neighbour", "training_examples": len(classes), "parts": {}}
    for name, split in splits.items():
        if name == "train":
            continue
        images, labels = pixels(split, resize)
        with Progress(len(known) * len(images), "distances", f"nearest neighbours, {name}") as progress:
            guess = classes[nearest_neighbours(known, images, progress.update)]
        found["parts"][name] = {"num_examples": len(labels), "accuracy": float(np.mean(guess == labels))}
    return found


def compare_sentences(splits: dict[str, Split], num_classes: int, penalties: list[float]) -> dict:
    """What a logistic regression gets right of the test sentences."""
    pooled = {name: mean_pooled(split) for name, split in splits.items()}
    features, labels = pooled["train"]
    fitted = []
    for penalty in penalties:
        predict = logistic_regression(features, labels, num_classes, penalty)
        right = {name: np.mean(predict(pooled[name][0]) == pooled[name][1]) for name in ("train", "validation")}
        print(f"penalty {penalty:g}: train {right['train']:.2%}, validation {right['validation']:.2%}", file=sys.stderr)
        fitted.append((right["validation"], penalty, predict))
    _, penalty, predict = max(fitted, key=lambda each: each[:2])
    test, test_labels = pooled["test"]
    part = {"num_examples": len(test_labels), "accuracy": float(np.mean(predict(test) == test_labels))}
    count = len(labels)
    return {
        "classifier": "logistic_regression",
        "penalty": penalty,
        "training_examples": count,
        "parameters": (features.shape[1] + 1) * num_classes,
        "parts": {"test": part},
    }


def main(argv: list[str]) -> None:
    del argv
    try:
        penalties = [float(penalty) for penalty in FLAGS.penalties]
    except ValueError:
        raise UserError(f"--penalties must be numbers such as 0.01,0.1, not {','.join(FLAGS.penalties)}") from None
    resize = parse_size(FLAGS.resize, "resize")
    dataset = open_dataset(FLAGS.dataset, FLAGS.data_dir or None, FLAGS.storage)
    if isinstance(dataset, SentenceDataset):
        if FLAGS.viewpoints:
            raise UserError(f"{dataset.name}: sentences have no viewpoints: drop --viewpoints")
        found = compare_sentences(make_sentence_splits(dataset), len(dataset.class_names), penalties)
    else:
        found = compare_images(make_splits(dataset, val_prop=0.0, viewpoints=FLAGS.viewpoints), resize)
    for name, part in found["parts"].items():
        print(f"{name}: {part['accuracy']:.2%} of {part['num_examples']} by {found['classifier']}", file=sys.stderr)
    print(json.dumps(found))


if __name__ == "__main__":
    run_script(main)
