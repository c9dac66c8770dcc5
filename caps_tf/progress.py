"""Progress with rate and time left, on a terminal or in a log file."""

import sys
import time
from types import TracebackType
from typing import TextIO


def format_duration(seconds: float) -> str:
    """Formats a duration.

    Example:
        >>> format_duration(3725)
        '1:02:05'
        >>> format_duration(65)
        '1:05'
    """
    seconds = max(0, round(seconds))
    hours, rest = divmod(seconds, 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class Progress:
    """Shows how many of `total` are done, the rate, and the time left.

    On a terminal one line updates itself; elsewhere (a log file, CI) a line appears every ten seconds, so that
    logs stay short.

    Args:
        total: how many there are in all.
        unit: what is counted, plural ("pairs").
        label: what is being done ("converting train").
        stream: where to write; stderr by default, so that stdout stays free for results.

    Example:
        >>> with Progress(3, "pairs", stream=open("/dev/null", "w")) as progress:
        ...     for _ in range(3):
        ...         progress.update(1)
        >>> progress.done
        3
    """

    def __init__(self, total: int, unit: str, label: str = "", stream: TextIO | None = None):
        self.total = total
        self.unit = unit
        self.label = label
        self.done = 0
        self._stream = stream or sys.stderr
        self._interactive = self._stream.isatty()
        self._interval = 0.2 if self._interactive else 10.0
        self._start = self._last_shown = time.monotonic()

    def update(self, count: int = 1) -> None:
        """Counts `count` more as done."""
        self.done += count
        now = time.monotonic()
        if now - self._last_shown >= self._interval:
            self._last_shown = now
            self._show()

    def _show(self, end: str = "") -> None:
        elapsed = max(time.monotonic() - self._start, 1e-9)
        rate = self.done / elapsed
        left = f", {format_duration((self.total - self.done) / rate)} left" if 0 < self.done < self.total else ""
        text = (
            f"{self.label + ': ' if self.label else ''}{self.done}/{self.total} {self.unit}, {rate:.1f} a second{left}"
        )
        if self._interactive:
            self._stream.write(f"\r\x1b[K{text}{end}")
        else:
            self._stream.write(text + "\n")
        self._stream.flush()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._show(end="\n")
