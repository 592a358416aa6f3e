"""A supernet's branches, subnets and size, for terminals."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from fxelastic.ir.block import BlockGraph
from fxelastic.ir.branch import Branch, Refusal
from fxelastic.ir.table import batch_lines, opened_lines
from fxelastic.spec import SearchSpace
from fxelastic.spec.columns import aligned, engineering

# The places of twins: "pruned50@3 is the same as pruned25@3, bit for bit" is grouped by kinds.
_PLACE = re.compile(r"(?<=\w)@\d+(-\d+)?(?= is the same as |, bit for bit$)")


def summary(
    partition: BlockGraph,
    space: SearchSpace,
    branches: Mapping[str, Branch],
    refusals: Sequence[Refusal],
) -> str:
    """The branches of each kind, the number of subnets, the size, and the refusals.

    Refusals with the same reason share a line.
    """
    blocks, count, base = space.n_blocks, space.count(), partition.n_params
    rows = [("kind", "branches", "params", "FLOPs", "approximate")]
    for kind in dict.fromkeys(spec.kind for spec in space.branches):
        made = [branch for branch in branches.values() if branch.kind == kind]
        rows.append(
            (
                kind,
                str(len(made)),
                f"{sum(branch.n_params for branch in made):,}",
                engineering(sum(branch.flops for branch in made)),
                str(sum(branch.approximate for branch in made) or "-"),
            )
        )
    n_params = sum(spec.n_params for spec in space.branches)
    ratio = f"{n_params / base:.2f}" if base else "-"
    lines = [
        f"Supernet of {partition.model_name}: {blocks} block{'s' * (blocks != 1)}, "
        f"{len(branches)} branch{'es' * (len(branches) != 1)}, "
        f"{_count(count)} subnet{'s' * (count != 1)}",
        "",
        *aligned(rows, right={1, 2, 3, 4}),
        "",
        f"{n_params:,} parameters, {ratio} × the model's {base:,}",
        *batch_lines(partition),
        *_inputs(partition),
        *opened_lines(partition.opened_modules),
    ]
    if refusals:
        lines += ["", f"{len(refusals)} branches not made:", *_reasons(refusals)]
    return "\n".join(lines)


def _inputs(partition: BlockGraph) -> list[str]:
    """A line that names the inputs without samples, if there are any."""
    whole = [name for name in partition.signature.names if name not in partition.batched]
    return [f"inputs that are passed whole: {', '.join(whole)}"] * bool(whole)


def _count(n: int) -> str:
    return f"{n:,}" if n < 10**12 else f"about {n:.2g}"


def _reasons(refusals: Iterable[Refusal]) -> list[str]:
    """A line for each kind and reason, the most frequent first.

    Reasons that differ only in the blocks of the branches that they name count as one.
    """
    counts = Counter((found.kind, _PLACE.sub("", found.reason)) for found in refusals)
    order = sorted(counts, key=lambda key: -counts[key])
    return [
        f"{counts[key]:4} × {key[0]}: {key[1]}" if key[0] else f"{counts[key]:4} × {key[1]}"
        for key in order
    ]
