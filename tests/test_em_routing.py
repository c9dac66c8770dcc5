"""EM routing against the published implementation's values, a NumPy restatement, and its own invariants."""

from pathlib import Path

import numpy as np
import pytest
from keras import ops

from caps_tf.layers import EMClassCapsules, EMConvCapsules
from caps_tf.routing import em
from caps_tf.routing.competition import initial_routing_weights, softmax_over_parents
from caps_tf.routing.em import log_likelihood, m_step
from caps_tf.routing.neighbourhood import Neighbourhood
from tests import em_reference
from tests.compiling import IN_CAMPAIGN
from tests.gradients import gradients
from tests.precision import within

GOLDEN = np.load(Path(__file__).parent / "golden" / "em_routing.npz")
FIELDS = {
    "conv7s1": Neighbourhood((7, 7), (3, 3), (1, 1)),
    "conv6s2": Neighbourhood((6, 6), (3, 3), (2, 2)),
    "fc": Neighbourhood((1, 1), (1, 1)),
}


def em_routing(votes, *arguments, **options):
    """Routes votes [b, p, q, j, k, i, d] as the references write them, the elements of a vote last."""
    return em.em_routing(ops.moveaxis(votes, -1, 4), *arguments, **options)


def golden_inputs(geometry, scale):
    """The published layout (rows of children, kernel position first) as ours: votes, activations."""
    fields = FIELDS[geometry]
    p, q = fields.parents
    votes = GOLDEN[f"em/{geometry}/votes/{scale}"]
    parent_types = votes.shape[2]
    k = fields.kernel_positions
    votes = votes.reshape(-1, p, q, k, votes.shape[1] // k, parent_types, 16).transpose(0, 1, 2, 5, 3, 4, 6)
    activations = GOLDEN[f"em/{geometry}/activations_in"].reshape(-1, p, q, k, votes.shape[5])
    return np.ascontiguousarray(votes), activations


def route_random(seed, fields, child_types=2, parent_types=3, batch=2, scale=1.0, iterations=2, dtype="float32"):
    rng = np.random.default_rng(seed)
    votes = scale * rng.normal(size=(batch, *fields.parents, parent_types, fields.kernel_positions, child_types, 16))
    activations = rng.uniform(size=(batch, *fields.children, child_types))
    beta_u, beta_a = rng.normal(size=(2, parent_types))
    arrays = [array.astype(dtype) for array in (votes, activations, beta_u, beta_a)]
    votes, activations, beta_u, beta_a = arrays
    parents = em_routing(votes, fields.gather(activations), beta_u, beta_a, fields, iterations)
    return arrays, parents


@pytest.mark.parametrize("iterations", [1, 2, 3])
@pytest.mark.parametrize("beta", ["init", "zero"])
@pytest.mark.parametrize("scale", ["s0.1", "s1", "s10"])
@pytest.mark.parametrize("geometry", FIELDS)
def test_values_of_the_published_implementation_are_reproduced(geometry, scale, beta, iterations):
    votes, activations = golden_inputs(geometry, scale)
    parents = em_routing(
        votes,
        activations,
        beta_u=GOLDEN[f"em/{geometry}/beta_v/{beta}"],
        beta_a=GOLDEN[f"em/{geometry}/beta_a/{beta}"],
        neighbourhood=FIELDS[geometry],
        iterations=iterations,
    )
    expected = f"em/{geometry}/{scale}/{beta}/it{iterations}"
    np.testing.assert_allclose(parents.activations, GOLDEN[f"{expected}/activations"][..., 0], atol=1e-5)
    poses = GOLDEN[f"{expected}/poses"]
    if scale == "s10" and iterations == 3:
        np.testing.assert_allclose(parents.poses, poses, atol=1e-3 * np.abs(poses).max())
    else:
        np.testing.assert_allclose(parents.poses, poses, atol=1e-5 * max(1, np.abs(poses).max()))
    if iterations == 3:
        weights = GOLDEN[f"{expected}/rr"][..., 0]
        weights = weights.reshape(*weights.shape[:3], *votes.shape[4:6], -1).transpose(0, 1, 2, 5, 3, 4)
        np.testing.assert_allclose(parents.routing_weights, weights, atol=1e-3 if scale == "s10" else 3e-5)


@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_gradients_of_the_published_implementation_are_reproduced(iterations):
    case = f"emgrad/fc/s1/zero/it{iterations}"
    votes, activations = golden_inputs("fc", "s1")
    poses_cotangent = GOLDEN[f"{case}/cot_poses"]
    activations_cotangent = GOLDEN[f"{case}/cot_activations"][..., 0]

    def objective(votes, activations, beta_u, beta_a):
        parents = em_routing(votes, activations, beta_u, beta_a, FIELDS["fc"], iterations)
        poses = ops.multiply(parents.poses, poses_cotangent)
        return ops.sum(poses) + ops.sum(ops.multiply(parents.activations, activations_cotangent))

    found = gradients(objective, votes, activations, GOLDEN["em/fc/beta_v/zero"], GOLDEN["em/fc/beta_a/zero"])
    found[0] = found[0][:, 0, 0, :, 0].transpose(0, 2, 1, 3)
    for name, gradient in zip(("votes", "activations_in", "beta_v", "beta_a"), found, strict=True):
        expected = GOLDEN[f"{case}/d_{name}"]
        np.testing.assert_allclose(
            gradient.reshape(expected.shape), expected, atol=1e-5 * max(1, np.abs(expected).max()), err_msg=name
        )


@pytest.mark.parametrize("iterations", [1, 2, 3])
@pytest.mark.parametrize("name", ["conv_caps/c7s1", "conv_caps/c6s2", "fc_caps/c5"])
def test_whole_layers_of_the_published_implementation_are_reproduced(name, iterations):
    poses, activations = GOLDEN[f"{name}/pose_in"], GOLDEN[f"{name}/activation_in"][..., 0]
    poses = poses.reshape(*poses.shape[:-1], 4, 4)
    if name.startswith("conv"):
        layer = EMConvCapsules(4, kernel_size=3, strides=int(name[-1]), iterations=iterations)
        scope, kernel = f"{name}/w/cc", GOLDEN[f"{name}/w/cc/votes/w"].reshape(9, 3, 4, 4, 4)
    else:
        layer = EMClassCapsules(5, iterations=iterations)
        scope, kernel = f"{name}/w/class_caps", GOLDEN[f"{name}/w/class_caps/v/w"][0]
    layer.build((poses.shape, activations.shape))
    layer.set_weights([kernel, *(GOLDEN[f"{scope}/routing/{beta}"].reshape(-1, 1) for beta in ("beta_a", "beta_v"))])
    found_poses, found_activations = layer((poses, activations))
    expected = GOLDEN[f"{name}/it{iterations}/pose_out"]
    np.testing.assert_allclose(
        ops.reshape(found_poses, expected.shape), expected, atol=1e-5 * max(1, np.abs(expected).max())
    )
    expected = GOLDEN[f"{name}/it{iterations}/activation_out"]
    np.testing.assert_allclose(ops.reshape(found_activations, expected.shape), expected, atol=1e-5)


@pytest.mark.parametrize("iterations", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "children, kernel, strides",
    [((5, 5), (3, 3), (1, 1)), ((6, 5), (3, 2), (2, 1)), ((4, 7), (1, 3), (3, 2)), ((2, 3), (2, 3), (1, 1))],
)
def test_agrees_with_procedure_1_worked_out_capsule_by_capsule(children, kernel, strides, iterations):
    fields = Neighbourhood(children, kernel, strides)
    (votes, activations, beta_u, beta_a), parents = route_random(
        seed=iterations, fields=fields, iterations=iterations, dtype="float64"
    )
    for image in range(len(votes)):
        poses, parent_activations, routing = em_reference.em_routing(
            votes[image], activations[image], beta_u, beta_a, children, kernel, strides, iterations, final_lambda=0.01
        )
        np.testing.assert_allclose(parents.poses[image], poses, **within(1e-9))
        np.testing.assert_allclose(parents.activations[image], parent_activations, **within(1e-9))
        np.testing.assert_allclose(parents.routing_weights[image], routing, **within(1e-9))


def test_repair_1_parents_at_different_positions_compete_for_a_child():
    # A row of three children, two parent positions, one parent type: the middle child is seen from both. Its
    # vote fits the left parent, so the right one must lose it. Without the repair each position would keep all.
    fields = Neighbourhood((1, 3), (1, 2))
    votes = np.zeros((1, 1, 2, 1, 2, 1, 4), "float32")
    votes[0, 0, 1, 0, 0] = 5.0  # what the middle child says to the right parent
    votes[0, 0, 1, 0, 1] = -5.0  # the right child disagrees with it
    children = np.ones((1, 1, 3, 1), "float32")
    zero = np.zeros(1, "float32")
    weights = np.array(em_routing(votes, fields.gather(children), zero, zero, fields, iterations=2).routing_weights)
    middle_to_left, middle_to_right = weights[0, 0, 0, 0, 1, 0], weights[0, 0, 1, 0, 0, 0]
    assert middle_to_left > 0.99 and middle_to_right < 0.01
    np.testing.assert_allclose(middle_to_left + middle_to_right, 1.0, rtol=1e-6)
    np.testing.assert_allclose(weights[0, 0, 0, 0, 0, 0], 1.0)  # seen from one position only


@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_repair_2_a_parent_with_a_single_child_is_finite_in_value_and_gradient(iterations):
    fields = Neighbourhood((3, 3), (1, 1))
    rng = np.random.default_rng(0)
    votes = rng.normal(size=(2, 3, 3, 4, 1, 1, 16)).astype("float32")
    activations = rng.uniform(size=(2, 3, 3, 1, 1)).astype("float32")
    beta = np.zeros(4, "float32")

    def objective(*inputs):
        parents = em_routing(*inputs, fields, iterations)
        return ops.sum(parents.poses) + ops.sum(parents.activations)

    parents = em_routing(votes, activations, beta, beta, fields, iterations)
    np.testing.assert_allclose(parents.poses, votes[:, :, :, :, 0, 0], rtol=1e-4, atol=1e-6)
    assert np.all(np.isfinite(np.array(parents.activations)))
    # The variance is its floor, which caps how cheap a parent can be: 16 (1/2 ln 1e-9) a unit of data.
    everything = np.ones((18, 4, 1), "float32"), votes.reshape(18, 4, 16, 1), beta, beta
    _, variance, _ = m_step(*map(ops.convert_to_tensor, everything), 0.01, 1e-9)
    np.testing.assert_allclose(variance, 1e-9, rtol=1e-3)
    for gradient in gradients(objective, votes, activations, beta, beta):
        assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("copies", [3, 10])
def test_repair_3_the_amount_of_data_is_normalised(copies):
    # Showing each child `copies` times, or each parent type, leaves the activation of a parent where it was:
    # neither a larger receptive field nor more rivals change how sure a parent is.
    rng = np.random.default_rng(0)
    votes = rng.normal(size=(2, 1, 1, 3, 1, 6, 16)).astype("float32")
    activations = rng.uniform(size=(2, 1, 1, 1, 6)).astype("float32")
    beta_u, beta_a = rng.normal(size=(2, 3)).astype("float32")
    fields = Neighbourhood.whole((1, 1))
    once = em_routing(votes, activations, beta_u, beta_a, fields, 1).activations
    more_children = em_routing(
        np.repeat(votes, copies, axis=5), np.repeat(activations, copies, axis=4), beta_u, beta_a, fields, 1
    ).activations
    more_parents = em_routing(
        np.repeat(votes, copies, axis=3), activations, *(np.repeat(b, copies) for b in (beta_u, beta_a)), fields, 1
    ).activations
    assert np.ptp(once) > 0.01
    np.testing.assert_allclose(more_children, once, rtol=1e-4)
    np.testing.assert_allclose(more_parents[..., ::copies], once, rtol=1e-4)


def test_an_image_does_not_depend_on_its_batch_mates():
    fields = Neighbourhood((7, 7), (3, 3), (2, 2))
    (votes, activations, beta_u, beta_a), _ = route_random(seed=0, fields=fields, batch=3)
    # Wild neighbours would show wherever a fill value or a shift is taken over the whole batch.
    votes[1:] *= np.float32(1e3)
    gathered = np.array(fields.gather(activations))
    together = em_routing(votes, gathered, beta_u, beta_a, fields, iterations=3)
    alone = em_routing(votes[:1], gathered[:1], beta_u, beta_a, fields, iterations=3)
    for one, all_of_them in zip(alone, together, strict=True):
        np.testing.assert_allclose(one[0], all_of_them[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("children, strides", [((7, 7), (1, 1)), ((6, 8), (2, 2)), ((8, 7), (3, 1))])
def test_each_child_shares_itself_out_completely(children, strides):
    fields = Neighbourhood(children, (3, 3), strides)
    _, parents = route_random(seed=1, fields=fields, iterations=3)
    start = np.broadcast_to(initial_routing_weights(fields, 3), parents.routing_weights.shape)
    for weights in (np.array(parents.routing_weights), start):
        given = given_by_children(fields, weights.astype("float64").sum(axis=3))
        seen = np.broadcast_to((fields.parents_per_child() > 0).ravel()[None, :, None], given.shape)
        np.testing.assert_allclose(given, seen.astype(float), atol=1e-5)


def given_by_children(fields, values):
    """Sums [b, p, q, k, i] to [b, children, i], pair by pair."""
    batch, p, q, _, child_types = values.shape
    given = np.zeros((batch, fields.children[0] * fields.children[1], child_types))
    for row, column, x, y in np.ndindex(p, q, *fields.kernel):
        child = (row * fields.strides[0] + x) * fields.children[1] + column * fields.strides[1] + y
        given[:, child] += values[:, row, column, x * fields.kernel[1] + y]
    return given


def test_the_order_of_children_does_not_matter():
    fields = Neighbourhood.whole((2, 3))
    (votes, activations, beta_u, beta_a), parents = route_random(seed=2, fields=fields, child_types=4, iterations=3)
    order = np.random.default_rng(0).permutation(4)
    shuffled = em_routing(
        votes[..., order, :], np.array(fields.gather(activations))[..., order], beta_u, beta_a, fields, 3
    )
    np.testing.assert_allclose(parents.poses, shuffled.poses, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(parents.activations, shuffled.activations, rtol=1e-4)


@pytest.mark.parametrize("iterations", [3, *(pytest.param(each, marks=IN_CAMPAIGN) for each in (1, 5))])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("case", ["random", "inactive children", "identical votes", "one outlier"])
def test_extreme_inputs_give_finite_values_and_gradients(case, scale, iterations):
    fields = Neighbourhood((5, 4), (3, 3), (2, 1))
    (votes, activations, beta_u, beta_a), _ = route_random(seed=3, fields=fields, scale=scale)
    if case == "inactive children":
        activations[:] = 0.0
    elif case == "identical votes":
        votes[:] = votes[:, :, :, :, :1, :1]
    elif case == "one outlier":
        votes[..., 1:, :] = votes[..., 1:2, :] * np.float32(1e-6)

    def objective(votes, activations, beta_u, beta_a):
        parents = em_routing(votes, fields.gather(activations), beta_u, beta_a, fields, iterations)
        return ops.sum(parents.poses) / scale + ops.sum(parents.activations)

    parents = em_routing(votes, fields.gather(activations), beta_u, beta_a, fields, iterations)
    for value in (*parents, *gradients(objective, votes, activations, beta_u, beta_a)):
        assert np.all(np.isfinite(np.array(value)))


def test_the_log_likelihood_is_that_of_a_diagonal_gaussian():
    from scipy.stats import norm

    rng = np.random.default_rng(0)
    votes = rng.normal(size=(5, 2, 16, 3))
    mu, variance = rng.normal(size=(5, 2, 16)), rng.uniform(0.1, 2, size=(5, 2, 16))
    expected = norm.logpdf(votes, mu[..., None], np.sqrt(variance)[..., None]).sum(-2)
    np.testing.assert_allclose(log_likelihood(votes, mu, variance), expected, **within(1e-10))


def test_the_softmax_survives_logits_that_would_overflow():
    fields = Neighbourhood((1, 3), (1, 2))
    logits = np.array([3e38, -3e38, 1e5, 0.0], "float32").reshape(1, 1, 2, 1, 2, 1)
    weights = np.array(softmax_over_parents(logits, fields)).ravel()
    np.testing.assert_array_equal(weights, [1.0, 0.0, 1.0, 1.0])


def test_zero_iterations_are_refused():
    with pytest.raises(ValueError, match="at least 1 iteration"):
        route_random(seed=0, fields=Neighbourhood.whole((2, 2)), iterations=0)


@pytest.mark.parametrize(
    "children, kernel, strides",
    [((7, 6), (3, 2), (1, 1)), ((7, 6), (3, 2), (2, 3)), ((4, 4), (4, 4), (1, 1)), ((1, 9), (1, 3), (1, 1))],
)
def test_what_parents_have_for_a_child_is_summed_and_compared(children, kernel, strides):
    fields = Neighbourhood(children, kernel, strides)
    rng = np.random.default_rng(0)
    below = rng.normal(size=(2, *children, 3))
    values = rng.normal(size=(2, *fields.parents, fields.kernel_positions, 3))

    expected = given_by_children(fields, values).reshape(2, *children, 3)
    np.testing.assert_allclose(fields.scatter_add(values), expected, **within(1e-12))
    [gradient] = gradients(lambda tensor: ops.sum(ops.multiply(fields.scatter_add(tensor), below)), values)
    np.testing.assert_allclose(gradient, fields.gather(below), **within(1e-12))
    [gradient] = gradients(lambda tensor: ops.sum(ops.multiply(fields.gather(tensor), values)), below)
    np.testing.assert_allclose(gradient, expected, **within(1e-12))
    # With a large power the sum is the largest value, and minus infinity where nothing is added.
    with np.errstate(divide="ignore"):
        largest = np.log(given_by_children(fields, np.exp(200.0 * values))).reshape(expected.shape) / 200.0
    np.testing.assert_allclose(fields.scatter_max(values), largest, atol=0.02)


def test_a_kernel_larger_than_the_grid_of_children_is_refused():
    with pytest.raises(ValueError, match="kernel of 3x3"):
        Neighbourhood((2, 5), (3, 3))
