"""A table of known subnets, ordered to find the best one within limits quickly."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from fxelastic.errors import UsageError
from fxelastic.spec.cascade import Servable
from fxelastic.spec.limits import Bound, Limits
from fxelastic.spec.resources import LATENCY, resource


class Entry(Protocol):
    """A subnet with its accuracy and costs, such as an entry of a pool."""

    @property
    def arch(self) -> Servable:
        """The subnet, or the cascade."""

    @property
    def accuracy(self) -> float:
        """Its accuracy on the device's data; higher is better."""

    @property
    def costs(self) -> Mapping[str, float]:
        """Its cost in each resource, by the resource's name."""


E = TypeVar("E", bound=Entry)


class ParetoTable(Generic[E]):
    """Subnets ordered so that the best one within limits is found quickly.

    With one limit, a query bisects the Pareto frontier of that resource (about a microsecond for
    10,000 entries); with several limits, it makes one pass over arrays of costs.

    Attributes:
        entries: All entries, in the order given.
        frontier: The entries that no other entry beats in both latency and accuracy, quickest
            first; accuracy rises strictly with latency.
    """

    def __init__(self, entries: Iterable[E], without: Collection[Servable] = ()) -> None:
        """Order the entries.

        Args:
            entries: Entries of one or several pools; an arch may occur several times.
            without: Subnets to leave out.

        Raises:
            UsageError: A latency is not above 0, or an accuracy is NaN.
        """
        self.entries = tuple(entry for entry in entries if entry.arch not in without)
        for entry in self.entries:
            latency = entry.costs.get(LATENCY, math.nan)
            # NaN compares false with everything, so sorting could put it anywhere.
            if not (0 < latency < math.inf and entry.accuracy == entry.accuracy):
                raise UsageError(
                    f"entry {entry.arch} can't be ranked",
                    expected="a finite latency above 0 ms and an accuracy",
                    got=f"{latency!r} ms, accuracy {entry.accuracy!r}",
                )
        self._frontiers: dict[str, tuple[tuple[E, ...], list[float]]] = {}
        self._arrays: dict[str, NDArray[np.float64]] = {}

    @property
    def frontier(self) -> tuple[E, ...]:
        """See the class."""
        return self.by(LATENCY)

    @property
    def quickest(self) -> E | None:
        """The entry with the lowest latency; None if the table is empty."""
        return self.frontier[0] if self.entries else None

    def by(self, name: str) -> tuple[E, ...]:
        """The entries that no other entry beats in both a resource and accuracy, cheapest first.

        Raises:
            UsageError: The resource is unknown, or an entry has no cost for it.
        """
        return self._frontier(name)[0]

    def best(self, limits: Limits | Mapping[str, Bound] | float) -> E | None:
        """The most accurate entry within limits; None if no entry is within them.

        Ties are broken by the lower cost in the limited resource, or by the lower latency if
        several resources are limited.

        Args:
            limits: Absolute bounds by resource; a number bounds the latency, in ms.

        Raises:
            UsageError: A bound is a share, a resource is unknown, or an entry has no cost for it.
        """
        if isinstance(limits, (int, float)):
            return self._under(LATENCY, limits)
        limits = Limits.of(limits)
        if len(limits) == 1:
            (name,) = limits
            return self._under(name, limits.bound(name))
        if not self.entries:
            return None
        fits = np.ones(len(self.entries), np.bool_)
        for name in limits:
            fits &= self._array(name) <= limits.bound(name)
        index = int(fits.argmax())
        return self._best_first[index] if fits[index] else None

    def only(self, archs: Collection[Servable]) -> ParetoTable[E]:
        """A table of only the entries whose subnet is in ``archs``."""
        return ParetoTable(entry for entry in self.entries if entry.arch in archs)

    def __len__(self) -> int:
        return len(self.frontier)

    def __iter__(self) -> Iterator[E]:
        return iter(self.frontier)

    def _under(self, name: str, bound: float) -> E | None:
        found = self._frontiers.get(name) or self._frontier(name)
        index = bisect_right(found[1], bound)
        return found[0][index - 1] if index else None

    def _frontier(self, name: str) -> tuple[tuple[E, ...], list[float]]:
        if name not in self._frontiers:
            kept: list[E] = []
            costs = {id(entry): _cost(entry, name) for entry in self.entries}
            # The sort is stable: entries equal in this cost and in accuracy stay best first.
            for entry in sorted(self._best_first, key=lambda e: (costs[id(e)], -e.accuracy)):
                if not kept or entry.accuracy > kept[-1].accuracy:
                    kept.append(entry)
            self._frontiers[name] = tuple(kept), [costs[id(entry)] for entry in kept]
        return self._frontiers[name]

    def _array(self, name: str) -> NDArray[np.float64]:
        if name not in self._arrays:
            self._arrays[name] = np.array([_cost(entry, name) for entry in self._best_first])
        return self._arrays[name]

    @cached_property
    def _best_first(self) -> tuple[E, ...]:
        return tuple(
            sorted(self.entries, key=lambda e: (-e.accuracy, e.costs[LATENCY], e.arch.branches))
        )


def _cost(entry: Entry, name: str) -> float:
    value = entry.costs.get(name, math.nan)
    if not value == value:
        raise UsageError(
            f"entry {entry.arch} has no cost for {resource(name).label}",
            expected=f"{name} in the costs of every entry",
            got=", ".join(entry.costs) or "no costs",
            fix="search again with a table that has it: fxelastic search BUNDLE --data FILE",
        )
    return value
