"""How programs of this library start TensorFlow: with oneDNN's kernels on every CPU, and without its chatter."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from caps_tf.program_cache import use_kept_programs

ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "3",  # of what TensorFlow logs once it has started
    "TF_ENABLE_ONEDNN_OPTS": "1",  # by itself it takes oneDNN's kernels only on CPUs with instructions for networks
}
"""Variables that TensorFlow reads when it is imported; those that are set already stay."""

_FILTER = r"""
import re, sys
for line in sys.stdin.buffer:
    if not re.match(rb"WARNING: All log messages before absl|I\d{4} ", line):
        sys.stderr.buffer.write(line)
        sys.stderr.flush()
"""


def set_environment() -> None:
    """Sets `ENVIRONMENT`, before TensorFlow is imported."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


@contextmanager
def without_chatter() -> Iterator[None]:
    """Keeps notices of native code, I0000 and what announces them, off stderr; all else still gets there.

    No variable silences them. They pass through a process of their own: were they kept and read afterwards, the last
    words of a library that ends the program would be lost.

    Example:
        >>> with without_chatter():
        ...     _ = os.write(2, b"I0000 00:00:1 port.cc:1] a notice")
    """
    sys.stderr.flush()
    stderr = os.dup(2)
    process = subprocess.Popen([sys.executable, "-S", "-E", "-c", _FILTER], stdin=subprocess.PIPE, stderr=stderr)
    assert process.stdin is not None
    os.dup2(process.stdin.fileno(), 2)
    process.stdin.close()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(stderr, 2)
        os.close(stderr)
        process.wait()


def start_keras() -> None:
    """Imports Keras with its backend, which takes seconds: once a program's flags are known to be good.

    What XLA compiles then is kept for the next start, see `caps_tf.program_cache`.
    """
    set_environment()
    use_kept_programs()
    with without_chatter():
        import keras  # noqa: F401
