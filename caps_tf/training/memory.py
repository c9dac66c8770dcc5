"""Whether a training step fits into memory, found out before a run starts."""

import keras
import tensorflow as tf

from caps_tf.costs import BYTES, LAYERS_HELD, count_costs, estimate_memory, votes_by_layer
from caps_tf.errors import UserError
from caps_tf.limits import available_memory
from caps_tf.processor import Processor, processor_of
from caps_tf.routing.grouping import VOTES_HELD
from caps_tf.training.config import RunConfig
from caps_tf.training.data import TrainingData
from caps_tf.training.factories import make_model
from caps_tf.training.reconstruction import make_decoder, with_decoder


def check_memory(config: RunConfig, data: TrainingData, strategy: tf.distribute.Strategy) -> None:
    """Refuses a run whose training step does not fit, from the sizes of its layers alone.

    It builds the network and forgets it. Sentences, which have any length, pass.

    Args:
        config: the run's parameters.
        data: what the run learns from.
        strategy: devices.

    Raises:
        UserError: if the step needs more than there is.
    """
    processor = processor_of()
    free = processor.memory if processor.is_accelerator else available_memory()
    if "image" not in data.input_shapes or free is None:
        return
    # The CPU devices of one machine share its memory; accelerators and hosts have their own.
    replicas = strategy.num_replicas_in_sync
    shares = replicas if _have_memory_of_their_own(strategy, processor) else 1
    model = make_model(config, data.input_shapes, data.num_classes)
    model = with_decoder(config, model, make_decoder(config, model))
    batch = -(-config.batch_size // shares)
    if processor.is_accelerator:
        halves = config.precision != "float32"
        needed = estimate_device_memory(model, batch, processor, bytes_each=2 if halves else 4)
    else:
        needed = estimate_memory(model, batch)
    keras.utils.clear_session()  # so that layers without a name get the same whether or not they were built here
    if needed > free:
        raise UserError(
            f"a training step of {config.batch_size} examples needs about {needed / 1e9:.1f} GB, and "
            f"{free / 1e9:.1f} GB are free: lower --batch_size or make the network smaller; --nocheck_memory tries it"
        )


def estimate_device_memory(model: keras.Model, batch: int, processor: Processor, bytes_each: int = 4) -> int:
    """Bytes that a training step takes of an accelerator, roughly; its factors were measured on CPUs.

    Args:
        model: the network; all shapes but the batch's known.
        batch: examples in the batch of the device.
        processor: the accelerator.
        bytes_each: of a number outside the routing.

    Raises:
        ValueError: if a shape is not known.
    """
    kept, once = 0, 0
    for layer, votes in votes_by_layer(model, batch).items():
        if layer.cached_votes is not None:
            groups = layer.groups_on(processor, batch, votes // batch)
            held = VOTES_HELD * BYTES * (votes // batch) * (groups.examples or batch)
            kept, once = (kept, max(once, held)) if groups.recompute else (kept + held, once)
    return LAYERS_HELD * count_costs(model, batch).forward_bytes * bytes_each // BYTES + kept + once


def _have_memory_of_their_own(strategy: tf.distribute.Strategy, processor: Processor) -> bool:
    return processor.is_accelerator or isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
