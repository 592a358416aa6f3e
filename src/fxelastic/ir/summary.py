"""What a supernet is made of, for terminals."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from fxelastic.ir.notes import opened_lines
from fxelastic.ir.table import aligned, engineering

if TYPE_CHECKING:
    from fxelastic.ir.branch import Skip
    from fxelastic.ir.partition import Partition
    from fxelastic.ir.supernet import Supernet

# Where twins stand: of "pruned50@3 is the same as pruned25@3, bit for bit" only the kinds count.
_PLACE = re.compile(r"(?<=\w)@\d+(-\d+)?(?= is the same as |, bit for bit$)")


def summary(supernet: Supernet) -> str:
    """The branches of each kind, the number of subnets, the size, and what was not made.

    Branches that were not made for the same reason share a line.
    """
    blocks, count = supernet.space.n_blocks, supernet.space.count()
    base = supernet.partition.n_params
    rows = [("kind", "branches", "params", "FLOPs", "approximate")]
    for kind in dict.fromkeys(spec.kind for spec in supernet.space.branches):
        branches = [branch for branch in supernet.branches.values() if branch.kind == kind]
        rows.append(
            (
                kind,
                str(len(branches)),
                f"{sum(branch.n_params for branch in branches):,}",
                engineering(sum(branch.flops for branch in branches)),
                str(sum(branch.approximate for branch in branches) or "-"),
            )
        )
    ratio = f"{supernet.n_params / base:.2f}" if base else "-"
    lines = [
        f"Supernet of {supernet.partition.model_name}: {blocks} block{'s' * (blocks != 1)}, "
        f"{len(supernet.branches)} branch{'es' * (len(supernet.branches) != 1)}, "
        f"{_count(count)} subnet{'s' * (count != 1)}",
        "",
        *aligned(rows, right={1, 2, 3, 4}),
        "",
        f"{supernet.n_params:,} parameters, {ratio} × the model's {base:,}",
        *_inputs(supernet.partition),
        *opened_lines(supernet.partition.opened_modules),
    ]
    if supernet.skips:
        lines += ["", f"{len(supernet.skips)} branches not made:"]
        lines += _reasons(supernet.skips)
    return "\n".join(lines)


def _inputs(partition: Partition) -> list[str]:
    """Lines that name the inputs with and without samples, if there are several inputs."""
    if len(partition.signature.inputs) < 2:
        return []
    whole = [name for name in partition.signature.names if name not in partition.batched]
    lines = [f"inputs that hold samples: {', '.join(partition.batched) or 'none'}"]
    return lines + [f"inputs that are passed whole: {', '.join(whole)}"] * bool(whole)


def _count(n: int) -> str:
    return f"{n:,}" if n < 10**12 else f"about {n:.2g}"


def _reasons(skips: Iterable[Skip]) -> list[str]:
    """A line for each kind and reason, the most frequent first.

    Reasons that differ only in the blocks of the branches that they name count as one.
    """
    counts = Counter((skip.kind, _PLACE.sub("", skip.reason)) for skip in skips)
    order = sorted(counts, key=lambda key: -counts[key])
    return [
        f"{counts[key]:4} × {key[0]}: {key[1]}" if key[0] else f"{counts[key]:4} × {key[1]}"
        for key in order
    ]
