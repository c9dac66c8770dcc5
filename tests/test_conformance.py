"""Every network of the registry and every routing layer does what the rest of the library takes for granted of it.

Nothing here lists networks: a new entry of `caps_tf.networks.NETWORKS` is tested at once, and an exported routing layer
without a line in `LAYERS` fails.
"""

import dataclasses
import inspect
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from caps_tf import layers, networks
from caps_tf.costs import count_costs
from caps_tf.errors import UserError
from caps_tf.layers import RoutingLayer
from caps_tf.networks import NETWORKS, Network
from caps_tf.routing.health import RoutingTrace
from caps_tf.training.compilation import split_at_routing
from caps_tf.training.config import PRECISIONS, RunConfig
from caps_tf.training.factories import capsule_outputs, make_loss, make_model
from caps_tf.training.regime import make_optimizer
from caps_tf.training.steps import make_train_step
from tests.compiling import both_ways
from tests.layer_checks import add_noise, as_list, run_layer_test
from tests.networks import CLASSES, input_shapes, inputs_of, random_batch, tiny_config, tiny_run_model

BATCH = 4
NETWORK_FLAGS = {option.name for option in dataclasses.fields(RunConfig) if option.metadata["group"] == "network"} - {
    "network"
}


def scores_of(model, name):
    return np.array(model(inputs_of(model, random_batch(name, BATCH))))


def sized(model, name):
    """The model for inputs whose sizes are all known: sentences may be of any length."""
    inputs = {key: keras.Input(shape, name=key) for key, shape in input_shapes(name).items()}
    return keras.models.clone_model(model, inputs_of(model, inputs))


@pytest.fixture(scope="module", params=NETWORKS)
def built(request):
    model = tiny_run_model(request.param)
    add_noise(model.trainable_weights)
    return request.param, model


def test_a_networks_model_bears_its_builders_name_and_scores_every_class(built):
    name, model = built
    assert model.name == NETWORKS[name].builder.partition(":")[2]
    scores = scores_of(model, name)
    assert scores.shape == (BATCH, CLASSES) and scores.dtype == np.float32


def test_scores_are_between_0_and_1_unless_the_entry_calls_them_logits(built):
    name, model = built
    rng, initial = np.random.default_rng(1), model.get_weights()
    for weight in model.trainable_weights:  # far from where initial scores of all kinds are near zero
        weight.assign(weight.numpy() + rng.normal(size=weight.shape))
    scores = scores_of(model, name)
    model.set_weights(initial)
    assert np.isfinite(scores).all()
    assert bool(((scores >= 0) & (scores <= 1)).all()) is not NETWORKS[name].logits


def test_a_network_routes_is_compiled_from_its_first_routing_on_and_its_cost_is_known(built):
    name, model = built
    assert NETWORKS[name].routes is any(isinstance(layer, RoutingLayer) for layer in model.layers)
    costs = count_costs(sized(model, name), BATCH)
    assert costs.step > costs.forward > 0 and costs.step_bytes > costs.forward_bytes > 0
    features, capsules = split_at_routing(model)
    assert not any(isinstance(layer, RoutingLayer) for layer in features.layers)
    if NETWORKS[name].routes:
        assert costs.votes > 0 and costs.largest_votes > 0
        assert isinstance(next(layer for layer in capsules.layers if layer.count_params()), RoutingLayer)


def test_every_layer_with_weights_of_a_product_is_counted(built):
    """A layer whose kernel the count does not know would let the memory check pass everything."""
    _, model = built
    counted = (keras.layers.Conv2D, keras.layers.Dense, layers.CountedLayer)
    counted += (keras.layers.LayerNormalization, keras.layers.BatchNormalization)  # these multiply without contracting
    for layer in model.layers:
        has_kernel = any(len(weight.shape) >= 2 for weight in layer.trainable_weights)
        assert not has_kernel or isinstance(layer, counted), layer.name


def iterations(most, name):
    """A flag for fewer iterations than were published: each takes seconds to trace."""
    few = min(most, NETWORKS[name].iterations)
    return {"iter_routing": few} if few and "iter_routing" in NETWORKS[name].flags else {}


SLOWLY_TRACED = ("vb_capsules", "heinsen_norb", "matrix_capsules", "self_routing")


@pytest.mark.parametrize(
    "name, precision, most",
    [
        *((name, "float32", 1) for name in NETWORKS if name not in SLOWLY_TRACED),
        *(pytest.param(*each, 9, marks=pytest.mark.campaign) for each in itertools.product(NETWORKS, PRECISIONS)),
    ],
)
def test_a_network_trains_a_step_in_each_precision(name, precision, most):
    config = tiny_config(name, batch_size=BATCH, precision=precision, **iterations(most, name))
    model = tiny_run_model(name, precision=precision, **iterations(most, name))
    optimizer = make_optimizer(config, steps_per_epoch=1)
    optimizer.build(model.trainable_variables)
    before = [np.array(weight) for weight in model.trainable_weights]
    step = make_train_step(tf.distribute.get_strategy(), model, optimizer, make_loss(config), BATCH, jit_compile=False)
    batch = {key: tf.constant(value) for key, value in random_batch(name, BATCH).items()}
    result = step(batch, tf.constant(0.5), tf.constant(0.0))
    assert np.isfinite(float(result.loss))
    after = [np.array(weight) for weight in model.trainable_weights]
    moved = [not np.array_equal(old, new) for old, new in zip(before, after, strict=True)]
    # Not all: parts that start equal get no gradient in Heinsen's first step. Float16 may find its first loss scale too
    # high, and then takes no step yet.
    assert precision == "mixed_float16" or any(moved)
    assert all(np.isfinite(weight).all() for weight in after)


def test_a_network_is_saved_and_loaded(tmp_path, built):
    name, model = built
    model.save(tmp_path / "model.keras")
    scores = scores_of(model, name)
    assert np.ptp(scores, axis=0).max() > 1e-5  # of images that are told apart
    np.testing.assert_array_equal(scores_of(keras.saving.load_model(tmp_path / "model.keras"), name), scores)


@pytest.mark.parametrize("name", NETWORKS)
def test_an_entry_names_flags_that_there_are_and_arguments_that_its_builder_takes(name):
    network = NETWORKS[name]
    assert set(network.flags) <= NETWORK_FLAGS and set(network.smallest) <= set(network.flags)
    arguments = inspect.signature(network.load()).parameters
    assert set(network.flags.values()) | {"dtype"} <= set(arguments)
    # Nothing of the builder is out of reach of flags, but what the call always gives.
    shapes = {"image": ["image_shape"], "embedding": ["depth", "width"]}[network.reads]
    assert list(arguments)[: len(shapes) + 1] == [*shapes, "num_classes"]


def test_the_published_networks_have_their_published_iterations_and_losses():
    published = {"matrix_capsules": (2, True), "heinsen_norb": (3, False), "heinsen_sst": (3, False)}
    published |= {"attention": (2, False), "conv_capsules": (0, False), "cnn_baseline": (0, False)}
    published |= {"capsnet": (3, False), "self_routing": (0, False), "vb_capsules": (3, False)}
    for name, expected in published.items():
        config = RunConfig(network=name)
        assert (config.routing_iterations, config.uses_spread_loss) == expected, name


def test_every_flag_of_networks_is_read_by_one():
    assert {flag for network in NETWORKS.values() for flag in network.flags} == NETWORK_FLAGS


@pytest.mark.parametrize("name", NETWORKS)
def test_a_flags_value_reaches_the_builder_and_is_refused_where_it_does_not(name, monkeypatch):
    others = {"routing": "heinsen", "backbone": "simple", "convolutions": "7", "config_path": "cifar100"}
    others |= {"sequential_routing": True, "coordinates": True, "votes_mib": 3, "iter_routing": 5}
    read = NETWORKS[name].flags
    others |= {flag: 3 for flag in ("A", "B", "C", "D", "capsules", "channels", "capsule_layers")}
    values = {flag: others[flag] if flag in others else getattr(RunConfig(), flag) / 2 or 0.25 for flag in read}
    config = RunConfig(network=name, **values)
    given = {}
    monkeypatch.setattr(Network, "load", lambda self: lambda *shape, **arguments: given.update(arguments))
    make_model(config, input_shapes(name), CLASSES)
    expected = {read[flag]: value * 2**20 if flag == "votes_mib" else value for flag, value in values.items()}
    assert given == expected | {"dtype": "float32"}
    config.check_given(read)
    for flag in NETWORK_FLAGS - set(read):
        with pytest.raises(UserError, match=f"{name} does not read --{flag}.*{networks.readers(flag)[0]}"):
            config.check_given([flag])


def change_entry(monkeypatch, name, **changes):
    monkeypatch.setitem(NETWORKS, name, dataclasses.replace(NETWORKS[name], **changes))


def test_wrong_entries_are_noticed(monkeypatch):
    """The tests above fail for what was forgotten silently before there were entries: logits, builder, routing, counts."""
    name = "conv_capsules"
    model = tiny_run_model(name)
    change_entry(monkeypatch, name, logits=False)
    with pytest.raises(AssertionError):
        test_scores_are_between_0_and_1_unless_the_entry_calls_them_logits((name, model))
    change_entry(monkeypatch, name, builder="caps_tf.models:cnn_baseline", logits=True, flags={}, smallest={})
    another = tiny_run_model(name)
    change_entry(monkeypatch, name, builder="caps_tf.models:conv_capsules")
    with pytest.raises(AssertionError):
        test_a_networks_model_bears_its_builders_name_and_scores_every_class((name, another))
    with pytest.raises(AssertionError):  # no routing layer, so neither XLA nor votes
        test_a_network_routes_is_compiled_from_its_first_routing_on_and_its_cost_is_known((name, another))
    x = keras.Input((6, 5))
    uncounted = keras.Model(x, keras.layers.LSTM(3)(x))
    with pytest.raises(AssertionError, match="lstm"):
        test_every_layer_with_weights_of_a_product_is_counted((name, uncounted))


def agreement(x, predictions):
    return ops.einsum("...id,...jd->...ij", x, predictions)


MATRICES, CHILDREN = (4, 5, 3, 4, 4), [(4, 5, 3, 4, 4), (4, 5, 3)]
# What makes a layer, the shapes of its inputs, and of its outputs.
LAYERS = {
    layers.EMConvCapsules: (
        lambda **options: layers.EMConvCapsules(2, 3, beta_a_initializer="zeros", **options),
        CHILDREN,
        [(2, 3, 2, 4, 4), (2, 3, 2)],
    ),
    layers.EMClassCapsules: (
        lambda **options: layers.EMClassCapsules(2, beta_a_initializer="zeros", **options),
        CHILDREN,
        [(2, 4, 4), (2,)],
    ),
    layers.DynamicConvCapsules: (
        lambda **options: layers.DynamicConvCapsules(2, 3, pose_elements=5, **options),
        (4, 5, 3, 6),
        [(2, 3, 2, 5)],
    ),
    layers.DynamicClassCapsules: (
        lambda **options: layers.DynamicClassCapsules(2, pose_elements=5, **options),
        (4, 5, 3, 6),
        [(2, 5)],
    ),
    layers.VBConvCapsules: (
        lambda **options: layers.VBConvCapsules(2, 3, **options),
        CHILDREN,
        [(2, 3, 2, 4, 4), (2, 3, 2)],
    ),
    layers.VBClassCapsules: (
        lambda **options: layers.VBClassCapsules(2, **options),
        CHILDREN,
        [(2, 4, 4), (2,)],
    ),
    layers.HeinsenRouting: (
        lambda **options: layers.HeinsenRouting(4, 4, 3, n_inp=6, n_out=2, **options),
        [(6,), (6, 4, 4)],
        [(2,), (2, 4, 3), (2, 4, 3)],
    ),
    layers.HeinsenVectorRouting: (
        lambda **options: layers.HeinsenVectorRouting(n_inp=6, n_out=2, d_inp=5, d_out=4, **options),
        (6, 5),
        [(2, 4)],
    ),
    layers.DefinableVectorRouting: (
        lambda **options: layers.DefinableVectorRouting(
            n_inp=None,
            n_out=5,
            A=keras.layers.Dense(1),
            F=keras.Sequential([keras.layers.Dense(5 * 4), keras.layers.Reshape((-1, 5, 4))]),
            G=keras.layers.Dense(6),
            S=keras.saving.register_keras_serializable("tests")(agreement),
            **options,
        ),
        (7, 6),
        [(5, 4)],
    ),
    layers.AttentionConvCapsules: (
        lambda **options: layers.AttentionConvCapsules(2, kernel_size=3, **options),
        MATRICES,
        [(2, 3, 2, 4, 4)],
    ),
    layers.AttentionDenseCapsules: (
        lambda **options: layers.AttentionDenseCapsules(2, **options),
        MATRICES,
        [(2, 4, 4)],
    ),
    layers.AttentionClassCapsules: (
        lambda **options: layers.AttentionClassCapsules(2, **options),
        MATRICES,
        [(2, 4, 4)],
    ),
    layers.SelfRoutingConvCapsules: (
        lambda **options: layers.SelfRoutingConvCapsules(2, 3, padding=1, pose_shape=(2, 3), **options),
        CHILDREN,
        [(4, 5, 2, 2, 3), (4, 5, 2)],
    ),
    layers.SelfRoutingClassCapsules: (
        lambda **options: layers.SelfRoutingClassCapsules(2, **options),
        CHILDREN,
        [(2, 4, 4), (2,)],
    ),
    layers.CapsuleStack: (
        lambda **options: layers.CapsuleStack(
            [layers.AttentionConvCapsules(2, 3, **options), layers.AttentionDenseCapsules(3, **options)], **options
        ),
        MATRICES,
        [(3, 4, 4)],
    ),
}
SUITE_ELSEWHERE = (layers.DefinableVectorRouting, layers.CapsuleStack)
"""Their weights are those of other layers, which the suite cannot make anew for each precision: see
test_heinsen_vector_layers.py and test_attention_layers.py."""


def test_every_exported_routing_layer_is_here():
    exported = (getattr(layers, name) for name in layers.__all__)
    found = {each for each in exported if inspect.isclass(each) and issubclass(each, RoutingLayer)}
    # Bases are not registered for saving.
    assert {each for each in found if keras.saving.get_registered_name(each) != each.__name__} == set(LAYERS)


@both_ways
@pytest.mark.parametrize("kind", [kind for kind in LAYERS if kind not in SUITE_ELSEWHERE])
def test_a_routing_layer_passes_the_suite_of_all_layers(kind, jit_compile, tmp_path):
    run_layer_test(*LAYERS[kind], tmp_path, jit_compile)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_routing_layer_traces_its_routing_and_tells_its_cost_and_its_capsules(kind):
    make, input_shapes, _ = LAYERS[kind]
    several = isinstance(input_shapes, list)
    inputs = [keras.Input(shape) for shape in (input_shapes if several else [input_shapes])]
    layer = make()
    model = keras.Model(inputs, as_list(layer(inputs if several else inputs[0])))
    one, two = count_costs(model, 1), count_costs(model, 2)
    assert 0 < one.forward < one.step and two.forward == 2 * one.forward
    rng = np.random.default_rng(0)
    data = [rng.uniform(size=(2, *value.shape[1:])).astype("float32") for value in inputs]
    traces = layer.routing_trace(data if several else data[0])
    for trace in [traces] if isinstance(traces, RoutingTrace) else traces.values():
        for step in trace.steps:
            weights = np.array(step.routing_weights)
            assert weights.ndim == 3 and (weights >= 0).all() and np.isfinite(weights).all()
    for poses, activations in capsule_outputs(model).values():
        assert tuple(poses.shape[: len(activations.shape)]) == tuple(activations.shape)


def test_a_routing_layer_that_forgets_to_count_or_to_trace_says_so():
    class Silent(RoutingLayer):
        def call(self, x):
            return x, x[..., 0]

    x = keras.Input((3, 4))
    layer = Silent()
    model = keras.Model(x, layer(x))
    with pytest.raises(NotImplementedError, match="Silent does not count.*layer_cost"):
        count_costs(model, 2)
    with pytest.raises(NotImplementedError, match="Silent does not trace.*routing_trace"):
        layer.routing_trace(np.ones((2, 3, 4)))
