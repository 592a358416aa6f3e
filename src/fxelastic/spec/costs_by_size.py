"""The costs of branches as functions of the sizes of the inputs."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fxelastic.errors import BundleError, UsageError
from fxelastic.spec.costs import BranchCosts, no_branch
from fxelastic.spec.json_fields import Fields
from fxelastic.spec.resources import LATENCY, PEAK, resource
from fxelastic.spec.symbols import Symbol, dimension

#: The sizes of an input: the value of each symbol by its name, such as ``{"seq": 83}``.
Sizes = Mapping[str, int]

# The most inputs whose sizes a file may state.
_MOST_INPUTS = 2**20


@dataclass(frozen=True)
class Correction:
    """A factor of all latencies that depends on the sizes.

    Latencies are not exactly polynomials of the sizes: weights and features stop fitting into a
    cache, for example. All subnets show about the same factor between what was measured and the
    polynomials. It is interpolated linearly over the logarithm of the original's polynomial.

    Attributes:
        original: The coefficients of the original's polynomial, one for each function of the basis.
        points: The value of the polynomial, and the factor there, in ascending order of values.
    """

    original: tuple[float, ...]
    points: tuple[tuple[float, float], ...] = ()

    def at(self, values: Sequence[float]) -> float:
        """The factor, from the values of the basis; constant outside of the points."""
        if not self.points:
            return 1.0
        x = math.fsum(a * b for a, b in zip(self.original, values, strict=True))
        right = bisect_right(self.points, (x, math.inf))
        if right in (0, len(self.points)):
            return self.points[max(0, right - 1)][1]
        (low, before), (high, after) = self.points[right - 1 : right + 1]
        share = math.log(x / low) / math.log(high / low)
        return before + share * (after - before)


@dataclass(frozen=True)
class ModeBySize:
    """The costs of a mode.

    Attributes:
        terms: For each resource whose costs depend on the sizes, the coefficients: the branches'
            costs and the overhead for each function of the basis, all at least 0.
        correction: The factor of latencies.
    """

    terms: Mapping[str, tuple[BranchCosts, ...]]
    correction: Correction


@dataclass(frozen=True)
class CostsBySize:
    """The costs of branches as functions of the sizes.

    A cost is a sum over a basis of monomials with coefficients of at least 0, such as
    ``a + b*seq + c*seq**2``: it is convex in each size, and never below 0.

    Attributes:
        symbols: The sizes that may vary, with their ranges.
        measured: The sizes that the costs were fitted to.
        basis: The functions, as expressions of the symbols.
        modes: The costs by mode.
    """

    symbols: tuple[Symbol, ...]
    measured: tuple[Sizes, ...]
    basis: tuple[str, ...]
    modes: Mapping[str, ModeBySize] = field(default_factory=dict)

    def checked(self, sizes: object) -> dict[str, int]:
        """The sizes, checked.

        Raises:
            UsageError: A name is unknown or missing, or a size is out of the model's range.
        """
        expected = ", ".join(map(str, self.symbols))
        if not isinstance(sizes, Mapping) or set(sizes) != {s.name for s in self.symbols}:
            raise UsageError(
                "sizes must give each size of the model that may vary",
                expected=expected,
                got=f"sizes={dict(sizes) if isinstance(sizes, Mapping) else sizes!r}",
            )
        for symbol in self.symbols:
            size = sizes[symbol.name]
            if isinstance(size, bool) or not hasattr(size, "__index__") or not symbol.holds(size):
                raise UsageError(
                    f"{symbol.name} is out of range", expected=str(symbol), got=repr(size)
                )
        return {symbol.name: int(sizes[symbol.name]) for symbol in self.symbols}

    def outside(self, sizes: Sizes) -> str:
        """Which size is outside of those measured, with their range; empty if none is."""
        for symbol in self.symbols:
            found = [measured[symbol.name] for measured in self.measured]
            if not min(found) <= sizes[symbol.name] <= max(found):
                return (
                    f"{symbol.name} = {sizes[symbol.name]} is outside of the measured "
                    f"{min(found)} to {max(found)}"
                )
        return ""

    def values(self, sizes: Sizes) -> tuple[float, ...]:
        """The values of the basis."""
        return tuple(float(dimension(text).at(sizes)) for text in self.basis)

    def predict_ms(self, mode: str, branches: Iterable[str], sizes: Sizes) -> float:
        """The latency of a subnet, in ms.

        Raises:
            UsageError: A branch has no cost.
        """
        costs, values = self.modes[mode], self.values(sizes)
        terms, ids = costs.terms[LATENCY], tuple(branches)
        try:
            total = math.fsum(
                value * (term.overhead + math.fsum([term.costs[b] for b in ids]))
                for value, term in zip(values, terms, strict=True)
            )
        except KeyError as e:
            raise no_branch(str(e.args[0])) from e
        return total * costs.correction.at(values)

    def mean(self, mode: str, counts: Mapping[tuple[int, ...], int]) -> dict[str, BranchCosts]:
        """The mean costs over several inputs, by resource; of a peak, the highest.

        Args:
            mode: A key of ``modes``.
            counts: How many inputs have each combination of sizes, in the order of ``symbols``.
        """
        names = [symbol.name for symbol in self.symbols]
        values = [self.values(dict(zip(names, sizes, strict=True))) for sizes in counts]
        n = sum(counts.values())
        found: dict[str, BranchCosts] = {}
        for name, terms in self.modes[mode].terms.items():
            if resource(name).rule == PEAK:
                each = [_combined(terms, v) for v in values]
                costs = {b: max(c.costs[b] for c in each) for b in terms[0].costs}
                found[name] = BranchCosts(costs, max(c.overhead for c in each))
                continue
            factor = self.modes[mode].correction.at if name == LATENCY else _one
            pairs = zip(values, counts.values(), strict=True)
            scaled = [[factor(v) * count / n * x for x in v] for v, count in pairs]
            found[name] = _combined(
                terms, [math.fsum(column) for column in zip(*scaled, strict=True)]
            )
        return found

    def mapped(self, change: Any, name: str) -> CostsBySize:
        """A copy with a linear ``change`` applied to the coefficients of one resource."""
        modes = {
            mode: replace(
                found,
                terms={
                    key: tuple(map(change, terms)) if key == name else terms
                    for key, terms in found.terms.items()
                },
            )
            for mode, found in self.modes.items()
        }
        return replace(self, modes=modes)

    def to_json(self) -> dict[str, Any]:
        """The costs as an object for ``json.dumps``."""
        return {
            "symbols": [symbol.to_json() for symbol in self.symbols],
            "measured": [dict(sizes) for sizes in self.measured],
            "basis": list(self.basis),
            "modes": {
                mode: {
                    "terms": {
                        name: [
                            {"overhead": term.overhead, "costs": dict(term.costs)} for term in terms
                        ]
                        for name, terms in found.terms.items()
                    },
                    "original": list(found.correction.original),
                    "corrections": [list(point) for point in found.correction.points],
                }
                for mode, found in self.modes.items()
            },
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> CostsBySize:
        """Read the object that `to_json` returns.

        Raises:
            KeyError, TypeError, ValueError, AttributeError, UsageError: The value is malformed.
        """
        try:
            symbols = tuple(
                Symbol.from_json(Fields(item, "by_size", f"symbols[{i}]"))
                for i, item in enumerate(value["symbols"])
            )
        except BundleError as e:
            raise ValueError(e.what) from e
        found = cls(
            symbols,
            tuple(map(dict, value["measured"])),
            tuple(map(str, value["basis"])),
            {str(mode): _mode(item) for mode, item in value["modes"].items()},
        )
        _check(found)
        return found


def _one(values: Sequence[float]) -> float:
    return 1.0


def _combined(terms: Sequence[BranchCosts], values: Sequence[float]) -> BranchCosts:
    """The sum of terms, each times its value."""
    pairs = list(zip(values, terms, strict=True))
    costs = {b: math.fsum(v * term.costs[b] for v, term in pairs) for b in terms[0].costs}
    return BranchCosts(costs, math.fsum(v * term.overhead for v, term in pairs))


def repeated(counts: Any) -> list[Sizes]:
    """The sizes of inputs that a file states as ``[sizes, number of inputs]``.

    Raises:
        AttributeError, TypeError, ValueError: It does not, or there are more inputs than a search
            reads.
    """
    found: list[Sizes] = []
    for sizes, n in counts:
        if not 0 <= n <= _MOST_INPUTS - len(found):
            raise ValueError(f"sizes of {n!r} inputs, and at most {_MOST_INPUTS:,} in all are read")
        found += [{str(name): int(size) for name, size in sizes.items()}] * n
    return found


def _mode(value: Mapping[str, Any]) -> ModeBySize:
    terms = {
        str(name): tuple(BranchCosts.from_json({"error": None, **term}) for term in items)
        for name, items in value["terms"].items()
    }
    points = tuple((float(x), float(factor)) for x, factor in value["corrections"])
    return ModeBySize(terms, Correction(tuple(map(float, value["original"])), points))


def _check(found: CostsBySize) -> None:
    """Check that the parts agree.

    Raises:
        ValueError, UsageError: They don't.
    """
    if not found.symbols or not found.measured or not found.basis:
        raise ValueError("costs by size need symbols, measured sizes and a basis")
    for sizes in found.measured:
        found.checked(sizes)
        if not all(0 <= value < math.inf for value in found.values(sizes)):
            raise ValueError(f"the basis is negative or not finite at {dict(sizes)}")
    n = len(found.basis)
    for mode, costs in found.modes.items():
        if LATENCY not in costs.terms:
            raise ValueError(f"{mode} has no latencies by size")
        lengths = {len(costs.correction.original), *map(len, costs.terms.values())}
        if lengths != {n}:
            raise ValueError(f"{mode} needs a coefficient for each of {', '.join(found.basis)}")
        for name, terms in costs.terms.items():
            resource(name)
            if any(term.overhead < 0 for term in terms):
                raise ValueError(f"an overhead of {name} is negative")
        points = costs.correction.points
        numbers = [number for point in points for number in point]
        if not all(0 < number < math.inf for number in numbers) or list(points) != sorted(points):
            raise ValueError(f"the corrections of {mode} are not positive and ascending")
