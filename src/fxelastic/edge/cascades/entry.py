"""A cascade that a search found, with what it costs and how much it loses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fxelastic.spec.cascade import Cascade
from fxelastic.spec.resources import LATENCY


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

    @property
    def ms(self) -> float:
        """The expected latency of a sample, under the name that a pool's entries use."""
        return self.latency_ms

    @property
    def arch(self) -> Cascade:
        """The cascade, under the name that a pool's entries use."""
        return self.cascade

    def to_json(self) -> dict[str, Any]:
        """The entry as an object for ``json.dumps``; an unknown figure is null."""
        value = asdict(self)
        auroc = [None if math.isnan(share) else share for share in self.auroc]
        known = {
            name: None if math.isnan(value[name]) else value[name]
            for name in ("max_loss", "accuracy")
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
        )


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
