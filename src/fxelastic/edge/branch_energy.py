"""The energy of a bundle's branches: by a counter or the processor's power, and by accesses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from fxelastic.edge.latency_model import Measured, fit_mode
from fxelastic.spec import Arch, SearchSpace
from fxelastic.spec.branch_latency import BranchLatency
from fxelastic.spec.costs import BranchCosts
from fxelastic.spec.costs_by_size import ModeBySize
from fxelastic.spec.resources import ACCESS_ENERGY, ENERGY, LATENCY

_PJ_PER_MJ = 1e9


@dataclass(frozen=True)
class AccessCoefficients:
    """The energies of Eq. 3, each a power divided by a frequency.

    The defaults are for a chip of 45 nm: half of a multiplication and an addition of 32 bits, a
    read from a cache of 1 MiB, and the least of a read from DRAM. They leave out the energy of
    instructions and of the idle chip, so they are good for comparing branches, not for budgets.

    Attributes:
        operation_pj: The energy of a floating point operation, in pJ.
        hit_pj: The energy of a byte that is in the cache, in pJ.
        miss_pj: The energy of a byte that comes from memory, in pJ.

    Source: AdaScale, Eq. 3; M. Horowitz, Computing's Energy Problem, ISSCC 2014, figure 1.1.9.
    """

    operation_pj: float = 2.3
    hit_pj: float = 12.5
    miss_pj: float = 162.5


def hit_rate(row: BranchLatency) -> float:
    """The share of a branch's bytes that are in the cache.

    Without a measurement, the values between branches are, and the weights are not.
    """
    if row.hit_rate is not None:
        return row.hit_rate
    total = row.weight_bytes + row.activation_bytes
    return row.activation_bytes / total if total else 1.0


def access_energy(
    flops: BranchCosts,
    traffic: BranchCosts,
    rows: Mapping[str, BranchLatency],
    given: AccessCoefficients | None = None,
) -> BranchCosts:
    """The energy of each branch by its operations and its accesses, in mJ.

    Args:
        flops: The operations of each branch.
        traffic: The bytes that it reads and writes (Eq. 4).
        rows: The measurements of each branch, with its hit rate.
        given: The coefficients.
    """
    of = given or AccessCoefficients()
    costs = {}
    for branch, n_bytes in traffic.costs.items():
        hits = hit_rate(rows[branch])
        byte_pj = hits * of.hit_pj + (1 - hits) * of.miss_pj
        costs[branch] = (of.operation_pj * flops.costs[branch] + byte_pj * n_bytes) / _PJ_PER_MJ
    source = (
        f"{of.operation_pj:g} pJ per operation, {of.hit_pj:g} pJ per byte in the cache, "
        f"{of.miss_pj:g} pJ per byte in memory"
    )
    return BranchCosts(costs, source=source)


def energy_by_power(latency: BranchCosts, watts: float, source: str) -> BranchCosts:
    """The energy of each branch at a constant power, in mJ, with the error of the latency.

    Args:
        latency: The latencies, in ms.
        watts: The power while a subnet runs, in W.
        source: Where the power comes from.
    """
    return BranchCosts(
        {branch: watts * ms for branch, ms in latency.costs.items()},
        watts * latency.overhead,
        latency.error,
        latency.doubt,
        source=source,
    )


def energy_by_counter(
    space: SearchSpace,
    rows: Mapping[str, BranchLatency],
    latency: BranchCosts,
    archs: Sequence[Arch],
    measure: Callable[[Arch], float],
    n_held_out: int,
    source: str,
) -> BranchCosts:
    """The energy of each branch, fitted to that of whole subnets, in mJ.

    The fit is the one of latencies: the sum over branches at the original's power, with small
    corrections.

    Args:
        space: The search space.
        rows: The measurements of each branch.
        latency: The latencies of a mode, in ms.
        archs: The subnets to measure, besides the original.
        measure: Returns the energy of a run of a subnet, in mJ.
        n_held_out: The number of subnets that the error is measured on.
        source: The counter.
    """
    original = Measured(space.original, measure(space.original))
    sum_ms = latency.overhead + sum(latency.costs[branch] for branch in space.original)
    watts = original.ms / max(sum_ms, 1e-9)
    scaled = {
        branch: replace(row, ms=watts * latency.costs[branch]) for branch, row in rows.items()
    }
    measured = [Measured(arch, measure(arch)) for arch in archs]
    held_out, fitted = measured[:n_held_out], measured[n_held_out:]
    found = fit_mode(space, scaled, fitted, held_out, original)
    return replace(found, source=source)


def energies_by_size(
    mode: ModeBySize, watts: float, rows: Mapping[str, BranchLatency]
) -> ModeBySize:
    """A mode's costs by size with the energies, which are linear in those that they follow from.

    Args:
        mode: The costs by size.
        watts: The power while a subnet runs, in W.
        rows: The measurements of each branch.
    """
    terms = dict(mode.terms)
    terms[ENERGY] = tuple(energy_by_power(term, watts, "") for term in terms[LATENCY])
    if "flops" in terms and "traffic_bytes" in terms:
        pairs = zip(terms["flops"], terms["traffic_bytes"], strict=True)
        terms[ACCESS_ENERGY] = tuple(access_energy(f, t, rows) for f, t in pairs)
    return replace(mode, terms=terms)
