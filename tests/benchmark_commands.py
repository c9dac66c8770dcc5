"""Commands of benchmarks/ that run scripts, here instead of in a process of their own, with scripts that the host runs."""

import contextlib
import io
import signal
import subprocess
import sys

import pytest

from benchmarks import runs
from tests.small_norb import ROOT, run_script


def run_here(module, *flags) -> subprocess.CompletedProcess:
    """Calls a module's `main` as `python -m` does, but for the processes of its scripts.

    Args:
        module: of a command that runs scripts by `benchmarks.runs`.
        flags: of the command.
    """

    def script(name, *flags):
        process = run_script(name, *flags, check=False)
        print(process.stderr, end="", file=sys.stderr)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, [sys.executable, name, *flags])
        return runs.Script(process.stdout, peak_mib=900.0, seconds=2.0, processor_seconds=2.0)

    handler = signal.getsignal(signal.SIGTERM)
    said = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(said[0]),
        contextlib.redirect_stderr(said[1]),
    ):
        patch.setattr(sys, "argv", [module.__name__, *flags])
        patch.setattr(runs, "run_script", script)
        try:
            code = module.main()
        finally:
            signal.signal(signal.SIGTERM, handler)
    return subprocess.CompletedProcess(flags, code, *(each.getvalue() for each in said))


def run_process(module, *flags) -> subprocess.CompletedProcess:
    """Runs such a command as its users do."""
    command = [sys.executable, "-m", module.__name__, *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
