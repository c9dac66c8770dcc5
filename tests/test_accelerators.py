"""Layers choose by the processor that they run on; what can be shown of accelerators without one."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from caps_tf import processor
from caps_tf.errors import UserError
from caps_tf.layers import (
    AttentionConvCapsules,
    AttentionDenseCapsules,
    CapsuleStack,
    EMClassCapsules,
    HeinsenRouting,
    attention_capsules,
    capsule_layer,
)
from caps_tf.networks import NETWORKS, ROUTINGS
from caps_tf.processor import CPU, Processor, processor_of
from caps_tf.routing.grouping import AT_ONCE, KEPT, VOTES_HELD, Groups, choose_groups
from caps_tf.training import devices, memory
from caps_tf.training.config import RunConfig
from caps_tf.training.data import TrainingData
from caps_tf.training.memory import check_memory
from caps_tf.training.votes import describe_votes
from tests.networks import tiny
from tests.program_costs import training_program
from tests.small_norb import run_script

GPU = Processor("gpu", "a GPU", memory=80 * 10**9)
DEFAULT = ("em",)
VARIANTS = [
    *(
        pytest.param("conv_capsules", {"routing": routing}, marks=() if routing in DEFAULT else pytest.mark.campaign)
        for routing in ROUTINGS
        if routing != "none"
    ),
    ("attention", {"sequential_routing": True}),
    pytest.param("matrix_capsules", {}, marks=pytest.mark.campaign),
    *(
        pytest.param(name, {}, marks=pytest.mark.campaign)
        for name, network in NETWORKS.items()
        if network.routes and name not in ("conv_capsules", "matrix_capsules")
    ),
]
"""Class capsules by EM and convolutional ones by attention; in the campaign every network."""


@pytest.fixture
def on_a_gpu(monkeypatch):
    monkeypatch.setattr(capsule_layer, "processor_of", lambda tensor: GPU)


def largest(part):
    """Elements of an example's votes with which a batch of 64 takes just this part of the GPU's memory."""
    return GPU.memory // part // (64 * 4 * VOTES_HELD)


@pytest.mark.parametrize(
    "batch, elements, where, votes_at_a_time, chosen",
    [
        (64, 100_000, CPU, None, Groups(8, True)),  # ten would fit into 4 MiB, but do not divide 64
        (64, 1000, CPU, None, Groups(64, False)),
        (None, 1000, CPU, None, Groups(1, True)),
        (64, largest(KEPT), GPU, None, Groups(64, False)),
        (64, largest(KEPT) + 10, GPU, None, Groups(64, True)),
        (64, largest(AT_ONCE), GPU, None, Groups(64, True)),
        (64, largest(AT_ONCE) + 10, GPU, None, Groups(32, True)),
        (None, 1000, GPU, None, Groups(None, True)),
        (64, 10**9, Processor("tpu", "a TPU"), None, Groups(None, True)),
        (64, 100_000, GPU, 2**22, Groups(8, True)),
        (64, 1000, GPU, 2**22, Groups(64, False)),
    ],
)
def test_the_choice_follows_from_processor_memory_and_what_the_user_wants(
    batch, elements, where, votes_at_a_time, chosen
):
    assert choose_groups(batch, elements, where, 2**22, votes_at_a_time) == chosen


@pytest.mark.parametrize("name, arguments", VARIANTS)
def test_a_training_step_on_an_accelerator_has_no_loop_and_no_float64(name, arguments, on_a_gpu):
    program = training_program(tiny(name, **arguments))
    assert " while(" not in program
    assert "f64[" not in program


def test_the_loop_would_be_seen():
    assert " while(" in training_program(tiny("conv_capsules", routing="em", votes_at_a_time=1))


@pytest.mark.parametrize("name, arguments", VARIANTS)
def test_the_result_does_not_depend_on_the_processor(name, arguments, monkeypatch):
    model = tiny(name, **arguments)
    inputs = [
        np.random.default_rng(0).uniform(size=(3, *(size or 7 for size in tensor.shape[1:]))).astype("float32")
        for tensor in tf.nest.flatten(model.input)
    ]
    inputs = tf.nest.pack_sequence_as(model.input, inputs)
    on_cpu = model(inputs)
    monkeypatch.setattr(capsule_layer, "processor_of", lambda tensor: GPU)
    np.testing.assert_allclose(model(inputs), on_cpu, rtol=1e-4, atol=1e-5)


@pytest.mark.campaign
def test_votes_of_attention_are_products_of_bfloat16_on_an_accelerator_under_a_mixed_policy(monkeypatch):
    inputs = np.random.default_rng(0).normal(size=(2, 5, 5, 3, 4, 4)).astype("float32")
    found, programs = {}, {}
    for where, policy in ((CPU, "float32"), (CPU, "mixed_bfloat16"), (GPU, "mixed_bfloat16")):
        for module in (capsule_layer, attention_capsules):
            monkeypatch.setattr(module, "processor_of", lambda tensor, where=where: where)
        keras.utils.set_random_seed(0)
        layers = [
            AttentionConvCapsules(4, kernel_size=3, dtype=policy, name="low"),
            AttentionDenseCapsules(5, dtype=policy, name="high"),
        ]
        stack, children = CapsuleStack(layers, iterations=3, dtype=policy), keras.Input(inputs.shape[1:])
        model = keras.Model(children, stack(children))
        found[where.kind, policy] = np.array(ops.cast(model(inputs), "float32"))
        programs[where.kind, policy] = training_program(model)
    products = {where: len(re.findall(r" = bf16\[\S* dot\(", program)) for where, program in programs.items()}
    assert products["cpu", "float32"] == 0
    assert products["gpu", "mixed_bfloat16"] > products["cpu", "mixed_bfloat16"]
    largest = np.abs(found["cpu", "float32"]).max()
    error, least = (np.abs(found[kind, "mixed_bfloat16"] - found["cpu", "float32"]).max() for kind in ("gpu", "cpu"))
    assert error < 0.02 * largest and error < 3 * least


def test_a_layer_that_was_saved_on_one_processor_chooses_again_on_another(on_a_gpu):
    layer = EMClassCapsules(5)
    assert layer.groups(64, 100_000) == Groups(64, False)
    again = EMClassCapsules.from_config(layer.get_config())
    assert again.votes_at_a_time is None
    own = HeinsenRouting(2, 2, 2, n_out=3, votes_at_a_time=2**22)
    assert HeinsenRouting.from_config(own.get_config()).groups(64, 100_000) == Groups(8, True)


def test_a_tensor_that_was_put_on_the_cpu_is_routed_as_on_a_cpu(monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: ["a GPU"] if kind == "GPU" else [])
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda device: {"device_name": "NVIDIA X"})
    monkeypatch.setattr(tf.config, "get_logical_device_configuration", lambda device: None)
    monkeypatch.setattr(processor, "nvidia_memory", lambda: 80 * 2**30)
    assert processor_of() == Processor("gpu", "NVIDIA X", 80 * 2**30)
    with tf.device("CPU:0"):
        assert processor_of(tf.ones(3)) == CPU


def test_memory_of_a_gpu_is_what_its_driver_says_and_unknown_without_one(tmp_path, monkeypatch):
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho 81559\necho 40960\n")
    driver.chmod(0o755)
    least = int(processor.TAKEN_OF_A_GPU * 40960 * 2**20)
    for path, expected in ((f"{tmp_path}:/bin:/usr/bin", least), (str(tmp_path / "empty"), None)):
        monkeypatch.setenv("PATH", path)
        processor.nvidia_memory.cache_clear()
        assert processor.nvidia_memory() == expected
    processor.nvidia_memory.cache_clear()


def test_the_memory_check_knows_the_memory_of_the_device(monkeypatch):
    data = TrainingData({"image": (20, 20, 1)}, 5, 1, None, None)
    config = RunConfig(**NETWORKS["matrix_capsules"].smallest, batch_size=64)
    model = memory.make_model(config, data.input_shapes, data.num_classes)
    roomy = memory.estimate_device_memory(model, 64, GPU)
    tight = memory.estimate_device_memory(model, 64, GPU._replace(memory=10**6))
    assert 10**6 < tight < roomy < GPU.memory  # with little memory votes are made for few examples at a time
    assert memory.estimate_device_memory(model, 64, GPU, bytes_each=2) < roomy
    monkeypatch.setattr(memory, "processor_of", lambda: GPU)
    check_memory(config, data, tf.distribute.get_strategy())
    monkeypatch.setattr(memory, "processor_of", lambda: GPU._replace(memory=10**6))
    with pytest.raises(UserError, match="a training step of 64 examples needs about .* lower --batch_size"):
        check_memory(config, data, tf.distribute.get_strategy())


def test_the_log_says_what_was_chosen_and_on_what(monkeypatch):
    model = tiny("matrix_capsules")
    assert describe_votes(model, 64, GPU).count("all at once") == 3
    assert "made again for the gradient" in describe_votes(model, 64, GPU._replace(memory=10**7))
    assert describe_votes(tiny("cnn_baseline"), 64, GPU) == ""
    assert "AttentionClass" not in describe_votes(tiny("attention"), 64, CPU)
    assert devices.describe_devices(tf.distribute.get_strategy()) == "1 device, CPU (TensorFlow finds no GPU)"
    monkeypatch.setattr(devices, "processor_of", lambda: GPU)
    assert devices.describe_devices(tf.distribute.get_strategy()) == "1 device, a GPU, 80.0 GB"


@pytest.mark.campaign
def test_batches_are_on_the_device_before_a_step_asks_for_them():
    program = """
import numpy as np, tensorflow as tf
from caps_tf.training.devices import prefetched
[cpu] = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
batches = tf.data.Dataset.from_tensor_slices(np.ones((4, 3), "float32")).batch(2)
print(*(batch.device[-5:] for batch in prefetched(batches, "/CPU:1")))
named = tf.data.Dataset.from_tensor_slices(["a", "b"]).batch(2)
print(prefetched(named, "/CPU:1") is named)
"""
    found = run_script("-c", program, start="forked")
    assert found.stdout.splitlines() == ["CPU:1 CPU:1", "True"]


def test_float32_is_not_tensorfloat32_once_devices_are_chosen():
    devices.make_strategy(1)
    assert not tf.config.experimental.tensor_float_32_execution_enabled()
