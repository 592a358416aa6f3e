"""The subnets of a run: one row for each, the recommended one, and the headline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fxelastic.report.run_folder import RunFolder
from fxelastic.spec import Arch
from fxelastic.spec.branch_spec import ORIGINAL
from fxelastic.spec.resources import ENERGY, LATENCY

#: The recommended subnet may lose so much of the best score.
TOLERANCE = 0.01


@dataclass(frozen=True)
class Row:
    """A subnet or a cascade with its figures; unknown ones are None.

    Attributes:
        name: Its name in the report's table and plots.
        arch: The subnet as text; empty for a cascade.
        predicted_ms: Its latency by the table.
        measured_ms: Its latency in a run of its own.
        score: Its score on the data of the search.
        accuracy: Its accuracy on data of its own, which nothing was chosen by.
        energy_mj: The energy of a run.
        budgets: The budgets that it is the best for.
        n_replaced: How many of the original's blocks other branches replace.
        note: What else to say about it.
        recommended: Whether it is the recommended subnet.
    """

    name: str
    arch: str
    predicted_ms: float | None = None
    measured_ms: float | None = None
    score: float | None = None
    accuracy: float | None = None
    energy_mj: float | None = None
    budgets: tuple[str, ...] = ()
    n_replaced: int | None = None
    note: str = ""
    recommended: bool = False

    @property
    def ms(self) -> float | None:
        """Its latency: measured, else predicted."""
        return self.predicted_ms if self.measured_ms is None else self.measured_ms

    @property
    def is_original(self) -> bool:
        """Whether it is the original."""
        return self.name == ORIGINAL


def rows_of(run: RunFolder) -> list[Row]:
    """The original, the distinct subnets of the budgets, slowest first, and the cascades."""
    searched = {str(row["arch"]): row for row in (run.search or {}).get("budgets", ())}
    scores = {str(entry.arch): entry.accuracy for entry in run.pool or ()}
    found: dict[str, Row] = {}
    original = _original(run, scores)
    if original is not None:
        found[original.arch] = original
    for row in run.chosen:
        arch = str(row["arch"])
        budget = _budget(row)
        if arch in found:
            found[arch] = replace(found[arch], budgets=(*found[arch].budgets, budget))
            continue
        known = searched.get(arch, {})
        found[arch] = Row(
            "",
            arch,
            predicted_ms=_first(row, "predicted_ms", LATENCY),
            measured_ms=row.get("measured_ms"),
            score=known.get("accuracy", scores.get(arch)),
            accuracy=None if run.measured is None else row["accuracy"],
            energy_mj=row.get(ENERGY, known.get(ENERGY)),
            budgets=(budget,),
            n_replaced=_replaced(run, arch, row),
        )
    originals = [row for row in found.values() if row.is_original]
    subnets = sorted(
        (row for row in found.values() if not row.is_original), key=lambda row: -(row.ms or 0.0)
    )
    named = [replace(row, name=f"subnet {i}") for i, row in enumerate(subnets, 1)]
    return _recommend([*originals, *named]) + _cascades(run)


def headline(rows: Sequence[Row]) -> str:
    """What the recommended subnet gains and loses against the original, in one line."""
    best = next((row for row in rows if row.recommended), None)
    whole = next((row for row in rows if row.is_original), None)
    if best is None or whole is None or not best.ms or not whole.ms:
        return ""
    # Both as measured, or both as predicted.
    pair = (best.measured_ms, whole.measured_ms)
    if None in pair:
        pair = (best.predicted_ms, whole.predicted_ms)
    if not pair[0] or not pair[1]:
        return ""
    share = pair[0] / pair[1]
    text = f"{1 / share:.1f}× faster"
    for name, mine, theirs in (
        ("on test data", best.accuracy, whole.accuracy),
        ("by the search's score", best.score, whole.score),
    ):
        if mine is not None and theirs is not None:
            points = f"{100 * (mine - theirs):+.1f}".replace("-", "−")
            text += f" at {points} points {name}"
            break
    return f"{text}: {best.name} takes {share:.0%} of the original's latency"


def _recommend(rows: list[Row]) -> list[Row]:
    """Mark the quickest subnet that is nearly as good as the best, by what the search knew."""
    searched = any(row.score is not None for row in rows)

    def score(row: Row) -> float | None:
        return row.score if searched else row.accuracy

    known = [row for row in rows if score(row) is not None and row.ms]
    if not known:
        return rows
    least = max(score(row) or 0.0 for row in known) - TOLERANCE
    good = [row for row in known if (score(row) or 0.0) >= least - 1e-9]
    best = min(good, key=lambda row: row.ms or 0.0)
    return [replace(row, recommended=row is best) for row in rows]


def _original(run: RunFolder, scores: Mapping[str, float]) -> Row | None:
    measured = (run.measured or {}).get(ORIGINAL)
    arch = "" if run.bundle is None else str(run.bundle.space.original)
    if measured is None and run.original_ms is None:
        return None
    row = measured or {"predicted_ms": run.original_ms}
    searched = (run.search or {}).get(ORIGINAL) or {}
    arch = str(row.get("arch", arch))
    return Row(
        ORIGINAL,
        arch,
        predicted_ms=row.get("predicted_ms"),
        measured_ms=row.get("measured_ms"),
        score=scores.get(arch, searched.get("accuracy")),
        accuracy=row.get("accuracy"),
        energy_mj=row.get(ENERGY, searched.get(ENERGY)),
        n_replaced=0,
    )


def _cascades(run: RunFolder) -> list[Row]:
    """The cascades: on test data if they were run there, else as found."""
    ran: Iterable[Mapping[str, Any]] = (run.measured or {}).get("cascades") or ()
    found = list(ran) or list((run.search or {}).get("cascades") or ())
    rows = []
    for i, cascade in enumerate(found, 1):
        early = 1 - cascade["coverage"][-1]
        rows.append(
            Row(
                f"cascade {i}",
                "",
                predicted_ms=_first(cascade, "predicted_ms", LATENCY),
                score=None if ran else cascade.get("accuracy"),
                accuracy=cascade.get("accuracy") if ran else None,
                energy_mj=cascade.get(ENERGY),
                note=f"{early:.0%} of the samples leave early; the bound on its loss is "
                f"{cascade['bound']:.1%}",
            )
        )
    return rows


def _budget(row: Mapping[str, Any]) -> str:
    if "budget" in row:
        return str(row["budget"])
    ms = row.get("budget_ms")
    return "-" if ms is None else f"{ms:.3g} ms"


def _replaced(run: RunFolder, arch: str, row: Mapping[str, Any]) -> int | None:
    if "n_replaced" in row or run.bundle is None:
        return row.get("n_replaced")
    specs = run.bundle.space.specs(Arch.parse(arch))
    return sum(spec.stop - spec.start for spec in specs if spec.kind != ORIGINAL)


def _first(row: Mapping[str, Any], *names: str) -> float | None:
    return next((float(row[name]) for name in names if row.get(name) is not None), None)
