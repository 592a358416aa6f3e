"""The costs of branches that follow from the bundle without a measurement."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from math import prod

from fxelastic.edge.bundle import Bundle
from fxelastic.errors import UsageError
from fxelastic.spec.branch_latency import BranchLatency
from fxelastic.spec.costs import BranchCosts
from fxelastic.spec.latency_table import LatencyTable
from fxelastic.spec.resources import WEIGHTS
from fxelastic.spec.value_info import itemsize


def bundle_costs(
    bundle: Bundle,
    batch_size: int,
    rows: Mapping[str, BranchLatency],
    sizes: Mapping[str, int] | None = None,
) -> dict[str, BranchCosts]:
    """The costs of each branch by resource.

    * ``flops``: the operations of a run.
    * ``n_params``: the parameters; of subnets the sum, without regard to shared ones.
    * ``traffic_bytes``: the weights of the branch, and the values that it reads and writes.
    * ``peak_memory_bytes``: the values that exist between blocks while the branch runs, including
      its own outputs, without the temporary memory of its operators. Missing if a size can't be
      computed from the batch size.
    * ``weight_bytes``: the weights; tensors in files that several branches use count once.

    Args:
        bundle: The bundle.
        batch_size: The number of samples in a run.
        rows: The measurements of each branch.
        sizes: Values of other sizes that may vary; the example's for those without an entry.
    """
    all_sizes = bundle.manifest.model.sizes_at(batch_size, sizes)
    flops = {spec.id: batch_size * spec.flops_at(all_sizes) for spec in bundle.space.branches}
    found = {
        "flops": BranchCosts({branch: float(n) for branch, n in flops.items()}),
        "n_params": BranchCosts({s.id: float(s.n_params) for s in bundle.space.branches}),
        "traffic_bytes": BranchCosts(
            {b: float(row.weight_bytes + row.activation_bytes) for b, row in rows.items()}
        ),
        WEIGHTS: _weights(bundle),
    }
    with contextlib.suppress(UsageError):
        found["peak_memory_bytes"] = _live_values(bundle, batch_size, sizes)
    return found


def with_bundle_costs(table: LatencyTable, bundle: Bundle) -> LatencyTable:
    """Add the costs that follow from the bundle, some of which tables of earlier versions lack."""
    costs = bundle_costs(bundle, table.batch_size, table.rows)
    if table.sizes:
        # They hold for the example's sizes, and this table may be for others.
        known = set.intersection(*map(set, table.modes.values()))
        costs = {name: found for name, found in costs.items() if name not in known}
    return table.including(costs)


def _weights(bundle: Bundle) -> BranchCosts:
    segments = [bundle.segment(spec.id) for spec in bundle.space.branches]
    users: dict[str, int] = {}
    for segment in segments:
        for path in segment.data:
            users[path] = users.get(path, 0) + 1
    shared = {
        segment.id: {
            path: float(bundle.files[path].size_bytes) for path in segment.data if users[path] > 1
        }
        for segment in segments
    }
    return BranchCosts(
        {segment.id: float(segment.weight_bytes) for segment in segments},
        shared={branch: parts for branch, parts in shared.items() if parts},
    )


def _live_values(
    bundle: Bundle, batch_size: int, sizes: Mapping[str, int] | None = None
) -> BranchCosts:
    known = bundle.manifest.model.sizes_at(batch_size, sizes)
    n_bytes = {
        value.name: prod(value.shape_at(known)) * itemsize(value.dtype)
        for value in bundle.manifest.values
        if value.constant is None
    }
    costs = {}
    for spec in bundle.space.branches:
        costs[spec.id] = float(
            sum(
                n_bytes[value.name]
                for value in bundle.manifest.values
                if value.name in n_bytes
                and value.produced < spec.stop
                and value.last_read >= (spec.start if value.produced < spec.start else spec.stop)
            )
        )
    return BranchCosts(costs)
