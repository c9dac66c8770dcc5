"""The attention network: its published sizes, its configurations and what is wrong with others."""

import copy
import json

import keras
import numpy as np
import pytest

from caps_tf.errors import UserError
from caps_tf.models import attention_capsules, check_attention_config, load_attention_config
from tests.compiling import PLAIN, in_campaign

SMALL = {
    "backbone": {"output_dim": 8, "kernel_size": 3, "stride": 2, "padding": 1},
    "primary_capsules": {"num_caps": 3, "caps_dim": 4, "kernel_size": 1, "stride": 1, "padding": 0},
    "capsules": [
        {"type": "CONV", "num_caps": 3, "caps_dim": 4, "kernel_size": 3, "stride": 2, "matrix_pose": True},
        {"type": "FC", "num_caps": 4, "caps_dim": 6, "matrix_pose": False},
    ],
    "class_capsules": {"caps_dim": 5, "matrix_pose": False},
}


def trainable_parameters(model):
    return sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)


@pytest.mark.parametrize(
    "config, classes, backbone, parameters",
    [
        ("cifar10", 10, "resnet", 1_828_817),
        ("cifar10", 10, "simple", 492_177),
        ("cifar100", 100, "resnet", 2_799_629),
        ("cifar100", 100, "simple", 1_462_989),
    ],
)
def test_the_published_configurations_have_the_published_size(config, classes, backbone, parameters):
    assert trainable_parameters(attention_capsules((32, 32, 3), classes, config, backbone)) == parameters


def test_the_residual_backbone_can_be_made_smaller():
    config = changed(["backbone", "blocks"], [1, 2])
    config["backbone"]["first_dim"] = 5
    model = attention_capsules((12, 12, 3), 4, config)
    convolutions = {layer.name: layer.filters for layer in model.layers if isinstance(layer, keras.layers.Conv2D)}
    blocks = {name: filters for name, filters in convolutions.items() if name.endswith("conv2")}
    assert convolutions["stem"] == 5
    assert blocks == {"block1_1_conv2": 5, "block2_1_conv2": 8, "block2_2_conv2": 8}


@pytest.mark.parametrize("backbone", ["resnet", "simple"])
@pytest.mark.parametrize("image_shape", [(12, 21, 1), (17, 14, 3)])
def test_any_image_shape_and_channel_number_gives_a_score_for_each_class(image_shape, backbone):
    model = attention_capsules(image_shape, 7, SMALL, backbone, iterations=2)
    scores = np.array(model(np.random.default_rng(0).normal(size=(3, *image_shape))))
    assert scores.shape == (3, 7) and np.all(np.isfinite(scores))


def test_an_image_does_not_depend_on_its_batch_mates():
    model = attention_capsules((12, 16, 1), 3, SMALL, iterations=3)
    images = np.random.default_rng(0).normal(size=(3, 12, 16, 1)).astype("float32")
    np.testing.assert_allclose(model(images)[:1], model(images[:1]), rtol=1e-4, atol=1e-5)


@in_campaign
@pytest.mark.parametrize("sequential", [False, True])
def test_the_network_learns_with_plain_keras_and_reloads(sequential, tmp_path):
    # Two classes, a bar at the top or at the bottom.
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=64)
    images = rng.normal(size=(64, 12, 12, 1)).astype("float32")
    for image, label in zip(images, labels, strict=True):
        image[slice(1, 4) if label else slice(8, 11)] += 2.0
    model = attention_capsules(
        (12, 12, 1), 2, SMALL, "simple", iterations=2, sequential_routing=sequential, dropout=0.1
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss, metrics=["accuracy"], jit_compile=PLAIN)
    history = model.fit(images, labels, batch_size=16, epochs=12, verbose=0)
    assert max(history.history["accuracy"]) > 0.9
    model.save(tmp_path / "capsules.keras")
    loaded = keras.saving.load_model(tmp_path / "capsules.keras")
    np.testing.assert_allclose(loaded(images), model(images), rtol=1e-5, atol=1e-6)


def test_the_network_under_mixed_precision_stays_near_float32():
    images = np.random.default_rng(0).normal(size=(4, 12, 12, 1)).astype("float32")
    full = attention_capsules((12, 12, 1), 3, SMALL, "simple")
    half = attention_capsules((12, 12, 1), 3, SMALL, "simple", dtype="mixed_bfloat16")
    half.set_weights(full.get_weights())
    scores = half(images)
    assert keras.backend.standardize_dtype(scores.dtype) == "float32"
    assert np.mean(np.abs(np.array(scores) - np.array(full(images)))) < 0.05


def published_file():
    """A configuration with the keys of the published files that follow from others."""
    config = copy.deepcopy(load_attention_config("cifar10"))
    config["backbone"] |= {"input_dim": 3, "out_img_size": 16}
    config["primary_capsules"] |= {"input_dim": 128, "out_img_size": 16}
    for layer, size in zip(config["capsules"], (7, 5), strict=True):
        layer["out_img_size"] = size
    config["class_capsules"]["num_caps"] = 10
    return config


def test_a_file_of_the_published_code_can_be_used_as_it_is(tmp_path):
    path = tmp_path / "published.json"
    path.write_text(json.dumps(published_file()))
    assert trainable_parameters(attention_capsules((32, 32, 3), 10, str(path))) == 1_828_817


def changed(path, value):
    """SMALL with the value at a path such as ("capsules", 0, "type") replaced, or removed if the value is None."""
    config = copy.deepcopy(SMALL)
    *parents, last = path
    section = config
    for key in parents:
        section = section[key]
    if value is None:
        del section[last]
    else:
        section[last] = value
    return config


@pytest.mark.parametrize(
    "config, message",
    [
        ([], "a configuration must be an object"),
        (changed(["layers"], []), "unknown key layers"),
        (changed(["capsules"], None), "capsules is missing"),
        (changed(["primary_capsules"], None), "primary_capsules is missing"),
        (changed(["capsules"], {}), "capsules must be a list"),
        (changed(["backbone", "width"], 3), "unknown key backbone.width"),
        (changed(["backbone", "stride"], None), "backbone.stride is missing"),
        (changed(["backbone", "stride"], 0), "backbone.stride must be a positive whole number, not 0"),
        (changed(["backbone", "padding"], -1), "backbone.padding must be a whole number, 0 or more, not -1"),
        (changed(["backbone", "blocks"], [3]), r"backbone.blocks must be two positive whole numbers, not \[3\]"),
        (changed(["backbone", "blocks"], [1, 0]), "backbone.blocks must be two positive whole numbers"),
        (changed(["primary_capsules", "num_caps"], "3"), "primary_capsules.num_caps must be a positive whole number"),
        (changed(["primary_capsules", "num_caps"], True), "must be a positive whole number, not True"),
        (changed(["capsules", 0], "CONV"), r"capsules\[0\] must be an object"),
        (changed(["capsules", 0, "type"], "conv"), r"capsules\[0\].type must be one of CONV, FC, not 'conv'"),
        (changed(["capsules", 0, "kernel_size"], None), r"capsules\[0\].kernel_size is missing"),
        (changed(["capsules", 1, "kernel_size"], 3), r"unknown key capsules\[1\].kernel_size"),
        (changed(["capsules", 0, "matrix_pose"], 1), r"capsules\[0\].matrix_pose must be true or false, not 1"),
        (changed(["capsules", 0, "caps_dim"], 9), r"capsules\[0\].caps_dim is 9 on capsules of 4"),
        (changed(["class_capsules", "matrix_pose"], True), r"class_capsules.caps_dim is 5 on capsules of 6"),
        (changed(["capsules"], SMALL["capsules"][::-1]), r"capsules\[1\] is CONV above an FC layer"),
    ],
)
def test_what_is_wrong_with_a_configuration_is_told_in_one_line(config, message):
    with pytest.raises(UserError, match=f"config: .*{message}") as error:
        check_attention_config(config)
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_configuration_is_named(tmp_path):
    path = tmp_path / "broken.json"
    path.write_text("{'backbone': 1}")
    with pytest.raises(UserError, match="broken.json: not JSON"):
        load_attention_config(path)
    with pytest.raises(UserError, match="nowhere.json: No such file.*cifar10, cifar100"):
        load_attention_config(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"backbone": "vgg"}, "backbone must be one of resnet, simple"),
        (
            {"image_shape": (4, 40, 3)},
            r"capsules\[0\] has a kernel of 3 on 2x20 positions.*larger ones \(`image_size`\)",
        ),
        ({"config": changed(["class_capsules", "num_caps"], 10)}, "num_caps is 10, but the data have 5 classes"),
    ],
)
def test_a_configuration_that_does_not_suit_the_data_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        attention_capsules(**{"image_shape": (12, 12, 3), "num_classes": 5, "config": SMALL, **arguments})
