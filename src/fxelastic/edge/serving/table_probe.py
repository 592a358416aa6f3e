"""The latency table of a runtime: measured anew where it no longer holds."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from fxelastic.edge.serving.probe import BranchTimer
from fxelastic.errors import UsageError
from fxelastic.spec import Arch
from fxelastic.spec.costs import BranchCosts
from fxelastic.spec.latency_table import LatencyTable


class TableProbe:
    """A `Probe` of a `LatencyTable`; safe in one thread at a time."""

    def __init__(
        self,
        table: LatencyTable,
        timer: BranchTimer,
        mode: str,
        path: str | os.PathLike[str] | None = None,
    ) -> None:
        """Begin with a table.

        Args:
            table: The device's latencies; it stays as it is.
            timer: Measures branches.
            mode: How subnets are run.
            path: Where the renewed table goes; None for nowhere.
        """
        self.table = table
        self._timer = timer
        self._mode = mode
        self._path = None if path is None else Path(path)
        # What is in the file as far as this process knows.
        self._known = self._bytes()

    def expected_ms(self, arch: Arch) -> Mapping[str, float]:
        """What the table says of a subnet's branches; see `Probe`."""
        return {branch: self.table.rows[branch].ms for branch in arch}

    def measure(self, arch: Arch, stop: threading.Event) -> Mapping[str, float]:
        """Measure a subnet's branches; see `Probe`."""
        return self._timer.measure(arch, stop)

    def renew(self, factors: Mapping[str, float]) -> Callable[[Arch], float]:
        """Multiply branches' latencies in the table; see `Probe`."""
        old = self.table
        self.table = new = renewed(old, factors)
        return lambda arch: new.predict_ms(arch, self._mode) / old.predict_ms(arch, self._mode)

    def save(self) -> None:
        """Write the table, if it goes to a file.

        Raises:
            UsageError: The file can't be written, or somebody else has; it is as it was.
        """
        if self._path is None:
            return
        if self._bytes() != self._known:
            raise UsageError(
                f"{self._path} is another table by now, and is kept",
                expected="the one that serving began with",
                got="one that was written since",
                fix="serve again, to use that one",
            )
        self.table.save(self._path)
        self._known = self._bytes()

    def _bytes(self) -> bytes | None:
        try:
            return None if self._path is None else self._path.read_bytes()
        except FileNotFoundError:
            return None


def renewed(table: LatencyTable, factors: Mapping[str, float]) -> LatencyTable:
    """A table in which some branches take longer, or less long."""
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
