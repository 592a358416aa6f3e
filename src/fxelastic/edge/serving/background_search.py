"""Search for quicker subnets in the background while no subnet of the pool keeps the budget."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from fxelastic.edge.bundle import Bundle
from fxelastic.edge.candidates import Candidate
from fxelastic.edge.pool import TARGETS, SubnetPool
from fxelastic.edge.searching.choice import chosen_metric
from fxelastic.edge.searching.data import has_targets
from fxelastic.edge.searching.scores import METRICS, Score
from fxelastic.edge.searching.search import metric_and_data, search
from fxelastic.edge.searching.study import SearchAbortedError, Study
from fxelastic.edge.serving.catalogue import Catalogue
from fxelastic.edge.serving.events import EventLog, describe
from fxelastic.errors import UsageError
from fxelastic.spec.latency_table import LatencyTable

_MAX_WAIT_S = 3600.0
_NICENESS = 15


class Searcher(Protocol):
    """Searches for subnets.

    The contract:

    * `search` is called in a separate thread, one call at a time. Requests run meanwhile, so it
      should run at low priority.
    * It returns soon after ``stop`` is set; its result is then ignored.
    """

    def search(self, limit_ms: float, stop: threading.Event) -> Sequence[Any]:
        """Search for subnets whose estimated latency is at most ``limit_ms``.

        Args:
            limit_ms: The latency on the idle device, in ms.
            stop: Set when the result is no longer needed.

        Returns:
            Subnets, such as the entries of a pool; may include slower subnets.
        """


class BackgroundSearch:
    """Runs one search at a time, and adds the subnets found to the catalogue (AdaptiveNet §5.3).

    A search that failed or found no subnet quick enough is repeated after a wait, which doubles
    each time.

    Attributes:
        thread: The thread of the latest search; None before the first.
    """

    def __init__(
        self,
        searcher: Searcher,
        catalogue: Catalogue,
        events: EventLog,
        clock: Callable[[], float],
        on_found: Callable[[], None],
        wait_s: float = 60.0,
    ) -> None:
        """Create the object; `begin` starts a search.

        Args:
            searcher: Searches for subnets.
            catalogue: Receives the subnets found.
            events: Records searches.
            clock: Returns the time in s.
            on_found: Called in the search's thread when the catalogue has received new subnets.
            wait_s: The wait after the first search without success, in seconds.
        """
        self._searcher = searcher
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
        """Whether a search runs."""
        thread = self.thread
        return thread is not None and thread.is_alive()

    def begin(self, limit_ms: float) -> bool:
        """Start a search, unless one is running or one recently found nothing.

        Args:
            limit_ms: The estimated latency that is needed, in ms.

        Returns:
            Whether a search began.
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
                target=self._work, args=(limit_ms,), name="fxelastic-search", daemon=True
            )
            self.thread.start()
            return True

    def close(self) -> None:
        """Stop the search, and start no other."""
        with self._lock:
            self._stop.set()
            thread = self.thread
        if thread is not None:
            thread.join()

    def _work(self, limit_ms: float) -> None:
        _lower_priority()
        begin_s = self._clock()
        try:
            found = self._searcher.search(limit_ms, self._stop)
            fresh: list[Candidate] = []

            def added(candidates: Sequence[Candidate]) -> Sequence[Candidate]:
                known = {candidate.arch for candidate in candidates}
                fresh[:] = [Candidate.of(entry) for entry in found if entry.arch not in known]
                return (*candidates, *fresh)

            if not self._stop.is_set():
                self._catalogue.update(added)
        except Exception as e:  # noqa: BLE001 - serving continues without the search
            self._pause()
            self._events.add("research_failed", describe(e), limit_ms=limit_ms)
            return
        quick = [candidate for candidate in fresh if candidate.ms <= limit_ms]
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


@dataclass(frozen=True)
class LocalSearch:
    """A `Searcher` that runs `edge.search` in one thread of low priority (AdaptiveNet §5.3).

    Attributes:
        bundle: The bundle.
        table: Returns the device's current latency table.
        data: Samples, in any of the forms that `edge.search` accepts.
        path: The pool's file, to which subnets found are added. None to keep them only in memory.
        options: Other arguments of `edge.search`, such as ``max_subnets`` and ``score``.
    """

    bundle: Bundle
    table: Callable[[], LatencyTable]
    data: Any
    path: str | os.PathLike[str] | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def search(self, limit_ms: float, stop: threading.Event) -> Sequence[Any]:
        """Search for subnets whose estimated latency is at most ``limit_ms``; see `Searcher`."""

        def end_if_stopped(budget_ms: float, study: Study) -> None:
            if stop.is_set():
                raise SearchAbortedError

        result = search(
            self.bundle,
            self.table(),
            self.data,
            budget_ms=limit_ms,
            threads=1,
            path=self.path,
            progress=end_if_stopped,
            **self.options,
        )
        return result.pool.entries


def check_data(
    bundle: Bundle,
    data: Any,
    score: str | Score | None,
    held_out: float,
    path: str | os.PathLike[str] | None,
) -> None:
    """Check now that a search on data will be possible: it begins when the budget is exceeded.

    Args:
        bundle: The bundle.
        data: The data to search on.
        score: The score of the search.
        held_out: The share of the samples that is held out.
        path: The pool's file, if subnets found are added to one.

    Raises:
        UsageError: The data does not fit the bundle, or is not that of the pool.
    """
    metric, samples, _ = metric_and_data(bundle, data, score, held_out)
    if path is None or not os.path.exists(path):
        return
    known = SubnetPool.load(path).data_digest
    found = samples.digest(metric.name)
    if known != found:
        raise UsageError(
            f"the data is not that of the pool {os.fspath(path)}",
            expected=f"the samples, the score and the held_out of its search: {known[:12]}",
            got=found[:12],
            fix="pass the data that the pool was searched on, or no data",
        )


def local_score(
    bundle: Bundle, data: Any, pool: object, score: str | Score | None
) -> str | Score | None:
    """The score for a search whose subnets are compared with a pool's.

    Args:
        bundle: The bundle.
        data: The data to search on.
        pool: The pool, or subnets whose score is unknown.
        score: The caller's score; None for the pool's score.

    Raises:
        UsageError: The pool was searched with another score or other targets.
    """
    known = pool.score if isinstance(pool, SubnetPool) else ""
    if not isinstance(pool, SubnetPool) or not known:
        return score
    if score is None:
        if known.partition(":")[0] not in METRICS:
            raise UsageError(
                "a search on data needs the function that scored the pool",
                expected=f"score={known}",
                got="no score",
                fix="pass the function that the pool was searched with, or no data",
            )
        score = known
    labelled = has_targets(bundle, data)
    name = chosen_metric(bundle, score, labelled=labelled).name
    found = TARGETS[0] if labelled else TARGETS[1]
    if name != known or pool.targets not in ("", found):
        raise UsageError(
            "the data would be scored differently from the pool",
            expected=f"{known}, on {_on(pool.targets)}",
            got=f"{name}, on {_on(found)}",
            fix="search a pool on this data first: edge.search(bundle, table, data, …)",
        )
    return score


def _on(targets: str) -> str:
    return {"given": "targets", "original": "the original's results"}.get(targets, "its data")


def _lower_priority() -> None:
    """Lower the priority of this thread; on Linux each thread has its own priority."""
    if hasattr(os, "setpriority"):
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
