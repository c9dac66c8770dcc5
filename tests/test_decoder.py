"""The reconstruction decoder on any backend: what it draws, what that is compared with, and that it learns."""

import keras
import numpy as np
import pytest
from keras import ops

from caps_tf.costs import count_costs
from caps_tf.models import ReconstructionDecoder
from caps_tf.models.decoder import squared_error, unit_range
from tests.compiling import PLAIN
from tests.decoder_reference import drawn_by_hand


def as_model(decoder, poses, kept):
    inputs = keras.Input(poses.shape[1:]), keras.Input(kept.shape[1:])
    return keras.Model(inputs, decoder(*inputs))


def random_poses(pose=(2, 2)):
    return np.random.default_rng(0).normal(size=(4, 3, *pose)).astype("float32")


def test_the_published_decoder_has_the_published_number_of_parameters_and_its_cost_is_counted():
    model = as_model(ReconstructionDecoder((28, 28, 1)), np.zeros((1, 10, 16)), np.zeros((1, 10)))
    assert model.count_params() == 1_411_344
    products = 160 * 512 + 512 * 1024 + 1024 * 784
    cost = count_costs(model, 2)
    # Poses that nothing was trained for need no gradient.
    assert (cost.forward, cost.step) == (2 * products, 2 * (3 * products - 160 * 512))


@pytest.mark.parametrize("pose", [(2, 2), (4,)])
def test_an_image_is_drawn_from_the_kept_capsules_alone(pose, tmp_path):
    poses, kept = random_poses(pose), np.array([[0, 1, 0], [1, 0, 0], [0, 0.25, 0.75], [0, 0, 1]], "float32")
    decoder = ReconstructionDecoder((3, 2, 2), units=(5, 6))
    found = ops.convert_to_numpy(decoder(poses, kept))
    np.testing.assert_allclose(found, drawn_by_hand(decoder, poses, kept), rtol=1e-5)
    others = np.where(kept.reshape(4, 3, *[1] * len(pose)) > 0, poses, 7).astype("float32")
    np.testing.assert_array_equal(ops.convert_to_numpy(decoder(others, kept)), found)
    as_model(decoder, poses, kept).save(tmp_path / "decoder.keras")
    again = keras.saving.load_model(tmp_path / "decoder.keras")
    np.testing.assert_array_equal(ops.convert_to_numpy(again([poses, kept])), found)


def test_half_precision_draws_in_float32():
    poses, kept = random_poses(), np.eye(3, dtype="float32")[[0, 1, 2, 1]]
    decoder = ReconstructionDecoder((3, 2, 2), units=(5, 6), dtype="mixed_bfloat16")
    found = ops.convert_to_numpy(decoder(poses, kept))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, drawn_by_hand(decoder, poses, kept), atol=0.02)


def test_images_are_compared_from_0_to_1_whatever_their_light():
    images = np.random.default_rng(0).uniform(-3, 5, size=(2, 4, 3, 2)).astype("float32")
    stretched = ops.convert_to_numpy(unit_range(images))
    np.testing.assert_allclose(stretched.min(axis=(1, 2, 3)), [0, 0], atol=1e-6)
    np.testing.assert_allclose(stretched.max(axis=(1, 2, 3)), [1, 1], atol=1e-6)
    np.testing.assert_allclose(ops.convert_to_numpy(unit_range(images * 0.3 - 2)), stretched, atol=1e-5)
    assert not ops.convert_to_numpy(unit_range(np.full((1, 2, 2, 1), 0.7, "float32"))).any()
    error = squared_error(images, images + np.array([1, 2], "float32"))
    np.testing.assert_allclose(ops.convert_to_numpy(error), [4 * 3 * (1 + 4)] * 2, rtol=1e-5)


def test_a_decoder_learns_to_draw_a_handful_of_images():
    poses, kept = random_poses(), np.eye(3, dtype="float32")[[0, 1, 2, 1]]
    images = np.random.default_rng(1).uniform(size=(4, 5, 5, 1)).astype("float32")
    model = as_model(ReconstructionDecoder((5, 5, 1), units=(16, 32)), poses, kept)
    model.compile(keras.optimizers.Adam(0.01), loss=squared_error, jit_compile=PLAIN)
    before = model.evaluate([poses, kept], images, verbose=0)
    often = [np.tile(values, (150, *[1] * (values.ndim - 1))) for values in (poses, kept, images)]
    model.fit(often[:2], often[2], batch_size=4, verbose=0)
    assert model.evaluate([poses, kept], images, verbose=0) < 0.1 * before
