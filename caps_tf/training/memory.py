"""Whether a training step fits into memory, and how its votes are made to, found out before a run starts."""

import keras
import tensorflow as tf

from caps_tf.costs import estimate_memory, votes_by_layer
from caps_tf.errors import UserError
from caps_tf.layers import RoutingLayer
from caps_tf.limits import available_memory
from caps_tf.processor import Processor, processor_of
from caps_tf.routing.grouping import choose_groups
from caps_tf.training.config import RunConfig
from caps_tf.training.data import TrainingData
from caps_tf.training.factories import make_model


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
    needed = estimate_memory(model, -(-config.batch_size // shares), of_host=not processor.is_accelerator)
    keras.utils.clear_session()  # so that layers without a name get the same whether or not they were built here
    if needed > free:
        raise UserError(
            f"a training step of {config.batch_size} examples needs about {needed / 1e9:.1f} GB, and "
            f"{free / 1e9:.1f} GB are free: lower --batch_size or make the network smaller; --nocheck_memory tries it"
        )


def _have_memory_of_their_own(strategy: tf.distribute.Strategy, processor: Processor) -> bool:
    return processor.is_accelerator or isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def describe_votes(model: keras.Model, batch_size: int, processor: Processor) -> str:
    """How the layers of a network go through a batch on a processor, for the log; empty without layers that choose.

    Args:
        model: the network.
        batch_size: examples in the batch of one device.
        processor: what it runs on.

    Example:
        >>> from caps_tf.models import matrix_capsules
        >>> describe_votes(matrix_capsules((32, 32, 1), num_classes=5), 64, Processor("cpu", "CPU"))
        'votes of 64 examples: conv_capsules_1 1 at a time, conv_capsules_2 1 at a time, class_capsules 32 at a time'
    """
    try:
        votes = votes_by_layer(model, batch_size)
    except ValueError:  # sentences have any length
        return ""
    chosen = {layer: _choice(layer, batch_size, votes[layer] // batch_size, processor) for layer in votes}
    described = ", ".join(f"{layer.name} {choice}" for layer, choice in chosen.items() if choice)
    return described and f"votes of {batch_size} examples: {described}"


def _choice(layer: RoutingLayer, batch: int, elements: int, processor: Processor) -> str:
    if layer.cached_votes is None:
        return ""
    examples, recompute = choose_groups(batch, elements, processor, layer.cached_votes, layer.votes_at_a_time)
    at_a_time = "all at once" if examples in (None, batch) else f"{examples} at a time"
    return at_a_time + (", made again for the gradient" if recompute and examples in (None, batch) else "")
