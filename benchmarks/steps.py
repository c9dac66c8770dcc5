"""Steps of training and of evaluation as functions of a batch of tensors, on the Keras backend at hand.

On TensorFlow they are the trainer's and the tester's own. A step of `make_step` returns the loss as a number, so that all
of it is done; one of `make_launch` returns it as the backend has it, on an accelerator maybe before it is computed.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from benchmarks.networks import Network

Batch = Mapping[str, Any]
Step = Callable[[Batch], float]
Launch = Callable[[Batch], Any]


def make_step(network: Network, kind: str, batch: int, precision: str = "float32", jit_compile: str = "on") -> Step:
    """Makes a step of the kind "step" or "forward".

    Args:
        network: what is run.
        kind: "step" takes one of training, "forward" scores a batch.
        batch: examples in a batch.
        precision: policy that the network was built with.
        jit_compile: as train_val.py's flag; other backends than TensorFlow do as they always do.
    """
    launch = make_launch(network, kind, batch, precision, jit_compile)

    def step(tensors):
        loss = launch(tensors)
        wait_for({"loss": loss})
        return float(loss)

    return step


def make_launch(network: Network, kind: str, batch: int, precision: str = "float32", jit_compile: str = "on") -> Launch:
    """Makes a step as `make_step` does, that does not wait for its end; its loss can be waited for (`wait_for`)."""
    backend = keras.config.backend()
    if backend == "tensorflow":
        return (_tensorflow_step if kind == "step" else _tensorflow_forward)(network, batch, precision, jit_compile)
    if backend == "jax":
        return (_jax_step if kind == "step" else _jax_forward)(network)
    return (_torch_step if kind == "step" else _torch_forward)(network)


def wait_for(tensors: Batch) -> None:
    """Returns when the tensors are computed, and are where the backend computes."""
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        if tf.config.list_physical_devices("GPU"):
            tf.test.experimental.sync_devices()
    elif keras.config.backend() == "jax":
        import jax

        jax.block_until_ready(tensors)
    elif keras.config.backend() == "torch":
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()


def device_peak_mib() -> float | None:
    """The most memory of an accelerator that was in use; None without one, or where the backend does not tell."""
    backend = keras.config.backend()
    peak = None
    if backend == "tensorflow":
        import tensorflow as tf

        if tf.config.list_physical_devices("GPU"):
            peak = tf.config.experimental.get_memory_info("GPU:0")["peak"]
    elif backend == "jax":
        import jax

        peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    else:
        import torch

        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    return peak and peak / 2**20


def _tensorflow_step(network, batch, precision, jit_compile):
    import tensorflow as tf

    from caps_tf.training.config import RunConfig
    from caps_tf.training.regime import make_optimizer
    from caps_tf.training.steps import make_train_step

    config = RunConfig(batch_size=batch, precision=precision, jit_compile=jit_compile)
    strategy = tf.distribute.get_strategy()
    optimizer = make_optimizer(config, steps_per_epoch=1000)
    optimizer.build(network.model.trainable_variables)
    train_step = make_train_step(strategy, network.model, optimizer, _of_margin(network), batch, config.uses_xla)
    margin, stop = tf.constant(0.2), tf.constant(0.0)

    def step(tensors):
        return train_step(dict(tensors), margin, stop).loss

    return step


def _tensorflow_forward(network, batch, precision, jit_compile):
    import tensorflow as tf

    from caps_tf.training.config import RunConfig
    from caps_tf.training.factories import capsule_outputs
    from caps_tf.training.steps import make_scorer

    # What the tester asks of a network: scores, and the poses of the class capsules.
    class_poses = [poses for poses, _ in capsule_outputs(network.model).values()][-1:]
    model = keras.Model(network.model.input, [network.model.output, *class_poses])
    config = RunConfig(batch_size=batch, precision=precision, jit_compile=jit_compile)
    strategy = tf.distribute.get_strategy()
    score = make_scorer(strategy, model, _of_margin(network), config.uses_xla)

    def step(tensors):
        batch = tf.data.Dataset.from_tensors({**tensors, "weight": np.ones(len(tensors["label"]), np.float32)})
        [scored] = score(batch, 0.2)
        return float(scored.losses.mean())

    return step


def _of_margin(network):
    return lambda labels, scores, margin: network.loss(labels, scores)


def _split(network, tensors):
    inputs = {tensor.name: tensors[tensor.name] for tensor in network.model.inputs}
    return (next(iter(inputs.values())) if len(inputs) == 1 else inputs), tensors["label"]


def _optimizer(model):
    optimizer = keras.optimizers.Adam(3e-3)
    optimizer.build(model.trainable_variables)
    return optimizer


def _jax_step(network):
    import jax

    model, optimizer = network.model, _optimizer(network.model)

    def objective(trainable, others, inputs, labels):
        scores, others, penalties = model.stateless_call(trainable, others, inputs, training=True, return_losses=True)
        loss = ops.mean(network.loss(labels, scores))
        return loss + sum(penalties), (loss, others)

    # The old state's memory becomes the new one's.
    @functools.partial(jax.jit, donate_argnums=0)
    def advance(state, inputs, labels):
        trainable, others, slots = state
        (_, (loss, others)), gradients = jax.value_and_grad(objective, has_aux=True)(trainable, others, inputs, labels)
        trainable, slots = optimizer.stateless_apply(slots, gradients, trainable)
        return (trainable, others, slots), loss

    variables = model.trainable_variables, model.non_trainable_variables, optimizer.variables
    state = tuple([ops.copy(variable.value) for variable in group] for group in variables)

    def step(tensors):
        nonlocal state
        state, loss = advance(state, *_split(network, tensors))
        return loss

    return step


def _jax_forward(network):
    import jax

    model = network.model

    @jax.jit
    def score(trainable, others, inputs, labels):
        scores, _ = model.stateless_call(trainable, others, inputs, training=False)
        return scores, ops.mean(network.loss(labels, scores))

    state = [
        [variable.value for variable in group] for group in (model.trainable_variables, model.non_trainable_variables)
    ]
    return lambda tensors: score(*state, *_split(network, tensors))[1]


def _torch_step(network):
    import torch

    model, optimizer = network.model, _optimizer(network.model)

    def step(tensors):
        inputs, labels = _split(network, tensors)
        model.zero_grad()
        loss = ops.mean(network.loss(labels, model(inputs, training=True)))
        (loss + sum(model.losses)).backward()
        gradients = [variable.value.grad for variable in model.trainable_variables]
        with torch.no_grad():
            optimizer.apply(gradients, model.trainable_variables)
        return loss.detach()

    return step


def _torch_forward(network):
    import torch

    def step(tensors):
        inputs, labels = _split(network, tensors)
        with torch.no_grad():
            return ops.mean(network.loss(labels, network.model(inputs, training=False)))

    return step
