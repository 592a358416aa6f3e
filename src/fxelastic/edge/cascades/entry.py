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
    """

    cascade: Cascade
    latency_ms: float
    coverage: tuple[float, ...]
    bound: float
    loss: float
    loss_of_end: float
    auroc: tuple[float, ...]
    n_tested: int

    def to_json(self) -> dict[str, Any]:
        """The entry as an object for ``json.dumps``; an unknown figure is null."""
        value = asdict(self)
        auroc = [None if math.isnan(share) else share for share in self.auroc]
        return {**value, "cascade": self.cascade.to_json(), "auroc": auroc}

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
            tuple(math.nan if share is None else float(share) for share in value["auroc"]),
            int(value["n_tested"]),
        )
