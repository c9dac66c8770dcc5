"""The process behind tests/script_host.py: it has imported TensorFlow, and forks processes that run scripts.

It never runs TensorFlow itself, whose threads would not survive a fork.
"""

import functools
import gc
import importlib
import os
import runpy
import signal
import sys
import traceback
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
IMPORTED = (
    *("keras", "tensorflow", "tensorflow_datasets", "matplotlib.pyplot", "scipy.ndimage", "PIL.Image"),
    *("caps_tf.commands.train", "caps_tf.commands.test", "caps_tf.commands.convert", "caps_tf.trained_runs"),
    *("caps_tf.training.trainer", "caps_tf.training.data", "caps_tf.training.memory", "caps_tf.training.attacker"),
    *("caps_tf.evaluation.report", "caps_tf.evaluation.robustness", "caps_tf.data.baselines"),
)
"""What most scripts import. What one of them is run as (`python -m`) must not be among it."""
SCRIPTS_A_PROCESS = 40
"""A process that runs one script after another gives back its memory after as many."""


class Request(NamedTuple):
    """A script to run: the command without the interpreter, all variables, and the files that take its output."""

    command: list[str]
    environment: dict[str, str]
    stdout: str
    stderr: str
    alone: bool


def main(tests: Connection) -> None:
    """Runs what the tests ask for and answers with exit codes, None where the time was over; ends with the tests."""
    for name in IMPORTED:
        importlib.import_module(name)
    from absl import app

    app.define_help_flags()
    gc.freeze()  # or the collector would write into, and so copy, all the memory that a fork shares
    kept = None
    while True:
        try:
            request, timeout = tests.recv()
        except EOFError:
            break
        if not request.alone and (kept is None or kept.scripts == SCRIPTS_A_PROCESS):
            if kept:
                kept.end()
            kept = Child(tests)
        child = Child(tests) if request.alone else kept
        code = child.run(request, timeout, tests)
        if child is kept and not kept.is_alive:
            kept = None
        tests.send(code)
    if kept:
        kept.end()


class Child:
    """A forked process that runs scripts.

    Args:
        tests: the connection that is not its own.
    """

    def __init__(self, tests: Connection):
        self._connection, theirs = Pipe()
        self.scripts, self.is_alive = 0, True
        self._pid = os.fork()
        if self._pid == 0:
            os.setpgid(0, 0)
            self._connection.close()
            tests.close()
            serve(theirs)
        theirs.close()

    def run(self, request: Request, timeout: float, tests: Connection) -> int | None:
        self.scripts += 1
        self._connection.send(request)
        ready = wait([self._connection, tests], timeout)
        if self._connection in ready:
            try:
                return self._connection.recv()
            except EOFError:  # it ended with the script
                self.is_alive = False
                return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        self.end()
        return None

    def end(self) -> None:
        self.is_alive = False
        os.killpg(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)


def serve(connection: Connection) -> None:
    """The life of a forked process. It ends with its server, or as the script ends that it was made for."""
    state = State()
    while True:
        try:
            request = connection.recv()
        except EOFError:
            os._exit(0)
        code = run(request)
        if request.alone:
            sys.exit(code)
        state.restore()
        connection.send(code)


def run(request: Request) -> int:
    """Runs a script as `python` would, but for the imports; returns its exit code."""
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(request.environment)
    for number, path in ((1, request.stdout), (2, request.stderr)):
        file = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    script, *flags = request.command
    text = flags.pop(0) if script in ("-m", "-c") else script
    sys.argv = ["-c" if script == "-c" else text, *flags]
    sys.path.insert(0, str(ROOT if script in ("-m", "-c") else (ROOT / script).parent))
    code = 0
    try:
        if script == "-m":
            sys.modules.pop(text, None)
            runpy.run_module(text, run_name="__main__", alter_sys=True)
        elif script == "-c":
            exec(compile(text, "<string>", "exec"), {"__name__": "__main__"})
        else:
            runpy.run_path(script, run_name="__main__")  # which puts the path into sys.argv
    except SystemExit as end:
        code = exit_code(end)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def exit_code(end: SystemExit) -> int:
    if end.code is None or isinstance(end.code, int):
        return end.code or 0
    print(end.code, file=sys.stderr)
    return 1


class State:
    """What a script may leave behind in its process, as it was at first."""

    def __init__(self):
        from absl import flags

        self._flags = flags.FLAGS
        self._defined = self._copied(vars(self._flags))
        self._path = list(sys.path)
        self._handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    @staticmethod
    def _copied(values: dict) -> dict:
        """Copies of the tables of flags, and of the lists within."""
        copies = {name: value.copy() if isinstance(value, (dict, set)) else value for name, value in values.items()}
        for name, value in copies.items():
            if name.endswith(("_by_module", "_by_module_id")):
                copies[name] = {module: list(flags) for module, flags in value.items()}
        return copies

    def restore(self) -> None:
        import keras
        from matplotlib import pyplot

        vars(self._flags).update(self._copied(self._defined))
        self._flags.unparse_flags()
        sys.path[:] = self._path
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        pyplot.close("all")
        keras.utils.clear_session()
        keras.mixed_precision.set_global_policy("float32")
        for name, module in list(sys.modules.items()):
            if name.startswith("caps_tf."):
                for value in vars(module).values():
                    if isinstance(value, functools._lru_cache_wrapper):
                        value.cache_clear()
        gc.collect()


if __name__ == "__main__":
    main(Connection(int(sys.argv[1])))
