"""Limits on the cost of a subnet in each resource."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from fxelastic.errors import UsageError
from fxelastic.spec.resources import LATENCY, RESOURCES, WEIGHTS, resource

#: An absolute bound in the resource's unit, or a share of the original's cost, like ``"60%"``.
Bound: TypeAlias = float | str


class Limits(Mapping[str, Bound]):
    """Upper bounds by resource, such as ``{LATENCY: 20, WEIGHTS: "70%"}``.

    A mapping from the name of a resource to its bound, in the order given. Two limits are equal if
    their bounds are equal. `absolute` converts shares to absolute bounds.
    """

    def __init__(self, bounds: Mapping[str, Bound]) -> None:
        """Check and store the bounds.

        Args:
            bounds: For each resource a number above 0 in the resource's unit, or a share of the
                original's cost like ``"60%"``.

        Raises:
            UsageError: A resource is unknown or a bound is out of range.
        """
        if not isinstance(bounds, Mapping):
            raise UsageError(
                "limits must be a mapping from resources to bounds",
                expected=f'for example {{"{LATENCY}": 20, "{WEIGHTS}": "70%"}}',
                got=repr(bounds),
            )
        self._bounds = {resource(name).name: _checked(name, bounds[name]) for name in bounds}

    @classmethod
    def of(cls, value: Limits | Mapping[str, Bound] | Bound) -> Limits:
        """Convert to limits; a single number or share bounds the latency."""
        if isinstance(value, Limits):
            return value
        return cls(value if isinstance(value, Mapping) else {LATENCY: value})

    def absolute(self, original: Mapping[str, float]) -> Limits:
        """Convert shares of the original's cost to absolute bounds.

        Args:
            original: The original's cost in each resource.

        Raises:
            UsageError: ``original`` has no cost for a limited resource.
        """
        for name in self._bounds:
            if name not in original:
                raise UsageError(
                    f"a limit on {name} needs a latency table with costs of {name}",
                    expected="limits on " + (", ".join(original) or "nothing"),
                    got=", ".join(self._bounds),
                    fix="measure again: fxelastic profile BUNDLE",
                )
        return Limits({n: _absolute(b, original[n]) for n, b in self._bounds.items()})

    def bound(self, name: str) -> float:
        """The absolute bound on a resource; infinity if it is not limited.

        Raises:
            UsageError: The bound is a share: see `absolute`.
        """
        value = self._bounds.get(name, math.inf)
        if isinstance(value, str):
            raise UsageError(
                f"the limit on {name} must be absolute here",
                expected=f"a number in {RESOURCES[name].unit}",
                got=repr(value),
                fix="pass limits.absolute(table.predict(space.original))",
            )
        return value

    def keeps(self, costs: Mapping[str, float]) -> bool:
        """Whether costs are within absolute limits; a missing cost exceeds its limit."""
        return all(costs.get(name, math.inf) <= self.bound(name) for name in self._bounds)

    def __getitem__(self, name: str) -> Bound:
        return self._bounds[name]

    @property
    def bounds(self) -> Mapping[str, Bound]:
        """The bounds by resource, as a dictionary."""
        return self._bounds

    def __iter__(self) -> Iterator[str]:
        return iter(self._bounds)

    def __len__(self) -> int:
        return len(self._bounds)

    def __hash__(self) -> int:
        return hash(frozenset(self._bounds.items()))

    def __repr__(self) -> str:
        return f"Limits({self._bounds!r})"

    def __str__(self) -> str:
        parts = []
        for name, value in self._bounds.items():
            found = RESOURCES[name]
            bound = f"{value} of the original" if isinstance(value, str) else found.text(value)
            parts.append(bound if name == LATENCY else f"{found.label} {bound}")
        return ", ".join(parts) or "no limits"


def several_limits(
    limits: Limits | Mapping[str, Bound] | Sequence[Limits | Mapping[str, Bound]] | None = None,
    budget: Bound | Sequence[Bound] | None = None,
    budget_ms: float | Sequence[float] | None = None,
    weight_bytes: int | None = None,
) -> tuple[Limits, ...]:
    """Convert the arguments of a search to limits.

    Args:
        limits: One mapping, or a sequence of mappings.
        budget: A bound on the latency, or several; each is combined with ``limits``.
        budget_ms: The same as ``budget``, in ms.
        weight_bytes: A bound on the size of the weights, added to all limits.

    Returns:
        One or more limits.

    Raises:
        UsageError: No limit is given, one is out of range, or two bound the same resource.
    """
    budgets = [value for value in (budget, budget_ms) if value is not None]
    if len(budgets) > 1:
        raise UsageError(
            "budget and budget_ms must not be given together",
            expected='budget="60%" or budget_ms=20, or a list of these',
            got="both",
        )
    texts = (str, bytes)
    if isinstance(limits, texts) or not (limits is None or isinstance(limits, (Mapping, Sequence))):
        Limits(limits)  # which refuses it
    single = limits is None or isinstance(limits, Mapping)
    given: list[Any] = [limits or {}] if single else list(limits or ())
    extra: list[dict[str, Bound]] = [{}]
    if budgets:
        value: Any = budgets[0]
        alone = isinstance(value, texts) or not isinstance(value, Sequence)
        extra = [{LATENCY: bound} for bound in ([value] if alone else value)]
    if weight_bytes is not None:
        extra = [{**bounds, WEIGHTS: weight_bytes} for bounds in extra]
    if len(given) > 1 and len(extra) > 1:
        raise UsageError(
            "several budgets and several limits can't be combined",
            expected="a list for one of them",
            got=f"{len(extra)} budgets and {len(given)} limits",
            fix=f"put each budget into its limits, as {LATENCY}",
        )
    found = [_joined(Limits(one), Limits(other)) for one in given for other in extra]
    if not found or not all(found):
        raise UsageError(
            "a search needs a limit",
            expected=f'budget="60%", budget_ms=20, limits={{"{LATENCY}": 20}}, or a list of these',
            got="an empty list" if not given or not extra else "none",
        )
    return tuple(found)


def _joined(one: Limits, other: Limits) -> Limits:
    double = [name for name in one if name in other]
    if double:
        raise UsageError(
            f"two limits bound {double[0]}",
            expected="one bound for each resource",
            got=f"{one[double[0]]!r} and {other[double[0]]!r}",
        )
    return Limits({**other, **one})


def _absolute(bound: Bound, original: float) -> float:
    return original * _share(bound) if isinstance(bound, str) else bound


def _share(text: str) -> float:
    return float(text.removesuffix("%")) / 100


def _checked(name: str, value: Any) -> Bound:
    """A bound as a float, or as a share like ``"60%"``."""
    number, is_share = math.nan, False
    try:
        if isinstance(value, str):
            text = value.strip()
            is_share = text.endswith("%")
            number = _share(text) if is_share else float(text)
        elif not isinstance(value, bool):
            number = float(value)
    except (TypeError, ValueError):
        pass
    if not 0 < number < math.inf:
        unit = RESOURCES[name].unit
        raise UsageError(
            f"the limit on {name} must be a number above 0, or a share",
            expected=f'a number in {unit}, or a share of the original\'s cost like "60%"',
            got=repr(value),
        )
    return value.strip() if is_share else number
