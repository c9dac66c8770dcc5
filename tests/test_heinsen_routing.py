"""Heinsen routing (2019) against the published implementations' values, a NumPy restatement, and its own invariants."""

import json
import math
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

from caps_tf.layers import HeinsenRouting
from caps_tf.routing import SharedVotes, StoredSharedVotes, heinsen_routing, votes_form
from tests import heinsen_reference
from tests.compiling import IN_CAMPAIGN
from tests.gradients import gradients
from tests.layer_checks import run_layer_test

GOLDEN = np.load(Path(__file__).parent / "golden" / "heinsen_routing.npz")
VALUES = GOLDEN["values"]
CASES = {case["name"]: case for case in json.loads(str(GOLDEN["meta"]))}
WITH_GRADIENTS = [name for name, case in CASES.items() if case["grads"]]
WITHOUT_FLOAT64 = keras.config.backend() == "jax"  # unless it was started with jax_enable_x64
# Of the largest value of a tensor.
TOLERANCE = {"float32": 5e-5, "float64": 1e-10}
PRECISIONS = ["float32", pytest.param("float64", marks=pytest.mark.skipif(WITHOUT_FLOAT64, reason="no float64"))]


def arrays(entries, dtype):
    """The arrays of a golden case, by name: offsets and shapes in one flat array."""
    return {
        name: VALUES[at : at + math.prod(shape)].reshape(shape).astype(dtype) for name, (at, shape) in entries.items()
    }


def golden_layer(case, dtype):
    """A layer with a case's config and weights, its inputs, and the names of its weights in their order."""
    config = dict(case["config"])
    params = arrays(case["params"], dtype)
    layer = HeinsenRouting(**config, symmetry_breaking="B_brk" in params, dtype=dtype)
    inputs = arrays(case["inputs"], dtype)
    inputs = inputs["a_inp"], inputs["mu_inp"]
    layer.build(tuple(array.shape for array in inputs))
    names = [weight.name for weight in layer.trainable_weights]
    assert sorted(names) == sorted(params)
    layer.set_weights([params[name] for name in names])
    return layer, inputs, names


def named(outputs):
    if isinstance(outputs, dict):
        return outputs
    return dict(zip(("a_out", "mu_out", "sig2_out", "R"), outputs, strict=False))


def assert_close(found, expected, tolerance, name):
    found = ops.convert_to_numpy(found)
    assert found.shape == expected.shape, name
    atol = tolerance * np.abs(expected).max(initial=1e-30)
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case["outputs64"]])
def test_values_of_the_published_implementations_are_reproduced(name, dtype):
    layer, inputs, _ = golden_layer(CASES[name], dtype)
    # The published linspace that tells parents apart is in float32, whatever the dtype.
    tolerance = 2e-7 if dtype == "float64" and layer.symmetry_breaking else TOLERANCE[dtype]
    found = named(layer(inputs, **CASES[name]["kwargs"]))
    for output, expected in arrays(CASES[name]["outputs64"], "float64").items():
        assert_close(found[output], expected, tolerance, output)


@pytest.mark.parametrize("name", WITH_GRADIENTS)
def test_gradients_of_the_published_implementations_are_reproduced(name):
    case = CASES[name]
    layer, inputs, names = golden_layer(case, "float32")
    cotangents = arrays(case["cotangents"], "float32")

    def objective(a_inp, mu_inp, *weights):
        outputs, _ = layer.stateless_call(list(weights), [], (a_inp, mu_inp), **case["kwargs"])
        return sum(ops.sum(ops.multiply(named(outputs)[output], cotangent)) for output, cotangent in cotangents.items())

    found = gradients(objective, *inputs, *layer.get_weights())
    expected = arrays(case["grads"], "float64")
    for argument, gradient in zip(("in.a_inp", "in.mu_inp", *names), found, strict=True):
        assert_close(gradient, expected.pop(argument), TOLERANCE["float32"], argument)
    assert not expected


def random_case(seed, children=6, parents=3, shared=False, size=(4, 4, 4), batch=2):
    """Scores, poses and weights of a random case, in float64."""
    rng = np.random.default_rng(seed)
    d_cov, d_inp, d_out = size
    weights = (1 if shared else children, parents)
    shapes = {
        "scores": (batch, children),
        "poses": (batch, children, d_cov, d_inp),
        "W": (*weights, d_inp, d_out),
        "B": (*weights, d_cov, d_out),
        "beta_use": weights,
        "beta_ign": weights,
    }
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


def route(case, dtype="float32", **arguments):
    case = {name: array.astype(dtype) for name, array in case.items()}
    votes = votes_form(case["W"], case["B"]).of(case["poses"], case["W"], case["B"])
    return heinsen_routing(case["scores"], votes, case["beta_use"].T, case["beta_ign"].T, **arguments)


@pytest.mark.skipif(WITHOUT_FLOAT64, reason="no float64")
@pytest.mark.parametrize("p_model", ["gaussian", "skm"])
@pytest.mark.parametrize("iterations", [1, 2, 3, 5])
@pytest.mark.parametrize("shared, size", [(False, (4, 4, 4)), (True, (4, 4, 4)), (True, (1, 6, 2)), (False, (2, 3, 5))])
def test_routing_is_what_the_paper_says_capsule_by_capsule(shared, size, iterations, p_model):
    case = random_case(0, shared=shared, size=size)
    found = route(case, "float64", iterations=iterations, p_model=p_model)
    weights = [
        np.broadcast_to(case[name], (6, 3, *case[name].shape[2:])) for name in ("W", "B", "beta_use", "beta_ign")
    ]
    for example in range(2):
        expected = heinsen_reference.route(
            case["scores"][example], case["poses"][example], *weights, iterations, p_model
        )
        for value, reference in zip(found[:3], expected, strict=False):
            np.testing.assert_allclose(value[example], reference, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(ops.transpose(found.routing_weights[example]), expected[3], atol=1e-10)


def test_votes_that_are_not_stored_are_as_exact_in_float32_as_stored_ones_where_they_agree():
    # Votes a thousandth apart around 10: expanded about zero, squares in float32 would lose every digit of the variance.
    rng = np.random.default_rng(0)
    poses = (10.0 + 1e-3 * rng.normal(size=(2, 40, 4, 4))).astype("float32")
    kernel, bias = (rng.normal(size=(1, 3, 4, 4)).astype("float32") for _ in range(2))
    votes = np.einsum("bixy,jyz->bjxzi", poses.astype("float64"), kernel[0].astype("float64"))
    votes = votes + bias.astype("float64").transpose(1, 2, 3, 0)
    variance = votes.var(axis=-1)
    # What rounding the mean itself to float32 costs is no fault of either form.
    mean, precision = votes.mean(axis=-1).astype("float32"), (1 / variance).astype("float32")
    distance = (precision[..., None] * (votes - mean[..., None]) ** 2).sum(axis=(2, 3))
    weights, active = np.full((2, 3, 40), 1 / 40, "float32"), np.ones((2, 40), "float32")
    errors = {}
    for form in (StoredSharedVotes, SharedVotes):
        found = form.of(poses, kernel, bias).about_mean_of(active)
        errors[form] = (
            np.abs(np.array(found.fit(weights)[1]) / variance - 1).max(),
            np.abs(
                np.array(found.squared_distance(*map(ops.convert_to_tensor, (mean, precision)))) / distance - 1
            ).max(),
        )
    assert errors[SharedVotes][0] < 1e-5
    assert errors[SharedVotes][1] < 4 * errors[StoredSharedVotes][1] < 1e-2


def test_hidden_children_do_not_move_the_centre_of_votes_that_are_not_stored():
    rng = np.random.default_rng(0)
    poses, active = rng.normal(size=(1, 20, 4, 4)).astype("float32"), np.ones((1, 20), "float32")
    kernel, bias = (rng.normal(size=(1, 3, 4, 4)).astype("float32") for _ in range(2))
    weights = np.full((1, 3, 20), 1 / 20, "float32")
    weights[..., 10:], active[:, 10:] = 0.0, 0.0
    variance = SharedVotes.of(poses, kernel, bias).about_mean_of(active).fit(weights)[1]
    poses[:, 10:] = 1e6
    np.testing.assert_allclose(
        SharedVotes.of(poses, kernel, bias).about_mean_of(active).fit(weights)[1], variance, rtol=1e-4
    )


@pytest.mark.parametrize("shared", [False, True])
def test_an_example_does_not_depend_on_its_batch_mates(shared):
    case = random_case(1, shared=shared)
    alone = {name: array[:1] if name in ("scores", "poses") else array for name, array in case.items()}
    for together, single in zip(route(case), route(alone), strict=True):
        np.testing.assert_allclose(together[:1], single, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shared", [False, True])
def test_the_order_of_children_does_not_matter(shared):
    case = random_case(2, shared=shared)
    order = np.random.default_rng(0).permutation(6)
    permuted = {
        name: array[:, order] if name in ("scores", "poses") else array if shared else array[order]
        for name, array in case.items()
    }
    for one, other in zip(route(case)[:3], route(permuted)[:3], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        ops.convert_to_numpy(route(case).routing_weights)[:, :, order], route(permuted).routing_weights, atol=1e-5
    )


@pytest.mark.parametrize("iterations", [1, 2, 4])
def test_routing_weights_share_a_child_among_the_parents_and_its_data_into_used_and_ignored(iterations):
    case = random_case(3)
    parents = route(case, iterations=iterations)
    np.testing.assert_allclose(ops.sum(parents.routing_weights, axis=1), 1.0, atol=1e-5)
    active = 1 / (1 + np.exp(-case["scores"]))
    np.testing.assert_allclose(parents.used + parents.ignored, np.broadcast_to(active[:, None], (2, 3, 6)), atol=1e-5)


@pytest.mark.parametrize("shared", [False, True])
def test_a_hidden_child_changes_nothing_and_children_all_hidden_give_finite_gradients(shared):
    case = random_case(4, shared=shared)
    shorter = {name: array[:, :4] if name in ("scores", "poses") else array for name, array in case.items()}
    case["scores"][:, 4:] = -np.inf
    if shared:
        for one, other in zip(route(case)[:3], route(shorter)[:3], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    case["scores"][0] = -np.inf
    single = {name: array.astype("float32") for name, array in case.items()}

    def objective(poses, W):
        votes = votes_form(W, single["B"]).of(poses, W, single["B"])
        parents = heinsen_routing(single["scores"], votes, single["beta_use"].T, single["beta_ign"].T)
        return ops.sum(parents.scores) + ops.sum(parents.poses) + ops.sum(parents.variances)

    for gradient in gradients(objective, single["poses"], single["W"]):
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("leading", [(), (2,), (2, 3)])
def test_any_number_of_leading_dimensions_gives_what_one_does(leading):
    layer = HeinsenRouting(n_out=4, d_cov=2, d_inp=3, d_out=3)
    rng = np.random.default_rng(0)
    scores, poses = rng.normal(size=(*leading, 7)), rng.normal(size=(*leading, 7, 2, 3))
    found = layer((scores, poses), return_R=True)
    flat = layer((scores.reshape(-1, 7), poses.reshape(-1, 7, 2, 3)), return_R=True)
    for value, expected, shape in zip(found, flat, [(4,), (4, 2, 3), (4, 2, 3), (7, 4)], strict=True):
        assert tuple(value.shape) == (*leading, *shape)
        np.testing.assert_allclose(np.reshape(value, expected.shape), expected, rtol=1e-4, atol=1e-6)


def test_one_layer_takes_sequences_of_any_length_also_inside_a_model():
    scores, poses = keras.Input((None,)), keras.Input((None, 1, 8))
    parts = HeinsenRouting(n_out=6, d_cov=1, d_inp=8, d_out=4)((scores, poses))
    outputs = HeinsenRouting(n_inp=6, n_out=3, d_cov=1, d_inp=4, d_out=4)(parts[:2])
    model = keras.Model([scores, poses], outputs[0])
    for length in (1, 5, 9):
        values = model([np.zeros((2, length)), np.ones((2, length, 1, 8))])
        assert tuple(values.shape) == (2, 3) and np.isfinite(values).all()


def test_parents_with_shared_weights_differ_only_if_told_apart():
    children = np.zeros((2, 7), "float32"), np.random.default_rng(0).normal(size=(2, 7, 2, 3)).astype("float32")
    poses = [
        np.array(HeinsenRouting(d_cov=2, d_inp=3, d_out=3, symmetry_breaking=breaks)(children, n_out=4)[1])
        for breaks in (False, True)
    ]
    assert np.ptp(poses[0], axis=1).max() < 1e-6 and np.ptp(poses[1], axis=1).max() > 0.1


@pytest.mark.parametrize(
    "arguments, shapes",
    [
        ({"n_inp": 5, "n_out": 4}, [(4,), (4, 2, 3), (4, 2, 3)]),
        pytest.param(
            *({"n_out": 4, "p_model": "skm", "single_beta": True}, [(4,), (4, 2, 3), (4, 2, 3)]), marks=IN_CAMPAIGN
        ),
        ({"symmetry_breaking": True, "iterations": 2}, [(5,), (5, 2, 3), (5, 2, 3)]),
    ],
)
def test_heinsen_routing_is_a_keras_layer(arguments, shapes, tmp_path):
    run_layer_test(
        lambda **kwargs: HeinsenRouting(d_cov=2, d_inp=3, d_out=3, **arguments, **kwargs),
        [(5,), (5, 2, 3)],
        shapes,
        tmp_path,
    )


@pytest.mark.parametrize("iterations", [1, 3])
def test_the_internals_are_there_after_any_number_of_iterations(iterations):
    layer = HeinsenRouting(n_inp=5, n_out=4, d_cov=2, d_inp=3, d_out=3, iterations=iterations, return_dict=True)
    children = np.zeros((2, 5), "float32"), np.ones((2, 5, 2, 3), "float32")
    found = layer(children)
    declared = layer.compute_output_shape([array.shape for array in children])
    assert {name: tuple(value.shape) for name, value in found.items()} == declared
    assert declared["V"] == (2, 5, 4, 2, 3) and np.all(np.isfinite(np.array(found["log_p"])))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: HeinsenRouting(4, 4, 4, n_out=1), "n_out must be at least 2"),
        (lambda: HeinsenRouting(4, 4, 4, n_inp=0), "n_inp must be at least 1"),
        (lambda: HeinsenRouting(4, 0, 4), "d_inp must be at least 1"),
        (lambda: HeinsenRouting(4, 4, 4, iterations=0), "iterations must be at least 1"),
        (lambda: HeinsenRouting(4, 4, 4, p_model="laplace"), "gaussian, skm"),
        (lambda: HeinsenRouting(4, 4, 4, n_out=3, symmetry_breaking=True), "leave n_out open"),
        (lambda: HeinsenRouting(4, 4, 4, n_inp=5)((np.zeros((2, 6)), np.zeros((2, 6, 4, 4)))), "n_inp 5|scores"),
        (lambda: HeinsenRouting(4, 4, 4)((np.zeros((2, 6)), np.zeros((2, 6, 4, 3)))), "poses"),
        (lambda: HeinsenRouting(4, 4, 4)((np.zeros((2, 6)), np.zeros((2, 5, 4, 4)))), "poses"),
        (lambda: HeinsenRouting(4, 4, 4)((np.zeros((2, 0)), np.zeros((2, 0, 4, 4)))), "poses"),
        (lambda: HeinsenRouting(4, 4, 4)((np.zeros((2, 6)), np.zeros((2, 6, 4, 4))), n_out=1), "at least 2"),
        (lambda: HeinsenRouting(4, 4, 4, n_out=3)((np.zeros((2, 6)), np.zeros((2, 6, 4, 4))), n_out=4), "n_out=3"),
    ],
)
def test_bad_arguments_get_one_clear_error(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert len(str(caught.value)) < 400


def test_the_published_name_of_the_iterations_is_understood():
    sizes = {"n_inp": 5, "n_out": 4, "d_cov": 2, "d_inp": 3, "d_out": 3}
    layer = HeinsenRouting(**sizes, n_iters=5)
    assert layer.iterations == 5 and HeinsenRouting(**sizes).iterations == 3
    assert "n_iters" not in layer.get_config() and HeinsenRouting.from_config(layer.get_config()).iterations == 5
