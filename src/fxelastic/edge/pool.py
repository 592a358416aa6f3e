"""The subnets that searches evaluated, each with its costs and accuracy."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from fxelastic.edge.cascades.entry import CascadeEntry
from fxelastic.edge.finished_search import FinishedSearch
from fxelastic.errors import UsageError
from fxelastic.spec import Arch
from fxelastic.spec.cascade import Cascade
from fxelastic.spec.costs_by_size import Sizes, repeated
from fxelastic.spec.json_document import JsonDocument
from fxelastic.spec.limits import Bound, Limits
from fxelastic.spec.pareto import ParetoTable
from fxelastic.spec.resources import LATENCY, RESOURCES

#: The targets of accuracies: those given with the data, or the results of the original.
TARGETS = ("given", "original")


@dataclass(frozen=True)
class PoolEntry:
    """A subnet that was evaluated.

    Attributes:
        arch: The subnet.
        latency_ms: Its predicted latency, in ms.
        accuracy: Its score on the data of the search; higher is better.
        held_out_accuracy: Its score on data that no choice depended on; None if not measured.
        n_samples: The number of samples that ``accuracy`` was measured on, if time did not suffice
            for all data; None for all. A subnet that was not evaluated has 0 and an accuracy of
            NaN; pools do not contain such subnets.
        costs: The cost of a run in each resource, by the resource's name; includes the latency.
    """

    arch: Arch
    latency_ms: float
    accuracy: float
    held_out_accuracy: float | None = None
    n_samples: int | None = None
    costs: Mapping[str, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        """Add the latency to the costs."""
        object.__setattr__(self, "costs", {**self.costs, LATENCY: self.latency_ms})

    @property
    def ms(self) -> float:
        """Its predicted latency, in ms."""
        return self.latency_ms

    def at(self, costs: Mapping[str, float]) -> PoolEntry:
        """A copy of the entry with other costs, such as another table's predictions."""
        return replace(self, latency_ms=costs[LATENCY], costs=costs)


@dataclass(frozen=True)
class SubnetPool(JsonDocument):
    """Everything that searches evaluated on one device.

    Attributes:
        bundle_digest: The bundle's digest.
        entries: The subnets, each once, sorted by latency.
        data_digest: Digest of the data of the accuracies; only pools of the same data can be
            merged.
        score: The name of the score; empty if unknown.
        targets: One of `TARGETS`; empty if unknown.
        sizes: The sizes of inputs that the costs are for, such as ``{"seq": 128}``, if other sizes
            than the batch vary. Several mean that the costs are means over inputs of these sizes,
            as many of each size as there are inputs. Empty if unknown.
        cascades: Cascades with a bounded loss, quickest first.
        searches: The answers of the searches that ran to their end.
        bounds: For subnets that ended early, a score that they do not exceed on the data.
    """

    what = "pool"
    schemas = ("fxelastic.pool/1",)
    command = "fxelastic search BUNDLE --data FILE"

    bundle_digest: str
    entries: tuple[PoolEntry, ...]
    data_digest: str = ""
    score: str = ""
    targets: str = ""
    sizes: tuple[Sizes, ...] = ()
    cascades: tuple[CascadeEntry, ...] = ()
    searches: tuple[FinishedSearch, ...] = ()
    bounds: Mapping[Arch, float] = field(default_factory=dict, hash=False)

    @classmethod
    def of(
        cls,
        bundle_digest: str,
        entries: Iterable[PoolEntry],
        data_digest: str = "",
        score: str = "",
        targets: str = "",
        sizes: Iterable[Sizes] = (),
        cascades: Iterable[CascadeEntry] = (),
        searches: Iterable[FinishedSearch] = (),
        bounds: Mapping[Arch, float] | None = None,
    ) -> SubnetPool:
        """Create a pool of entries.

        The last entry of each subnet counts, and the last of each cascade among those with the
        lowest ``max_loss``.

        Raises:
            UsageError: A latency is not above 0, or an accuracy is not finite.
        """
        by_arch = {entry.arch: entry for entry in entries}
        for entry in by_arch.values():
            if not (0 < entry.ms < math.inf and math.isfinite(entry.accuracy)):
                raise UsageError(
                    f"a pool can't hold the entry {entry.arch}",
                    expected="a finite latency above 0 ms and a finite accuracy",
                    got=f"{entry.ms!r} ms, accuracy {entry.accuracy!r}",
                )
        ordered = sorted(by_arch.values(), key=lambda e: (e.ms, e.arch.branches))
        each = tuple(sizes)
        by_cascade: dict[Cascade, CascadeEntry] = {}
        for found in cascades:
            known = by_cascade.setdefault(found.cascade, found)
            if not known.max_loss < found.max_loss:
                by_cascade[found.cascade] = found
        quickest = sorted(by_cascade.values(), key=lambda found: found.latency_ms)
        finished = {found.key: found for found in searches}
        left = {arch: bound for arch, bound in (bounds or {}).items() if arch not in by_arch}
        return cls(
            *(bundle_digest, tuple(ordered), data_digest, score, targets, each, tuple(quickest)),
            *(tuple(finished.values()), left),
        )

    def check_bundle(self, digest: str) -> None:
        """Raise an error if the pool belongs to another bundle.

        Raises:
            UsageError: The pool belongs to another bundle.
        """
        if digest != self.bundle_digest:
            raise UsageError(
                "the pool belongs to another bundle",
                expected=f"a pool of the bundle {digest[:12]}…",
                got=f"a pool of {self.bundle_digest[:12]}…",
                fix="search with this bundle: fxelastic search BUNDLE --data FILE",
            )

    @cached_property
    def table(self) -> ParetoTable[PoolEntry]:
        """The entries as an ordered table.

        `ParetoTable.best` finds the best within limits, `ParetoTable.between` and
        `ParetoTable.ordered` order the entries by any column: those of the performance index
        (``n_params``, ``weight_bytes``, ``accuracy``) and of the predictive table
        (``latency_ms``, ``energy_mj``, and the other resources of the latency table).

        Source: AdaScale, IV-C.
        """
        return ParetoTable(self.entries)

    @property
    def pareto(self) -> tuple[PoolEntry, ...]:
        """The entries that no other entry beats, quickest first; accuracy rises with latency."""
        return self.table.frontier

    def best_under(self, limits: float | Limits | Mapping[str, Bound]) -> PoolEntry | None:
        """The most accurate subnet within limits; None if no subnet is within them.

        Args:
            limits: A latency in ms, or absolute bounds by resource.

        Raises:
            UsageError: A bound is a share, or an entry has no cost for the resource.
        """
        return self.table.best(limits)

    def added(self, entries: Iterable[PoolEntry]) -> SubnetPool:
        """A pool with further entries, which replace those of the same subnets.

        Raises:
            UsageError: See `of`.
        """
        return SubnetPool.of(
            self.bundle_digest,
            (*self.entries, *entries),
            self.data_digest,
            self.score,
            self.targets,
            self.sizes,
            self.cascades,
            self.searches,
            self.bounds,
        )

    def merge(self, other: SubnetPool) -> SubnetPool:
        """A pool with the entries of both.

        If both have an entry for a subnet, the one scored on more samples is kept, or that of
        ``other`` if the numbers are equal.

        Raises:
            UsageError: The pools belong to different bundles or data, or their costs are for
                different sizes.
        """
        for name in ("bundle_digest", "data_digest"):
            if getattr(self, name) != getattr(other, name):
                what = name.removesuffix("_digest")
                raise UsageError(
                    f"the pools belong to different {'bundles' if what == 'bundle' else what}",
                    expected=getattr(self, name)[:12],
                    got=getattr(other, name)[:12],
                )
        if _counts(self.sizes) != _counts(other.sizes):
            raise UsageError(
                "the costs of the pools are for different sizes",
                expected=str(_counts(self.sizes)),
                got=str(_counts(other.sizes)),
                fix="search with the same sizes and size_percentile",
            )
        entries = sorted(
            (*self.entries, *other.entries),
            key=lambda entry: math.inf if entry.n_samples is None else entry.n_samples,
        )
        return SubnetPool.of(
            *(self.bundle_digest, entries, self.data_digest, self.score, self.targets, self.sizes),
            (*self.cascades, *other.cascades),
            (*self.searches, *other.searches),
            {**self.bounds, **other.bounds},
        )

    def to_dict(self) -> dict[str, Any]:
        """The pool as data for ``json.dumps``."""
        return {
            "bundle_digest": self.bundle_digest,
            "data_digest": self.data_digest,
            "score": self.score,
            "targets": self.targets,
            # Earlier releases do not know these fields.
            **({"sizes": _counts(self.sizes)} if self.sizes else {}),
            **({"cascades": [c.to_json() for c in self.cascades]} if self.cascades else {}),
            **({"searches": [s.to_json() for s in self.searches]} if self.searches else {}),
            **({"bounds": {str(a): b for a, b in self.bounds.items()}} if self.bounds else {}),
            "entries": [_to_json(entry) for entry in self.entries],
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> SubnetPool:
        """Read the data that `to_dict` returns; see `JsonDocument`."""
        return cls.of(
            str(value["bundle_digest"]),
            [_entry(item) for item in value["entries"]],
            str(value["data_digest"]),
            str(value.get("score", "")),
            str(value.get("targets", "")),
            repeated(value.get("sizes", ())),
            [CascadeEntry.from_json(found) for found in value.get("cascades", ())],
            [FinishedSearch.from_json(found) for found in value.get("searches", ())],
            {Arch.parse(a): float(bound) for a, bound in value.get("bounds", {}).items()},
        )

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[PoolEntry]:
        return iter(self.entries)


def _counts(sizes: Iterable[Sizes]) -> list[tuple[dict[str, int], int]]:
    """The distinct sizes, and how many inputs have each, in ascending order."""
    counts = Counter(tuple(sorted(own.items())) for own in sizes)
    return [(dict(own), n) for own, n in sorted(counts.items())]


def _to_json(entry: PoolEntry) -> dict[str, Any]:
    value = {
        "arch": str(entry.arch),
        **entry.costs,
        "accuracy": entry.accuracy,
        "held_out_accuracy": entry.held_out_accuracy,
    }
    return value if entry.n_samples is None else {**value, "n_samples": entry.n_samples}


def _entry(item: Any) -> PoolEntry:
    held_out, n_samples = item["held_out_accuracy"], item.get("n_samples")
    return PoolEntry(
        Arch.parse(item["arch"]),
        float(item[LATENCY]),
        float(item["accuracy"]),
        None if held_out is None else float(held_out),
        None if n_samples is None else int(n_samples),
        {name: float(item[name]) for name in RESOURCES if name in item},
    )
