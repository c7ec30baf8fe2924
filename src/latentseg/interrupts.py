"""Ctrl-C without half-done work: a signal waits until the step in progress is finished."""

import signal
import threading
from types import FrameType
from typing import Any, Self


class Terminated(KeyboardInterrupt):
    """SIGTERM: what a scheduler sends before it kills."""


class HeldInterrupt:
    """Holds back SIGINT and SIGTERM until `release`; a second signal stops at once.

    In a thread other than the main one, to which Python delivers no signals, it does nothing.

    >>> with HeldInterrupt() as interrupt:
    ...     for step in range(3):
    ...         # ... the step; if interrupt.is_held: save ...
    ...         interrupt.release()
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.handlers[number] = signal.signal(number, self._hold)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    @property
    def is_held(self) -> bool:
        """Whether a signal came."""
        return self.number is not None

    def release(self) -> None:
        """Raises KeyboardInterrupt, or Terminated for SIGTERM, if a signal came."""
        if self.number is not None:
            raise Terminated if self.number == signal.SIGTERM else KeyboardInterrupt

    def _hold(self, number: int, frame: FrameType | None) -> None:
        if self.is_held:
            raise KeyboardInterrupt
        self.number = number
