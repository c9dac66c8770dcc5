"""Gauges of routing health by hand, and traces of routing layers against what the layers put out."""

import numpy as np
import pytest
from keras import ops

from caps_tf.layers import (
    AttentionConvCapsules,
    AttentionDenseCapsules,
    CapsuleStack,
    EMClassCapsules,
    EMConvCapsules,
    HeinsenRouting,
    HeinsenVectorRouting,
)
from caps_tf.routing import health
from caps_tf.routing.neighbourhood import Neighbourhood


def number(scalar):
    return float(np.array(scalar))


def test_entropy_is_1_for_equal_weights_0_for_one_parent_and_between_by_the_formula():
    equal = np.full((2, 4, 3), 0.25)
    assert number(health.routing_entropy(equal, equal)) == pytest.approx(1.0)
    one_hot = np.zeros((2, 4, 3))
    one_hot[:, 1] = 1.0
    assert number(health.routing_entropy(one_hot, equal)) == pytest.approx(0.0, abs=1e-6)
    # Half to each of two parents out of four: ln 2 / ln 4.
    halves = np.zeros((2, 4, 3))
    halves[:, :2] = 0.5
    assert number(health.routing_entropy(halves, equal)) == pytest.approx(0.5)


def test_entropy_counts_children_by_their_activation_and_alike_if_none_is_active():
    equal = np.full((1, 2, 2), 0.5)
    weights = np.array([[[0.5, 1.0], [0.5, 0.0]]])  # the first child is undecided, the second not
    assert number(health.routing_entropy(weights, equal, np.array([[0.9, 0.3]]))) == pytest.approx(0.75)
    assert number(health.routing_entropy(weights, equal, np.array([[0.0, 0.0]]))) == pytest.approx(0.5)
    assert number(health.routing_entropy(weights, equal, np.array([[3e-9, 1e-9]]))) == pytest.approx(0.75)


def test_entropy_measures_each_child_by_its_own_number_of_parents_and_leaves_out_those_with_one():
    # A row of three children, two parent positions that see two each, one type: only the middle child has a choice.
    fields = Neighbourhood(children=(1, 3), kernel=(1, 2))
    equal = 1.0 / fields.parents_per_child().ravel()[fields.child_of_pairs()].reshape(2, 1, 2)
    weights = np.array([[[1.0, 0.1]], [[0.9, 1.0]]])
    expected = -(0.1 * np.log(0.1) + 0.9 * np.log(0.9)) / np.log(2)
    assert number(health.routing_entropy(weights, equal)) == pytest.approx(expected)
    # A parent that takes no part (a mask) is not counted among those that a child chooses from.
    equal, weights = np.array([[[0.5], [0.5], [0.0]]]), np.array([[[0.5], [0.5], [0.0]]])
    assert number(health.routing_entropy(weights, equal)) == pytest.approx(1.0)
    assert number(health.routing_entropy(np.ones((1, 1, 3)), np.ones((1, 1, 3)))) == 0.0


def test_parents_count_as_off_or_on_if_they_are_in_nine_examples_of_ten():
    activations = np.full((20, 2, 2), 0.5)
    activations[:18, 0, 0], activations[:17, 0, 1], activations[:18, 1, 0] = 0.049, 0.049, 0.951
    assert number(health.parents_off(activations)) == 0.25
    assert number(health.parents_on(activations)) == 0.25


def test_the_other_gauges_are_what_their_formulas_say():
    assert number(health.variance_floor(np.array([[2e-9, 2.1e-9], [1e-9, 1.0]]), 1e-9)) == 0.5
    assert number(health.vote_scale(np.array([1.0, -7.0]))) == pytest.approx(5.0)
    # Votes (0, 0) and (2, 4) around (1, 2): both at (1 + 4) / 2; (9, 9) has no weight, and only proportions count.
    votes = np.array([[0.0, 2.0, 9.0], [0.0, 4.0, 9.0]])[None, None]
    for factor in (1.0, 1e-15):
        weights = factor * np.array([[[0.2, 0.6, 0.0]]])
        assert number(health.vote_spread(votes, np.array([[[1.0, 2.0]]]), weights)) == pytest.approx(2.5)
    # <(0, 0), (1, 2)> = 0 and <(2, 4), (1, 2)> = 10, over sqrt(2), the second with three times the weight.
    agreement = health.vote_agreement(votes, np.array([[[1.0, 2.0]]]), np.array([[[0.2, 0.6, 0.0]]]))
    assert number(agreement) == pytest.approx(7.5 / np.sqrt(2))
    assert number(health.update_ratio(np.array([3.0, 4.0]), np.array([3.0, 5.0]))) == pytest.approx(1 / np.sqrt(34))
    assert number(health.update_ratio(np.zeros(3), np.ones(3))) == 1.0
    assert number(health.update_ratio(np.zeros(3), np.zeros(3))) == 0.0


def test_gauges_of_a_trace_tell_what_each_iteration_gained():
    # One child in two stays with each of two parents whose means are its votes, after sharing itself equally.
    votes = np.array([[[[0.0, 2.0]], [[0.0, 2.0]]]])
    first = health.RoutingStep(np.full((1, 2, 2), 0.5), votes, np.ones((1, 2, 1)), np.ones((1, 2, 1)))
    weights, means = np.eye(2)[None], np.array([[[0.5], [2.0]]])
    second = health.RoutingStep(weights, votes, means, np.array([[[0.25], [1e-9]]]))
    gauges = health.trace_gauges(health.RoutingTrace((first, second), np.ones((1, 2)), 1e-9))
    gauges = {name: number(value) for name, value in gauges.items()}
    expected = {"routing_entropy": 0.0, "vote_scale": np.sqrt(2), "variance_floor": 0.5, "vote_spread_2": 0.125}
    assert gauges == pytest.approx(expected, abs=1e-6)


def capsules(rng, rows, columns, types):
    poses = rng.normal(size=(2, rows, columns, types, 4, 4)).astype("float32")
    return poses, rng.uniform(size=(2, rows, columns, types)).astype("float32")


@pytest.mark.parametrize("kind", ["conv", "class"])
def test_a_trace_of_em_routing_ends_with_the_layers_output_and_explains_it(kind):
    options = {"iterations": 3, "final_lambda": 0.02, "beta_a_initializer": "zeros"}
    make = {"conv": lambda: EMConvCapsules(4, 3, 2, **options), "class": lambda: EMClassCapsules(4, **options)}
    layer, children = make[kind](), capsules(np.random.default_rng(0), 5, 5, 3)
    poses, activations = map(np.array, layer(children))
    trace = layer.routing_trace(children)
    steps, active = trace.steps, trace.child_activations
    last = steps[-1]
    np.testing.assert_allclose(np.array(last.parents).ravel(), poses.ravel(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.array(last.activations).ravel(), activations.ravel(), rtol=1e-4)
    for step in steps:
        votes, shares = np.array(step.votes), np.array(step.routing_weights) * np.array(active)[:, None]
        shares = shares / shares.sum(axis=-1, keepdims=True)
        means = np.einsum("njc,njdc->njd", shares, votes)
        variances = np.einsum("njc,njdc->njd", shares, (votes - means[..., None]) ** 2)
        np.testing.assert_allclose(step.parents, means, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(step.variances, variances, rtol=1e-2, atol=1e-6)
    gauges = {name: number(value) for name, value in health.trace_gauges(trace).items()}
    assert 0 < gauges["routing_entropy"] < 1 and gauges["vote_spread_3"] < gauges["vote_spread_2"] < 1
    only_first = trace._replace(steps=steps[:1])
    assert number(health.trace_gauges(only_first)["routing_entropy"]) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("n_inp", [None, 6])
def test_a_trace_of_heinsens_routing_ends_with_the_layers_output_and_internals(n_inp):
    rng = np.random.default_rng(0)
    children = rng.normal(size=(2, 6)).astype("float32"), rng.normal(size=(2, 6, 4, 4)).astype("float32")
    layer = HeinsenRouting(n_inp=n_inp, n_out=5, d_cov=4, d_inp=4, d_out=4, return_dict=True)
    found = layer(children)
    trace = layer.routing_trace(children)
    assert len(trace.steps) == 3
    last = trace.steps[-1]
    np.testing.assert_allclose(np.array(last.routing_weights).transpose(0, 2, 1), found["R"], rtol=1e-3, atol=1e-5)
    votes = np.array(last.votes).transpose(0, 3, 1, 2).reshape(2, 6, 5, 4, 4)
    np.testing.assert_allclose(votes, found["V"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.array(last.parents).reshape(2, 5, 4, 4), found["mu_out"], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(np.array(last.variances).reshape(2, 5, 4, 4), found["sig2_out"], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(last.activations, ops.sigmoid(found["a_out"]), rtol=1e-4)
    np.testing.assert_allclose(trace.child_activations, 1 / (1 + np.exp(-children[0])), rtol=1e-5)


@pytest.mark.parametrize("schedule, counts", [("concurrent", (2, 3)), ("sequential", (3, 3))])
def test_a_trace_of_a_stack_has_the_steps_of_its_schedule_and_ends_with_its_output(schedule, counts):
    layers = [AttentionConvCapsules(4, 3, name="low"), AttentionDenseCapsules(3, name="high")]
    stack = CapsuleStack(layers, iterations=3, schedule=schedule)
    children, _ = capsules(np.random.default_rng(0), 4, 4, 2)
    found = np.array(stack(children))
    traces = stack.routing_trace(children)
    assert [len(traces[name].steps) for name in ("low", "high")] == list(counts)
    np.testing.assert_allclose(np.array(traces["high"].steps[-1].parents).ravel(), found.ravel(), rtol=1e-4, atol=1e-5)
    for trace in traces.values():
        for step in trace.steps:
            # Before they are normalised, parents are the votes summed by their routing weights.
            summed = np.einsum("njc,njdc->njd", step.routing_weights, step.votes)
            summed = summed - summed.mean(axis=-1, keepdims=True)
            summed = summed / np.sqrt(summed.var(axis=-1, keepdims=True) + 1e-5)
            np.testing.assert_allclose(step.parents, summed, rtol=1e-3, atol=1e-3)
        gauges = health.trace_gauges(trace)
        assert f"vote_agreement_{len(trace.steps)}" in gauges and 0 < number(gauges["routing_entropy"]) < 1
    once = layers[0].routing_trace(children)
    assert number(health.trace_gauges(once)["routing_entropy"]) == pytest.approx(1.0)


def test_a_trace_of_vector_routing_ends_with_the_layers_routing_weights_and_leaves_masked_pairs_out():
    x = np.random.default_rng(0).normal(size=(2, 3, 7, 6)).astype("float32")
    mask = np.zeros((7, 4), bool)
    mask[0], mask[1, 2:] = True, True  # the first input goes nowhere, the second to two outputs
    layer = HeinsenVectorRouting(n_inp=7, n_out=4, d_inp=6, d_out=5, iterations=3, return_dict=True)
    found = layer(x, mask=mask)
    trace = layer.routing_trace(x, mask=mask)
    weights = np.array(trace.steps[-1].routing_weights)
    np.testing.assert_allclose(weights.transpose(0, 2, 1), np.array(found["R"]).reshape(6, 7, 4), rtol=1e-4, atol=1e-6)
    assert weights[:, :, 0].sum() == 0
    [entropy] = health.trace_gauges(trace).values()
    active = np.array(trace.child_activations)[:, 1:]
    terms = -(weights * np.log(np.maximum(weights, 1e-20))).sum(axis=1)[:, 1:] / np.log([2, 4, 4, 4, 4, 4])
    assert number(entropy) == pytest.approx((active * terms).sum() / active.sum(), rel=1e-4)
