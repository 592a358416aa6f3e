"""Let SIGINT and SIGTERM end a command between two requests, not during one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Raises KeyboardInterrupt in the main thread for both signals, after the current request.

    During a request, the exception could interrupt its bookkeeping, and the runtime would then wait
    forever for a request that has ended. A second signal raises immediately, because the request
    may never end.
    """

    def __init__(self) -> None:
        """Create the object; a ``with`` statement installs the handlers."""
        self._before: dict[signal.Signals, Any] = {}
        self._held = False
        self._pending: tuple[int, FrameType | None] | None = None

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    @contextmanager
    def request(self) -> Iterator[None]:
        """Delay signals until the end of the ``with`` block, which runs a request."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
            pending, self._pending = self._pending, None
            if pending is not None:
                self._interrupt(*pending)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._held and self._pending is None:
            self._pending = number, frame
        else:
            self._interrupt(number, frame)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        before = self._before[signal.Signals(number)]
        if number == signal.SIGINT and callable(before):
            before(number, frame)
        raise KeyboardInterrupt
