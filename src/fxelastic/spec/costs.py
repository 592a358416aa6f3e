"""The costs of a bundle's branches on a device, by resource, and the costs of whole subnets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fxelastic.errors import UsageError
from fxelastic.spec.resources import PEAK, resource

#: Larger numbers are in no file of costs: sums of them are not finite.
MOST = 1e100


@dataclass(frozen=True)
class ModelError:
    """The error of predicted costs on measured subnets that were held out of the fit.

    Measurements of each subnet alternate with measurements of the original. Errors are of the
    subnet's cost relative to the original's; if the sizes of inputs vary, they are of the cost
    itself, at sizes that were held out of the fit, too.

    Attributes:
        median: The median of ``|predicted - measured| / measured``.
        p90: Its 90th percentile.
        n_held_out: The number of held-out subnets.
        n_sizes: The number of held-out sizes, at each of which the subnets were measured; 0 if the
            costs are not functions of sizes.
    """

    median: float
    p90: float
    n_held_out: int
    n_sizes: int = 0

    def __str__(self) -> str:
        at_sizes = f" at {self.n_sizes} other sizes" if self.n_sizes else ""
        return (
            f"median error {self.median:.1%}, 90th percentile {self.p90:.1%}, of "
            f"{self.n_held_out} subnets{at_sizes}"
        )

    def to_json(self) -> dict[str, float]:
        """The error as an object for ``json.dumps``."""
        sizes = {"n_sizes": self.n_sizes} if self.n_sizes else {}
        return {
            "median": self.median,
            "p90": self.p90,
            "n_held_out": self.n_held_out,
            **sizes,
        }


@dataclass(frozen=True)
class BranchCosts:
    """The cost of each branch in one resource, in the resource's unit.

    Attributes:
        costs: The cost of each branch by id; at least 0.
        overhead: The cost of a run besides its branches; may be negative.
        error: The error on held-out subnets; None if none were measured.
        doubt: Why the measurement is unreliable; empty if it is not known to be.
        shared: For each branch, the parts of its cost that it shares with other branches, by the
            name of the part. In the cost of a subnet, each part counts once.
        source: What measured or estimated the costs; empty if the resource says it.
        per_decision: What each decision of a cascade costs besides the branches: to end one run, to
            compare the confidence, and to start another run. 0 if it was not measured.
    """

    costs: Mapping[str, float]
    overhead: float = 0.0
    error: ModelError | None = None
    doubt: str = ""
    shared: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    source: str = ""
    per_decision: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The costs as an object for ``json.dumps``."""
        value: dict[str, Any] = {
            "overhead": self.overhead,
            "costs": dict(self.costs),
            "error": None if self.error is None else self.error.to_json(),
            "doubt": self.doubt,
        }
        shared = {branch: dict(parts) for branch, parts in self.shared.items()}
        # Earlier releases do not know these.
        value |= {"source": self.source} if self.source else {}
        value |= {"per_decision": self.per_decision} if self.per_decision else {}
        return {**value, "shared": shared} if shared else value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> BranchCosts:
        """Read the object that `to_json` returns.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: The value is malformed.
        """
        error = value["error"]
        found = cls(
            {str(k): float(v) for k, v in value["costs"].items()},
            float(value["overhead"]),
            None if error is None else _error(error),
            str(value.get("doubt", "")),
            {
                str(branch): {str(k): float(v) for k, v in parts.items()}
                for branch, parts in value.get("shared", {}).items()
            },
            str(value.get("source", "")),
            float(value.get("per_decision", 0.0)),
        )
        numbers = [*found.costs.values(), *(v for p in found.shared.values() for v in p.values())]
        numbers.append(found.per_decision)
        if not all(0 <= number <= MOST for number in numbers):
            raise ValueError("a cost is negative or not finite, or larger than any")
        if not abs(found.overhead) <= MOST:
            raise ValueError(f"the overhead is {found.overhead!r}")
        return found


def _error(value: Mapping[str, Any]) -> ModelError:
    found = ModelError(**value)
    shares, counts = (found.median, found.p90), (found.n_held_out, found.n_sizes)
    if not all(type(x) in (int, float) and 0 <= x <= MOST for x in shares):
        raise ValueError("an error is not a share")
    if not all(type(n) is int and n >= 0 for n in counts):
        raise ValueError("the number of subnets or sizes of an error is not a count")
    return found


class Costs(Mapping[str, BranchCosts]):
    """The costs of branches by resource, for one way of running subnets.

    A subnet's cost is computed from the costs of its branches by the resource's `Resource.rule`,
    so dynamic programmes over subnets are exact.
    """

    def __init__(self, resources: Mapping[str, BranchCosts]) -> None:
        """Create the costs from those of each resource.

        Raises:
            UsageError: A resource is unknown.
        """
        self._resources = {resource(name).name: costs for name, costs in resources.items()}

    def total(self, name: str, branches: Iterable[str]) -> float:
        """The cost of a subnet in one resource, in the resource's unit.

        Args:
            name: The name of the resource.
            branches: The ids of the subnet's branches, such as an `Arch`.

        Raises:
            UsageError: The resource or a branch has no cost.
        """
        found = self[name]
        if not found.shared and resource(name).rule != PEAK:
            try:
                return found.overhead + math.fsum([found.costs[branch] for branch in branches])
            except KeyError as e:
                raise no_branch(str(e.args[0])) from e
        own: list[float] = []
        seen: set[str] = set()
        for branch in branches:
            cost = found.costs.get(branch)
            if cost is None:
                raise no_branch(branch)
            own.append(cost)
            for key, part in found.shared.get(branch, {}).items():
                if key in seen:
                    own.append(-part)
                seen.add(key)
        if resource(name).rule == PEAK:
            return found.overhead + max(own, default=0.0)
        return found.overhead + math.fsum(own)

    def predict(self, branches: Iterable[str]) -> dict[str, float]:
        """The cost of a subnet in each resource, by the resource's name.

        Raises:
            UsageError: A branch has no cost.
        """
        ids = tuple(branches)
        return {name: self.total(name, ids) for name in self._resources}

    def including(self, resources: Mapping[str, BranchCosts]) -> Costs:
        """A copy with the costs of the given resources added or replaced."""
        return Costs({**self._resources, **resources})

    def __getitem__(self, name: str) -> BranchCosts:
        if name not in self._resources:
            raise UsageError(
                f"the latency table has no costs of {resource(name).label}",
                expected="one of " + (", ".join(self._resources) or "none"),
                got=repr(name),
                fix="measure again: fxelastic profile BUNDLE",
            )
        return self._resources[name]

    def __contains__(self, name: object) -> bool:
        return name in self._resources

    def __iter__(self) -> Iterator[str]:
        return iter(self._resources)

    def __len__(self) -> int:
        return len(self._resources)

    def __repr__(self) -> str:
        return f"Costs({self._resources!r})"


def no_branch(branch: str) -> UsageError:
    """The error about a branch without costs."""
    return UsageError(
        f"the latency table has no branch {branch!r}",
        expected="branches of the bundle that was measured",
        got=repr(branch),
        fix="measure this bundle: fxelastic profile BUNDLE",
    )
