"""Which devices a run uses: one, several of this machine, or those of several hosts."""

import os
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from caps_tf.errors import UserError
from caps_tf.processor import exact_float32, processor_of

SLURM_PORTS = 20_000
"""The first of 20,000 ports, from which the number of the job chooses."""

MOST_TASKS = 1024
"""Tasks of one host that are distinguished."""


def make_strategy(num_devices: int, cluster: str = "tf_config") -> tf.distribute.Strategy:
    """Makes the distribution strategy of a run. Call it before any other use of TensorFlow.

    With TF_CONFIG in the environment, or as tasks of a SLURM job step, each host runs this program and they train
    together (MultiWorkerMirroredStrategy) on all GPUs that they see. Otherwise `num_devices` GPUs of this machine share
    the work (MirroredStrategy); on a machine without GPUs, that many logical devices of its CPU do, which is how
    distribution is tested. Float32 is what it says from then on, see `exact_float32`.

    Args:
        num_devices: GPUs (or logical CPU devices) of this machine.
        cluster: "tf_config" or "slurm": what names the hosts.

    Returns:
        A strategy; its default, which distributes nothing, for a single device.

    Raises:
        UserError: if the machine has fewer GPUs, or TF_CONFIG or SLURM's variables cannot be used.
    """
    exact_float32()
    if cluster == "slurm":
        return _join(_slurm_resolver, "SLURM's variables describe no job step: start the program with srun")
    if os.environ.get("TF_CONFIG"):
        return _join(tf.distribute.cluster_resolver.TFConfigClusterResolver, "TF_CONFIG describes no cluster")
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


def _slurm_resolver() -> tf.distribute.cluster_resolver.ClusterResolver:
    job = int(os.environ.get("SLURM_JOB_ID", 0))
    # It gives each task a GPU or counts no task at all. Which task sees which is srun's business (--gpus-per-task), so
    # only hosts, ports and the number of this task are taken from it.
    slurm = tf.distribute.cluster_resolver.SlurmClusterResolver(
        port_base=SLURM_PORTS + job % 20_000, gpus_per_node=MOST_TASKS, gpus_per_task=1, auto_set_gpu=False
    )
    tasks = slurm.cluster_spec()  # which also finds out which task this is
    return tf.distribute.cluster_resolver.SimpleClusterResolver(
        tasks,
        task_type=slurm.task_type,
        task_id=slurm.task_id,
        num_accelerators={"GPU": len(tf.config.list_physical_devices("GPU"))},
        rpc_layer="grpc",
    )


def _join(
    make_resolver: Callable[[], tf.distribute.cluster_resolver.ClusterResolver], complaint: str
) -> tf.distribute.Strategy:
    try:
        return tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=make_resolver())
    except tf.errors.OpError as error:
        raise UserError(f"the other workers do not answer ({error.message}): start all of them again") from error
    except (ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        raise UserError(f"{complaint} ({error}): see docs/CLUSTER.md") from error


def describe_devices(strategy: tf.distribute.Strategy) -> str:
    """One line for the log: how many replicas train, on what. A GPU that TensorFlow cannot use shows here."""
    count, processor = strategy.num_replicas_in_sync, processor_of()
    name = processor.describe() if processor.is_accelerator else "CPU (TensorFlow finds no GPU)"
    return f"{count} {'device' if count == 1 else 'devices'}, {name}"


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process writes the run's files: the only process, or the first worker."""
    resolver = strategy.cluster_resolver
    if resolver is None or not resolver.cluster_spec().as_dict():
        return True
    return resolver.task_type == "chief" or (
        resolver.task_type == "worker" and resolver.task_id == 0 and "chief" not in resolver.cluster_spec().jobs
    )


def num_processes(strategy: tf.distribute.Strategy) -> int:
    """How many processes train together: the workers of a cluster (its chief is one of them), or one."""
    resolver = strategy.cluster_resolver
    cluster = {} if resolver is None else resolver.cluster_spec().as_dict()
    return max(1, sum(len(cluster.get(job, ())) for job in ("chief", "worker")))


def prefetched(batches: tf.data.Dataset, device: str) -> tf.data.Dataset:
    """The same batches, copied to a device ahead of their use; text stays where it is, for only the host has it.

    Example:
        >>> batches = prefetched(tf.data.Dataset.range(4).batch(2), "/CPU:0")
        >>> [batch.numpy().tolist() for batch in batches]
        [[0, 1], [2, 3]]
    """
    if any(spec.dtype == tf.string for spec in tf.nest.flatten(batches.element_spec)):
        return batches
    return batches.apply(tf.data.experimental.prefetch_to_device(device))


def distribute(strategy: tf.distribute.Strategy, batches: tf.data.Dataset) -> Any:
    """Splits each global batch over the replicas of all hosts.

    Every host reads the same records in the same order and keeps its share of each batch, so that the batches are
    those of a single device whatever the number of hosts. The next batch is copied to the device while this one is
    computed on: the distributed data sets of strategies do that themselves.
    """
    if strategy.num_replicas_in_sync == 1 and processor_of().kind == "gpu":
        return prefetched(batches, "/GPU:0")
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return strategy.experimental_distribute_dataset(batches.with_options(options))
