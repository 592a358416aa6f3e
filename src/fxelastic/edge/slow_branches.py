"""Which branches a device gains nothing from: those that are no faster than what they replace."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate

from fxelastic.edge import int8_branches
from fxelastic.edge.bundle import Bundle
from fxelastic.spec.latency_table import LatencyTable
from fxelastic.spec.limits import Limits
from fxelastic.spec.resources import LATENCY

_ORIGINAL = "original"


def used(
    bundle: Bundle,
    table: LatencyTable,
    mode: str,
    limits: Iterable[Limits],
    others: Iterable[str] = (),
) -> Bundle:
    """The bundle without the branches that a search within limits can do without.

    These are the 8-bit branches that the device does not use, and, if the latency alone is
    limited, the branches that are no faster than what they replace. Such a branch may still help
    to keep a limit on another resource.

    Args:
        bundle: The bundle.
        table: The device's costs.
        mode: ``assembled`` or ``paged``.
        limits: The limits of the search.
        others: Further resources that count.

    Raises:
        UsageError: The table has no such mode.
    """
    bundle = int8_branches.used(bundle, table, mode)
    if any(set(each) - {LATENCY} for each in (*limits, tuple(others))):
        return bundle
    return bundle.without(no_faster(bundle, table, mode))


def no_faster(bundle: Bundle, table: LatencyTable, mode: str) -> dict[str, str]:
    """The branches that are no faster than the originals that they replace, and the reasons.

    The originals make no error, so a slower branch is never the better choice.

    Raises:
        UsageError: The table has no such mode.
    """
    costs_ms = table.costs(mode)
    original = bundle.space.original
    until_ms = [0.0, *accumulate(costs_ms[branch] for branch in original)]
    found = {}
    for spec in bundle.space.branches:
        ours_ms = costs_ms.get(spec.id)
        replaced_ms = until_ms[spec.stop] - until_ms[spec.start]
        if spec.kind != _ORIGINAL and ours_ms is not None and ours_ms >= replaced_ms:
            found[spec.id] = (
                f"it takes {ours_ms:.3g} ms, and the original branches that it replaces "
                f"{replaced_ms:.3g} ms"
            )
    return found
