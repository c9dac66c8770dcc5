"""Fetches a file of weights into a cache: resumed, verified, and put under its name when it is whole."""

import hashlib
import http.client
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from caps_tf.errors import UserError
from caps_tf.files import check_space, locked

CACHE, MIRROR = "CAPS_TF_CACHE", "CAPS_TF_WEIGHTS_URL"
"""Variables: the directory that keeps what was fetched, and another address to fetch it from."""
ATTEMPTS = 5
"""In a row, none of which brought anything."""
PATIENCE = 30.0
"""Seconds of silence after which a transfer is tried again."""
_PIECE = 1 << 16


def cache_directory() -> Path:
    """Where fetched files are kept: $CAPS_TF_CACHE, or caps_tf in $XDG_CACHE_HOME or ~/.cache."""
    chosen = os.environ.get(CACHE)
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "caps_tf")


def fetch(url: str, name: str, size: int, sha256: str) -> Path:
    """Returns the cached copy of a file, which is fetched if there is none, and says so on stderr.

    Args:
        url: where it is; with $CAPS_TF_WEIGHTS_URL set, <that>/<name>/<last part of url> instead.
        name: of what it belongs to, its directory in the cache.
        size: bytes.
        sha256: of the file, in hexadecimal digits.

    Raises:
        UserError: it cannot be fetched, or is another file.

    Example:
        >>> fetch("https://example.org/a/model.keras", "a", 300_000, "27ab...")  # doctest: +SKIP
        PosixPath('/home/me/.cache/caps_tf/a/model.keras')
    """
    directory, file = cache_directory() / name, url.rsplit("/", 1)[-1]
    if mirror := os.environ.get(MIRROR):
        url = f"{mirror.rstrip('/')}/{name}/{file}"
    path = directory / file
    if path.is_file() and sha256_of(path) == sha256:
        return path
    with locked(directory, "another process is fetching into it: wait for its end"):
        part = path.with_name(f"{file}.part")
        check_space(directory, size)
        print(f"fetching {url} ({size / 1e6:.1f} MB) into {directory}", file=sys.stderr)
        resumed = part.exists()
        _download(url, part, size)
        if sha256_of(part) != sha256 and resumed:  # the pieces do not fit together
            part.unlink()
            _download(url, part, size)
        found = sha256_of(part)
        if found != sha256:
            part.unlink()
            raise UserError(
                f"{url}: wrong checksum: expected {sha256}, found {found}: choose another source, ${MIRROR}"
            )
        os.replace(part, path)
    return path


def sha256_of(path: Path) -> str:
    """The checksum of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(url: str, part: Path, size: int) -> None:
    """Appends to `part` until it has its size."""
    failures = 0
    while (have := part.stat().st_size if part.exists() else 0) < size:
        try:
            _transfer(url, part, have, size)
            reason = "the connection broke off"
        except urllib.error.HTTPError as error:
            reason = f"the server answered {error.code}"
            if error.code == 416:
                part.unlink(missing_ok=True)
            elif error.code < 500 and error.code not in (408, 425, 429):
                failures = ATTEMPTS
        except (OSError, ValueError, http.client.HTTPException) as error:  # no network, a broken connection, no address
            if part.exists() and getattr(error, "filename", None):
                raise
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        now = part.stat().st_size if part.exists() else 0
        failures = 0 if now > have else failures + 1
        if now < size:
            if failures >= ATTEMPTS:
                raise UserError(
                    f"{url}: {reason}: check the network and the address (another one: ${MIRROR}), then run this again"
                )
            time.sleep(min(failures, 5))


def _transfer(url: str, part: Path, have: int, size: int) -> None:
    """One attempt to append the rest of a file."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        continues = have > 0 and answer.status == 206
        with part.open("ab" if continues else "wb") as file:
            while (piece := answer.read(_PIECE)) and file.tell() <= size:
                file.write(piece)
