"""Writing a file so that readers see the old one or the new one, never half of one."""

import contextlib
import os
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
