"""Latency tables that are functions of a sequence's length, without a device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fxelastic.spec.branch_latency import BranchLatency
from fxelastic.spec.costs import BranchCosts, Costs
from fxelastic.spec.costs_by_size import Correction, CostsBySize, ModeBySize
from fxelastic.spec.latency_table import LatencyTable
from fxelastic.spec.symbols import Symbol

#: The example's length, and the lengths that the table was fitted to.
SEQ, MEASURED = Symbol("seq", 64, 1, 512), (16, 64, 256)


def growth(seq: int) -> float:
    """The latency at a length, as a multiple of the latency at 64: 0.3 at 16, and 6 at 256."""
    return 0.1 + 0.7 * seq / 64 + 0.2 * (seq / 64) ** 2


def sized_table(
    example_ms: Mapping[str, float],
    symbols: tuple[Symbol, ...] = (SEQ,),
    measured: tuple[int, ...] = MEASURED,
    bundle_digest: str = "d" * 64,
) -> LatencyTable:
    """A table in which the latency of every branch follows `growth` of the first symbol.

    Args:
        example_ms: The latency of each branch at 64.
        symbols: The sizes that vary; the latency depends on the first.
        measured: The values of each symbol that the table was fitted to.
        bundle_digest: The bundle's digest.
    """
    name = symbols[0].name
    terms = tuple(
        BranchCosts({branch: share * ms for branch, ms in example_ms.items()})
        for share in (0.1, 0.7 / 64, 0.2 / 64**2)
    )
    correction = Correction(tuple(sum(term.costs.values()) for term in terms))
    mode = ModeBySize({"latency_ms": terms}, correction)
    costs = Costs({"latency_ms": BranchCosts(dict(example_ms))})
    sizes = tuple({symbol.name: size for symbol in symbols} for size in measured)
    modes = {"assembled": costs, "paged": costs}
    table = LatencyTable(
        *(bundle_digest, {}, 1, 1, "CPUExecutionProvider"),
        {branch: BranchLatency(ms, ms, ms, 5, 10, 10) for branch, ms in example_ms.items()},
        modes,
        by_size=CostsBySize(symbols, sizes, ("1", name, f"{name}**2"), dict.fromkeys(modes, mode)),
    )
    example = table.at({symbol.name: symbol.example for symbol in symbols})
    return replace(table, modes=example.modes, sizes=example.sizes)
