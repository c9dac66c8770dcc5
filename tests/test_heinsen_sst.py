"""The sentiment classifier of Heinsen 2019: its size, masks and padding, precision, and that it learns."""

import functools

import keras
import numpy as np
import pytest
from keras import ops

from caps_tf.errors import UserError
from caps_tf.models import heinsen_sst
from tests.compiling import both_ways, in_campaign
from tests.gradients import gradients
from tests.networks import tiny


@pytest.mark.parametrize("num_classes, parameters", [(2, 138_944), (5, 140_480)])
def test_the_classifier_has_the_published_size(num_classes, parameters):
    assert heinsen_sst(37, 1280, num_classes).count_params() == parameters


@functools.cache
def small_classifier(dtype=None):
    model = tiny("heinsen_sst", num_classes=4, dtype=dtype)
    rng = np.random.default_rng(0)
    model.set_weights([0.5 * rng.normal(size=weight.shape) for weight in model.get_weights()])
    return model


def small_sentences(tokens=7, seed=1):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(2, tokens, 3, 8)).astype("float32"), rng.uniform(size=(2, tokens)).astype("float32")


def test_capsules_are_ordered_by_token_then_depth():
    model = small_classifier()
    inner = keras.Model(model.input, [model.get_layer("token_scores").output, model.get_layer("token_poses").output])
    embedding, mask = small_sentences()
    scores, poses = inner({"embedding": embedding, "mask": mask})
    assert tuple(scores.shape) == (2, 21) and tuple(poses.shape) == (2, 21, 1, 6)
    np.testing.assert_allclose(ops.sigmoid(scores), np.repeat(mask, 3, axis=1), rtol=1e-4)
    _, alone = inner({"embedding": embedding[:, 4:5], "mask": mask[:, 4:5]})
    np.testing.assert_allclose(alone, poses[:, 12:15], rtol=1e-5, atol=1e-6)


def test_padding_changes_nothing_and_sentences_may_have_any_length():
    model = small_classifier()
    for tokens in (1, 4, 9):
        embedding, mask = small_sentences(tokens)
        padded = {
            "embedding": np.concatenate([embedding, 9 * np.ones((2, 5, 3, 8), "float32")], axis=1),
            "mask": np.concatenate([mask, np.zeros((2, 5), "float32")], axis=1),
        }
        scores = model({"embedding": embedding, "mask": mask})
        np.testing.assert_allclose(model(padded), scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 1.0, 1e-38, 1 - 2**-24])
def test_masks_at_their_limits_keep_values_and_gradients_finite(value):
    model = small_classifier()
    embedding, mask = small_sentences()
    mask[0, :3], mask[1] = value, value
    found = gradients(lambda e, m: ops.sum(model({"embedding": e, "mask": m}) ** 2), embedding, mask)
    assert np.isfinite(np.array(model({"embedding": embedding, "mask": mask}))).all()
    for gradient in found:
        assert np.isfinite(gradient).all()
    assert np.any(found[0] != 0)


def test_a_sentence_without_tokens_gets_scores_of_zero():
    embedding, mask = small_sentences()
    model = small_classifier()
    parts = keras.Model(model.input, model.get_layer("part_capsules").output)
    scores, poses, _ = parts({"embedding": embedding, "mask": np.zeros_like(mask)})
    assert np.abs(scores).max() < 1e-20 and np.abs(poses).max() < 1e-20


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_the_classifier_under_mixed_precision_stays_near_float32(policy):
    embedding, mask = small_sentences()
    mask[0, 3:], mask[0, :3] = 0, 1
    full, half = small_classifier(), small_classifier(dtype=policy)
    scores = half({"embedding": embedding, "mask": mask})
    assert keras.backend.standardize_dtype(scores.dtype) == "float32"
    expected = np.array(full({"embedding": embedding, "mask": mask}))
    assert np.mean(np.abs(np.array(scores) - expected)) < 0.05 * np.abs(expected).max()


@in_campaign
@both_ways
def test_the_classifier_learns_with_plain_keras_and_reloads(jit_compile, tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=60)
    embedding = rng.normal(size=(60, 5, 2, 8)).astype("float32")
    embedding[np.arange(60), rng.integers(5, size=60), 1, labels] += 5  # one token tells, in one layer
    inputs = {"embedding": embedding, "mask": np.ones((60, 5), "float32")}
    model = heinsen_sst(2, 8, 2, features=8, parts=4)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(2e-2), loss, metrics=["accuracy"], jit_compile=jit_compile)
    history = model.fit(inputs, labels, batch_size=20, epochs=15, verbose=0)
    assert history.history["accuracy"][-1] > 0.85
    model.save(tmp_path / "sst.keras")
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "sst.keras")(inputs), model(inputs))


def test_one_class_is_refused():
    with pytest.raises(UserError, match="at least two"):
        heinsen_sst(2, 8, 1)
