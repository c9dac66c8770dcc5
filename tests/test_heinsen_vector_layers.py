"""Layers of vector routing: shapes, masks, arguments, memory, and what can be built of them."""

import keras
import numpy as np
import pytest
from keras import ops
from keras.ops import convert_to_numpy as numpy

from caps_tf.layers import DefinableVectorRouting, HeinsenVectorRouting
from caps_tf.routing import end_to_end_credit
from tests.compiling import IN_CAMPAIGN
from tests.gradients import gradients
from tests.heinsen_vectors_cases import agreement, assert_near, needs_float64, random_mask, values
from tests.layer_checks import run_layer_test


@pytest.mark.parametrize(
    "n_inp, d_out",
    [
        (None, 4),
        pytest.param(8, 1, marks=IN_CAMPAIGN),
        pytest.param(8, 4, marks=IN_CAMPAIGN),
        pytest.param(None, 1, marks=IN_CAMPAIGN),
    ],
)
def test_efficient_layer(n_inp, d_out, tmp_path):
    def make_layer(**kwargs):
        return HeinsenVectorRouting(n_inp, n_out=5, d_inp=6, d_out=d_out, name="routing", **kwargs)

    run_layer_test(make_layer, (8, 6), [(5, d_out)], tmp_path)


@pytest.mark.parametrize("n_inp", [-1, pytest.param(8, marks=IN_CAMPAIGN)])
def test_definable_layer(n_inp, tmp_path):
    def make_layer(**kwargs):
        proposals = [keras.layers.Dense(5 * 4, name="dense"), keras.layers.Reshape((-1, 5, 4), name="reshape")]
        return DefinableVectorRouting(
            n_inp,
            n_out=5,
            A=keras.layers.Dense(1, name="A"),
            F=keras.Sequential(proposals, name="F"),
            G=keras.layers.Dense(6, use_bias=False, name="G"),
            S=agreement,
            name="routing",
            **kwargs,
        )

    run_layer_test(make_layer, (8, 6), [(5, 4)], tmp_path)


@needs_float64
def test_the_efficient_form_is_a_special_case_of_the_definable_one():
    x = np.random.default_rng(0).normal(size=(2, 7, 5))
    efficient = HeinsenVectorRouting(None, 4, 5, 3, iterations=3, normalize=False, dtype="float64")
    efficient.build(x.shape)
    w = {variable.name: ops.convert_to_tensor(numpy(variable)) for variable in efficient.weights}

    def normalized(vectors):
        return ops.layer_normalization(vectors, epsilon=1e-5)

    definable = DefinableVectorRouting(
        None,
        n_out=4,
        A=lambda x: ops.einsum("...d,ad->...a", x, w["W_A"]) * 7**-0.5 + w["B_A"],
        F=lambda x: ops.einsum("...id,jd,de->...ije", x * 7**-0.5, w["W_F1"], w["W_F2"]) + w["B_F2"],
        G=lambda vectors: ops.einsum("...je,ed->...jd", normalized(vectors), w["W_G1"]) * w["W_G2"] + w["B_G2"],
        S=lambda x, predictions: ops.log_sigmoid(
            ops.einsum("...id,...jd->...ij", x, predictions) * w["W_S"] + w["B_S"]
        ),
        iterations=3,
        dtype="float64",
    )
    definable.build(x.shape)
    for name in ("beta_use_kernel", "beta_use_bias", "beta_ign_kernel", "beta_ign_bias"):
        getattr(definable, name).assign(w[name])
    for found, expected in zip(
        *(values(layer(x, return_credit=True)) for layer in (definable, efficient)), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_initial_deviations_are_the_published_ones():
    layer = HeinsenVectorRouting(200, 100, d_inp=64, d_out=36)
    layer.build((200, 64))
    expected = {
        "W_A": 0.25,
        "W_F1": 1,
        "W_F2": 0.25,
        "W_G1": 1 / 6,
        "W_G2": 1,
        "W_S": 1 / 8,
        "beta_use": 1,
        "beta_ign": 1,
    }
    for variable in layer.weights:
        np.testing.assert_allclose(
            np.std(numpy(variable)), expected.get(variable.name, 0), rtol=0.05, err_msg=variable.name
        )


@pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
@pytest.mark.parametrize("n_inp", [8, None])
def test_any_number_of_leading_axes_gives_the_same(leading, n_inp):
    layer = HeinsenVectorRouting(n_inp, 5, 6, 4)
    x = np.random.default_rng(0).normal(size=(*leading, 8, 6)).astype("float32")
    mask = random_mask(8, 5)
    vectors, credit = values(layer(x, mask=mask, return_credit=True))
    assert tuple(vectors.shape) == (*leading, 5, 4) and tuple(credit.shape) == (*leading, 8, 5)
    assert layer.compute_output_shape(x.shape) == (*leading, 5, 4)
    last = tuple(np.array(leading, int) - 1)
    np.testing.assert_allclose(vectors[last], values(layer(x[last], mask=mask)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", ["efficient", "definable"])
def test_a_layer_with_variable_n_inp_takes_any_number_of_inputs(make):
    if make == "efficient":
        layer = HeinsenVectorRouting(-1, 5, 6, 4)
    else:
        proposals = keras.Sequential([keras.layers.Dense(5 * 4), keras.layers.Reshape((-1, 5, 4))])
        layer = DefinableVectorRouting(-1, 5, keras.layers.Dense(1), proposals, keras.layers.Dense(6), agreement)
    sequence = keras.Input((None, 6))
    model = keras.Model(sequence, layer(sequence, return_credit=True))
    for n_inp in (1, 3, 17):
        vectors, credit = values(model(np.ones((2, n_inp, 6), "float32")))
        assert tuple(vectors.shape) == (2, 5, 4) and tuple(credit.shape) == (2, n_inp, 5)
        assert np.all(np.isfinite(vectors)) and np.any(credit != 0)


def test_inputs_that_keras_marks_as_padding_take_no_part():
    words = np.array([[1, 2, 3, 0, 0], [4, 5, 6, 7, 8]])
    embedding, layer = keras.layers.Embedding(9, 6, mask_zero=True), HeinsenVectorRouting(None, 5, 6, 4)
    _, credit = values(layer(embedding(words), return_credit=True))
    np.testing.assert_array_equal(np.abs(credit).sum(axis=-1) > 0, words > 0)
    # The same within a model, and next to a mask of one's own the padding does not count.
    tokens = keras.Input((5,), dtype="int32")
    model = keras.Model(tokens, layer(embedding(tokens), return_credit=True))
    np.testing.assert_array_equal(values(model(words))[1], credit)
    _, credit = values(layer(embedding(words), mask=np.zeros((5, 5), bool), return_credit=True))
    assert np.all(credit != 0)


def test_a_mask_is_never_mistaken_for_padding_however_its_sizes_fall():
    # Batch, inputs and outputs all alike: a mask and a padding mask have the same shape.
    layer = HeinsenVectorRouting(4, 4, 6, 3)
    mask = np.tril(np.ones((4, 4), bool), -1)
    x = np.random.default_rng(0).normal(size=(4, 4, 6)).astype("float32")
    np.testing.assert_array_equal(numpy(layer(x, mask=mask, return_credit=True)[1])[:, mask], 0)
    padded = keras.layers.Masking()(x * np.array([1, 1, 1, 0], "float32")[:, None])
    credit = numpy(layer(padded, return_credit=True)[1])
    assert np.all(credit[:, 3] == 0) and np.all(credit[:, :3] != 0)


def test_a_constant_mask_is_saved_with_its_model(tmp_path):
    x = np.random.default_rng(0).normal(size=(2, 8, 6)).astype("float32")
    mask = random_mask(8, 5)
    sequence = keras.Input((8, 6))
    model = keras.Model(sequence, HeinsenVectorRouting(8, 5, 6, 4)(sequence, mask=mask))
    model.save(tmp_path / "masked.keras")
    loaded = keras.saving.load_model(tmp_path / "masked.keras")
    np.testing.assert_array_equal(values(loaded(x)), values(model(x)))
    np.testing.assert_array_equal(values(model.layers[-1](x, mask=mask)), values(model(x)))


def test_a_mask_may_differ_between_examples():
    layer = HeinsenVectorRouting(8, 5, 6, 4)
    x = np.random.default_rng(0).normal(size=(2, 8, 6)).astype("float32")
    masks = np.stack([random_mask(8, 5, seed) for seed in (1, 2)])
    together = values(layer(x, mask=masks))
    for example, mask, vectors in zip(x, masks, together, strict=True):
        np.testing.assert_allclose(values(layer(example, mask=mask)), vectors, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"n_out": 1}, "n_out must be at least 2"),
        ({"n_inp": 0}, "n_inp must be at least 1, or None"),
        ({"n_inp": -2}, "n_inp must be at least 1, or None"),
        ({"d_inp": 0}, "d_inp and d_out must be at least 1"),
        ({"d_out": 0}, "d_inp and d_out must be at least 1"),
        ({"iterations": 0}, "iterations must be at least 1"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        HeinsenVectorRouting(**{"n_inp": 8, "n_out": 5, "d_inp": 6, "d_out": 4, **arguments})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("built", [False, True])
@pytest.mark.parametrize(
    "n_inp, shape, message",
    [
        (8, (2, 7, 6), "expected n_inp = 8 input vectors"),
        (8, (2, 8, 5), "expected input vectors of d_inp = 6 elements, not 5"),
        (None, (2, 8, 5), "expected input vectors of d_inp = 6 elements, not 5"),
        (None, (2, 0, 6), "at least one input vector"),
        (8, (6,), "at least one input vector"),
    ],
)
def test_input_of_another_shape_is_refused_in_one_line(n_inp, shape, message, built):
    layer = HeinsenVectorRouting(n_inp, 5, 6, 4)
    if built:
        layer.build((8, 6))
    with pytest.raises(ValueError, match=message) as error:
        layer(np.zeros(shape, "float32"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [(5, 8), (8, 4), (7, 5), (8,), (1, 1, 8, 5)])
def test_a_mask_of_another_shape_is_refused_in_one_line(shape):
    layer = HeinsenVectorRouting(8, 5, 6, 4)
    with pytest.raises(ValueError, match=r"expected a mask \[n_inp, n_out\] = \[8, 5\]") as error:
        layer(np.zeros((2, 8, 6), "float32"), mask=np.zeros(shape, bool))
    assert "\n" not in str(error.value)


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="reads a TensorFlow graph")
@pytest.mark.parametrize("n_inp, n_out, d_inp, d_out", [(200, 50, 20, 30), (50, 200, 30, 20)])
def test_no_step_of_the_efficient_form_makes_a_tensor_of_all_proposals(n_inp, n_out, d_inp, d_out):
    import tensorflow as tf

    layer = HeinsenVectorRouting(n_inp, n_out, d_inp, d_out, iterations=3)
    layer.build((n_inp, d_inp))

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(layer(x, mask=tf.zeros((n_inp, n_out), bool)))
        return tape.gradient(loss, [x, *layer.trainable_variables])

    graph = step.get_concrete_function(tf.TensorSpec((n_inp, d_inp))).graph
    sizes = [output.shape.num_elements() for node in graph.get_operations() for output in node.outputs]
    largest = max(size for size in sizes if size is not None)
    assert largest <= max(n_inp * n_out, n_inp * d_inp, n_out * d_inp, n_out * d_out, d_inp * d_out)


def test_a_sequence_can_be_routed_to_a_vector():
    layer = HeinsenVectorRouting(None, n_out=12, d_inp=6, d_out=1)
    vector = values(layer(np.random.default_rng(0).normal(size=(2, 9, 6)).astype("float32")))[..., 0]
    assert tuple(vector.shape) == (2, 12)
    assert np.all(np.std(vector, axis=-1) > 0)  # scalars are not normalised one by one, which would make them zero


def test_recurrent_residual_routings_share_their_weights_and_learn():
    n_inp, d_inp = 16, 6
    sequence = keras.Input((n_inp, d_inp))
    normalization = keras.layers.LayerNormalization()
    residual = [HeinsenVectorRouting(n_inp, 2, d_inp, d_inp), HeinsenVectorRouting(2, n_inp, d_inp, d_inp)]
    x = sequence
    for _ in range(3):
        hidden = x = normalization(x)
        for routing in residual:
            hidden = routing(hidden)
        x = keras.layers.add([x, hidden])
    model = keras.Model(sequence, x)
    assert model.count_params() == sum(layer.count_params() for layer in [normalization, *residual])
    data = np.random.default_rng(0).normal(size=(4, n_inp, d_inp)).astype("float32")
    targets = np.roll(data, 1, axis=1)

    def loss(*parameters):
        found, _ = model.stateless_call(parameters, model.non_trainable_variables, data)
        return ops.mean(ops.square(ops.subtract(found, targets)))

    parameters = [numpy(variable) for variable in model.trainable_variables]
    found = gradients(loss, *parameters)
    assert all(np.all(np.isfinite(gradient)) and np.any(gradient != 0) for gradient in found)
    downhill = [value - 1e-4 * gradient for value, gradient in zip(parameters, found, strict=True)]
    assert values(loss(*downhill)) < values(loss(*parameters))


def test_a_very_long_sequence_is_routed_twice_through_a_short_one():
    summarize = HeinsenVectorRouting(None, n_out=4, d_inp=8, d_out=64)
    rewrite = HeinsenVectorRouting(4, n_out=100, d_inp=64, d_out=8)
    x = np.random.default_rng(0).normal(size=(20_000, 8)).astype("float32")
    summaries, to_summaries = summarize(x, return_credit=True)
    vectors, to_vectors = rewrite(summaries, return_credit=True)
    assert tuple(vectors.shape) == (100, 8) and np.all(np.isfinite(values(vectors)))
    assert tuple(end_to_end_credit(to_summaries, to_vectors).shape) == (20_000, 100)


@needs_float64
def test_end_to_end_credit_is_the_product_scaled_after_each_factor():
    rng = np.random.default_rng(0)
    factors = [rng.normal(3, 2, size=(2, 3, rows, columns)) for rows, columns in ((7, 5), (5, 4), (4, 2))]
    expected = np.broadcast_to(np.eye(7), (2, 3, 7, 7))
    for factor in factors:
        expected = expected @ factor
        expected = expected / (np.std(expected, ddof=1) + 1e-5)
    assert_near(end_to_end_credit(*factors), expected, 1e-12)
    np.testing.assert_allclose(np.std(values(end_to_end_credit(*factors)), ddof=1), 1, rtol=1e-4)


def test_end_to_end_credit_refuses_routings_that_do_not_follow_each_other():
    with pytest.raises(ValueError, match="5 outputs cannot be followed by one with 4 inputs"):
        end_to_end_credit(np.ones((7, 5)), np.ones((4, 2)))
    with pytest.raises(ValueError, match="at least one routing"):
        end_to_end_credit()
    assert np.all(np.isfinite(values(end_to_end_credit(np.ones((1, 1))))))  # a single number has no deviation
