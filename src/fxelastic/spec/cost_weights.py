"""Weights of resources: one cost from several, relative to the original's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from fxelastic.errors import UsageError
from fxelastic.spec.resources import ENERGY, LATENCY, resource


class CostWeights(Mapping[str, float]):
    """How much each resource counts, by its name, such as ``{LATENCY: 0.7, ENERGY: 0.3}``.

    The weighted cost of a subnet is the weighted mean of its costs, each as a share of the
    original's: 1 for the original itself.

    Source: AdaScale, Eq. 6.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        """Check the weights and scale them to a sum of 1.

        Raises:
            UsageError: A resource is unknown, a weight is negative or not finite, or all are 0.
        """
        found: dict[str, float] = {}
        for name, value in dict(weights).items() if isinstance(weights, Mapping) else ():
            number: Any = value
            is_number = isinstance(number, (int, float)) and not isinstance(number, bool)
            if not is_number or not 0 <= number < math.inf:
                raise UsageError(
                    f"the weight of {name} must be at least 0", expected="a number", got=repr(value)
                )
            found[resource(name).name] = float(number)
        total = math.fsum(found.values())
        if not total:
            raise UsageError(
                "weights must be a mapping from resources to numbers, not all of them 0",
                expected=f'for example {{"{LATENCY}": 0.7, "{ENERGY}": 0.3}}',
                got=repr(weights),
            )
        self._weights = {name: value / total for name, value in found.items()}

    def cost(self, costs: Mapping[str, float], original: Mapping[str, float]) -> float:
        """The weighted cost of a subnet, as a share of the original's.

        Args:
            costs: The subnet's cost in each resource.
            original: The original's cost in each resource. One of 0 does not count.
        """
        return math.fsum(
            weight * costs[name] / original[name]
            for name, weight in self._weights.items()
            if original[name] > 0
        )

    def __getitem__(self, name: str) -> float:
        return self._weights[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def __repr__(self) -> str:
        return f"CostWeights({self._weights!r})"
