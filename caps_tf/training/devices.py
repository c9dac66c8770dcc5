"""Which devices a run uses: one, several of this machine, or those of several hosts."""

import os

import tensorflow as tf

from caps_tf.errors import UserError


def make_strategy(num_devices: int) -> tf.distribute.Strategy:
    """Makes the distribution strategy of a run. Call it before any other use of TensorFlow.

    With TF_CONFIG in the environment, each host runs this program and they train together
    (MultiWorkerMirroredStrategy). Otherwise `num_devices` GPUs of this machine share the work (MirroredStrategy);
    on a machine without GPUs, that many logical devices of its CPU do, which is how distribution is tested.

    Args:
        num_devices: GPUs (or logical CPU devices) of this machine.

    Returns:
        A strategy; its default, which distributes nothing, for a single device.

    Raises:
        UserError: if the machine has fewer GPUs, or TF_CONFIG cannot be used.
    """
    if os.environ.get("TF_CONFIG"):
        try:
            return tf.distribute.MultiWorkerMirroredStrategy()
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"TF_CONFIG describes no cluster that can be used: {error}") from error
    if num_devices == 1:
        return tf.distribute.get_strategy()
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        if len(gpus) < num_devices:
            raise UserError(f"--num_gpus={num_devices}, but this machine has {len(gpus)}: give at most that many")
        return tf.distribute.MirroredStrategy([f"GPU:{index}" for index in range(num_devices)])
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * num_devices)
    return tf.distribute.MirroredStrategy([f"CPU:{index}" for index in range(num_devices)])


def describe_devices(strategy: tf.distribute.Strategy) -> str:
    """One line for the log: how many replicas train, on what. A GPU that TensorFlow cannot use shows here."""
    count = strategy.num_replicas_in_sync
    kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU (TensorFlow finds no GPU)"
    return f"{count} {'device' if count == 1 else 'devices'}, {kind}"


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process writes the run's files: the only process, or the first worker."""
    resolver = strategy.cluster_resolver
    if resolver is None or not resolver.cluster_spec().as_dict():
        return True
    return resolver.task_type == "chief" or (
        resolver.task_type == "worker"
        and resolver.task_id == 0
        and "chief" not in resolver.cluster_spec().jobs
    )


def distribute(strategy: tf.distribute.Strategy, batches: tf.data.Dataset) -> tf.distribute.DistributedDataset:
    """Splits each global batch over the replicas of all hosts.

    Every host reads the same records in the same order and keeps its share of each batch, so that the batches are
    those of a single device whatever the number of hosts.
    """
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return strategy.experimental_distribute_dataset(batches.with_options(options))
