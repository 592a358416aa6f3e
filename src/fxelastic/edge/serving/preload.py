"""Load subnets while requests run: the target of a switch, and the likely next targets."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fxelastic.edge.candidates import Candidate
from fxelastic.edge.serving.cache import ClosedError, MemoryLimitError, SubnetCache
from fxelastic.edge.serving.catalogue import Catalogue
from fxelastic.edge.serving.events import EventLog, describe
from fxelastic.spec.cascade import Servable
from fxelastic.spec.pareto import ParetoTable


@dataclass(frozen=True)
class Preload:
    """Chooses the subnets that the next changes of the load may require, likeliest first.

    The quickest subnet comes first: once it is in memory, serving can respond to any load
    immediately while the best subnet under that load is being loaded.

    Subnets in memory are kept if they are good enough: each reading of the load is slightly
    different, and loading another subnet for each of them would add to the load.

    Attributes:
        ratios: Loads to be ready for, as multiples of the current load.
        limit: The maximum number of subnets to keep in memory besides the one in use.
        slack: A subnet in memory is good enough for a load if it is quicker than the best one by
            at most this share.
    """

    ratios: Sequence[float] = (1.25, 1.5, 2.0, 3.0)
    limit: int = 5
    slack: float = 0.15

    def candidates(
        self,
        table: ParetoTable[Candidate],
        current: Candidate,
        budget_ms: float,
        limit_ms: float,
        here: Collection[Servable] = (),
    ) -> tuple[Candidate, ...]:
        """The subnets to keep in memory.

        Args:
            table: The subnets that may be served.
            current: The subnet in use.
            budget_ms: The latency budget of a request, in ms.
            limit_ms: The highest estimated latency that keeps the budget at the current load, in
                ms.
            here: The subnets in memory.

        Returns:
            The quickest subnet, the best without load, the best under more load, the neighbours in
            the table, and those already in memory; at most ``limit``.
        """
        loaded = table.only(here)
        frontier = table.frontier
        found: list[Candidate | None] = [table.quickest, table.best(budget_ms)]
        found += [self._under(limit_ms / ratio, table, loaded) for ratio in self.ratios]
        index = sum(candidate.ms <= current.ms for candidate in frontier)
        found += frontier[index : index + 1] + frontier[max(index - 2, 0) : index]
        found += loaded.frontier
        unique = {c.arch: c for c in found if c is not None and c.arch != current.arch}
        return tuple(unique.values())[: self.limit]

    def _under(
        self, limit_ms: float, table: ParetoTable[Candidate], loaded: ParetoTable[Candidate]
    ) -> Candidate | None:
        """The best subnet with at most this latency, or one in memory that is nearly as slow."""
        best, near = table.best(limit_ms), loaded.best(limit_ms)
        if best is None or near is None or near.ms < (1 - self.slack) * best.ms:
            return best
        return near


class _Job(NamedTuple):
    """A subnet to load.

    Attributes:
        candidate: The subnet.
        keep: Subnets that must not be unloaded for it.
        is_target: Whether it is the target of a switch.
    """

    candidate: Candidate
    keep: tuple[Servable, ...]
    is_target: bool


class Preloader:
    """A thread that loads the requested subnets: the target of a switch, then others in order.

    A subnet that can't be loaded is barred for some time. Loading a subnet never unloads one of
    higher priority.

    Attributes:
        thread: The thread that loads.
    """

    def __init__(
        self,
        cache: SubnetCache,
        catalogue: Catalogue,
        events: EventLog,
        clock: Callable[[], float],
        on_change: Callable[[], None],
    ) -> None:
        """Create the preloader; `start` starts the thread.

        Args:
            cache: Loads and keeps the subnets.
            catalogue: Bars subnets that can't be loaded.
            events: Records loads and failures.
            clock: Returns the time in s.
            on_change: Called after each load, successful or not.
        """
        self._cache = cache
        self._catalogue = catalogue
        self._events = events
        self._clock = clock
        self._on_change = on_change
        self._condition = threading.Condition()
        self._target: Candidate | None = None
        self._others: tuple[Candidate, ...] = ()
        self._refused: set[Servable] = set()
        self._closed = False
        self.thread = threading.Thread(target=self._work, name="fxelastic-preload", daemon=True)

    def load_now(self, candidate: Candidate) -> None:
        """Load a subnet in the caller's thread, before `start`; a failure becomes an event."""
        self._others = (candidate,)
        self._load(_Job(candidate, (), is_target=False), urgent=True)

    def start(self) -> None:
        """Start the thread."""
        self.thread.start()

    def want(self, target: Candidate | None, others: Sequence[Candidate]) -> None:
        """Set the subnets to load, replacing earlier ones.

        Args:
            target: The subnet to switch to; any other subnet not in use may be unloaded for it.
            others: Subnets to keep in memory, likeliest first.
        """
        wanted = tuple(others)
        with self._condition:
            if (target, wanted) != (self._target, self._others):
                self._target, self._others = target, wanted
                self._refused.clear()
            elif self._next() is None:
                return
            # Also if the same is wanted: a ban may have ended since.
            self._condition.notify_all()

    def close(self) -> None:
        """Finish the current load, and end the thread."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        if self.thread.ident is not None:
            self.thread.join()

    def _work(self) -> None:
        while True:
            with self._condition:
                while (job := self._next()) is None:
                    if self._closed:
                        return
                    self._trim()
                    self._condition.wait()
            self._load(job)
            self._on_change()

    def _trim(self) -> None:
        """Unload subnets that are neither in use nor wanted."""
        wanted = {candidate.arch for candidate in self._others}
        if self._target is not None:
            wanted.add(self._target.arch)
        for arch in self._cache.keep_only(wanted):
            self._events.add("unloaded", "no longer wanted", arch=str(arch))

    def _next(self) -> _Job | None:
        if self._closed:
            return None
        unwanted = self._cache.archs | self._catalogue.barred | self._refused
        keep: list[Servable] = []
        if self._target is not None:
            if self._target.arch not in unwanted:
                return _Job(self._target, (), is_target=True)
            keep.append(self._target.arch)
        for candidate in self._others:
            if candidate.arch not in unwanted:
                return _Job(candidate, tuple(keep), is_target=False)
            keep.append(candidate.arch)
        return None

    def _load(self, job: _Job, *, urgent: bool = False) -> None:
        candidate = job.candidate
        begin_s = self._clock()
        try:
            gone = self._cache.load(candidate, job.keep, urgent=urgent)
        except MemoryLimitError as e:
            # Not retried until other subnets are wanted.
            self._refused.add(candidate.arch)
            if job.is_target:
                self._catalogue.bar_for_now(candidate.arch, self._clock())
                self._events.add("memory_limit", describe(e), arch=str(candidate.arch))
        except ClosedError:
            self._closed = True
        except Exception as e:  # noqa: BLE001 - whatever a loader raises bars this subnet only
            wait_s = self._catalogue.bar_for_now(candidate.arch, self._clock())
            self._events.add(
                "load_failed",
                f"{describe(e)}; tried again after {wait_s:.3g} s",
                arch=str(candidate.arch),
            )
        else:
            self._catalogue.loaded(candidate.arch)
            self._events.add(
                "loaded",
                f"{candidate.ms:.3g} ms estimated",
                arch=str(candidate.arch),
                duration_s=self._clock() - begin_s,
            )
            for arch in gone:
                self._events.add("unloaded", "to make room", arch=str(arch))
