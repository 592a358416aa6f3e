"""Looking for quicker subnets in the background when none of the pool keeps the budget."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from fxelastic.edge.serving.catalogue import Catalogue
from fxelastic.edge.serving.events import EventLog, describe
from fxelastic.edge.serving.ladder import Step

_MAX_WAIT_S = 3600.0


class Researcher(Protocol):
    """Searches for subnets.

    The contract:

    * `search` is called in a thread of its own, never twice at once, while requests go on: it must
      leave them the processor.
    * It returns soon after ``stop`` is set; what it returns then does not matter.
    """

    def search(self, limit_ms: float, stop: threading.Event) -> Sequence[Step]:
        """Search for subnets of at most an estimated latency.

        Args:
            limit_ms: The latency on the idle device, in ms.
            stop: Set when nobody waits for the result any more.

        Returns:
            Subnets with latencies and accuracies; slower ones may be among them.
        """


class Research:
    """Runs one search at a time, and adds what it finds to the catalogue (§5.3).

    A search that found nothing quick enough, or failed, is repeated after a wait that doubles.

    Attributes:
        thread: The thread of the latest search; None before the first.
    """

    def __init__(
        self,
        researcher: Researcher,
        catalogue: Catalogue,
        events: EventLog,
        clock: Callable[[], float],
        on_found: Callable[[], None],
        wait_s: float = 60.0,
    ) -> None:
        """Prepare; nothing is searched before `begin`.

        Args:
            researcher: Searches.
            catalogue: Gets what is found.
            events: Told what happens.
            clock: Tells the time, in s.
            on_found: Called in the search's thread when the catalogue has got more subnets.
            wait_s: How long to wait after the first search in vain, in seconds.
        """
        self._researcher = researcher
        self._catalogue = catalogue
        self._events = events
        self._clock = clock
        self._on_found = on_found
        self._wait_s = wait_s
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self.thread: threading.Thread | None = None
        self._not_before_s: float | None = None
        self._in_vain = 0

    @property
    def running(self) -> bool:
        """Whether a search goes on."""
        thread = self.thread
        return thread is not None and thread.is_alive()

    def begin(self, limit_ms: float) -> bool:
        """Search, unless a search goes on or was in vain a short while ago.

        Args:
            limit_ms: The estimated latency that is needed, in ms.

        Returns:
            Whether a search was begun.
        """
        with self._lock:
            if self.running or self._stop.is_set():
                return False
            if self._not_before_s is not None and self._clock() < self._not_before_s:
                return False
            self._events.add(
                "research_started", f"for subnets of {limit_ms:.3g} ms", limit_ms=limit_ms
            )
            self.thread = threading.Thread(
                target=self._work, args=(limit_ms,), name="fxelastic-research", daemon=True
            )
            self.thread.start()
            return True

    def close(self) -> None:
        """End the search, and begin no other."""
        with self._lock:
            self._stop.set()
            thread = self.thread
        if thread is not None:
            thread.join()

    def _work(self, limit_ms: float) -> None:
        begin_s = self._clock()
        try:
            found = self._researcher.search(limit_ms, self._stop)
            fresh: list[Step] = []

            def added(entries: Sequence[Step]) -> Sequence[Step]:
                known = {entry.arch for entry in entries}
                fresh[:] = [step for step in found if step.arch not in known]
                return (*entries, *fresh)

            if not self._stop.is_set():
                self._catalogue.update(added)
        except Exception as e:  # noqa: BLE001 - the search is a help; serving goes on without it
            self._pause()
            self._events.add("research_failed", describe(e), limit_ms=limit_ms)
            return
        quick = [step for step in fresh if step.latency_ms <= limit_ms]
        if quick:
            self._in_vain, self._not_before_s = 0, None
        else:
            self._pause()
        self._events.add(
            "research_finished",
            f"{len(fresh)} new subnets, {len(quick)} of at most {limit_ms:.3g} ms",
            limit_ms=limit_ms,
            n_found=len(fresh),
            n_quick=len(quick),
            duration_s=self._clock() - begin_s,
        )
        if fresh and not self._stop.is_set():
            self._on_found()

    def _pause(self) -> None:
        wait_s = min(self._wait_s * 2.0 ** min(self._in_vain, 16), _MAX_WAIT_S)
        self._in_vain += 1
        self._not_before_s = self._clock() + wait_s
