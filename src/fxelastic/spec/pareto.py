"""A table of known subnets, ordered to find the best one within limits quickly."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar

from fxelastic.errors import UsageError
from fxelastic.spec.bit_index import BitIndex
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

#: The column of accuracies; the other columns are resources.
ACCURACY = "accuracy"
_INF = math.inf


class ParetoTable(Generic[E]):
    """Subnets ordered by several columns: the accuracy and the cost in each resource.

    With one limit, `best` bisects the Pareto frontier of that resource (about a microsecond for
    10,000 entries). With several, it bisects each resource's costs, and intersects what keeps each
    limit as bits, most accurate first: some microseconds, even if no entry dominates another.
    `between` bisects any column.

    A table does not change, so that several threads may read it; `added` makes another.

    Source: the tables of AdaScale, IV-C, which orders each by one key in a B+ tree.

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
        self._indices: dict[str, tuple[BitIndex, list[float]]] = {}
        self._columns: dict[str, tuple[list[float], tuple[E, ...]]] = {}

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
        if isinstance(limits, (int, float)) and not math.isnan(limits):
            return self._under(LATENCY, limits)
        if not isinstance(limits, Mapping):
            limits = Limits.of(limits)  # raises an error if a bound is not a number
        # Finding an entry takes less time than checking the bounds again.
        bounds: Mapping[str, Any] = limits.bounds if isinstance(limits, Limits) else limits
        if len(bounds) < 2 or not all(type(b) is float and 0 < b < _INF for b in bounds.values()):
            limits = Limits.of(limits)
            bounds = {name: limits.bound(name) for name in limits}
            if len(bounds) == 1:
                (name,) = bounds
                return self._under(name, bounds[name])
        if not self.entries:
            return None
        checks: list[tuple[list[float], float]] = []
        fits = -1
        for name, bound in bounds.items():
            index, costs = self._indices.get(name) or self._index(name)
            fits &= index.at_most(bound)
            if not index.exact:
                checks.append((costs, bound))
        while fits:
            i = (fits & -fits).bit_length() - 1
            for costs, bound in checks:
                if costs[i] > bound:
                    break
            else:
                return self._best_first[i]
            fits &= fits - 1
        return None

    def ordered(self, column: str) -> tuple[E, ...]:
        """All entries in ascending order of a column, ``accuracy`` or a resource.

        Raises:
            UsageError: The resource is unknown, or an entry has no cost for it.
        """
        return self._column(column)[1]

    def between(self, column: str, low: float = -math.inf, high: float = math.inf) -> tuple[E, ...]:
        """The entries whose value of a column is in a range, ends included, in ascending order.

        Args:
            column: ``accuracy`` or a resource.
            low: The least value.
            high: The largest value.

        Raises:
            UsageError: The resource is unknown, or an entry has no cost for it.
        """
        values, entries = self._column(column)
        return entries[bisect_left(values, low) : bisect_right(values, high)]

    def added(self, entries: Iterable[E]) -> ParetoTable[E]:
        """A table with further entries, which replace those of the same subnets.

        Raises:
            UsageError: See the constructor.
        """
        fresh = {entry.arch: entry for entry in entries}
        return ParetoTable((*(e for e in self.entries if e.arch not in fresh), *fresh.values()))

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

    def _index(self, name: str) -> tuple[BitIndex, list[float]]:
        """The costs in a resource, most accurate entry first, and their index."""
        costs = [_cost(entry, resource(name).name) for entry in self._best_first]
        self._indices[name] = BitIndex(costs), costs
        return self._indices[name]

    def _column(self, name: str) -> tuple[list[float], tuple[E, ...]]:
        """The values of a column in ascending order, and their entries."""
        if name not in self._columns:
            values = {
                id(e): e.accuracy if name == ACCURACY else _cost(e, name) for e in self.entries
            }
            entries = tuple(sorted(self.entries, key=lambda e: (values[id(e)], e.arch.branches)))
            self._columns[name] = [values[id(e)] for e in entries], entries
        return self._columns[name]

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
