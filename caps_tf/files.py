"""Writing files so that readers see the old one or the new one, and directories that one process writes at a time."""

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from caps_tf.errors import UserError


def write_atomically(path: str | os.PathLike, data: bytes) -> Path:
    """Writes `data` under a temporary name beside `path`, then renames it into place.

    Args:
        path: where to; missing parent directories are made.
        data: the whole content.

    Returns:
        The path written.

    Raises:
        UserError: the directory or file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     write_atomically(f"{directory}/new/hello.txt", b"hello").read_bytes()
        b'hello'
    """
    path = Path(path)
    # Not tempfile.mkstemp: its files are readable by their owner only, whatever the umask.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}): free some space or choose another directory"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # nothing to remove after the rename
            temporary.unlink()
    return path


def check_space(directory: str | os.PathLike, needed: int) -> None:
    """Refuses what would fill the disk.

    Args:
        directory: that there is.
        needed: bytes, at the most.

    Raises:
        UserError: if less are free.
    """
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise UserError(
            f"{directory}: needs up to {needed / 1e9:.2f} GB of disk space, {free / 1e9:.2f} GB are free: "
            "make room or choose another `storage`"
        )


@contextlib.contextmanager
def locked(directory: str | os.PathLike, message: str) -> Iterator[None]:
    """Keeps other processes out of a directory; the system lets go of the lock if this one is killed.

    Args:
        directory: made if missing.
        message: of the error, after the directory.

    Raises:
        UserError: another process holds the lock.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory, locked(directory, "in use: wait"):
        ...     try:
        ...         with locked(directory, "in use: wait"):
        ...             pass
        ...     except UserError as error:
        ...         str(error).removeprefix(directory)
        ': in use: wait'
    """
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"{directory}: cannot be written ({error.strerror}): choose another directory") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{directory}: {message}") from None
        except OSError as error:
            if error.errno not in (
                errno.ENOLCK,
                errno.ENOTSUP,
                errno.ENOSYS,
            ):  # some network file systems have no locks
                raise
        yield
    finally:
        os.close(descriptor)
