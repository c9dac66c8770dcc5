"""Several worker processes on this machine that train or test together."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time

from tests.small_norb import ROOT


def free_ports(count):
    """Ports of loopback on which nobody listens."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


class Cluster:
    """Workers of one cluster, the first of which is the chief."""

    def __init__(self, size):
        self.size = size
        self.workers: list[subprocess.Popen] = []
        self._logs = []

    def start(self, script, *flags, environments=None):
        """Starts all workers; "{index}" in a flag is the number of the worker."""
        hosts = {"worker": [f"127.0.0.1:{port}" for port in free_ports(self.size)]}
        self._logs = [tempfile.TemporaryFile("w+") for _ in range(self.size)]
        self.workers = []
        for index, log in enumerate(self._logs):
            config = {"TF_CONFIG": json.dumps({"cluster": hosts, "task": {"type": "worker", "index": index}})}
            command = [sys.executable, script, *(flag.replace("{index}", str(index)) for flag in flags)]
            self.workers.append(
                subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env={**os.environ, **(environments[index] if environments else config)},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )

    def end(self, code=0, timeout=400):
        """Waits for all workers that are left; returns what they printed and how many seconds it took."""
        begin = time.monotonic()
        left = [worker.wait(max(1.0, timeout - (time.monotonic() - begin))) for worker in self.workers]
        printed = [self.printed(index) for index in range(self.size)]
        assert [found for found in left if found != -9] == [code] * sum(found != -9 for found in left), (left, printed)
        return printed, time.monotonic() - begin

    def printed(self, index):
        self._logs[index].seek(0)
        return self._logs[index].read()

    def wait_until(self, condition, timeout=400):
        """Waits for a condition; fails if a worker ends before it."""
        deadline = time.monotonic() + timeout
        while not condition():
            ended = [index for index, worker in enumerate(self.workers) if worker.poll() is not None]
            assert not ended, [self.printed(index)[-3000:] for index in ended]
            assert time.monotonic() < deadline, [self.printed(index)[-2000:] for index in range(self.size)]
            time.sleep(0.02)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for worker in self.workers:
            worker.kill()
            worker.wait()
        for log in self._logs:
            log.close()
