"""Measure branches again, and compare them with the latency table."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from fxelastic.edge.bundle import Bundle
from fxelastic.edge.candidates import table_at
from fxelastic.edge.synthetic_inputs import CHOICES, synthetic
from fxelastic.edge.verified_model import VerifiedModel
from fxelastic.errors import UsageError, said
from fxelastic.spec.cascade import Servable
from fxelastic.spec.costs import BranchCosts
from fxelastic.spec.costs_by_size import Sizes
from fxelastic.spec.latency_table import LatencyTable


@dataclass(frozen=True)
class Drift:
    """The difference between the measured latencies of branches and the table's.

    Attributes:
        load: The common factor by which branches are slower: the weighted median.
        factors: For each branch, its own factor divided by ``load``.
        uneven: The branches whose factor is too far from 1.
        misjudged: Share of the subnet's latency by which the table is wrong for uneven branches.
    """

    load: float
    factors: Mapping[str, float]
    uneven: tuple[str, ...]
    misjudged: float


@dataclass(frozen=True)
class DriftRule:
    """Distinguishes a drift of the table from a load of the device.

    A throttled core, another version of onnxruntime or another memory clock slows down some
    operators and not others. Competing processes slow down all operators by about the same factor,
    which r = actual / estimated accounts for.

    Attributes:
        tolerance: A branch is uneven if it differs from the median by more than this factor.
        share: The table has drifted if at least this share of the latency is misjudged.
        slack_ms: And if it differs by more than this, in ms: alone and after a rest, a branch of
            0.1 ms takes 2 to 3 times as long as in a subnet.
    """

    tolerance: float = 1.25
    share: float = 0.05
    slack_ms: float = 0.2

    def compare(self, table_ms: Mapping[str, float], measured_ms: Mapping[str, float]) -> Drift:
        """Compare measurements with the table.

        Args:
            table_ms: Latency of each branch in the table, in ms.
            measured_ms: Latencies measured close together in time, in ms. Branches without a
                positive latency in both mappings are left out.
        """
        ratios = {
            name: measured / table_ms[name]
            for name, measured in measured_ms.items()
            if 0 < measured < math.inf and 0 < table_ms.get(name, 0.0) < math.inf
        }
        if not ratios:
            return Drift(1.0, {}, (), 0.0)
        # Weight by latency: otherwise a few tiny branches could determine the load.
        load = weighted_median([(ratios[name], table_ms[name]) for name in ratios])
        factors = {name: ratio / load for name, ratio in ratios.items()}
        uneven = tuple(
            name
            for name, factor in factors.items()
            if not 1 / self.tolerance <= factor <= self.tolerance
            and abs(factor - 1) * table_ms[name] > self.slack_ms
        )
        total_ms = math.fsum(table_ms[name] for name in ratios)
        wrong_ms = math.fsum(abs(factors[name] - 1) * table_ms[name] for name in uneven)
        return Drift(load, factors, uneven, wrong_ms / total_ms)

    def drifted(self, drift: Drift) -> bool:
        """Whether the table is no longer valid."""
        return drift.misjudged >= self.share


@dataclass(frozen=True)
class BranchTimer:
    """Runs each branch of a subnet alone, a few times, with rests in between.

    One branch is in memory at a time. The lowest of its latencies counts, because other programs
    only make a branch slower. Inputs are synthetic, see `synthetic`; if a branch fails on random
    integers, other choices are tried.

    Attributes:
        bundle: The bundle.
        open_session: Creates a session from a branch's model.
        batch_size: Batch size of the inputs.
        repeats: The number of runs of each branch, besides one warm-up run.
        rest_s: The rest before each run, in seconds; it keeps the effect on requests small.
        sizes: Sizes of the inputs besides the batch size; None for the example's.
    """

    bundle: Bundle
    open_session: Callable[[VerifiedModel], Any]
    batch_size: int = 1
    repeats: int = 5
    rest_s: float = 0.02
    sizes: Sizes | None = None

    def measure(self, arch: Iterable[str], stop: threading.Event) -> Mapping[str, float]:
        """Measure a subnet's branches.

        Args:
            arch: The subnet, or other branches.
            stop: Set to end early.

        Returns:
            Latencies in ms by branch id; fewer if stopped. Branches whose input sizes can't be
            computed from the batch size are left out.
        """
        latencies: dict[str, float] = {}
        for branch in arch:
            candidates = self._inputs(branch)
            if not candidates:
                continue
            session = self.open_session(self.bundle.model(branch))
            inputs = _running(session, candidates)
            best_s = float("inf")
            for _ in range(self.repeats):
                if stop.wait(self.rest_s):
                    return latencies
                begin_s = time.perf_counter()
                session.run(None, inputs)
                best_s = min(best_s, time.perf_counter() - begin_s)
            latencies[branch] = 1e3 * best_s
            del session
        return latencies

    def _inputs(self, branch: str) -> list[dict[str, Any]]:
        """Inputs for each choice of integers; empty if their sizes are unknown."""
        infos = self.bundle.read_by(branch)
        sizes = self.bundle.manifest.model.sizes_at(self.batch_size, self.sizes)
        try:
            shapes = [info.shape_at(sizes) for info in infos]
        except UsageError:
            return []
        found = []
        for choice in CHOICES:
            rng = np.random.default_rng(0)
            arrays = [synthetic(i, s, rng, choice) for i, s in zip(infos, shapes, strict=True)]
            found.append({info.name: array for info, array in zip(infos, arrays, strict=True)})
        return found


class TableProbe:
    """Compares branches with a `LatencyTable`, and corrects the table. Not thread-safe."""

    def __init__(
        self,
        table: LatencyTable,
        timer: BranchTimer,
        mode: str,
        path: str | os.PathLike[str] | None = None,
        sizes: Sequence[Sizes] = (),
    ) -> None:
        """Start with a table.

        Args:
            table: The device's latency table; not changed in place.
            timer: Measures branches.
            mode: ``assembled`` or ``paged``.
            path: The file for the corrected table; None not to write it.
            sizes: The sizes that the pool's latencies are for, from `sizes_of_pool`.
        """
        self.table = table
        self._sizes = tuple(sizes)
        self._timer = timer
        self._mode = mode
        self._path = None if path is None else Path(path)
        # The contents of the file when this process last read or wrote it.
        self._known = self._bytes()

    def expected_ms(self, arch: Servable) -> Mapping[str, float]:
        """The table's latencies of a subnet's branches."""
        return {branch: self.table.rows[branch].ms for branch in arch}

    def measure(self, arch: Servable, stop: threading.Event) -> Mapping[str, float]:
        """Measure a subnet's branches; see `BranchTimer`."""
        return self._timer.measure(arch, stop)

    def fixed_table(self) -> LatencyTable:
        """The table at the sizes that the pool's latencies are for."""
        return table_at(self.table, self._sizes)

    def renew(self, factors: Mapping[str, float]) -> Callable[[Servable], float]:
        """Multiply the latencies of branches in the table.

        Args:
            factors: The factors by branch id.

        Returns:
            A function that returns the factor by which a subnet's estimate changes.
        """
        old = self.fixed_table()
        self.table = renewed(self.table, factors)
        new = self.fixed_table()
        return lambda arch: new.predict_ms(arch, self._mode) / old.predict_ms(arch, self._mode)

    def save(self) -> None:
        """Write the table, if there is a file for it.

        Raises:
            UsageError: The file can't be written, or another program has changed it; it is then
                left unchanged.
        """
        if self._path is None:
            return
        if self._bytes() != self._known:
            raise UsageError(
                f"{self._path} has changed since serving began, and is not overwritten",
                expected="the table that serving started with",
                got="another file",
                fix="restart serving to use the new table",
            )
        self.table.save(self._path)
        self._known = self._bytes()

    def _bytes(self) -> bytes | None:
        try:
            return None if self._path is None else self._path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as e:
            raise UsageError(
                f"the latency table {self._path} can't be read",
                expected="a file that fxelastic profile wrote, or a path that does not exist yet",
                got=said(e),
                fix="pass another table_path",
            ) from e


def renewed(table: LatencyTable, factors: Mapping[str, float]) -> LatencyTable:
    """A copy of the table with the latencies of some branches multiplied by factors."""
    rows = {
        branch: replace(
            row,
            ms=row.ms * factors.get(branch, 1.0),
            median_ms=row.median_ms * factors.get(branch, 1.0),
            high_ms=row.high_ms * factors.get(branch, 1.0),
        )
        for branch, row in table.rows.items()
    }

    def slowed(found: BranchCosts) -> BranchCosts:
        costs = {b: cost * factors.get(b, 1.0) for b, cost in found.costs.items()}
        return replace(found, costs=costs)

    return replace(table.mapped(slowed), rows=rows)


def _running(session: Any, candidates: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The first inputs on which a session runs; also warms it up."""
    for inputs in candidates[:-1]:
        with contextlib.suppress(Exception):  # onnxruntime's errors have no common base class
            session.run(None, inputs)
            return inputs
    session.run(None, candidates[-1])
    return candidates[-1]


def weighted_median(pairs: list[tuple[float, float]]) -> float:
    """The value with half of the weight below it and half above."""
    pairs.sort()
    half = math.fsum(weight for _, weight in pairs) / 2
    seen = 0.0
    for value, weight in pairs:
        seen += weight
        if seen >= half:
            return value
    return median(value for value, _ in pairs)
