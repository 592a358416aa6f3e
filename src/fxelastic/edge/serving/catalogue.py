"""The known subnets, and those that may be served now."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Collection, Iterable, Sequence

from fxelastic.edge.candidates import Candidate
from fxelastic.errors import UsageError
from fxelastic.spec.cascade import Servable
from fxelastic.spec.limits import Limits
from fxelastic.spec.pareto import ParetoTable


class Catalogue:
    """The candidates, without those that failed or exceed the limits. Thread-safe.

    A subnet is barred for a time, or permanently. A failure to load may be temporary (the memory is
    full, a file is being replaced), so its ban ends; it doubles with each consecutive failure.
    """

    def __init__(
        self,
        candidates: Iterable[Candidate],
        retry_s: float = 30.0,
        limits: Limits | None = None,
        serves: Callable[[Servable], bool] = lambda _: True,
    ) -> None:
        """Start with a pool's candidates.

        Args:
            candidates: The subnets.
            retry_s: How long a subnet is barred after its first failure to load, in seconds.
            limits: Absolute limits on other resources than the latency; None for no limits.
            serves: Whether a subnet may ever be served.
        """
        self._retry_s = retry_s
        self._limits = limits
        self._serves = serves
        self._lock = threading.Lock()
        self._candidates = tuple(candidates)
        self._barred: dict[Servable, float] = {}
        self._failures: dict[Servable, int] = {}
        self._set(self._table_of(self._candidates, ()))

    @property
    def table(self) -> ParetoTable[Candidate]:
        """The subnets that may be served."""
        return self._table

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """All subnets, including barred ones."""
        return self._candidates

    @property
    def barred(self) -> frozenset[Servable]:
        """The subnets that may not be served now."""
        with self._lock:
            return frozenset(self._barred)

    def allows(self, arch: Servable) -> bool:
        """Whether a subnet may be served now."""
        return arch in self._allowed

    @property
    def limits(self) -> Limits | None:
        """The absolute limits on other resources than the latency; None for no limits."""
        return self._limits

    def limit(self, limits: Limits | None) -> None:
        """Set other limits.

        Raises:
            UsageError: No subnet keeps them; the limits stay as they were.
        """
        with self._lock:
            before, self._limits = self._limits, limits
            table = self._table_of(self._candidates, self._barred.keys())
            if not len(table):
                self._limits = before
                what = "no subnet of the pool keeps the limits"
                raise UsageError(what, expected="a subnet to serve", got=str(limits))
            self._set(table)

    def bar(self, arch: Servable) -> None:
        """Never serve a subnet again."""
        with self._lock:
            self._barred[arch] = math.inf
            self._rebuild()

    def bar_for_now(self, arch: Servable, now_s: float) -> float:
        """Bar a subnet for some time; returns the duration in seconds."""
        with self._lock:
            failures = self._failures.get(arch, 0)
            self._failures[arch] = failures + 1
            wait_s = self._retry_s * 2.0 ** min(failures, 16)
            self._barred[arch] = max(now_s + wait_s, self._barred.get(arch, 0.0))
            self._rebuild()
            return wait_s

    def loaded(self, arch: Servable) -> None:
        """Forget the failures of a subnet that was loaded."""
        with self._lock:
            self._failures.pop(arch, None)

    def end_bans(self, now_s: float) -> None:
        """Admit the subnets whose ban is over."""
        with self._lock:
            over = [arch for arch, until_s in self._barred.items() if until_s <= now_s]
            for arch in over:
                del self._barred[arch]
            if over:
                self._rebuild()

    def update(self, change: Callable[[Sequence[Candidate]], Iterable[Candidate]]) -> None:
        """Replace the candidates; bans stay.

        Args:
            change: Returns the new candidates, given the old ones. If it raises an error, or its
                result can't be ranked, nothing changes. Only one change runs at a time.
        """
        with self._lock:
            candidates = tuple(change(self._candidates))
            table = self._table_of(candidates, self._barred.keys())
            self._candidates = candidates
            self._set(table)

    def _rebuild(self) -> None:
        self._set(self._table_of(self._candidates, self._barred.keys()))

    def _set(self, table: ParetoTable[Candidate]) -> None:
        # One assignment each: readers see the old table or the new one.
        self._allowed = frozenset(c.arch for c in table.entries)
        self._table = table

    def _table_of(
        self, candidates: Iterable[Candidate], without: Collection[Servable]
    ) -> ParetoTable[Candidate]:
        candidates = [c for c in candidates if self._serves(c.arch)]
        limits = self._limits
        if limits is not None:
            candidates = [c for c in candidates if limits.keeps(c.costs)]
        return ParetoTable(candidates, without)
