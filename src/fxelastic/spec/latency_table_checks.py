"""Check that a latency table that was read holds latencies, for all branches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fxelastic.spec.branch_latency import BranchLatency
from fxelastic.spec.costs import MOST, Costs
from fxelastic.spec.costs_by_size import CostsBySize, Sizes
from fxelastic.spec.resources import LATENCY

# More are in no table, and take all memory of the device that measures by it.
_MOST_SAMPLES, _MOST_THREADS, _MOST_SIZE = 2**20, 2**10, 2**31
# What a row may not know.
_UNKNOWN = ("resident_bytes", "hit_rate", "hit_rate_error")


def check_setting(batch_size: int, threads: int, sizes: Iterable[Sizes]) -> None:
    """Check that a device can measure with a table's batch size, threads and sizes.

    Raises:
        ValueError: One of them is out of range.
    """
    for what, low, number, high in (
        ("batch size", 1, batch_size, _MOST_SAMPLES),
        ("number of threads", 0, threads, _MOST_THREADS),
        *(("size", 0, size, _MOST_SIZE) for own in sizes for size in own.values()),
    ):
        if not low <= number <= high:
            raise ValueError(f"the {what} is {number}, and {low} to {high} are read")


def check_costs(
    rows: Mapping[str, BranchLatency], modes: Mapping[str, Costs], by_size: CostsBySize | None
) -> None:
    """Check that a table's numbers are latencies and that all branches have costs.

    Raises:
        ValueError: A number is not a latency, or a branch has no cost.
    """
    for row in rows.values():
        for name, number in vars(row).items():
            unknown = number is None and name in _UNKNOWN
            if not unknown and (type(number) not in (int, float) or not 0 <= number <= MOST):
                raise ValueError(f"{name} is {number!r}")
    if not modes:
        raise ValueError("it has no modes")
    for mode, costs in modes.items():
        for name, found in {LATENCY: costs[LATENCY], **costs}.items():
            if set(found.costs) != set(rows):
                raise ValueError(f"the {name} of {mode} and the rows have different branches")
    if by_size is None:
        return
    if set(by_size.modes) != set(modes):
        raise ValueError("the costs by size have other modes")
    for mode, own in by_size.modes.items():
        terms = [term for terms in own.terms.values() for term in terms]
        if any(set(term.costs) != set(rows) for term in terms):
            raise ValueError(f"the costs by size of {mode} and the rows have different branches")
