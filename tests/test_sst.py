"""Sentences: from text files and an encoder to records, batches, and a run of the classifier that is tested."""

import dataclasses
import json
import re
import sys

import keras
import numpy as np
import pytest
import tensorflow_datasets as tfds
from keras import ops

from caps_tf.data.baselines import logistic_regression
from caps_tf.data.datasets import SentenceDataset, open_dataset
from caps_tf.data.sentence_records import convert_text, read_labelled_text
from caps_tf.data.sentences import LENGTH_STEP, evaluation_sentences, mean_pooled, training_sentences
from caps_tf.data.splits import make_sentence_splits
from caps_tf.data.text_encoders import KerasEncoder, open_encoder
from caps_tf.errors import UserError
from caps_tf.training.config import RunConfig
from caps_tf.training.data import make_training_data
from caps_tf.training.factories import make_model
from tests.batches import assert_same_batches, collect
from tests.runs import assert_same_weights, continued, start_training, weights
from tests.small_norb import run_script

CONVERT = "data/convert_text_to_tfrecord.py"
WORDS = ("[end]", "[unknown]", "good", "fine", "bad", "dull", "a", "the", "film", "plot")
COUNTS = {"train": 90, "validation": 20, "test": 33}
DEPTH, WIDTH = 2, 6


def write_sentences(directory, split, count, seed):
    """Sentences of 1 to 40 words; one word says what the label is."""
    rng = np.random.default_rng(seed)
    lines = []
    for row in range(count):
        words = rng.choice(WORDS[6:], size=rng.integers(0, 40)).tolist()
        words.insert(rng.integers(len(words) + 1), rng.choice(WORDS[2:4] if row % 2 else WORDS[4:6]))
        lines.append(f"{row % 2} {' '.join(words)}")
    (directory / f"{split}.txt").write_text("\n".join(lines) + "\n")


def write_encoder(path, depth=DEPTH, width=WIDTH):
    """A table of random embeddings, and a second layer that is its negative: depth 2 without context."""
    tokens = keras.Input((None,), dtype="int32")
    table = keras.layers.Embedding(len(WORDS), width, embeddings_initializer=keras.initializers.RandomNormal(seed=1))
    x = table(tokens)
    layers = [x, -x][:depth]
    keras.Model(tokens, ops.stack(layers, axis=2) if depth > 1 else x).save(path)
    path.with_suffix(".vocabulary.txt").write_text("\n".join(WORDS) + "\n")
    return table.embeddings.numpy()


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Three text files and an encoder."""
    directory = tmp_path_factory.mktemp("texts")
    for seed, (split, count) in enumerate(COUNTS.items()):
        write_sentences(directory, split, count, seed)
    write_encoder(directory / "encoder.keras")
    return directory


def convert(texts, output, class_names=None, encoder="encoder.keras", **files):
    """Converts as the script does; returns the number of shards written."""
    files = {split: texts / f"{split}.txt" for split in COUNTS} | files
    encoder = open_encoder(str(texts / encoder))
    existing = {split: path for split, path in files.items() if path}
    return convert_text(output, existing, encoder, class_names, num_shards=3)[1]


@pytest.fixture(scope="module")
def converted(texts):
    output = texts / "converted"
    files = [f"--{split}={texts / split}.txt" for split in COUNTS]
    command = (CONVERT, *files, f"--encoder={texts / 'encoder.keras'}", f"--data_dir={output}")
    assert "90 train, 20 validation, 33 test" in run_script(*command, "--class_names=negative,positive").stdout
    return output


@pytest.fixture(scope="module")
def splits(converted):
    return make_sentence_splits(open_dataset(str(converted)))


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir() if "tfrecord" in path.name}


# Text files and encoders


@pytest.mark.parametrize(
    "content, words",
    [
        (b"1 good\n0\n", r"line 2 has no text"),
        (b"\n \n", "holds no sentences"),
        (b"1 cr\xe8me\n", "byte 4 is not UTF-8"),
    ],
)
def test_bad_text_files_are_told_with_their_place(tmp_path, content, words):
    (tmp_path / "text.txt").write_bytes(content)
    with pytest.raises(UserError, match=rf"text\.txt: .*{words}"):
        read_labelled_text(tmp_path / "text.txt")


def test_a_missing_encoder_names_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wordllama", None)
    with pytest.raises(UserError, match="pip install"):
        open_encoder("wordllama")
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match="needs the package torch: pip install"):
        open_encoder(str(tmp_path))


def test_an_unknown_encoder_is_told_what_there_is(tmp_path):
    with pytest.raises(UserError, match=r"wordllama, a Hugging Face directory, or a \.keras file"):
        open_encoder("elmo")
    with pytest.raises(UserError, match="no such file"):
        open_encoder("missing.keras")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no config\.json"):
        open_encoder(str(tmp_path / "empty"))
    (tmp_path / "bad.keras").write_text("nothing")
    with pytest.raises(UserError, match="cannot be loaded by Keras"):
        open_encoder(str(tmp_path / "bad.keras"))


def test_a_keras_encoder_needs_the_description_of_its_tokens(tmp_path):
    write_encoder(tmp_path / "encoder.keras")
    (tmp_path / "encoder.vocabulary.txt").unlink()
    with pytest.raises(UserError, match=r"encoder\.tokenizer\.json or encoder\.vocabulary\.txt"):
        open_encoder(str(tmp_path / "encoder.keras"))


def test_a_keras_encoder_gives_each_sentence_alone_and_in_a_batch_the_same(tmp_path):
    table = write_encoder(tmp_path / "encoder.keras")
    encoder = KerasEncoder(tmp_path / "encoder.keras")
    assert (encoder.depth, encoder.width) == (DEPTH, WIDTH)
    tokens = encoder.tokenize(["A good FILM", "unheard"])
    assert tokens == [[6, 2, 8, 0], [1, 0]]
    for sentence, embedding in zip(tokens, encoder.embed(tokens), strict=True):
        np.testing.assert_array_equal(embedding, encoder.embed([sentence])[0])
        np.testing.assert_array_equal(embedding, np.stack([table[sentence], -table[sentence]], axis=1))


def test_a_keras_encoder_of_one_layer_has_depth_one_and_may_take_a_mask(tmp_path):
    write_encoder(tmp_path / "flat.keras", depth=1)
    assert open_encoder(str(tmp_path / "flat.keras")).depth == 1
    tokens, mask = keras.Input((None,), dtype="int32"), keras.Input((None,), dtype="int32")
    layer = keras.layers.Embedding(len(WORDS), 4)(tokens) * ops.cast(mask, "float32")[..., None]
    keras.Model([tokens, mask], [layer, 2 * layer, 3 * layer]).save(tmp_path / "masked.keras")
    (tmp_path / "masked.vocabulary.txt").write_text("\n".join(WORDS))
    encoder = open_encoder(str(tmp_path / "masked.keras"))
    assert (encoder.depth, encoder.width) == (3, 4)
    _, short = encoder.embed([[6, 2, 8, 0], [1, 0]])
    assert short.shape == (2, 3, 4) and np.all(short[:, 1] == 2 * short[:, 0]) and np.all(short[-1, 0] != 0)


# Records


def test_records_hold_every_sentence_with_its_end_of_text_token(texts, converted):
    encoder = KerasEncoder(texts / "encoder.keras")
    builder = tfds.builder_from_directory(converted)
    for split, count in COUNTS.items():
        labels, sentences = read_labelled_text(texts / f"{split}.txt")
        examples = list(builder.as_dataset(split=split).as_numpy_iterator())
        assert len({example["id"] for example in examples}) == count
        for example in examples:
            row = int(example["id"].decode().removeprefix(f"{split}_"))
            assert example["text"].decode() == sentences[row] and example["label"] == int(labels[row])
            tokens = encoder.tokenize([sentences[row]])
            assert tokens[0][-1] == 0 and len(tokens[0]) == len(sentences[row].split()) + 1
            np.testing.assert_array_equal(example["embedding"], encoder.embed(tokens)[0].astype("float16"))
    dataset = open_dataset(str(converted))
    assert isinstance(dataset, SentenceDataset) and dataset.class_names == ("negative", "positive")
    assert (dataset.depth, dataset.width) == (DEPTH, WIDTH)


def test_an_interrupted_conversion_goes_on_and_another_encoder_starts_over(texts, tmp_path):
    output = tmp_path / "out"
    convert(texts, output)
    before = contents(output)
    next(output.glob("*-test.tfrecord-00001*")).unlink()
    (output / "dataset_info.json").unlink()
    assert convert(texts, output) == 1
    assert contents(output) == before
    assert convert(texts, output) == 0
    write_encoder(texts / "other.keras", depth=1)
    assert convert(texts, output, encoder="other.keras") == 9


def test_labels_and_class_names_that_do_not_fit_are_refused(texts, tmp_path):
    output = tmp_path / "out"
    with pytest.raises(UserError, match=r"2 classes .* 3 names .*`class_names`"):
        convert(texts, output, class_names=["a", "b", "c"])
    (tmp_path / "other.txt").write_text("2 a good film\n")
    with pytest.raises(UserError, match=r"other\.txt: label '2'"):
        convert(texts, output, test=tmp_path / "other.txt")
    assert not output.exists()


# Batches


def test_every_sentence_counts_once_and_is_padded_with_its_last_token(texts, splits):
    encoder = KerasEncoder(texts / "encoder.keras")
    _, sentences = read_labelled_text(texts / "test.txt")
    seen = []
    batches = collect(evaluation_sentences(splits["test"], 7))
    assert [len(batch["label"]) for batch in batches] == [7] * 5
    for batch in batches:
        assert batch["embedding"].shape[1] % LENGTH_STEP == 0
        assert batch["embedding"].shape[1] - batch["mask"].sum(axis=1).max() < LENGTH_STEP
        for row, weight, embedding, mask in zip(*(batch[key] for key in ("id", "weight", "embedding", "mask"))):
            if weight:
                seen.append(int(row))
            [tokens] = encoder.tokenize([sentences[row]])
            assert mask.tolist() == [1.0] * len(tokens) + [0.0] * (len(mask) - len(tokens))
            expected = encoder.embed([tokens])[0].astype("float16").astype("float32")
            np.testing.assert_array_equal(embedding[: len(tokens)], expected)
            assert np.all(embedding[len(tokens) :] == expected[-1])
    assert sorted(seen) == list(range(COUNTS["test"]))


def test_the_validation_file_validates_and_the_test_file_is_not_read(splits):
    assert {name: (split.source, split.num_records) for name, split in splits.items()} == {
        name: (name, count) for name, count in COUNTS.items()
    }


def test_without_a_validation_file_a_share_of_the_training_sentences_validates(texts, tmp_path):
    convert(texts, tmp_path / "out", validation=None)
    splits = make_sentence_splits(open_dataset(str(tmp_path / "out")), val_prop=0.2)
    trained, validated = (
        {int(row) for batch in collect(evaluation_sentences(splits[name], 1)) for row in batch["id"]}
        for name in ("train", "validation")
    )
    assert len(validated) == 18 and trained | validated == set(range(90)) and not trained & validated


def test_an_epoch_is_a_function_of_seed_and_epoch_and_can_be_resumed(splits):
    def epoch(number, seed=3, **options):
        return collect(training_sentences(splits["train"], 8, epoch=number, seed=seed, **options))

    first = epoch(0)
    assert len(first) == 90 // 8
    assert_same_batches(epoch(0), first)
    assert_same_batches(epoch(0, skip_batches=4), first[4:])
    ids = np.concatenate([batch["id"] for batch in first])
    assert len(set(ids)) == 88
    for other in (epoch(1), epoch(0, seed=4)):
        assert not np.array_equal(np.concatenate([batch["id"] for batch in other]), ids)


def test_less_than_a_batch_is_refused(splits):
    with pytest.raises(UserError, match="less than a batch"):
        training_sentences(splits["train"], 91, epoch=0)


def test_sentences_are_pooled_without_their_padding(splits):
    features, labels = mean_pooled(splits["test"])
    assert features.shape == (33, DEPTH * WIDTH) and labels.shape == (33,)
    [batch] = collect(evaluation_sentences(splits["test"], 33))
    for row in range(33):
        real = batch["embedding"][row][batch["mask"][row] > 0]
        np.testing.assert_allclose(features[row], real.mean(axis=0).ravel(), rtol=1e-4, atol=1e-6)


# The plain classifier


def test_logistic_regression_stands_where_its_cost_is_lowest():
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=200)
    features = rng.normal(size=(200, 4)) + np.eye(3, 4)[labels]
    weak, strong = (np.mean(logistic_regression(features, labels, 3, p)(features) == labels) for p in (1e-3, 1e3))
    assert weak > 0.6
    # Where the penalty leaves only biases, the most frequent class is the answer.
    assert strong == np.bincount(labels).max() / 200


# The scripts


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    return tmp_path_factory.mktemp("storage")


def train(storage, converted, name, *flags):
    return start_training(
        "--network=heinsen_sst", f"--dataset={converted}", f"--storage={storage}", f"--name={name}",
        *("--batch_size=15", "--optimizer=radam", "--schedule=one_cycle", "--lrn_rate=0.02", "--mixup=0.2"),
        *("--jit_compile=off", "--log_every=3", *flags),
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(storage, converted):
    """A run of ten epochs of six steps."""
    return train(storage, converted, "whole", "--epoch=10", "--checkpoint_every=8", "--keep_checkpoints=50")


@pytest.mark.campaign
def test_a_run_learns_and_is_tested(whole):
    process = run_script("test.py", f"--load_dir={whole}", "--batch_size=10")
    [directory] = (whole / "test").iterdir()
    report = json.loads((directory / "report.json").read_text())["parts"]["test"]
    assert report["num_examples"] == COUNTS["test"] and f"{report['accuracy']:.2%}" in process.stdout
    assert report["accuracy"] > 0.8
    assert {"confusion.png", "learning_curves.png"} <= {path.name for path in directory.iterdir()}


@pytest.mark.campaign
def test_a_run_can_be_broken_off_in_the_middle_of_an_epoch(whole, storage):
    assert_same_weights(weights(continued(whole, storage, "broken", "step-40")), weights(whole))


def test_what_does_not_fit_sentences_is_refused(converted):
    config = RunConfig(dataset=str(converted), batch_size=15)
    with pytest.raises(UserError, match="reads 'image', but .* embedding, mask"):
        make_model(config, make_training_data(config).input_shapes, 2)
    with pytest.raises(UserError, match="--viewpoints"):
        make_training_data(dataclasses.replace(config, viewpoints="azimuth"))


def test_plain_classifiers_judge_the_test_sentences_by_the_penalty_chosen_on_validation(converted):
    process = run_script("data/plain_classifiers.py", f"--dataset={converted}", "--penalties=0.01,0.1")
    found = json.loads(process.stdout)
    validated = dict(re.findall(r"penalty ([\d.]+): .*validation ([\d.]+)%", process.stderr))
    best = max(validated, key=lambda penalty: (float(validated[penalty]), float(penalty)))
    assert (found["classifier"], str(found["penalty"])) == ("logistic_regression", best)
    assert found["parts"]["test"]["num_examples"] == 33 and 0 <= found["parts"]["test"]["accuracy"] <= 1
