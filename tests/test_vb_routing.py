"""Variational-Bayes routing, its layers and its network."""

import keras
import numpy as np
import pytest
from keras import ops
from scipy.special import digamma as scipy_digamma
from scipy.special import polygamma

from caps_tf.layers import CapsuleNormalization, VBClassCapsules, VBConvCapsules
from caps_tf.models import vb_capsules
from caps_tf.routing import Neighbourhood, Prior, vb_routing
from caps_tf.routing.competition import initial_routing_weights
from caps_tf.routing.digamma import digamma
from caps_tf.routing.health import trace_gauges
from caps_tf.routing.variational_bayes import COVARIANCES
from tests import vb_reference
from tests.compiling import PLAIN, in_campaign
from tests.gradients import gradients
from tests.layer_checks import run_layer_test
from tests.precision import within

OTHER_PRIOR = Prior(alpha=0.7, kappa=2.5, nu=6.5, scatter=0.3)


def random_inputs(fields, dtype="float64", batch=2, parents=3, pose_size=4, child_types=2):
    rng = np.random.default_rng(0)
    shape = (batch, *fields.parents, parents, pose_size, fields.kernel_positions, child_types)
    votes = rng.normal(size=shape) + rng.normal(size=(*shape[:4], pose_size, 1, 1))
    activations = rng.uniform(size=(batch, *fields.children, child_types))
    beta_u, beta_a = rng.normal(size=(2, parents))
    return [value.astype(dtype) for value in (votes, activations, beta_u, beta_a)]


def route(votes, activations, beta_u, beta_a, fields, *arguments, **options):
    return vb_routing(votes, fields.gather(activations), beta_u, beta_a, fields, *arguments, **options)


def test_digamma_is_that_of_scipy_and_its_gradient_is_trigamma():
    x = np.concatenate([[1e-6, 0.01], np.linspace(0.1, 20, 50), [1e3, 1e8]])
    np.testing.assert_allclose(digamma(x), scipy_digamma(x), **within(1e-11))
    [gradient] = gradients(lambda x: ops.sum(digamma(x)), x)
    np.testing.assert_allclose(gradient, polygamma(1, x), **{**within(1e-8), "rtol": 1e-3})


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize(
    "fields, iterations, prior",
    [
        (Neighbourhood((4, 5), (3, 2), (1, 2)), 1, Prior()),
        (Neighbourhood((4, 5), (3, 2), (1, 2)), 3, OTHER_PRIOR),
        (Neighbourhood.whole((2, 3)), 3, Prior()),
    ],
)
def test_agrees_with_the_paper_worked_out_capsule_by_capsule(fields, iterations, prior, covariance):
    votes, activations, beta_u, beta_a = inputs = random_inputs(fields)
    parents = route(*inputs, fields, iterations, prior, covariance)
    for image in range(len(votes)):
        expected = vb_reference.vb_routing(
            votes[image].transpose(0, 1, 2, 4, 5, 3),
            *(activations[image], beta_u, beta_a, fields.children, fields.kernel, fields.strides, iterations),
            full=covariance == "full",
            prior=prior,
        )
        for found, reference in zip(parents, expected, strict=False):
            np.testing.assert_allclose(found[image], reference, **within(1e-8))
    np.testing.assert_allclose(ops.sigmoid(parents.logits), parents.activations, **within(1e-8))


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_each_child_shares_itself_out_completely(covariance):
    fields = Neighbourhood((5, 6), (3, 3), (2, 1))
    inputs = random_inputs(fields, "float32")
    weights = ops.sum(route(*inputs, fields, covariance=covariance).routing_weights, axis=3)
    seen = np.broadcast_to((fields.parents_per_child() > 0)[None, ..., None], inputs[1].shape)
    np.testing.assert_allclose(fields.scatter_add(weights), seen.astype("float32"), atol=1e-5)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_neither_the_order_of_children_nor_other_images_matter(covariance):
    fields = Neighbourhood.whole((2, 2))
    votes, activations, *betas = random_inputs(fields, "float32", child_types=4)
    votes[1] *= 1e3
    together = route(votes, activations, *betas, fields, covariance=covariance)
    order = [2, 0, 3, 1]
    alone = route(votes[:1][..., order], activations[:1][..., order], *betas, fields, covariance=covariance)
    np.testing.assert_allclose(alone.poses[0], together.poses[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(alone.activations[0], together.activations[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        alone.routing_weights[0], np.array(together.routing_weights[0])[..., order], rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_a_parent_is_the_more_active_the_better_its_votes_agree_and_the_prior_without_votes(covariance):
    fields = Neighbourhood.whole((4, 4))
    votes = np.random.default_rng(0).normal(size=(1, 1, 1, 3, 4, 16, 2)).astype("float32")
    votes *= np.array([0.1, 1.0, 3.0], "float32").reshape(3, 1, 1, 1)
    zero = np.zeros(3, "float32")
    active = np.ones((1, 4, 4, 2), "float32")
    logits = np.array(route(votes, active, zero, zero, fields, 1, covariance=covariance).logits).ravel()
    assert (np.diff(logits) < -0.5).all()
    nothing = route(votes, 0 * active, zero, zero, fields, 3, covariance=covariance)
    np.testing.assert_array_equal(nothing.poses, np.zeros((1, 1, 1, 3, 4), "float32"))
    np.testing.assert_allclose(nothing.variances, 1 / 5, rtol=1e-5)
    assert np.ptp(nothing.logits) == 0


def test_wrong_arguments_are_named():
    fields = Neighbourhood.whole((1, 1))
    inputs = random_inputs(fields)
    with pytest.raises(ValueError, match="at least 1 iteration"):
        route(*inputs, fields, 0)
    with pytest.raises(ValueError, match="diagonal, full, not 'none'"):
        route(*inputs, fields, covariance="none")
    with pytest.raises(ValueError, match=r"nu must be more than 3\.001 for poses of 4 elements, not 3\.0005"):
        route(*inputs, fields, prior=Prior(nu=3.0005))
    with pytest.raises(ValueError, match="must be positive"):
        VBClassCapsules(2, kappa0=0.0)
    with pytest.raises(ValueError, match="diagonal, full, not 'none'"):
        VBClassCapsules(2, covariance="none")


# Layers


@pytest.mark.parametrize(
    "layer, kernel, strides, options",
    [
        (VBConvCapsules(3, kernel_size=(3, 2), strides=(1, 2), return_logits=True), (3, 2), (1, 2), {}),
        (VBClassCapsules(3, covariance="full", kappa0=2.5), (4, 5), (1, 1), {"full": True, "prior": (1, 2.5, None, 1)}),
    ],
)
def test_a_layer_is_the_restatement_on_every_receptive_field(layer, kernel, strides, options):
    rng = np.random.default_rng(0)
    poses, activations = rng.normal(size=(2, 4, 5, 2, 4, 4)), rng.uniform(size=(2, 4, 5, 2))
    layer.build([poses.shape, activations.shape])
    weights, beta_a, beta_u = (rng.normal(size=weight.shape) for weight in layer.weights)
    layer.set_weights([weights, beta_a, beta_u])
    fields = Neighbourhood((4, 5), kernel, strides)
    votes = np.zeros((2, *fields.parents, 3, fields.kernel_positions, 2, 16))
    for image, p, q, k in np.ndindex(2, *fields.parents, fields.kernel_positions):
        row, column = p * strides[0] + k // kernel[1], q * strides[1] + k % kernel[1]
        matrices = weights[k] if weights.ndim == 5 else weights
        votes[image, p, q, :, k] = np.einsum("ixy,ijyz->jixz", poses[image, row, column], matrices).reshape(3, 2, 16)
        if weights.ndim == 4:
            votes[image, p, q, :, k, :, [3, 7]] += 0.1 * np.array([(column + 0.5) / 5, (row + 0.5) / 4])[:, None, None]
    outputs = [np.array(value) for value in layer([poses.astype("float32"), activations.astype("float32")])]
    if layer.return_logits:
        outputs[1] = 1 / (1 + np.exp(-outputs[1].astype("float64")))
    for image in range(2):
        expected = vb_reference.vb_routing(
            votes[image], activations[image], beta_u, beta_a, (4, 5), kernel, strides, 3, **options
        )
        for found, reference in zip(outputs, expected, strict=False):
            np.testing.assert_allclose(found[image].ravel(), reference.ravel(), rtol=2e-3, atol=2e-4)


@in_campaign
def test_a_layer_with_full_covariances_passes_the_suite_of_all_layers(tmp_path):
    options = {
        "iterations": 2,
        "covariance": "full",
        "alpha0": 2.0,
        "nu0": 20.0,
        "scatter0": 0.5,
    }
    run_layer_test(
        lambda **kwargs: VBConvCapsules(2, 2, **options, **kwargs),
        [(2, 3, 2, 3, 3), (2, 3, 2)],
        [(1, 2, 2, 3, 3), (1, 2, 2)],
        tmp_path,
    )


def test_the_trace_ends_with_what_the_layer_returns_and_begins_with_equal_shares():
    rng = np.random.default_rng(0)
    children = rng.normal(size=(2, 3, 4, 2, 4, 4)).astype("float32"), rng.uniform(size=(2, 3, 4, 2)).astype("float32")
    layer = VBConvCapsules(3, 2, kernel_initializer="orthogonal")
    poses, activations = layer(children)
    trace = layer.routing_trace(children)
    assert len(trace.steps) == 3 and "variance_floor" not in trace_gauges(trace)
    np.testing.assert_allclose(ops.reshape(trace.steps[-1].parents, poses.shape), poses, rtol=1e-5)
    np.testing.assert_allclose(ops.reshape(trace.steps[-1].activations, activations.shape), activations, rtol=1e-5)
    equal = initial_routing_weights(Neighbourhood((3, 4), (2, 2)), 3)
    equal = np.broadcast_to(equal, (2, 2, 3, 3, 4, 2)).reshape(12, 3, 8)
    np.testing.assert_allclose(trace.steps[0].routing_weights, equal, rtol=1e-6)


@pytest.mark.parametrize("affine", [False, True])
def test_capsule_normalization_has_statistics_for_each_type(affine, tmp_path):
    shapes = [(3, 2, 5, 4, 4), (3, 2, 5)]
    rng = np.random.default_rng(0)
    poses, logits = (rng.normal(2.0, 3.0, size=(6, *shape)).astype("float32") for shape in shapes)
    layer = CapsuleNormalization(affine=affine, return_logits=True)
    found = [np.array(value) for value in layer((poses, logits), training=True)]
    for value, given, axes in zip(found, (poses, logits), ((0, 1, 2, 4, 5), (0, 1, 2)), strict=True):
        expected = (given - given.mean(axes, keepdims=True)) / given.std(axes, keepdims=True)
        np.testing.assert_allclose(value, expected, rtol=1e-3, atol=1e-3)
    assert len(layer.trainable_weights) == (4 if affine else 0) and len(layer.non_trainable_weights) == 4
    inputs = [keras.Input(shape) for shape in shapes]
    model = keras.Model(inputs, layer(inputs))
    model.save(tmp_path / "norm.keras")
    again = keras.saving.load_model(tmp_path / "norm.keras")([poses, logits])
    for value, same in zip(again, layer((poses, logits)), strict=True):
        np.testing.assert_array_equal(value, same)


@pytest.mark.parametrize("dtype, tolerance", [("float32", 2e-3), ("mixed_bfloat16", 1e-2)])
def test_capsule_normalization_infers_by_moving_averages_and_reads_logits_unrounded(dtype, tolerance):
    rng = np.random.default_rng(0)
    poses = rng.normal(2.0, 3.0, size=(6, 2, 2, 3, 2, 2)).astype("float32")
    logits = rng.normal(30.0, 0.3, size=(6, 2, 2, 3)).astype("float32")  # which bfloat16 rounds to multiples of 1/8
    layer = CapsuleNormalization(affine=True, dtype=dtype)
    layer.build([poses.shape, logits.shape])
    learned = rng.normal(size=(2, 2, 3))
    mean, variance = np.array([[2.0], [30.0]]) + np.zeros((2, 3)), np.array([[8.0], [0.1]]) + np.zeros((2, 3))
    for norm, *weights in zip((layer.of_poses, layer.of_logits), *(learned[:, 0], learned[:, 1], mean, variance)):
        norm.set_weights(weights)
    for training in (False, True, False):  # training moves the averages, by a tenth
        found = [ops.convert_to_numpy(ops.cast(each, "float32")) for each in layer((poses, logits), training=training)]
        expected = []
        for kind, rows in enumerate((poses.transpose(0, 1, 2, 4, 5, 3).reshape(-1, 3), logits.reshape(-1, 3))):
            of_batch = rows.mean(0), rows.var(0)
            mu, var = of_batch if training else (mean[kind], variance[kind])
            expected.append(learned[kind, 0] * (rows - mu) / np.sqrt(var + 1e-5) + learned[kind, 1])
            if training:
                mean[kind] += 0.1 * (of_batch[0] - mean[kind])
                variance[kind] += 0.1 * (of_batch[1] - variance[kind])
        expected = expected[0].reshape(6, 2, 2, 2, 2, 3).transpose(0, 1, 2, 5, 3, 4), 1 / (1 + np.exp(-expected[1]))
        for value, reference in zip(found, expected, strict=True):
            np.testing.assert_allclose(value, reference.reshape(value.shape), rtol=tolerance, atol=tolerance)


def test_logits_stay_in_single_precision_under_mixed_policies():
    shapes = (3, 3, 2, 4, 4), (3, 3, 2)
    options = {"return_logits": True, "dtype": "mixed_bfloat16"}
    for layer in (VBConvCapsules(2, 2, **options), VBClassCapsules(2, **options), CapsuleNormalization(**options)):
        symbolic, computed = layer([keras.Input(shape) for shape in shapes]), layer([ops.ones((1, *s)) for s in shapes])
        for outputs in (symbolic, computed):
            assert [keras.backend.standardize_dtype(each.dtype) for each in outputs] == ["bfloat16", "float32"]


# The network


@pytest.mark.parametrize(
    "channels, classes, sizes, parameters",
    [
        (2, 5, {}, 68_714),
        (3, 10, {"extra_convolutions": 2}, 145_588),
        (3, 10, {"B": 16, "C": 32, "D": 32, "extra_convolutions": 2}, 322_836),
    ],
)
def test_the_network_has_the_size_of_the_published_code_or_with_more_convolutions_of_the_paper(
    channels, classes, sizes, parameters
):
    model = vb_capsules((32, 32, channels), classes, **sizes)
    assert sum(int(np.prod(variable.shape)) for variable in model.trainable_variables) == parameters
    assert model.get_layer("conv_capsules_2").output[1].shape == (None, 4, 4, sizes.get("D", 16))


@in_campaign
def test_the_network_learns_with_plain_keras_and_reloads(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=40)
    images = 0.3 * rng.normal(size=(40, 17, 17, 1)).astype("float32")
    for image, label, place in zip(images, labels, rng.integers(12, size=40), strict=True):
        strip = slice(place, place + 5)
        image[(strip, slice(None)) if label else (slice(None), strip)] += 2.0
    model = vb_capsules((17, 17, 1), 2, A=8, B=2, C=3, D=3, iterations=2)
    loss = "sparse_categorical_crossentropy"
    model.compile(keras.optimizers.Adam(1e-2), loss, metrics=["accuracy"], jit_compile=PLAIN)
    history = model.fit(images, labels, batch_size=20, epochs=12, verbose=0)
    assert history.history["accuracy"][-1] > 0.9
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(images), model(images), rtol=1e-4, atol=1e-5)
