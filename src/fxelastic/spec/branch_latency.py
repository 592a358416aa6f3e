"""The measurements of one branch on one device."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class BranchLatency:
    """The measurements of one branch, run between other branches as in a subnet.

    Attributes:
        ms: The lower quartile of the run times: other programs only make a run slower.
        median_ms: The median of the run times.
        high_ms: The upper quartile of the run times.
        n: The number of timed runs.
        weight_bytes: The size of its weights.
        activation_bytes: The size of the values that it reads and writes.
        resident_bytes: The memory that creating its session added to the process; None if not
            measured.
        hit_rate: The share of the bytes it reads and writes that are in the caches; None if not
            measured.
        hit_rate_error: The error of ``hit_rate``.
    """

    ms: float
    median_ms: float
    high_ms: float
    n: int
    weight_bytes: int
    activation_bytes: int
    resident_bytes: int | None = None
    hit_rate: float | None = None
    hit_rate_error: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields as data for ``json.dumps``, without hit rates if they are not measured."""
        found = asdict(self)
        if self.hit_rate is None:
            del found["hit_rate"], found["hit_rate_error"]
        return found
