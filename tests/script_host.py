"""Scripts of the project run without their imports, which take longer than most of them.

A server imports TensorFlow, Keras and what else scripts need, once for each process of pytest (tests/script_server.py).
It forks processes that run scripts as `python` would: with their own arguments, variables, working directory, output
and exit code, as `__main__`. One of them is kept, and runs one script after another.
"""

import os
import subprocess
import sys
import tempfile
import threading
from multiprocessing import Pipe
from pathlib import Path

from tests.script_server import ROOT, Request


class ScriptHost:
    """Runs scripts, one at a time; starts its server with the first. It ends with the process that holds it."""

    def __init__(self):
        self._lock = threading.Lock()
        self._server = self._connection = None

    def run(self, command: list[str], alone: bool, timeout: float) -> subprocess.CompletedProcess:
        """Runs a script, with the variables that this process has now.

        Args:
            command: the script, or "-m" and a module, and its arguments.
            alone: in a process of its own, which ends with it, instead of the one that is kept.
            timeout: seconds.

        Raises:
            subprocess.TimeoutExpired: if it takes longer; it is killed.
        """
        with self._lock, tempfile.TemporaryDirectory() as directory:
            if self._server is None:
                self._start()
            files = [Path(directory, name) for name in ("stdout", "stderr")]
            for file in files:
                file.touch()
            self._connection.send((Request(command, dict(os.environ), *map(str, files), alone), timeout))
            code = self._connection.recv()
            output = [file.read_bytes().decode(errors="replace") for file in files]
        if code is None:
            raise subprocess.TimeoutExpired(command, timeout, *output)
        return subprocess.CompletedProcess(command, code, *output)

    def close(self) -> None:
        if self._server is not None:
            self._connection.close()
            self._server.wait()
            self._server = None

    def _start(self) -> None:
        self._connection, theirs = Pipe()
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.script_server", str(theirs.fileno())],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # Ctrl-C is for pytest, with which the server ends
        )
        theirs.close()


HOST = ScriptHost()
