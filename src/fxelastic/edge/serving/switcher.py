"""Changing the subnet in use, and remembering that."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from fxelastic.edge.serving.events import EventLog, Kind
from fxelastic.edge.serving.ladder import Step
from fxelastic.edge.serving.policy import PastSwitch
from fxelastic.edge.serving.residents import Residents

# Policies look back ten minutes; nobody switches that often.
_KEPT = 4096


class Switcher:
    """Makes a subnet in memory the one in use, between two requests; safe in any thread."""

    def __init__(self, residents: Residents, events: EventLog, clock: Callable[[], float]) -> None:
        """Begin without a history."""
        self._residents = residents
        self._events = events
        self._clock = clock
        self._lock = threading.Lock()
        self._history: deque[PastSwitch] = deque(maxlen=_KEPT)
        self._n_switches = 0

    def switch(self, step: Step, reason: str, kind: Kind = "switched") -> bool:
        """Serve the requests that begin from now on with another subnet.

        Args:
            step: The subnet.
            reason: Why.
            kind: The kind of the event.

        Returns:
            Whether it was made; False when the subnet is not in memory.
        """
        with self._lock:
            before = self._residents.current
            if before is None or not self._residents.use(step.arch, step):
                return False
            if before.arch == step.arch:
                return True
            up = step.latency_ms > before.latency_ms
            self._history.append(PastSwitch(self._clock(), up))
            self._n_switches += 1
        self._events.add(
            kind,
            f"{before.latency_ms:.3g} → {step.latency_ms:.3g} ms estimated: {reason}",
            before=str(before.arch),
            arch=str(step.arch),
            before_ms=before.latency_ms,
            latency_ms=step.latency_ms,
            reason=reason,
        )
        return True

    @property
    def history(self) -> tuple[PastSwitch, ...]:
        """The latest switches, oldest first."""
        with self._lock:
            return tuple(self._history)

    @property
    def n_switches(self) -> int:
        """How many were made."""
        return self._n_switches
