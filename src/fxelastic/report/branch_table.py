"""The table of a bundle's branches on a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fxelastic.edge.int8_branches import unused_in
from fxelastic.report.run_folder import RunFolder
from fxelastic.spec.branch_spec import ORIGINAL
from fxelastic.spec.columns import engineering
from fxelastic.spec.resources import ENERGY

# A phone shows the first three without scrolling.
HEADER = ("branch", "ms", "of original", "mJ", "params", "FLOPs", "kind", "stands for", "not used")


@dataclass(frozen=True)
class Cell:
    """A cell of a table that sorts.

    Attributes:
        text: Its text.
        value: What it sorts by; a text sorts by itself.
    """

    text: str
    value: float | None = None


def branch_rows(run: RunFolder) -> list[Sequence[Cell]]:
    """A row for each branch, with its costs on the device, as far as they are known."""
    if run.bundle is None:
        return []
    manifest, space = run.bundle.manifest, run.bundle.space
    known = {} if run.table is None else dict(run.table.costs_of("assembled").items())
    ms = {} if run.table is None else run.table.costs()
    energy = known[ENERGY].costs if ENERGY in known else {}
    reasons = {} if run.table is None else unused_in(run.bundle, run.table, "assembled")
    original = {spec.start: ms.get(spec.id) for spec in space.branches if spec.kind == ORIGINAL}
    rows: list[Sequence[Cell]] = []
    for spec in space.branches:
        blocks = [block.name for block in manifest.blocks[spec.start : spec.stop]]
        replaced = [original.get(i) for i in range(spec.start, spec.stop)]
        whole = sum(cost or 0.0 for cost in replaced)
        latency = ms.get(spec.id)
        share = latency / whole if latency is not None and whole else None
        rows.append(
            (
                Cell(spec.id),
                _number(latency, "{:.4f}"),
                _number(share, "{:.0%}"),
                _number(energy.get(spec.id), "{:.3f}"),
                Cell(f"{spec.n_params:,}", spec.n_params),
                Cell(engineering(spec.flops), spec.flops),
                Cell(spec.kind),
                Cell(blocks[0] if len(blocks) == 1 else f"{blocks[0]} to {blocks[-1]}", spec.start),
                Cell(reasons.get(spec.id, "")),
            )
        )
    return rows


def _number(value: float | None, form: str) -> Cell:
    return Cell("-") if value is None else Cell(form.format(value), value)
