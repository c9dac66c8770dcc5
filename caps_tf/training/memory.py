"""Whether a training step fits into memory, found out before a run starts."""

import keras
import tensorflow as tf

from caps_tf.errors import UserError
from caps_tf.limits import available_memory
from caps_tf.models.costs import count_costs
from caps_tf.training.config import RunConfig
from caps_tf.training.factories import make_model
from caps_tf.training.trainer import TrainingData

HELD = {"matrix_capsules": 5.0, "heinsen_norb": 5.0, "attention": 0.5}
"""How many times `Cost.array_bytes` a training step holds at the most, beyond `STARTUP`: the column "held" of
benchmarks/results.csv, where the batch is large. Networks that are not named here are not checked."""

STARTUP = 6 * 10**8
"""Bytes that XLA, threads and batches that wait take, whatever the network."""


def estimate_memory(model: keras.Model, network: str, batch_size: int) -> int:
    """Bytes that training needs beyond what the process holds before, roughly.

    Args:
        model: the network; all shapes but the batch's known.
        network: its name, as --network takes it.
        batch_size: examples in a batch.

    Raises:
        ValueError: if a shape is not known.

    Example:
        >>> from caps_tf.models import matrix_capsules
        >>> model = matrix_capsules((32, 32, 1), num_classes=5)
        >>> estimate_memory(model, "matrix_capsules", 256) > 2 * estimate_memory(model, "matrix_capsules", 64)
        True
    """
    return STARTUP + int(HELD[network] * count_costs(model, batch_size).array_bytes)


def check_memory(config: RunConfig, data: TrainingData, strategy: tf.distribute.Strategy) -> None:
    """Refuses a run whose training step does not fit, from the sizes of its layers alone.

    It builds the network and forgets it. Networks without a factor in `HELD`, and runs on GPUs, which have their own
    memory, pass.

    Args:
        config: the run's parameters.
        data: what the run learns from.
        strategy: devices.

    Raises:
        UserError: if the step needs more than there is.
    """
    free = available_memory()
    if config.network not in HELD or free is None or tf.config.list_physical_devices("GPU"):
        return
    # Devices of one machine share its memory, and hosts do not.
    hosts = strategy.num_replicas_in_sync if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy) else 1
    model = make_model(config, data.input_shapes, data.num_classes)
    needed = estimate_memory(model, config.network, -(-config.batch_size // hosts))
    keras.utils.clear_session()  # so that layers without a name get the same whether or not they were built here
    if needed > free:
        raise UserError(
            f"a training step of {config.batch_size} examples needs about {needed / 1e9:.1f} GB, and "
            f"{free / 1e9:.1f} GB are free: lower --batch_size or make the network smaller; --nocheck_memory tries it"
        )
