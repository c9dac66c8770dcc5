"""Whole networks: their sizes, shapes, saving, and training with plain Keras."""

import keras
import numpy as np
import pytest

from caps_tf.errors import UserError
from caps_tf.losses import MarginSchedule, MarginScheduler, SpreadLoss
from caps_tf.models import cnn_baseline, heinsen_norb, matrix_capsules
from tests.compiling import both_ways, in_campaign


def trainable_parameters(model):
    return sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)


def test_matrix_capsules_have_the_published_size():
    assert trainable_parameters(matrix_capsules((32, 32, 1), 5)) == 67_154


def test_the_cnn_baseline_has_the_published_size():
    assert trainable_parameters(cnn_baseline((32, 32, 1), 5)) == pytest.approx(4.2e6, rel=0.02)


def test_heinsen_norb_has_the_published_size_and_the_published_part_capsules():
    model = heinsen_norb((96, 96, 2), 5)
    assert trainable_parameters(model) == 271_688
    assert model.get_layer("part_poses").output.shape == (None, 9 * 9 * 64, 4, 4)
    assert [tuple(output.shape) for output in model.get_layer("part_capsules").output[:2]] == [
        (None, 64),
        (None, 64, 4, 4),
    ]


def test_heinsen_norb_takes_images_of_other_sizes_with_the_same_weights():
    small = {"channels": 8, "parts": 4}
    models = [heinsen_norb(shape, 5, **small) for shape in ((29, 29, 2), (33, 48, 2))]
    models[1].set_weights(models[0].get_weights())
    for model in models:
        scores = np.array(model(np.random.default_rng(0).uniform(size=(2, *model.input_shape[1:]))))
        assert scores.shape == (2, 5) and np.isfinite(scores).all()


@in_campaign
@both_ways
def test_heinsen_norb_learns_with_plain_keras_and_reloads(jit_compile, tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=64)
    images = rng.uniform(0, 0.5, size=(64, 30, 30, 1)).astype("float32")
    for image, label in zip(images, labels, strict=True):
        image[slice(2, 12) if label else slice(18, 28)] += 0.5
    model = heinsen_norb((30, 30, 1), 2, channels=8, parts=4)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-2), loss, metrics=["accuracy"], jit_compile=jit_compile)
    accuracy = epochs = 0
    while accuracy < 0.9 and epochs < 60:  # it stays near 1/2 for one to twenty epochs, whichever weights it began with
        [accuracy] = model.fit(images, labels, batch_size=16, verbose=0).history["accuracy"]
        epochs += 1
    assert accuracy >= 0.9
    model.save(tmp_path / "heinsen.keras")
    loaded = keras.saving.load_model(tmp_path / "heinsen.keras")
    np.testing.assert_allclose(loaded(images), model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("network", [matrix_capsules, cnn_baseline])
@pytest.mark.parametrize("image_shape", [(17, 17, 1), (20, 33, 3), (28, 28, 2)])
def test_any_image_shape_gives_scores_between_0_and_1(network, image_shape):
    scores = np.array(network(image_shape, 7)(np.random.default_rng(0).normal(size=(2, *image_shape))))
    assert scores.shape == (2, 7) and np.all((scores >= 0) & (scores <= 1))


def test_too_small_an_image_is_refused_with_the_size_needed():
    with pytest.raises(UserError, match="at least 17 pixels"):
        matrix_capsules((16, 40, 1), 5)
    with pytest.raises(UserError, match="at least 4 pixels"):
        cnn_baseline((40, 3, 1), 5)
    with pytest.raises(UserError, match="at least 29 pixels"):
        heinsen_norb((28, 40, 2), 5)


@in_campaign
@both_ways
def test_matrix_capsules_learn_with_plain_keras_and_reload(jit_compile, tmp_path):
    # Two classes, a bar at the top or at the bottom: class capsules that were told the position of their votes
    # separate them.
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=64)
    images = rng.normal(size=(64, 20, 20, 1)).astype("float32")
    for image, label in zip(images, labels, strict=True):
        rows = slice(1, 6) if label else slice(14, 19)
        image[rows] += 3.0
    model = matrix_capsules((20, 20, 1), 2, A=8, B=3, C=3, D=3)
    loss = SpreadLoss()
    model.compile(keras.optimizers.Adam(1e-2), loss, metrics=["accuracy"], jit_compile=jit_compile)
    schedule = MarginScheduler(loss, MarginSchedule(steps=10))
    history = model.fit(images, labels, batch_size=16, epochs=10, verbose=0, callbacks=[schedule])
    assert history.history["accuracy"][-1] > 0.9
    assert float(keras.ops.convert_to_numpy(loss.margin)) > 0.3
    model.save(tmp_path / "capsules.keras")
    loaded = keras.saving.load_model(tmp_path / "capsules.keras")
    np.testing.assert_allclose(loaded(images), model(images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_matrix_capsules_under_mixed_precision_stay_near_float32(policy):
    images = np.random.default_rng(0).normal(size=(4, 20, 20, 1)).astype("float32")
    small = {"A": 8, "B": 2, "C": 3, "D": 3}
    full, half = matrix_capsules((20, 20, 1), 5, **small), matrix_capsules((20, 20, 1), 5, **small, dtype=policy)
    half.set_weights(full.get_weights())
    scores = half(images)
    assert keras.backend.standardize_dtype(scores.dtype) == "float32"
    # Routing sharpens small differences of the votes: close on the whole, not in every score.
    assert np.mean(np.abs(np.array(scores) - np.array(full(images)))) < 0.05
