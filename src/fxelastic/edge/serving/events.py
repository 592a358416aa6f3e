"""Events of a runtime, as data."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal, TypeAlias

_log = logging.getLogger(__name__)

#: The kinds of events.
#:
#: * started, closed - the runtime started or was closed.
#: * switched - another subnet serves the requests from now on.
#: * loaded, unloaded - a subnet was loaded into memory or removed from it.
#: * load_failed - a subnet can't be loaded; it is retried after a while.
#: * rolled_back - the subnet in use failed; another one serves.
#: * run_failed, non_finite - a subnet raised an error, or returned NaN or infinity.
#: * model_non_finite - every subnet returns NaN or infinity for an input; none of them is barred.
#: * request_failed - no subnet could answer; the caller got an error.
#: * memory_limit - a subnet can't be loaded within the memory limit.
#: * budget_changed - the user set another budget.
#: * subnets_added - the user added subnets.
#: * limits_changed - the user set other limits on resources.
#: * budget_unmet, budget_met - no subnet keeps the budget at this load; one does again.
#: * slow_requests - some requests took several times as long as the others.
#: * size_not_measured - a request has sizes that the latency table does not cover.
#: * clock_jumped - the clock was set back.
#: * research_started, research_finished, research_failed - a background search for quicker subnets.
#: * drifted, reprofiled, probe_failed - the latency table is no longer valid; it was corrected; its
#:   check failed.
#: * store_failed - the table can't be written.
#: * control_failed - the policy or a listener raised an error; serving continues as before.
Kind: TypeAlias = Literal[
    "budget_changed",
    "budget_met",
    "budget_unmet",
    "clock_jumped",
    "closed",
    "control_failed",
    "drifted",
    "limits_changed",
    "load_failed",
    "loaded",
    "memory_limit",
    "model_non_finite",
    "non_finite",
    "probe_failed",
    "reprofiled",
    "request_failed",
    "research_failed",
    "research_finished",
    "research_started",
    "rolled_back",
    "run_failed",
    "size_not_measured",
    "slow_requests",
    "started",
    "store_failed",
    "subnets_added",
    "switched",
    "unloaded",
]


@dataclass(frozen=True)
class Event:
    """An event.

    Attributes:
        time_s: The time, on the runtime's clock.
        kind: Its kind; see `Kind`.
        message: A message for people.
        details: Details for programs: archs as text, latencies in ms, durations in s.
        at_s: The time, in s since the epoch; its text has it in local time. NaN if unknown.
    """

    time_s: float
    kind: Kind
    message: str
    details: Mapping[str, Any] = field(default_factory=dict)
    at_s: float = field(default=math.nan, compare=False)

    def __str__(self) -> str:
        if math.isnan(self.at_s):
            return f"{self.time_s:.3f} {self.kind}: {self.message}"
        local = datetime.fromtimestamp(self.at_s).isoformat(" ", "milliseconds")
        return f"{local} {self.kind}: {self.message}"


@dataclass
class EventLog:
    """The latest events, and the number of events of each kind. Thread-safe.

    Attributes:
        clock: Returns the time in s.
        limit: The number of events to keep.
        listener: Called with each event, by the thread in which it happens; must be quick.
        wall_clock: Returns the time in s since the epoch.
    """

    clock: Callable[[], float]
    limit: int = 10_000
    listener: Callable[[Event], None] | None = None
    wall_clock: Callable[[], float] = time.time
    _events: deque[Event] = field(init=False, repr=False)
    _counts: Counter[str] = field(init=False, repr=False, default_factory=Counter)
    _lock: threading.Lock = field(init=False, repr=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        """Start with no events."""
        self._events = deque(maxlen=self.limit)

    def add(self, kind: Kind, message: str, **details: Any) -> None:
        """Record an event."""
        event = Event(self.clock(), kind, message, details, self.wall_clock())
        with self._lock:
            self._events.append(event)
            self._counts[kind] += 1
        _log.info("%s: %s", kind, message)
        if self.listener is None:
            return
        try:
            self.listener(event)
        except Exception as e:  # noqa: BLE001 - user code: its failure must not fail a request
            with self._lock:
                note = f"the listener of events raised {describe(e)}"
                self._events.append(replace(event, kind="control_failed", message=note, details={}))
                self._counts["control_failed"] += 1

    def snapshot(self) -> tuple[Event, ...]:
        """The events kept, oldest first."""
        with self._lock:
            return tuple(self._events)

    def counts(self) -> Mapping[str, int]:
        """The number of events of each kind, including those no longer kept."""
        with self._lock:
            return dict(self._counts)


def describe(error: BaseException) -> str:
    """Describe an error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
