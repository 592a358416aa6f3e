"""A cascade that a search found, with what it costs and how much it loses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from fxelastic.edge.cascades.costs import costs_of_leaving
from fxelastic.errors import UsageError
from fxelastic.spec.cascade import Cascade
from fxelastic.spec.costs import BranchCosts
from fxelastic.spec.resources import LATENCY

# Of the sum of shares.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class CascadeEntry:
    """A cascade, and its figures.

    Attributes:
        cascade: The cascade.
        latency_ms: The expected latency of a sample.
        coverage: For each of its subnets, the share of the samples that leave there.
        bound: With probability 1 - delta, at most this share of samples gets a wrong answer where
            the original is right; without targets, another answer than the original's.
        loss: The accuracy lost against the original, on the held-out samples.
        loss_of_end: The accuracy lost against the subnet that the cascade ends in.
        auroc: For each exit, how well its confidence tells right from wrong answers: the
            probability that a right answer has the higher one; NaN if all are right or all wrong.
        n_tested: The number of held-out samples.
        max_loss: The limit that the bound keeps; NaN if unknown.
        accuracy: The accuracy to rank it by among subnets: that of the subnet that it ends in on
            the samples of the search, minus ``loss_of_end``. NaN if unknown; such a cascade is
            not served.
        leaving_ms: For each of its subnets, the latency of a sample that leaves there; empty if
            unknown.
        delta: See ``bound``; NaN if unknown.
    """

    cascade: Cascade
    latency_ms: float
    coverage: tuple[float, ...]
    bound: float
    loss: float
    loss_of_end: float
    auroc: tuple[float, ...]
    n_tested: int
    max_loss: float = math.nan
    accuracy: float = math.nan
    leaving_ms: tuple[float, ...] = ()
    delta: float = math.nan

    def __post_init__(self) -> None:
        """Check the figures.

        Raises:
            UsageError: One is out of range, or there are not as many as subnets.
        """
        n = len(self.cascade.archs)
        shares = (*self.coverage, self.bound, *(x for x in self.auroc if not math.isnan(x)))
        figures = (self.loss, self.loss_of_end, self.max_loss, self.accuracy, self.delta)
        signed = [x for x in figures if x == x]
        right = (
            0 < self.latency_ms < math.inf
            and all(0 <= share <= 1 + _ROUNDING for share in shares)
            and all(map(math.isfinite, signed))
            and all(0 <= ms < math.inf for ms in self.leaving_ms)
            and self.n_tested >= 0
            and (len(self.coverage), len(self.auroc)) == (n, n - 1)
            and len(self.leaving_ms) in (0, n)
        )
        if not right:
            raise UsageError(
                "a figure of a cascade is out of range",
                expected=f"shares from 0 to 1 and times above 0 ms, for each of {n} subnets",
                got=repr({k: v for k, v in vars(self).items() if k != "cascade"}),
            )

    @property
    def ms(self) -> float:
        """The expected latency of a sample, under the name that a pool's entries use."""
        return self.latency_ms

    @property
    def arch(self) -> Cascade:
        """The cascade, under the name that a pool's entries use."""
        return self.cascade

    def at(self, costs: BranchCosts) -> CascadeEntry:
        """The same cascade with the latencies of other branch costs."""
        leaving_ms = costs_of_leaving(costs, self.cascade)
        expected_ms = math.fsum(
            share * ms for share, ms in zip(self.coverage, leaving_ms, strict=True)
        )
        return replace(self, latency_ms=expected_ms, leaving_ms=leaving_ms)

    def keeps(self, max_loss: float, delta: float) -> bool:
        """Whether the bound on the loss is known to be as strict as this."""
        return self.max_loss <= max_loss and self.delta <= delta

    def to_json(self) -> dict[str, Any]:
        """The entry as an object for ``json.dumps``; an unknown figure is null."""
        value = asdict(self)
        auroc = [None if math.isnan(share) else share for share in self.auroc]
        known = {
            name: None if math.isnan(value[name]) else value[name]
            for name in ("max_loss", "accuracy", "delta")
        }
        return {**value, **known, "cascade": self.cascade.to_json(), "auroc": auroc}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> CascadeEntry:
        """Read what `to_json` gives.

        Raises:
            KeyError: A figure is missing.
            ValueError: A figure is not a number.
            UsageError: The cascade is malformed.
        """
        return cls(
            Cascade.from_json(value["cascade"]),
            float(value[LATENCY]),
            tuple(map(float, value["coverage"])),
            float(value["bound"]),
            float(value["loss"]),
            float(value["loss_of_end"]),
            tuple(map(_number, value["auroc"])),
            int(value["n_tested"]),
            _number(value.get("max_loss")),
            _number(value.get("accuracy")),
            tuple(map(float, value.get("leaving_ms", ()))),
            _number(value.get("delta")),
        )


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
