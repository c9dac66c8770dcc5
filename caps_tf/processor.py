"""The processor that a tensor is computed on, and its memory: what layers and scripts choose by. Imports no backend itself."""

import functools
import os
import subprocess
from typing import Any, NamedTuple

import keras


class Processor(NamedTuple):
    """What computes.

    Attributes:
        kind: "cpu", "gpu" or "tpu".
        name: as its maker calls it.
        memory: bytes of its own that this process may take in all; None for a CPU, and where it cannot be found out.
    """

    kind: str
    name: str
    memory: int | None = None

    @property
    def is_accelerator(self) -> bool:
        """Whether it has memory of its own and wants few large operations."""
        return self.kind != "cpu"

    def describe(self) -> str:
        """Its name and memory, for a log.

        Example:
            >>> Processor("gpu", "NVIDIA H200", 150 * 10**9).describe()
            'NVIDIA H200, 150.0 GB'
        """
        return self.name if self.memory is None else f"{self.name}, {self.memory / 1e9:.1f} GB"


CPU = Processor("cpu", "CPU")
TAKEN_OF_A_GPU = 0.9
"""Share of a GPU's memory that TensorFlow's tensors get: it leaves some to the driver and to libraries."""


def processor_of(tensor: Any = None) -> Processor:
    """The processor that a tensor is on or, where that is open, the one that Keras's backend computes on.

    Args:
        tensor: a tensor of the backend. Symbolic ones and those that are traced may not say where they will be.

    Returns:
        `Processor`.

    Example:
        >>> processor_of(keras.ops.ones(3)).kind in ("cpu", "gpu", "tpu")
        True
    """
    return {"tensorflow": _of_tensorflow, "jax": _of_jax, "torch": _of_torch}.get(keras.backend.backend(), _cpu)(tensor)


def exact_float32() -> None:
    """Makes products of float32 matrices what they say on NVIDIA's GPUs, too.

    These compute them by default with ten bits of each factor (TensorFloat-32). Routing subtracts numbers that are
    nearly equal and divides by small variances, which ten bits do not allow. Mixed precision is the fast choice, with
    routing in float32.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_tensor_float_32_execution(False)
    elif keras.backend.backend() == "jax":
        import jax

        jax.config.update("jax_default_matmul_precision", "highest")
    elif keras.backend.backend() == "torch":
        import torch

        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False


def _cpu(tensor: Any) -> Processor:
    return CPU


def _of_tensorflow(tensor: Any) -> Processor:
    import tensorflow as tf

    placed = getattr(tensor, "device", None) or ""
    if "device:CPU" in placed:
        return CPU
    if tf.config.list_logical_devices("TPU"):
        return Processor("tpu", "TPU")
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return CPU
    name = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")
    limits = [device.memory_limit for device in tf.config.get_logical_device_configuration(gpus[0]) or []]
    limit = limits[0] * 2**20 if limits and limits[0] else nvidia_memory()
    return Processor("gpu", name, limit)


def _of_jax(tensor: Any) -> Processor:
    import jax

    if isinstance(tensor, jax.Array) and not isinstance(tensor, jax.core.Tracer):
        device = next(iter(tensor.devices()))
    else:
        device = jax.config.jax_default_device or jax.local_devices()[0]
    if isinstance(device, str):
        device = jax.local_devices(backend=device)[0]
    if device.platform == "cpu":
        return CPU
    return Processor("tpu" if device.platform == "tpu" else "gpu", device.device_kind, _limit_of_jax(device))


@functools.cache
def _limit_of_jax(device: Any) -> int | None:
    return (device.memory_stats() or {}).get("bytes_limit")


def _of_torch(tensor: Any) -> Processor:
    import torch

    # Keras puts tensors on a device of its own choice, which is not PyTorch's default one.
    device = (tensor if isinstance(tensor, torch.Tensor) else keras.ops.zeros(())).device
    if device.type == "meta":  # of a symbolic call, which computes nothing
        return CPU
    return CPU if device.type == "cpu" else _torch_processor(device.type, device.index or 0)


@functools.cache
def _torch_processor(kind: str, index: int) -> Processor:
    import torch

    if kind != "cuda":
        return Processor("gpu", kind)
    free, _ = torch.cuda.mem_get_info(index)
    return Processor("gpu", torch.cuda.get_device_name(index), free + torch.cuda.memory_reserved(index))


@functools.cache
def nvidia_memory() -> int | None:
    """Bytes that TensorFlow, which does not say it, takes of the smallest GPU that this process sees; None without one.

    What other processes hold is not known: TensorFlow wants a GPU of its own.
    """
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    command += [f"--id={visible}"] if visible else []
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
        return int(TAKEN_OF_A_GPU * min(int(line) for line in found.split()) * 2**20)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
