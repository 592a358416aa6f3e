"""The subnets that may be served: a pool's best ones, as steps from the quickest upwards."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from fxelastic.errors import UsageError
from fxelastic.spec import Arch


class Step(Protocol):
    """A subnet with what is known of it; the entries of a pool are such steps."""

    @property
    def arch(self) -> Arch:
        """The subnet."""

    @property
    def latency_ms(self) -> float:
        """Its estimated latency on the idle device, in ms."""

    @property
    def accuracy(self) -> float:
        """Its accuracy on the device's data; higher is better."""


@dataclass(frozen=True)
class Ladder:
    """Subnets none of which is both slower than another and no better.

    A view of a pool that the runtime can narrow (a subnet that failed is left out) and widen (a
    search found more); the pool itself keeps every entry.

    Attributes:
        steps: The subnets, quickest first; accuracy rises strictly with latency.
    """

    steps: tuple[Step, ...]

    @classmethod
    def of(cls, entries: Iterable[Step], without: Collection[Arch] = ()) -> Ladder:
        """Keep the entries that no other one beats.

        Args:
            entries: Entries of one or several pools; an arch may come several times.
            without: Subnets that may not be served.

        Raises:
            UsageError: An entry has a latency or an accuracy that is no number.
        """
        steps: list[Step] = []
        usable = [entry for entry in entries if entry.arch not in without]
        for entry in usable:
            # NaN compares false with everything: it would end up in any place of the order.
            if not (entry.latency_ms > 0 and entry.accuracy == entry.accuracy):
                raise UsageError(
                    f"the pool's entry {entry.arch} can't be ranked",
                    expected="a latency above 0 ms and an accuracy",
                    got=f"{entry.latency_ms!r} ms, accuracy {entry.accuracy!r}",
                )
        for entry in sorted(usable, key=lambda e: (e.latency_ms, -e.accuracy, e.arch.branches)):
            if not steps or entry.accuracy > steps[-1].accuracy:
                steps.append(entry)
        return cls(tuple(steps))

    def best_under(self, latency_ms: float) -> Step | None:
        """The most accurate subnet of at most that latency; None when all are slower."""
        index = bisect_right(self._latencies, latency_ms)
        return self.steps[index - 1] if index else None

    def only(self, archs: Collection[Arch]) -> Ladder:
        """The steps whose subnet is among these."""
        return Ladder(tuple(step for step in self.steps if step.arch in archs))

    @property
    def quickest(self) -> Step | None:
        """The first step; None when there is none."""
        return self.steps[0] if self.steps else None

    @cached_property
    def _latencies(self) -> tuple[float, ...]:
        return tuple(step.latency_ms for step in self.steps)

    def __len__(self) -> int:
        return len(self.steps)
