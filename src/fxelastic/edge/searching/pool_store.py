"""The pool of a search, in memory and on disk."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from fxelastic.edge.bundle import Bundle
from fxelastic.edge.cascades.entry import CascadeEntry
from fxelastic.edge.finished_search import FinishedSearch
from fxelastic.edge.pool import TARGETS, PoolEntry, SubnetPool
from fxelastic.edge.searching.evaluation import Evaluator
from fxelastic.errors import UsageError
from fxelastic.spec import Arch
from fxelastic.spec.latency_table import LatencyTable
from fxelastic.spec.resources import LATENCY


class PoolStore:
    """Reads what a pool on disk knows, and writes what a search finds."""

    def __init__(
        self,
        bundle: Bundle,
        table: LatencyTable,
        mode: str,
        data_digest: str,
        path: str | os.PathLike[str] | None,
        evaluator: Evaluator,
        labelled: bool,
    ) -> None:
        self._targets = TARGETS[0] if labelled else TARGETS[1]
        self._bundle = bundle
        self._table = table
        self._mode = mode
        self._data_digest = data_digest
        self._path = path
        self._evaluator = evaluator
        self.held_out: dict[Arch, float] = {}
        self.cascades: tuple[CascadeEntry, ...] = ()
        self.searches: dict[str, FinishedSearch] = {}
        self._partial: list[PoolEntry] = []  # of earlier searches that were short of time
        # With branches that this search leaves out.
        self._left_out: list[PoolEntry] = []
        self._other_cascades: tuple[CascadeEntry, ...] = ()

    def resume(self) -> None:
        """Read the scores of a pool on disk.

        Raises:
            UsageError: The file holds no pool, or one of another bundle, data or score.
        """
        if self._path is None or not Path(self._path).exists():
            return
        pool = SubnetPool.load(self._path)
        if (pool.bundle_digest, pool.data_digest) != (self._bundle.digest, self._data_digest):
            raise UsageError(
                f"{self._path} is the pool of another search",
                expected="a pool of this bundle, these samples and this score",
                got="a pool of another bundle"
                if pool.bundle_digest != self._bundle.digest
                else "a pool of other data, of another score, or with another share held out",
                fix="name another file, or search with the pool's score and held_out",
            )
        self.searches = {found.key: found for found in pool.searches}
        self._evaluator.known_bounds = dict(pool.bounds)
        known = {spec.id for spec in self._bundle.space.branches}
        others = {segment.id for segment in self._bundle.manifest.segments} - known
        for entry in pool.entries:
            if not others.isdisjoint(entry.arch):
                self._left_out.append(entry)
                continue
            self._bundle.space.validate(entry.arch)
            if entry.n_samples is None:
                self._evaluator.known[entry.arch] = entry.accuracy
            else:
                costs = self._table.predict(entry.arch, mode=self._mode)
                self._partial.append(entry.at(costs))
            if entry.held_out_accuracy is not None:
                self.held_out[entry.arch] = entry.held_out_accuracy
        latencies = self._table.costs_of(self._mode)[LATENCY]
        for found in pool.cascades:
            if others.isdisjoint(found.cascade):
                self.cascades += (found.at(latencies),)
            else:
                self._other_cascades += (found,)

    def pool(self) -> SubnetPool:
        """Everything that was evaluated, but for subnets with branches that are left out."""
        return self._pool((), ())

    def _pool(
        self, others: Sequence[PoolEntry], other_cascades: Sequence[CascadeEntry]
    ) -> SubnetPool:
        evaluator = self._evaluator
        n_samples = len(evaluator.data) if evaluator.is_shortened else None
        return SubnetPool.of(
            self._bundle.digest,
            [
                *others,
                *self._partial,
                *(self._entry(arch, score, n_samples) for arch, score in evaluator.known.items()),
            ],
            self._data_digest,
            evaluator.metric.name,
            self._targets,
            self._table.sizes,
            (*other_cascades, *self.cascades),
            self.searches.values(),
            {**evaluator.known_bounds, **evaluator.bounds},
        )

    def finished(self, key: str, n_limits: int) -> FinishedSearch | None:
        """The answer of the same search, if it ran to its end and all its subnets are known."""
        found = self.searches.get(key)
        if found is None or len(found.bests) != n_limits:
            return None
        known = self._evaluator.known
        return found if all(arch in known for arch in found.bests) else None

    def unmeasured(self, arch: Arch) -> PoolEntry:
        """A subnet that was not evaluated."""
        return self._entry(arch, math.nan, 0)

    def score_held_out(self, archs: Sequence[Arch], outside: Evaluator, end_s: float) -> None:
        """Score subnets on samples held out, as far as there is time.

        Args:
            archs: The subnets, the most important first.
            outside: Evaluates on these samples.
            end_s: When to end, by the evaluator's clock.
        """
        wanted = [arch for arch in archs if arch not in self.held_out]
        if math.isinf(end_s):
            self.held_out |= outside.scores(wanted)
            return
        for arch in wanted:
            # Without targets, the first one also takes a run of the original.
            n_runs = 1 + (not outside.known and not outside.data.labelled)
            pace = outside if outside.known else self._evaluator
            left_s = end_s - outside.clock()
            if pace.expected_s(n_runs, len(outside.data)) > left_s:
                break
            self.held_out |= outside.scores([arch], stop=lambda: outside.clock() >= end_s)

    def _entry(self, arch: Arch, score: float, n_samples: int | None) -> PoolEntry:
        costs = self._table.predict(arch, mode=self._mode)
        held_out = self.held_out.get(arch)
        return PoolEntry(arch, costs[LATENCY], score, held_out, n_samples, costs)

    def save(self) -> None:
        """Write the pool, if it goes to a file."""
        if self._path is not None and self._evaluator.known:
            self._pool(self._left_out, self._other_cascades).save(self._path)
