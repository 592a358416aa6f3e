"""A cascade: subnets with a common beginning, of which a sample runs as many as it needs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from fxelastic.errors import UsageError
from fxelastic.spec.arch import Arch
from fxelastic.spec.costs import BranchCosts
from fxelastic.spec.search_space import SearchSpace

_ABOVE, _NEXT, _IF = ">=", ";", ":"


@dataclass(frozen=True)
class Cascade:
    """Subnets, and for each but the last the confidence at which a sample leaves there.

    Each subnet but the last ends with an exit. The next one runs the same branches up to that exit,
    and others after it. A sample leaves at the first exit whose confidence reaches its threshold.

    ``str(cascade)`` is, for two exits, ``max_softmax>=0.9: ARCH; max_softmax>=0.7: ARCH; ARCH``.
    `Cascade.parse` reads that text.

    Attributes:
        archs: The subnets, in the order in which samples may leave.
        thresholds: The least confidence to leave, for each subnet but the last.
        confidence: Name of the function that computes confidences from results.
    """

    archs: tuple[Arch, ...]
    thresholds: tuple[float, ...]
    confidence: str = "max_softmax"

    def __post_init__(self) -> None:
        """Check the parts, independently of any search space.

        Raises:
            UsageError: The numbers of subnets and thresholds do not match, a threshold is not a
                finite number, or two subnets do not have the same beginning.
        """
        object.__setattr__(self, "archs", tuple(self.archs))
        object.__setattr__(self, "thresholds", tuple(map(float, self.thresholds)))
        if len(self.archs) != len(self.thresholds) + 1:
            raise UsageError(
                "a cascade must have a threshold for each subnet but the last",
                expected=f"{max(0, len(self.archs) - 1)} thresholds for {len(self.archs)} subnets",
                got=str(len(self.thresholds)),
            )
        wrong = [value for value in self.thresholds if not math.isfinite(value)]
        if wrong:
            raise UsageError(
                "thresholds must be finite numbers", expected="numbers", got=repr(wrong[0])
            )
        if not self.confidence.isidentifier():
            raise UsageError(
                "the confidence must be a name", expected="max_softmax", got=repr(self.confidence)
            )
        for before, after in zip(self.archs, self.archs[1:], strict=False):
            shared = len(before) - 1
            same = after.branches[:shared] == before.branches[:shared]
            if not same or len(after) <= shared or after.branches[shared] == before.branches[-1]:
                raise UsageError(
                    "the subnets of a cascade must have a common beginning",
                    expected=f"a subnet that begins like {before}, up to {before.branches[-1]}",
                    got=str(after),
                )

    @property
    def end(self) -> Arch:
        """The subnet of the samples that leave at no exit."""
        return self.archs[-1]

    @property
    def branches(self) -> tuple[str, ...]:
        """All branches that a sample may run, each once, in the order in which they run."""
        return tuple(branch for segment in self.segments for branch in segment)

    @property
    def segments(self) -> tuple[tuple[str, ...], ...]:
        """For each subnet the branches that it adds to those before it; the exit is the last."""
        shared = [0, *(len(arch) - 1 for arch in self.archs[:-1])]
        return tuple(arch.branches[n:] for arch, n in zip(self.archs, shared, strict=True))

    def validate(self, space: SearchSpace) -> None:
        """Check that the subnets are in a search space.

        Raises:
            UsageError: One is not.
        """
        for arch in self.archs:
            space.validate(arch)

    def expected_cost(self, costs: BranchCosts, reached: Sequence[float]) -> float:
        """The mean cost of a sample in a resource whose costs add up.

        Args:
            costs: The costs of the branches.
            reached: For each subnet, the share of the samples that get that far; 1 for the first.
        """
        own = [math.fsum(costs.costs[branch] for branch in segment) for segment in self.segments]
        decisions = costs.per_decision * math.fsum(reached[:-1])
        return costs.overhead + math.fsum(
            (decisions, *(share * cost for share, cost in zip(reached, own, strict=True)))
        )

    def __len__(self) -> int:
        return len(self.branches)

    def __iter__(self) -> Iterator[str]:
        return iter(self.branches)

    def __str__(self) -> str:
        conditions = [f"{self.confidence}{_ABOVE}{value!r}{_IF} " for value in self.thresholds]
        archs = zip((*conditions, ""), self.archs, strict=True)
        return f"{_NEXT} ".join(f"{condition}{arch}" for condition, arch in archs)

    @classmethod
    def parse(cls, text: str) -> Cascade:
        """Parse the text of a cascade.

        Raises:
            UsageError: The text is malformed.
        """
        archs, thresholds, names = [], [], []
        parts = text.split(_NEXT)
        for i, part in enumerate(parts):
            condition, found, arch = part.rpartition(f"{_IF} ")
            name, above, number = condition.strip().partition(_ABOVE)
            last = i == len(parts) - 1
            try:
                if last != (not found) or (found and not above):
                    raise ValueError
                thresholds += [] if last else [float(number)]
            except ValueError:
                raise UsageError(
                    "the text of a cascade is malformed",
                    expected="max_softmax>=0.9: ARCH; ARCH",
                    got=repr(part.strip()),
                ) from None
            names += [name] if found else []
            archs.append(Arch.parse(arch))
        if len(set(names)) > 1:
            raise UsageError(
                "a cascade has one kind of confidence",
                expected=f"{names[0]} at each exit",
                got=", ".join(names),
            )
        return cls(tuple(archs), tuple(thresholds), *names[:1])

    def to_json(self) -> dict[str, Any]:
        """The cascade as an object for ``json.dumps``."""
        return {
            "archs": list(map(str, self.archs)),
            "thresholds": list(self.thresholds),
            "confidence": self.confidence,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Cascade:
        """Read what `to_json` gives.

        Raises:
            UsageError: A part is missing or malformed.
        """
        try:
            archs = tuple(Arch.parse(text) for text in value["archs"])
            return cls(archs, tuple(value["thresholds"]), str(value["confidence"]))
        except (KeyError, TypeError, ValueError) as e:
            raise UsageError(
                "a cascade is malformed",
                expected="archs, thresholds and confidence",
                got=repr(value)[:200],
            ) from e


#: What a request may run on: both list their branches in the order in which they run.
Servable: TypeAlias = Arch | Cascade
