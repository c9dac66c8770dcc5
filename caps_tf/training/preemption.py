"""SIGTERM, with which a cluster takes its machine back: the run saves what it has and ends."""

import signal
import threading
from types import FrameType, TracebackType


class StopSignal:
    """Notes SIGTERM instead of dying of it, while it is entered.

    Attributes:
        requested: whether the signal has come.

    Example:
        >>> with StopSignal() as stop:
        ...     signal.raise_signal(signal.SIGTERM)
        ...     stop.requested
        True
    """

    def __init__(self):
        self.requested = False
        self._previous = None

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread handle signals
            self._previous = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
