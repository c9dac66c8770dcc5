"""Vector routing against the published implementation's values, a NumPy restatement, and its own invariants."""

import json
import math
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops
from keras.ops import convert_to_numpy as numpy

from caps_tf.layers import DefinableVectorRouting, HeinsenVectorRouting
from caps_tf.routing import efficient_vector_routing
from caps_tf.routing.heinsen_vectors import VectorRoutingWeights
from tests import heinsen_vectors_reference
from tests.gradients import gradients
from tests.heinsen_vectors_cases import FLOAT64, agreement, assert_near, needs_float64, random_case, random_mask, values

GOLDEN = np.load(Path(__file__).parent / "golden" / "heinsen_vectors.npz")
VALUES = GOLDEN["values"]
CASES = {case["name"]: case for case in json.loads(str(GOLDEN["cases"]))}
NAN = "evr/masked_row_nan"
EFFICIENT = [name for name in CASES if name.startswith("evr") and name != NAN]
DEFINABLE = [name for name in CASES if name.startswith("dvr")]

# Where the published layer keeps a weight that ours keeps under another name; both are transposed.
PUBLISHED_NAMES = {
    "beta_use_kernel": "compute_beta_use.weight",
    "beta_use_bias": "compute_beta_use.bias",
    "beta_ign_kernel": "compute_beta_ign.weight",
    "beta_ign_bias": "compute_beta_ign.bias",
}


@keras.saving.register_keras_serializable(package="caps_tf_tests")
class Memories(keras.layers.Layer):
    """Proposals that do not depend on the input."""

    def build(self, input_shape):
        self.memories = self.add_weight(name="memories", shape=(8, 5, 4), initializer="random_normal")

    def call(self, x):
        return ops.convert_to_tensor(self.memories)


def route(*arguments, **options):
    return values(efficient_vector_routing(*arguments, **options))


def golden(case, kind, name):
    """An array of a golden case: all lie in one flat array."""
    at, shape = CASES[case][kind][name]
    return VALUES[at : at + math.prod(shape)].reshape(shape)


def weight_names(layer):
    """The published name of each weight of a layer, in the order of `layer.trainable_variables`."""
    names = []
    for variable in layer.trainable_variables:
        if isinstance(layer, DefinableVectorRouting) and not variable.name.startswith("beta"):
            networks = {id(layer.A): "A.", id(layer.F): "F.", id(layer.G): "G."}
            prefix = next(
                networks[id(n)] for n in (layer.A, layer.F, layer.G) if any(variable is v for v in n.variables)
            )
            names.append(prefix + {"kernel": "weight", "bias": "bias", "memories": "W_mem"}[variable.name])
        else:
            names.append(PUBLISHED_NAMES.get(variable.name, variable.name))
    return names


def as_ours(name, published):
    return published.T if name.endswith(".weight") else published


def golden_layer(case, dtype):
    """The layer of a case with its weights, its inputs and its mask."""
    config = CASES[case]["config"]
    x = golden(case, "inputs", "x_inp").astype(dtype)
    if case.startswith("evr"):
        layer = HeinsenVectorRouting(**config, dtype=dtype)
    else:
        networks = {"A": keras.layers.Dense(1, dtype=dtype), "F": Memories(dtype=dtype), "S": agreement}
        layer = DefinableVectorRouting(**config, **networks, G=keras.layers.Dense(6, dtype=dtype), dtype=dtype)
    layer.build(x.shape)
    values = [as_ours(name, golden(case, "params", name)).astype(dtype) for name in weight_names(layer)]
    for variable, value in zip(layer.trainable_variables, values, strict=True):
        variable.assign(value)
    return layer, x, golden(case, "inputs", "mask").astype(bool) if "mask" in CASES[case]["inputs"] else None


def tolerance(case, dtype):
    """Without a mask, the published implementation carries a float32 1/n_out."""
    if dtype == "float32":
        return 5e-5
    return 1e-10 if "mask" in CASES[case]["inputs"] else 2e-7


@pytest.mark.parametrize("dtype", ["float32", FLOAT64])
@pytest.mark.parametrize("case", EFFICIENT + DEFINABLE)
def test_values_of_the_published_implementation_are_reproduced(case, dtype):
    layer, x, mask = golden_layer(case, dtype)
    layer.return_dict = True
    found = values(layer(x, mask=mask))
    for name in CASES[case]["outputs64"]:
        expected = np.broadcast_to(golden(case, "outputs64", name), found[name].shape)
        assert_near(found[name], expected, tolerance(case, dtype), name=name)
    layer.return_dict = False
    vectors, credit = values(layer(x, mask=mask, return_credit=True))
    np.testing.assert_array_equal(vectors, found["x_out"])
    np.testing.assert_array_equal(credit, found["phi"])


@pytest.mark.parametrize("case", [name for name in EFFICIENT + DEFINABLE if "grads" in CASES[name]])
@pytest.mark.parametrize("dtype", ["float32", FLOAT64])
def test_gradients_of_the_published_implementation_are_reproduced(case, dtype):
    layer, x, mask = golden_layer(case, dtype)
    cotangent = golden(case, "cotangents", "x_out").astype(dtype)

    def objective(x, *parameters):
        vectors, _ = layer.stateless_call(parameters, [], x, mask=mask)
        return ops.sum(ops.multiply(vectors, cotangent))

    found = gradients(objective, x, *(numpy(variable) for variable in layer.trainable_variables))
    for name, gradient in zip(["in.x_inp", *weight_names(layer)], found, strict=True):
        # G's bias shifts all scores of an input alike here: its gradient is zero but for rounding.
        scale = 0.1 if name == "G.bias" else 0.0
        # The published gradients are float32.
        at_best = {"float32": 5e-5, "float64": 5e-7}[dtype]
        assert_near(gradient, as_ours(name, golden(case, "grads", name)), at_best, scale, name)


@needs_float64
@pytest.mark.parametrize("iterations", [1, 2, 3, 5])
@pytest.mark.parametrize("d_out", [1, 3])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "fixed, normalize, memory_efficient", [(True, True, True), (False, False, True), (True, True, False)]
)
def test_agrees_with_algorithm_1_worked_out_capsule_by_capsule(
    iterations, d_out, masked, fixed, normalize, memory_efficient
):
    x, weights, beta_use, beta_ign = random_case(d_out=d_out, fixed=fixed, seed=iterations)
    mask = random_mask() if masked else None
    routed = route(x, weights, beta_use, beta_ign, iterations, normalize, memory_efficient, mask)
    for example in range(len(x)):
        expected = heinsen_vectors_reference.route(
            x[example], weights._asdict(), beta_use, beta_ign, iterations, normalize,
            np.zeros((7, 4), bool) if mask is None else mask,
        )  # fmt: skip
        for found, value in zip(routed[:3], expected, strict=True):
            assert_near(found[example], value, 1e-10)


@needs_float64
def test_an_example_does_not_depend_on_its_batch_mates():
    x, *parameters = random_case(batch=3)
    x[1:] *= 1e6
    together = route(x, *parameters, iterations=3)
    alone = route(x[:1], *parameters, iterations=3)
    for many, one in zip(together, alone, strict=True):
        np.testing.assert_allclose(many[0], one[0], rtol=1e-12, atol=1e-14)


@needs_float64
def test_the_order_of_inputs_does_not_matter_where_their_number_varies():
    layer = HeinsenVectorRouting(None, 4, 5, 3, iterations=3, dtype="float64")
    x = np.random.default_rng(0).normal(size=(2, 7, 5))
    order = np.random.default_rng(1).permutation(7)
    vectors, credit = values(layer(x, return_credit=True))
    shuffled_vectors, shuffled_credit = values(layer(x[:, order], return_credit=True))
    np.testing.assert_allclose(shuffled_vectors, vectors, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(shuffled_credit, credit[:, order], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("iterations", [1, 3])
def test_each_input_shares_itself_out_completely_and_nothing_goes_where_it_is_ignored(iterations):
    x, *parameters = random_case()
    mask = random_mask()
    for given in (None, mask):
        weights = route(x, *parameters, iterations=iterations, mask=given).routing_weights
        np.testing.assert_allclose(weights.sum(axis=-1), np.ones((2, 7)), rtol=1e-6)
    assert np.all(weights[:, mask] == 0)


@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_an_input_that_all_outputs_ignore_takes_no_part_in_value_or_gradient(iterations):
    x, weights, *betas = random_case()
    mask = random_mask()
    mask[3] = True

    def objective(x, *parameters):
        routed = efficient_vector_routing(
            x, VectorRoutingWeights(*parameters[:-2]), *parameters[-2:], iterations=iterations, mask=mask
        )
        return ops.sum(ops.sin(routed.vectors))

    routed = route(x, weights, *betas, iterations=iterations, mask=mask)
    elsewhere = x.copy()
    elsewhere[:, 3] = 1e3
    again = route(elsewhere, weights, *betas, iterations=iterations, mask=mask)
    for value, other in zip(routed[:3], again[:3], strict=True):  # all but its own score
        assert np.all(np.isfinite(value))
        np.testing.assert_array_equal(value, other)
    assert np.all(routed.credit[:, 3] == 0)
    assert np.all(routed.routing_weights[:, 3] == 0)
    found = gradients(objective, x, *weights, *betas)
    assert all(np.all(np.isfinite(gradient)) for gradient in found)
    assert np.all(found[0][:, 3] == 0) and np.any(found[0][:, 2] != 0)
    assert np.all(found[-1][3] == 0) and np.all(found[-2][3] == 0)


def test_the_published_case_that_gives_nan_gives_numbers():
    layer, x, mask = golden_layer(NAN, "float32")
    vectors, credit = values(layer(x, mask=mask, return_credit=True))
    assert np.all(np.isfinite(vectors)) and np.all(np.isfinite(credit))
    assert np.all(mask[3]) and np.all(credit[3] == 0) and np.all(np.any(credit[:3] != 0, axis=0))


def test_all_inputs_ignored_gives_zeros_and_finite_gradients():
    x, weights, *betas = random_case()
    mask = np.ones((7, 4), bool)

    def objective(x, *betas):
        return ops.sum(efficient_vector_routing(x, weights, *betas, mask=mask).vectors)

    np.testing.assert_array_equal(route(x, weights, *betas, mask=mask).vectors, np.zeros((2, 4, 3)))
    for gradient in gradients(objective, x, *betas):
        np.testing.assert_array_equal(gradient, np.zeros(gradient.shape))


def test_under_a_causal_mask_the_first_iteration_sees_no_later_input():
    layer = HeinsenVectorRouting(6, 6, 5, 3, iterations=1)
    x = np.random.default_rng(0).normal(size=(1, 6, 5)).astype("float32")
    causal = np.tril(np.ones((6, 6), bool), -1)  # output j ignores inputs after j
    changed = x.copy()
    changed[:, 4:] += 1
    before, after = values(layer(x, mask=causal)), values(layer(changed, mask=causal))
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert np.all(np.any(before[:, 4:] != after[:, 4:], axis=-1))


@pytest.mark.parametrize("scale", [1e-6, 1e4])
@pytest.mark.parametrize("iterations", [1, 3])
def test_extreme_inputs_give_finite_values_and_gradients(scale, iterations):
    x, weights, *betas = random_case(scale=scale)
    cast = [np.asarray(value, "float32") for value in (x, *weights, *betas)]

    def objective(x, *parameters):
        routed = efficient_vector_routing(
            x, VectorRoutingWeights(*parameters[:-2]), *parameters[-2:], iterations=iterations
        )
        return ops.sum(routed.vectors)

    assert np.isfinite(values(objective(*cast)))
    for gradient in gradients(objective, *cast):
        assert np.all(np.isfinite(gradient))


def test_zero_iterations_are_refused():
    x, *parameters = random_case()
    with pytest.raises(ValueError, match="at least 1 iteration"):
        efficient_vector_routing(x, *parameters, iterations=0)
