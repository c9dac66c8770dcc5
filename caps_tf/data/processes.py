"""Work spread over processes that end with the one that started them."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

from caps_tf.errors import UserError

IN_USE = "another rendering is writing it: wait for its end"
"""What `caps_tf.files.locked` says of a directory that is being rendered."""


@contextmanager
def process_map(num_processes: int) -> Iterator[Callable[..., Iterable]]:
    """A `map` in order over processes, or the builtin one for a single process.

    Args:
        num_processes: at least 1.

    Raises:
        concurrent.futures.process.BrokenProcessPool: a process was killed.

    Example:
        >>> with process_map(1) as each:
        ...     list(each(abs, [-1, 2]))
        [1, 2]
    """
    if num_processes == 1:
        yield map
        return
    # Spawned, not forked: the same on every system, and no threads or locks are copied.
    executor = ProcessPoolExecutor(num_processes, multiprocessing.get_context("spawn"), _start_worker)
    try:
        yield executor.map
    finally:
        executor.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Ctrl-C is the parent's business; and when the parent is gone, killed even, so is its worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None, "only in a worker"

    def leave_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()


@contextmanager
def explained(directory: Path) -> Iterator[None]:
    """Turns what stops a rendering into one line that says what to do next.

    Args:
        directory: that is rendered.

    Raises:
        UserError: a process was killed, or something could not be written.

    Example:
        >>> try:
        ...     with explained(Path("toys")):
        ...         raise OSError(28, "No space left on device", "toys/car.png")
        ... except UserError as error:
        ...     print(error)
        toys/car.png: cannot be written: No space left on device
    """
    try:
        yield
    except BrokenProcessPool:
        raise UserError(
            f"{directory}: a rendering process was killed (out of memory?): try again with fewer `num_processes`"
        ) from None
    except OSError as error:
        raise UserError(f"{error.filename or directory}: cannot be written: {error.strerror or error}") from None
