"""The parts of a run in a folder: table, pool, search, measurements, trace; one is enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fxelastic.edge.bundle import Bundle, load
from fxelastic.edge.pool import SubnetPool
from fxelastic.errors import UsageError
from fxelastic.files import read_regular
from fxelastic.report.shapes import EXPLAINED, MEASURED, SEARCH, problem
from fxelastic.report.trace import TraceData, read_trace
from fxelastic.spec.bounded_json import loads
from fxelastic.spec.latency_table import LatencyTable

MEASURED_SCHEMA = "fxelastic.measured/1"


@dataclass(frozen=True)
class RunFolder:
    """The parts of a run that a folder holds.

    Attributes:
        path: The folder.
        bundle: ``bundle/``.
        table: ``bundle.latency.json``, from ``fxelastic profile``.
        pool: ``bundle.pool.json``, from ``fxelastic search``.
        search: ``search.json``, the output of ``fxelastic search --json``.
        measured: ``measured.json``: latency and accuracy of subnets that were run.
        trace: ``trace.jsonl``, from ``fxelastic serve --trace``.
        cuts: The scores of cuts in ``explain.json``, from ``fxelastic explain --exits --json``.
    """

    path: Path
    bundle: Bundle | None = None
    table: LatencyTable | None = None
    pool: SubnetPool | None = None
    search: Mapping[str, Any] | None = None
    measured: Mapping[str, Any] | None = None
    trace: TraceData | None = None
    cuts: Mapping[str, Any] | None = None

    @classmethod
    def read(cls, path: str | Path) -> RunFolder:
        """Read the parts that the folder holds.

        Raises:
            UsageError: The folder does not exist, holds no part of a run, or a file is damaged.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise UsageError(
                f"{folder} is not a folder", expected="the folder of a run", got=repr(str(path))
            )

        def there(name: str) -> Path | None:
            file = folder / name
            return file if file.exists() else None

        bundle, table, pool = (
            there("bundle"),
            there("bundle.latency.json"),
            there("bundle.pool.json"),
        )
        search, measured, trace = there("search.json"), there("measured.json"), there("trace.jsonl")
        run = cls(
            folder,
            None if bundle is None else load(bundle),
            None if table is None else LatencyTable.load(table),
            None if pool is None else SubnetPool.load(pool),
            None if search is None else _json(search, "fxelastic.search/1", SEARCH),
            None if measured is None else _json(measured, MEASURED_SCHEMA, MEASURED),
            None if trace is None else read_trace(trace),
            _cuts(there("explain.json")),
        )
        if not any((table, pool, search, measured, trace, run.cuts)):
            raise UsageError(
                f"{folder} holds nothing to report",
                expected="at least one of bundle.latency.json, bundle.pool.json, search.json, "
                "measured.json, trace.jsonl, explain.json; bundle/ alone is not enough",
                got=", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing",
                fix="write them with fxelastic profile, search and serve --trace",
            )
        return run

    @property
    def original_ms(self) -> float | None:
        """The original's latency: measured, else predicted, at the sizes of the search."""
        if self.measured is not None and self.measured.get("original") is not None:
            return float(self.measured["original"]["measured_ms"])
        if self.search is not None and self.search.get("original_ms") is not None:
            return float(self.search["original_ms"])
        if self.table is not None and self.bundle is not None:
            return self.table.predict_ms(self.bundle.space.original)
        return None

    @property
    def chosen(self) -> Sequence[Mapping[str, Any]]:
        """The subnets of the budgets: measured, else as found."""
        if self.measured is not None:
            return list(self.measured["subnets"])
        return list(self.search["budgets"]) if self.search is not None else []


def _cuts(path: Path | None) -> Mapping[str, Any] | None:
    return None if path is None else _json(path, "fxelastic.explain/1", EXPLAINED).get("exits")


def _json(path: Path, schema: str, shape: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        value = loads(read_regular(path, follow=True))
        found = value.get("schema") if isinstance(value, dict) else None
        if found != schema:
            raise ValueError(f"schema {found!r}")
        wrong = problem(value, shape)
        if wrong:
            raise ValueError(wrong)
    except (OSError, ValueError) as e:
        raise UsageError(
            f"{path} can't be read",
            expected=f"a file of schema {schema}",
            got=f"{type(e).__name__}: {e}",
            fix="write it again, or move it away",
        ) from e
    return dict(value)
