"""Whether a training step fits into memory, found out before a run starts."""

import keras
import tensorflow as tf

from caps_tf.costs import estimate_memory
from caps_tf.errors import UserError
from caps_tf.limits import available_memory
from caps_tf.processor import Processor, processor_of
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
