"""What every capsule layer must do, so that the test of a layer is a few lines."""

import keras
import numpy as np
from keras import ops

from tests.compiling import PLAIN


def as_list(outputs):
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]


def add_noise(weights, scale=0.1, seed=0):
    """Moves weights away from where they start: routing that starts uniform does not see its children."""
    rng = np.random.default_rng(seed)
    for weight in weights:
        weight.assign(np.array(weight) + (scale * rng.normal(size=weight.shape)).astype("float32"))


def run_layer_test(make_layer, input_shapes, output_shapes, tmp_path, jit_compile=PLAIN):
    """Checks a layer from construction to reloading.

    Shapes are without the batch; several are given as a list. `make_layer(**kwargs)` builds a new layer, so that it
    can be built under another dtype policy as well.
    """
    several = isinstance(input_shapes, list)
    shapes = input_shapes if several else [input_shapes]
    inputs = [keras.Input(shape) for shape in shapes]

    # Symbolic shapes: right, for an unknown batch.
    layer = make_layer()
    outputs = layer(inputs if several else inputs[0])
    flat_outputs = as_list(outputs)
    assert [tuple(output.shape) for output in flat_outputs] == [(None, *shape) for shape in output_shapes]
    declared = layer.compute_output_shape([(3, *shape) for shape in shapes] if several else (3, *shapes[0]))
    declared = declared if isinstance(declared[0], tuple) else [declared]
    assert [tuple(shape) for shape in declared] == [(3, *shape) for shape in output_shapes]

    # Values: as declared, for two batch sizes, and each image by itself, unlike the others.
    add_noise(layer.trainable_weights)
    model = keras.Model(inputs, flat_outputs)
    rng = np.random.default_rng(0)
    data = [rng.uniform(size=(5, *shape)).astype("float32") for shape in shapes]
    five = as_list(model(data))
    two = as_list(model([array[:2] for array in data]))
    for output, first, shape in zip(five, two, output_shapes, strict=True):
        assert tuple(output.shape) == (5, *shape)
        np.testing.assert_allclose(output[:2], first, rtol=1e-4, atol=1e-5)
        assert np.ptp(np.array(output), axis=0).max() > 1e-3

    # Training: `fit` takes a step, moves every weight, and leaves it finite.
    flat = [keras.layers.Flatten()(output) for output in flat_outputs]
    trained = keras.Model(inputs, ops.concatenate(flat, axis=-1))
    trained.compile(keras.optimizers.SGD(1e-3), "mse", jit_compile=jit_compile)
    before = [np.array(weight) for weight in trained.trainable_variables]
    targets = rng.normal(
        size=trained.compute_output_shape([array.shape for array in data] if several else data[0].shape)
    )
    trained.fit(data if several else data[0], targets, batch_size=5, epochs=1, verbose=0)
    for old, weight in zip(before, trained.trainable_variables, strict=True):
        assert np.all(np.isfinite(np.array(weight))), weight.path
        assert np.any(old != np.array(weight)), f"{weight.path} got no gradient"

    # Saving: config and weights come back.
    assert make_layer().__class__.from_config(layer.get_config()).get_config() == layer.get_config()
    model.save(tmp_path / "layer.keras")
    loaded = keras.saving.load_model(tmp_path / "layer.keras")
    for output, again in zip(as_list(model(data)), as_list(loaded(data)), strict=True):
        np.testing.assert_array_equal(output, again)

    # Mixed precision: half-precision outputs near the full ones, float32 weights.
    for policy in ("mixed_bfloat16", "mixed_float16"):
        half = make_layer(dtype=policy)
        half.build([array.shape for array in data] if several else data[0].shape)
        half.set_weights(layer.get_weights())
        outputs = half(data if several else data[0])
        for output, full in zip(as_list(outputs), as_list(model(data)), strict=True):
            assert keras.backend.standardize_dtype(output.dtype) == policy.removeprefix("mixed_")
            # On the mean: routing sharpens small differences of the votes here and there.
            difference = np.abs(np.array(ops.cast(output, "float32")) - np.array(full))
            assert difference.mean() < 0.02 * max(1.0, float(np.abs(full).max()))
        assert all(keras.backend.standardize_dtype(weight.dtype) == "float32" for weight in half.weights)
