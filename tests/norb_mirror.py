"""A mirror of six small NORB files on loopback that can misbehave, and data/download.sh run against it."""

import gzip
import hashlib
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np

from caps_tf.data import norb_format as nf
from caps_tf.data import norb_matrix

SCRIPT = Path(__file__).parents[1] / "data" / "download.sh"
# All the programs the script may use, besides one that downloads.
TOOLS = ["bash", "cat", "df", "dirname", "env", "gzip", "mkdir", "mv", "rm", "sha256sum", "sleep", "wc"]
PREFIX = "toys-5x4x1x2x1x2x32x32"
DAT = f"{PREFIX}-testing-dat.mat"


class Server(ThreadingHTTPServer):
    """Serves `files` under /norb/, can be told to misbehave, and remembers what it was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.knows_ranges = True
        self.break_after: list[int] = []  # bytes sent before each of the next answers breaks off
        self.statuses: list[int] = []  # of the next answers
        self.stall_after: int | None = None  # bytes of an answer, until `resume` is set
        self.trickles = False  # a byte every tenth of a second
        self.redirects: dict[str, str] = {}  # from path to address
        self.promised: int | None = None  # the Content-Length of every answer, whatever it holds
        self.resume = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/norb"

    def ranges_asked_for(self, name: str) -> list[str | None]:
        return [asked for path, asked in self.requests if path == f"/norb/{name}.gz"]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers["Range"]
        self.server.requests.append((self.path, asked))
        data = self.server.files.get(self.path.removeprefix("/norb/"))
        if self.path in self.server.redirects:
            self.send_response(302)
            self.send_header("Location", self.server.redirects[self.path])
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif self.server.statuses:
            self.send_error(self.server.statuses.pop(0))
        elif data is None:
            self.send_error(404)
        elif asked and self.server.knows_ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
            if start >= len(data):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(data)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.send_body(data[start:])
        else:
            self.send_response(200)
            self.send_body(data)

    def end_headers(self) -> None:
        # Without it wget sometimes asks again on a connection that is about to be closed, and gets nothing.
        self.send_header("Connection", "close")
        super().end_headers()

    def send_body(self, data: bytes) -> None:
        self.send_header("Content-Length", str(self.server.promised or len(data)))
        self.end_headers()
        while self.server.trickles and not self.server.resume.wait(0.1):
            try:
                self.wfile.write(data[:1])
            except OSError:
                return
        if self.server.break_after:
            data = data[: self.server.break_after.pop(0)]
        stall = self.server.stall_after
        self.wfile.write(data[:stall])
        if stall is not None and len(data) > stall:
            self.server.resume.wait()

    def log_message(self, *_: object) -> None:
        pass

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:  # the client gave up
            self.close_connection = True


class Downloads:
    """A mirror of six small NORB files, and the script run with nothing but what it says it needs."""

    def __init__(self, root: Path, server: Server, client: str):
        self.server = server
        self.dir = root / "files"
        self.checksums = root / "checksums.txt"
        self.bin = root / "bin"
        self.bin.mkdir()
        for tool in [*TOOLS, client]:
            (self.bin / tool).symlink_to(shutil.which(tool))
        self.env = {"PATH": str(self.bin), "no_proxy": "*"}
        self.data = make_files(root)
        server.files = {f"{name}.gz": gzip.compress(data, mtime=0) for name, data in self.data.items()}
        self.write_checksums()

    def write_checksums(self, sizes: dict[str, int] | None = None) -> None:
        lines = ["# a mirror", ""]
        for name, data in self.data.items():
            size = (sizes or {}).get(name, len(data))
            lines.append(f"{name}  {sha256(self.server.files[name + '.gz'])} {size} {sha256(data)}")
        self.checksums.write_text("\n".join(lines) + "\n")

    def options(self) -> list[str | Path]:
        return ["--dir", self.dir, "--url", self.server.url, "--checksums", self.checksums]

    def run(
        self, *arguments: str | Path, script: Path = SCRIPT, preexec_fn: Callable[[], None] | None = None
    ) -> subprocess.CompletedProcess:
        return subprocess.run(
            [script, *arguments],
            env=self.env,
            cwd=self.bin,
            capture_output=True,
            text=True,
            timeout=60,
            preexec_fn=preexec_fn,
            # Keeps SIGXFSZ ignored, so that a file over its size limit is an error of write(), as on a full disk.
            restore_signals=False,
        )

    def fetch(
        self, *arguments: str | Path, preexec_fn: Callable[[], None] | None = None
    ) -> subprocess.CompletedProcess:
        return self.run(*self.options(), *arguments, preexec_fn=preexec_fn)

    def assert_complete(self, result: subprocess.CompletedProcess, *others: str) -> None:
        assert (result.returncode, result.stderr) == (0, ""), result
        assert result.stdout.splitlines()[-1] == "next: python data/convert_to_tfrecord.py --dataset=smallNORB"
        assert {name: (self.dir / name).read_bytes() for name in self.data} == self.data
        assert sorted(os.listdir(self.dir)) == sorted([*self.data, *others])


def make_files(root: Path) -> dict[str, bytes]:
    """Six files in the NORB format with images that do not compress; `DAT` is the first large one."""
    files = {}
    category, info = nf.grid_info([4], [8], [0, 34], [5])
    images = np.random.default_rng(0).integers(0, 256, [len(category), 2, 32, 32], np.uint8)
    for kind, array in (("cat", category), ("info", info), ("dat", images)):
        for split in ("testing", "training"):
            path = root / f"{PREFIX}-{split}-{kind}.mat"
            norb_matrix.write_matrix(path, array)
            files[path.name] = path.read_bytes()
            path.unlink()
    return files


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def assert_one_error(result: subprocess.CompletedProcess, *words: str) -> None:
    assert result.returncode == 1, result
    assert re.fullmatch(r"error: .+\n", result.stderr), result.stderr
    for word in words:
        assert word in result.stderr, result.stderr
