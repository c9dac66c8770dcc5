"""No routing gives NaN or infinity for finite input: any shape, any scale, degenerate children, in value and gradient."""

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keras import ops

from caps_tf.routing import heinsen_routing, self_routing, votes_form
from caps_tf.routing.dynamic import dynamic_routing, lengths, squash
from caps_tf.routing.em import em_routing
from caps_tf.routing.heinsen import P_MODELS
from caps_tf.routing.heinsen_vectors import VectorRoutingWeights, efficient_vector_routing
from caps_tf.routing.inverted_attention import first_parents, next_parents, routing_weights
from caps_tf.routing.neighbourhood import Neighbourhood
from caps_tf.routing.variational_bayes import COVARIANCES, Prior, vb_routing
from caps_tf.routing.votes import pose_columns, vote_weights, votes_of_children
from tests.gradients import gradients

KINDS = ("random", "zeros", "all equal", "equal children", "one outlier")
size = st.integers(1, 3)
iterations = st.integers(1, 5)

# A few examples in each run of the suite, always the same; many more, and others each time, in the campaign.
# JAX compiles for each shape anew, which takes seconds.
FEW = 3 if keras.config.backend() == "jax" else 4
campaigns = pytest.mark.parametrize(
    "examples", [pytest.param(FEW, id="few"), pytest.param(200, id="many", marks=pytest.mark.campaign)]
)


def check(examples, property_of, *strategies):
    """Runs a property on so many examples."""
    few = examples < 100
    options = settings(
        max_examples=examples,
        deadline=None,
        derandomize=few,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    options(given(*strategies)(property_of))()


@st.composite
def tensors(draw, *shapes):
    """float32 tensors of given shapes, each at a scale of its own between 1e-30 and 1e30."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    found = []
    for shape in shapes:
        scale = 10.0 ** draw(st.sampled_from([0, 0, 0, -30, 30, -9, 9]) | st.integers(-30, 30))
        kind = draw(st.sampled_from(KINDS))
        # Bounded by 1, so that nothing exceeds 1e30.
        values = rng.uniform(-1.0, 1.0, size=shape)
        if kind == "zeros":
            values[:] = 0.0
        elif kind == "all equal":
            values[:] = 1.0
        elif kind == "equal children":
            values[:] = values[:, :1] if values.ndim > 1 else values[:1]
        elif kind == "one outlier":
            values *= 1e-7
            values.flat[0] = 1.0
        found.append((values * scale).astype("float32"))
    return found


def assert_finite(function, inputs):
    """Values of a function of tensors to tensors, and the gradient of a random combination of them."""
    for value in function(*inputs):
        assert np.all(np.isfinite(keras.ops.convert_to_numpy(value)))

    def objective(*inputs):
        rng = np.random.default_rng(0)
        return sum(
            ops.sum(ops.convert_to_tensor(rng.normal(size=value.shape), dtype=value.dtype) * value)
            for value in function(*inputs)
        )

    for gradient in gradients(objective, *inputs):
        assert np.all(np.isfinite(gradient))


@campaigns
def test_em_routing_is_finite_for_any_finite_input(examples):
    def property_of(data, batch, children, kernel, strides, i, j, d, iterations):
        kernel = min(kernel[0], children[0]), min(kernel[1], children[1])
        fields = Neighbourhood(children, kernel, strides)
        k, (p, q) = fields.kernel_positions, fields.parents
        poses, weights, beta_u, beta_a, activations = data.draw(
            tensors((batch, *children, i, d, d), (k * i, j, d, d), (j,), (j,), (batch, *children, i))
        )
        activations = np.minimum(np.abs(activations), 1.0)

        def route(poses, weights, beta_u, beta_a, activations):
            gathered = ops.reshape(fields.gather(poses), (-1, k * i, d, d))
            votes = votes_of_children(pose_columns(gathered), vote_weights(weights))
            votes = ops.reshape(votes, (-1, p, q, j, d * d, k, i))
            return em_routing(votes, fields.gather(activations), beta_u, beta_a, fields, iterations)

        assert_finite(route, (poses, weights, beta_u, beta_a, activations))

    pair = st.tuples(size, size)
    check(examples, property_of, st.data(), st.integers(1, 2), pair, pair, pair, size, size, size, iterations)


@campaigns
def test_dynamic_routing_is_finite_for_any_finite_input(examples):
    def property_of(data, batch, children, kernel, strides, i, j, pose, constant, iterations):
        kernel = min(kernel[0], children[0]), min(kernel[1], children[1])
        fields, (d, e) = Neighbourhood(children, kernel, strides), pose
        k, (p, q) = fields.kernel_positions, fields.parents
        inputs = data.draw(tensors((batch, *children, i, d), (k * i, j, d, e), (batch, p, q, j, e, k, i)))

        def route(features, weights, more):
            gathered = ops.reshape(fields.gather(squash(features)), (-1, k * i, 1, d))
            votes = votes_of_children(pose_columns(gathered), vote_weights(weights))
            votes = ops.reshape(votes, (-1, p, q, j, e, k, i))
            found = [dynamic_routing(each, fields, iterations, constant) for each in (votes, more)]
            return *found[0], *found[1], lengths(found[0].poses), squash(features), lengths(features)

        assert_finite(route, inputs)

    pair = st.tuples(size, size)
    sizes = st.integers(1, 2), pair, pair, pair, size, size, pair
    check(examples, property_of, st.data(), *sizes, st.booleans(), iterations)


@campaigns
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_vb_routing_is_finite_for_any_finite_input(covariance, examples):
    def property_of(data, batch, children, kernel, strides, i, j, d, alpha, iterations):
        kernel = min(kernel[0], children[0]), min(kernel[1], children[1])
        fields = Neighbourhood(children, kernel, strides)
        k, (p, q) = fields.kernel_positions, fields.parents
        votes, beta_u, beta_a, activations = data.draw(
            tensors((batch, p, q, j, d * d, k, i), (j,), (j,), (batch, *children, i))
        )
        activations = np.minimum(np.abs(activations), 1.0)

        def route(votes, beta_u, beta_a, activations):
            found = vb_routing(
                *(votes, fields.gather(activations), beta_u, beta_a, fields, iterations, Prior(alpha), covariance)
            )
            return (*found[:4], ops.sigmoid(found.logits))

        assert_finite(route, (votes, beta_u, beta_a, activations))

    pair, few = st.tuples(size, size), st.integers(1, 3)  # iterations take the time
    sizes, alpha = (st.integers(1, 2), pair, pair, pair, size, size, size), st.sampled_from([1.0, 1e-3])
    check(examples, property_of, st.data(), *sizes, alpha, few)


@campaigns
def test_heinsen_routing_is_finite_for_any_finite_input(examples):
    def property_of(data, batch, i, j, pose, shared, shared_beta, p_model, iterations):
        x, y, z = pose
        weighing, judging = 1 if shared else i, 1 if shared_beta else i
        inputs = data.draw(
            tensors((batch, i), (batch, i, x, y), (weighing, j, y, z), (weighing, j, x, z), (j, judging), (j, judging))
        )

        def route(scores, poses, kernel, bias, beta_use, beta_ign):
            votes = votes_form(kernel, bias).of(poses, kernel, bias)
            return heinsen_routing(scores, votes, beta_use, beta_ign, iterations, p_model)

        assert_finite(route, inputs)

    flags = st.booleans(), st.booleans(), st.sampled_from(P_MODELS)
    check(examples, property_of, st.data(), size, size, size, st.tuples(size, size, size), *flags, iterations)


@campaigns
def test_vector_routing_is_finite_for_any_finite_input(examples):
    def property_of(data, batch, i, j, d, e, normalize, lean, iterations):
        weights = (i, d), (i,), (j, d), (d, e), (j, e), (e, d), (j, d), (j, d), (i, j), (i, j)
        inputs = data.draw(tensors((batch, i, d), *weights, (i, j), (i, j)))

        def route(x, *rest):
            weights = VectorRoutingWeights(*rest[:-2])
            return efficient_vector_routing(x, weights, *rest[-2:], iterations, normalize, memory_efficient=lean)

        assert_finite(route, inputs)

    flags = st.booleans(), st.booleans()
    check(examples, property_of, st.data(), size, size, size, size, size, *flags, iterations)


@campaigns
def test_inverted_attention_is_finite_for_any_finite_input(examples):
    def property_of(data, n, c, j, pose, iterations):
        x, y, z = pose
        inputs = data.draw(tensors((n, c, x, y), (c, j, y, z), (n, j, x, z)))

        def route(children, weights, parents):
            first = first_parents(children, weights)
            for _ in range(iterations):
                parents = next_parents(children, weights, parents)
            return first, parents, routing_weights(children, weights, parents)

        assert_finite(route, inputs)

    check(examples, property_of, st.data(), size, size, size, st.tuples(size, size, size), iterations)


@campaigns
def test_self_routing_is_finite_for_any_finite_input(examples):
    def property_of(data, n, k, i, j, d, e):
        shapes = (n, k, i, d), (n, k, i), (i, j, d), (i, j), (j, i, d, e)
        poses, activations, *weights = data.draw(tensors(*shapes))
        assert_finite(self_routing, (poses, np.minimum(np.abs(activations), 1.0), *weights))

    check(examples, property_of, st.data(), size, size, size, size, size, size)
