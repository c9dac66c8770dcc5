"""How much memory this process may still use; works without TensorFlow, as it is called before that is imported."""

import resource
from pathlib import Path

from caps_tf.errors import UserError

CGROUP = Path("/sys/fs/cgroup")

ADDRESS_SPACE_OF_TENSORFLOW = 4 * 10**9
"""Bytes of address space within which TensorFlow starts and trains a tiny network; with 2.5e9 it is aborted."""


def available_memory() -> int | None:
    """Bytes that this process can still allocate: the machine's free memory, or less if limited.

    Limits are those of its control group and of `ulimit -v`. None if the system does not report them.
    """
    limits = []
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        limits.append(int(fields["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError):
        pass
    try:
        used = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        limits.append(int((CGROUP / "memory.max").read_text()) - int(used["anon"]))
    except (OSError, KeyError, ValueError):  # no control group, or "max"
        pass
    address_space = _address_space()
    if address_space is not None:
        try:
            taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        except OSError:
            taken = 0
        limits.append(max(0, address_space - taken))
    return min(limits, default=None)


def check_address_space() -> None:
    """Refuses an address space that TensorFlow does not fit into: the system would abort it without a word.

    Raises:
        UserError: if `ulimit -v` allows less than `ADDRESS_SPACE_OF_TENSORFLOW`.
    """
    allowed = _address_space()
    if allowed is not None and allowed < ADDRESS_SPACE_OF_TENSORFLOW:
        raise UserError(
            f"this process may take {allowed / 1e9:.1f} GB of address space and TensorFlow needs "
            f"{ADDRESS_SPACE_OF_TENSORFLOW / 1e9:.0f} GB to start: raise the limit with `ulimit -v unlimited`, or ask "
            "the cluster for more memory"
        )


def _address_space() -> int | None:
    allowed, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if allowed == resource.RLIM_INFINITY else allowed
