"""examples/credit.py on tiny data of both kinds: it learns, says how well, and writes the pictures."""

import re
import struct

import keras
import numpy as np
import pytest
from PIL import Image

from caps_tf.data import conversion, idx_records
from caps_tf.data.sentence_records import SentenceRecords, sentence_schema
from caps_tf.data.text_encoders import KerasEncoder
from caps_tf.evaluation.credit import image_credit, sentence_credit
from caps_tf.evaluation.style import save_figure
from tests.small_norb import run_script

EXAMPLE = "examples/credit.py"
WORDS = ("[end]", "[unknown]", "good", "bad", "a", "the", "film")


def write_idx(path, array):
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape) + array.tobytes())


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Noise with a bright bar, whose row is the class's."""
    source, output = tmp_path_factory.mktemp("idx"), tmp_path_factory.mktemp("bars")
    rng = np.random.default_rng(0)
    for prefix, count in (("train", 200), ("t10k", 20)):
        labels = np.arange(count, dtype=np.uint8) % 2
        pixels = rng.integers(0, 60, (count, 12, 14), np.uint8)
        pixels[labels == 0, 2:4] += 150
        pixels[labels == 1, 8:10] += 150
        write_idx(source / f"{prefix}-images-idx3-ubyte", pixels)
        write_idx(source / f"{prefix}-labels-idx1-ubyte", labels)
    splits = {split: idx_records.IdxRecords.read(source, split) for split in ("train", "test")}
    conversion.convert(output, idx_records.idx_schema("bars", 12, 14, ["above", "below"]), splits, num_shards=2)
    return output


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    path = tmp_path_factory.mktemp("encoder") / "encoder.keras"
    tokens = keras.Input((None,), dtype="int32")
    normal = keras.initializers.RandomNormal(stddev=1.0, seed=1)
    keras.Model(tokens, keras.layers.Embedding(len(WORDS), 8, embeddings_initializer=normal)(tokens)).save(path)
    path.with_suffix(".vocabulary.txt").write_text("\n".join(WORDS) + "\n")
    return path


@pytest.fixture(scope="module")
def sentences(tmp_path_factory, encoder):
    """Sentences of which one word says what the label is."""
    source, output = tmp_path_factory.mktemp("text"), tmp_path_factory.mktemp("films")
    rng = np.random.default_rng(0)
    splits = {}
    for split, count in (("train", 200), ("test", 20)):
        lines = []
        for row in range(count):
            words = rng.choice(WORDS[4:], size=rng.integers(1, 12)).tolist()
            words.insert(rng.integers(len(words) + 1), ("bad", "good")[row % 2])
            lines.append(f"{row % 2} {' '.join(words)}\n")
        (source / split).write_text("".join(lines))
        splits[split] = SentenceRecords.read(source / split, split, ["0", "1"], KerasEncoder(encoder))
    conversion.convert(output, sentence_schema("films", 1, 8, ["negative", "positive"]), splits, num_shards=2)
    return output


def draw(data_dir, output, *flags):
    return run_script(EXAMPLE, f"--data_dir={data_dir}", f"--output={output}", "--steps=40", "--batch_size=20", *flags)


def assert_learned_and_drawn(process, output):
    accuracy, count = re.search(r"^validation accuracy (.*)% of (\d+) examples$", process.stdout, re.MULTILINE).groups()
    assert int(count) == 20, "the validation split is a tenth of the training files"
    assert float(accuracy) > 80
    expected = {"right.png"} if float(accuracy) == 100 else {"right.png", "wrong.png"}
    assert {path.name for path in output.iterdir()} == expected
    for name in expected:
        assert str(output / name) in process.stdout
        with Image.open(output / name) as picture:
            assert len(np.unique(np.array(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 50  # not a blank page


@pytest.mark.campaign
def test_credit_of_an_image(images, tmp_path):
    assert_learned_and_drawn(draw(images, tmp_path), tmp_path)


@pytest.mark.campaign
def test_credit_of_a_sentence(sentences, encoder, tmp_path):
    assert_learned_and_drawn(draw(sentences, tmp_path, f"--encoder={encoder}"), tmp_path)


def test_tokens_are_spelled(encoder):
    encoder = KerasEncoder(encoder)
    [tokens] = encoder.tokenize(["A good PLOT"])
    assert encoder.spell(tokens) == ["a", "good", "[unknown]", "[end]"]


def test_credit_pictures_show_every_token_and_position(tmp_path):
    rng = np.random.default_rng(0)
    tokens = ["Not", "a", "$2", "film", "\n", "", "x" * 200, *["word"] * 60]
    figure = sentence_credit(tokens, rng.normal(size=(len(tokens), 2)), ["negative", "positive"], "Credit")
    for axes in figure.axes[:2]:
        assert len(axes.texts) == len(axes.patches) == len(tokens)
        assert len({patch.get_facecolor() for patch in axes.patches}) > 40
    assert save_figure(figure, tmp_path / "sentence.png").stat().st_size > 10_000
    credit = rng.normal(size=(3, 4, 7))
    for image in (rng.integers(0, 256, (24, 32, 3), np.uint8), rng.normal(size=(24, 32, 1)), rng.normal(size=(24, 32))):
        figure = image_credit(image, credit, list("abcdefg"))
        shown = [axes.images for axes in figure.axes[:8]]
        assert [len(images) for images in shown] == [1] + [2] * 7
        np.testing.assert_array_equal(shown[3][1].get_array(), credit[:, :, 2])
    assert save_figure(figure, tmp_path / "image.png").stat().st_size > 5_000
    assert sentence_credit([], np.zeros((0, 2)), ["a", "b"]) is None
    with pytest.raises(ValueError, match="credit of 2 tokens towards 1 classes"):
        sentence_credit(["a", "b"], np.zeros((1, 2)), ["c"])
    with pytest.raises(ValueError, match="2 classes"):
        image_credit(np.zeros((4, 4)), np.zeros((2, 2, 3)), ["a", "b"])
    with pytest.raises(ValueError, match="expected an image"):
        image_credit(np.zeros((4, 4, 2)), np.zeros((2, 2, 2)), ["a", "b"])
