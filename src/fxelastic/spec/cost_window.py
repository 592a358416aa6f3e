"""Sample uniformly from the subnets whose cost lies in a window."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from numbers import Real
from typing import TYPE_CHECKING

from fxelastic.errors import UsageError
from fxelastic.spec.arch import Arch
from fxelastic.spec.options import check_count
from fxelastic.spec.paths import QuantisedPaths, exact_costs

if TYPE_CHECKING:
    from fxelastic.spec.search_space import SearchSpace

_MAX_LISTED = 4096
_DRAWS = 10_000
_DRAWS_FOR_EACH = 100
_MAX_ZOOMS = 24


@dataclass(frozen=True)
class CostWindow:
    """The subnets of a search space with ``low <= cost <= high``, to be sampled uniformly.

    Draws are exactly uniform over these subnets, for any costs. A dynamic programme over quantised
    costs counts the candidates: every subnet in the window and some just outside it. If there are
    at most 4096, they are listed and filtered by their exact cost; otherwise candidates are drawn
    uniformly, and draws outside the window are rejected. Quantisation does not bias the result; it
    only decides how many draws are rejected: about a quarter for a window as wide as a hundredth
    of the space's range of costs, fewer for wider windows.

    If the candidates are listed, an empty window is always detected, and the error names the
    nearest costs. In a very large space, a very narrow window (a millionth of the range) may
    contain too few of the candidates; the error then states the number of draws and names the
    nearest costs among them.

    Reuse one window for many samples: the programme runs only once, at the first draw.

    Attributes:
        space: The search space.
        costs: Cost of each branch by id; finite and at least 0, in any unit.
        low: The lowest cost, inclusive; minus infinity for no bound.
        high: The highest cost, inclusive; infinity for no bound.
    """

    space: SearchSpace
    costs: Mapping[str, float] = field(repr=False)
    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        """Check the bounds.

        Raises:
            UsageError: A bound is not a number, or ``low`` is above ``high``.
        """
        for name, value in (("low", self.low), ("high", self.high)):
            if isinstance(value, bool) or not isinstance(value, Real):
                raise UsageError(f"{name} must be a number", expected="a cost", got=repr(value))
        if not self.low <= self.high:
            raise UsageError(
                "the window of costs must have low <= high",
                expected="low <= high",
                got=f"low={self.low!r}, high={self.high!r}",
            )
        # The sampler caches results that depend on the costs.
        object.__setattr__(self, "costs", dict(self.costs))

    def sample(self, n: int, seed: int = 0) -> list[Arch]:
        """Draw subnets in the window, each with the same probability.

        Args:
            n: The number of subnets; draws are independent, so a subnet may be drawn twice.
            seed: The same seed gives the same subnets.

        Returns:
            The subnets drawn.

        Raises:
            UsageError: The window contains no subnets, or too few of the candidates; the message
                names the nearest costs. Or n is no integer of at least 0.
        """
        found, missed = self._draw(n, seed)
        if self._listed == []:
            raise self._empty("no subnet has such a cost", [])
        if len(found) < n:
            draws = len(found) + len(missed)
            what = f"{draws} draws near the window found {len(found)} of {n}; it is too narrow"
            raise self._empty(what, missed)
        return found

    def sample_up_to(self, n: int, seed: int = 0) -> list[Arch]:
        """Draw subnets as `sample` does, but return those found where they are fewer than n.

        It takes much less time than `sample` where the window is empty, since it does not look for
        the nearest costs, which the error names.

        Args:
            n: The most subnets to return.
            seed: As for `sample`.

        Raises:
            UsageError: n is no integer of at least 0.
        """
        return self._draw(n, seed)[0]

    def _draw(self, n: int, seed: int) -> tuple[list[Arch], list[float]]:
        """At most n subnets in the window, and the costs of those drawn outside it."""
        check_count("n", n, 0)
        rng = random.Random(seed)
        if self._listed is not None:
            n = n if self._listed else 0
            return [Arch(self._listed[rng.randrange(len(self._listed))]) for _ in range(n)], []
        found: list[Arch] = []
        missed: list[float] = []
        draws = _DRAWS + _DRAWS_FOR_EACH * n
        while len(found) < n and len(found) + len(missed) < draws:
            path = self._candidates.path(rng.randrange(self._candidates.total))
            cost = self._cost(path)
            if self.low <= cost <= self.high:
                found.append(Arch(path))
            else:
                missed.append(cost)
        return found, missed

    @cached_property
    def _exact(self) -> Mapping[str, Fraction]:
        return exact_costs(self.space.branches, self.costs)

    @cached_property
    def _candidates(self) -> QuantisedPaths:
        return self._near(self.low, self.high)

    @cached_property
    def _listed(self) -> list[tuple[str, ...]] | None:
        """The subnets in the window; None if there are too many candidates to list."""
        candidates = self._candidates
        if candidates.total > _MAX_LISTED:
            return None
        paths = (candidates.path(i) for i in range(candidates.total))
        return [path for path in paths if self._holds(path)]

    def _holds(self, path: tuple[str, ...]) -> bool:
        return self.low <= self._cost(path) <= self.high

    def _cost(self, path: tuple[str, ...]) -> float:
        return math.fsum(self.costs[name] for name in path)

    def _near(self, low: float, high: float) -> QuantisedPaths:
        # A cost is a rounded sum: the exact one may lie outside by half a unit in the last place.
        return QuantisedPaths(
            self.space.starting_at,
            self._exact,
            _fraction(math.nextafter(low, -math.inf)),
            _fraction(math.nextafter(high, math.inf)),
            self.space.count(),
        )

    def _empty(self, what: str, seen: Sequence[float]) -> UsageError:
        """The error for a window without enough subnets.

        Args:
            what: The reason.
            seen: Costs of subnets outside the window; if empty, the nearest costs are searched for.
        """
        least = self._cost(self.space.min_cost_arch(self.costs).branches)
        most = self._cost(self.space.max_cost_arch(self.costs).branches)
        nearest: list[float] = []
        if least < self.low:
            below = max((cost for cost in seen if cost < self.low), default=None)
            nearest.append(self._nearest(least, self.low) if below is None else below)
        if most > self.high:
            above = min((cost for cost in seen if cost > self.high), default=None)
            nearest.append(self._nearest(most, self.high) if above is None else above)
        return UsageError(
            f"can't sample from the window of costs: {what}",
            expected=f"a window that contains costs of subnets, which are {least:g} to {most:g}",
            got=f"[{self.low!r}, {self.high!r}]",
            fix=f"widen the window to the nearest costs: {' or '.join(map(repr, nearest))}",
        )

    def _nearest(self, known: float, bound: float) -> float:
        """The cost nearest to a bound, on the side of a known cost.

        It looks at windows that end at the bound, and bisects between empty windows and those with
        too many candidates to list.
        """
        below = known < bound
        best = known
        nothing, too_much = 0.0, abs(bound - known)
        width = too_much
        for _ in range(_MAX_ZOOMS):
            # Without the part that is known to be empty, the quantisation is finer.
            paths = (
                self._near(bound - width, bound - nothing)
                if below
                else self._near(bound + nothing, bound + width)
            )
            # By quantised cost, lowest first: if too many, those next to the bound.
            n = min(paths.total, _MAX_LISTED)
            indices = range(paths.total - n, paths.total) if below else range(n)
            costs = [self._cost(paths.path(i)) for i in indices]
            inside = [cost for cost in costs if (cost < bound if below else cost > bound)]
            best = max([best, *inside]) if below else min([best, *inside])
            if paths.total > _MAX_LISTED:
                too_much = width
            elif inside or width == too_much:
                break
            else:
                nothing = width
            width = (nothing + too_much) / 2
        return best


def _fraction(value: float) -> Fraction | None:
    return Fraction(value) if math.isfinite(value) else None
