"""Which inputs made the decision: trains two vector routings in sequence, and draws the credit that they assign.

    python examples/credit.py --data_dir=data/fashion_mnist --output=credit_image   # of data/convert_idx_to_tfrecord.py
    python examples/credit.py --data_dir=data/sst2 --output=credit_sentence         # of data/convert_text_to_tfrecord.py

Writes right.png and wrong.png: the first example of the validation split that the network judges rightly, and the
first that it judges wrongly. The test split is not read.
"""

import functools
import sys
from collections.abc import Callable
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from caps_tf.startup import start_keras

start_keras()

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from caps_tf.data.datasets import SentenceDataset, open_dataset
from caps_tf.data.images import evaluation_batches, training_batches
from caps_tf.data.preprocessing import AUGMENTATIONS, Preprocessing
from caps_tf.data.sentences import evaluation_sentences, input_shapes, training_sentences
from caps_tf.data.splits import Split, make_sentence_splits, make_splits
from caps_tf.data.text_encoders import WORDLLAMA, TextEncoder, open_encoder
from caps_tf.errors import UserError
from caps_tf.evaluation.credit import image_credit, sentence_credit
from caps_tf.evaluation.style import save_figure
from caps_tf.layers import HeinsenVectorRouting
from caps_tf.models.heinsen_norb import CoordinateGrid
from caps_tf.routing import end_to_end_credit
from caps_tf.scripts import run_script

DATA_DIR = flags.DEFINE_string("data_dir", None, "directory that a converter wrote: images or sentences", required=True)
OUTPUT = flags.DEFINE_string("output", None, "directory to write the pictures to", required=True)
STEPS = flags.DEFINE_integer("steps", 600, "training steps", lower_bound=1)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "examples a step", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "of initial weights and of the order of the examples", lower_bound=0)
ENCODER = flags.DEFINE_string("encoder", WORDLLAMA, "encoder that the sentences were converted with: spells the tokens")

FEATURES, PARTS, MOST_CLASSES = 64, 32, 5


def read_tokens(inputs: dict[str, keras.KerasTensor]) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    """A vector a token [b, n, FEATURES], and the mask [b, n, PARTS] that keeps padding out of the routing."""
    tokens = layers.Reshape((-1, np.prod(inputs["embedding"].shape[2:])))(inputs["embedding"])
    vectors = layers.Dense(FEATURES, activation="silu")(tokens)
    return vectors, ops.repeat(ops.equal(inputs["mask"], 0)[..., None], PARTS, axis=-1)


def read_image(inputs: dict[str, keras.KerasTensor]) -> keras.KerasTensor:
    """A vector a position, [b, rows, columns, FEATURES]; each sees 11x11 pixels and knows where it is."""
    x = CoordinateGrid()(inputs["image"])
    for strides in (2, 1, 1):
        x = layers.Conv2D(FEATURES // 2, 3, strides, "same", activation="silu", kernel_initializer="he_normal")(x)
    return layers.Conv2D(FEATURES, 1)(x)


def route(vectors: keras.KerasTensor, num_classes: int, mask: keras.KerasTensor | None = None) -> tuple:
    """Scores of the classes [b, num_classes], and phi of both routings."""
    vectors = layers.LayerNormalization()(vectors)
    parts, first = HeinsenVectorRouting(None, PARTS, FEATURES, FEATURES)(vectors, mask=mask, return_credit=True)
    scores, second = HeinsenVectorRouting(PARTS, num_classes, FEATURES, 1)(parts, return_credit=True)
    return layers.Flatten()(scores), [first, second]


def train(model: keras.Model, epoch_of: Callable[..., tf.data.Dataset], num_epochs: int) -> None:
    epochs = [epoch_of(epoch=epoch, seed=SEED.value) for epoch in range(num_epochs)]
    batches = functools.reduce(tf.data.Dataset.concatenate, epochs).take(STEPS.value)
    batches = batches.map(lambda batch: ({name: batch[name] for name in model.input}, batch["label"]))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    rate = keras.optimizers.schedules.CosineDecay(2e-3, STEPS.value)
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    model.fit(batches, shuffle=False, verbose=2)


def judge(model: keras.Model, batches: tf.data.Dataset) -> dict[bool, tuple[int, dict]]:
    """Prints the accuracy; position and values of the first example judged rightly (True), and wrongly (False)."""
    found, count, num_right = {}, 0, 0
    for batch in batches.as_numpy_iterator():
        scores = model.predict_on_batch({name: batch[name] for name in model.input})
        for row in np.flatnonzero(batch["weight"]):  # the others fill up the last batch
            right = bool(scores[row].argmax() == batch["label"][row])
            found.setdefault(right, (count, {"scores": scores[row]} | {name: batch[name][row] for name in batch}))
            count, num_right = count + 1, num_right + right
    print(f"validation accuracy {num_right / count:.2%} of {count} examples")
    return found


def spell_sentence(split: Split, position: int, num_tokens: int, encoder: TextEncoder) -> list[str]:
    [record] = split.records().skip(position).take(1).as_numpy_iterator()
    [tokens] = encoder.tokenize([record["text"].decode()])
    if len(tokens) != num_tokens:
        raise UserError(f"{DATA_DIR.value}: was not converted with {ENCODER.value}: give its encoder as --encoder")
    return encoder.spell(tokens)


def main(argv: list[str]) -> None:
    del argv
    keras.utils.set_random_seed(SEED.value)
    dataset = open_dataset(DATA_DIR.value)
    of_sentences = isinstance(dataset, SentenceDataset)
    if of_sentences:
        encoder = open_encoder(ENCODER.value)
        splits = make_sentence_splits(dataset)
        epoch_of = functools.partial(training_sentences, splits["train"], BATCH_SIZE.value)
        validation = evaluation_sentences(splits["validation"], BATCH_SIZE.value)
        inputs = {name: keras.Input(shape, name=name) for name, shape in input_shapes(dataset).items()}
        vectors, mask = read_tokens(inputs)
        scores, credits = route(vectors, len(dataset.class_names), mask)
    else:
        splits = make_splits(dataset)
        preprocessing = Preprocessing(resize=None, crop=None, views="left", **AUGMENTATIONS["none"])
        epoch_of = functools.partial(training_batches, splits["train"], preprocessing, BATCH_SIZE.value)
        validation = evaluation_batches(splits["validation"], preprocessing, BATCH_SIZE.value)
        inputs = {"image": keras.Input(preprocessing.input_shape(dataset), name="image")}
        grid = read_image(inputs)
        scores, credits = route(layers.Reshape((-1, FEATURES))(grid), len(dataset.class_names))

    model, explainer = keras.Model(inputs, scores), keras.Model(inputs, credits)
    train(model, epoch_of, num_epochs=1 + STEPS.value // max(1, splits["train"].num_records // BATCH_SIZE.value))
    for right, (position, example) in sorted(judge(model, validation).items(), reverse=True):
        if of_sentences:  # without the padding
            num_tokens = int(example["mask"].sum())
            example |= {name: example[name][:num_tokens] for name in inputs}
        [credit] = ops.convert_to_numpy(end_to_end_credit(*explainer({name: example[name][None] for name in inputs})))
        shown = example["scores"].argsort()[::-1][:MOST_CLASSES]
        probabilities = keras.activations.softmax(ops.convert_to_tensor(example["scores"][None]))[0]
        names = [f"{dataset.class_names[label]} {float(probabilities[label]):.0%}" for label in shown]
        title = f"{dataset.class_names[example['label']]}, judged {'rightly' if right else 'wrongly'}"
        if of_sentences:
            tokens = spell_sentence(splits["validation"], position, num_tokens, encoder)
            figure = sentence_credit(tokens, credit[:, shown], names, title)
        else:
            figure = image_credit(example["image"], credit[:, shown].reshape(*grid.shape[1:3], -1), names, title)
        print(save_figure(figure, Path(OUTPUT.value, "right.png" if right else "wrong.png")))


if __name__ == "__main__":
    run_script(main)
