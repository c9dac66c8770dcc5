"""What every script of this library does: flags by absl, and one line instead of a traceback for what a user can fix."""

import errno
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

from absl import app, flags, logging

from caps_tf.errors import ClusterLostError, Preempted, UserError

COMMANDS = {
    "train_val.py": "caps-tf-train",
    "test.py": "caps-tf-test",
    "data/convert_to_tfrecord.py": "caps-tf-convert",
    "data/render_norb.py": "caps-tf-render",
}
"""Console commands of the package, by the scripts of the repository that do the same."""
_REPOSITORY = Path(__file__).parent.parent
PREEMPTED = 143
"""Exit code of a script that SIGTERM stopped after it saved its state: 128 + SIGTERM, as shells report it."""
_ENVIRONMENT = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENAMETOOLONG),
    *(errno.EMFILE, errno.ENFILE, errno.ENOTDIR, errno.ESTALE, errno.ENOMEM),
)
"""Errors of the system that no program can foresee: rights, full or broken disks, limits."""


def run_script(main: Callable[[list[str]], int | None], usage: str | None = None, positional: bool = False) -> None:
    """Runs a script's `main(argv)` under absl, with one line instead of a traceback for a `UserError`.

    Args:
        main: gets argv after flag parsing; returns the exit code (None means 0).
        usage: what --help says above the flags, instead of the docstring of the file that was started.
        positional: whether there may be arguments that are not flags.

    Raises:
        SystemExit: always; code 1 after a `UserError` or where memory ran out, 130 after Ctrl-C, and `PREEMPTED`.
    """

    def guarded(argv: list[str]) -> int | None:
        # What libraries log would bury what the script has to say; --verbosity brings it back.
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.ERROR)
        try:
            if len(argv) > 1 and not positional:
                raise UserError(f"unexpected argument {argv[1]!r}: flags look like --name=value; see --help")
            return main(argv)
        except UserError as error:
            print(f"error: {_with_flags(' '.join(str(error).split()))}", file=sys.stderr)
            if isinstance(error, ClusterLostError):
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(1)
            return 1
        except MemoryError:
            print("error: out of memory: lower --batch_size, or use a machine with more", file=sys.stderr)
            return 1
        except OSError as error:
            if error.errno not in _ENVIRONMENT:
                raise
            print(
                f"error: {error.filename or 'the system'}: {error.strerror}: fix that, then try again", file=sys.stderr
            )
            return 1
        except Preempted as notice:
            print(f"stopped by SIGTERM: {notice}", file=sys.stderr)
            return PREEMPTED
        except KeyboardInterrupt:
            print("error: interrupted", file=sys.stderr)
            return 130

    if usage:
        sys.modules["__main__"].__doc__ = usage  # where absl looks for it
    app.run(guarded, flags_parser=_parse_flags)


def how_to_call(script: str) -> str:
    """A script of the repository as the user calls it: by its file, or as a command where the package is installed alone.

    Example:
        >>> how_to_call("test.py"), how_to_call("data/download.sh")
        ('python test.py', './data/download.sh')
    """
    if Path(sys.argv[0]).name.startswith("caps-tf-") or not (_REPOSITORY / script).is_file():
        return COMMANDS.get(script, f"{script} of the repository")
    return f"python {script}" if script.endswith(".py") else f"./{script}"


def _with_flags(message: str) -> str:
    """Names of parameters, `name` in the library's messages, as the flags of this script that they come from."""
    return re.sub(r"`(\w+)`", lambda name: f"--{name[1]}" if name[1] in flags.FLAGS else name[1], message)


def _parse_flags(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        one_line = " ".join(str(error).split())
        print(f"error: {one_line}: see --help", file=sys.stderr)
        sys.exit(1)
