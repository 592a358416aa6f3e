"""The text report of ``fxelastic explain``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from fxelastic.ir.table import block_table, percent
from fxelastic.ir.values import Values, block_outputs, one_line

if TYPE_CHECKING:
    from fxelastic.ir.partition import Partition

_FEW = 3

# A part of a module path (`layer.0.attention`), or a separate number.
_GAP = re.compile(r"(?<=\.)\d+(?!\w)|(?<![\w.])\d[\d,]*(?:\.\d+)?(?!\w)")


def sections(partition: Partition, *, all_cuts: bool = False) -> Iterator[str]:
    """The report's lines: the table, followed by sections.

    Args:
        partition: The partition.
        all_cuts: Whether to list every untaken cut, or their reasons only.
    """
    yield from block_table(partition).splitlines()
    values = Values(partition)
    for title, write in _SECTIONS:
        lines = write(partition, values)
        if lines:
            yield from _section(title, lines)
    if partition.untaken_cuts:
        yield from _section("cuts not taken", (_each_cut if all_cuts else _cuts)(partition, values))


def _section(title: str, lines: Sequence[str]) -> Iterator[str]:
    yield ""
    yield title
    yield from (f"  {one_line(line)}" for line in lines)


def _oversize(partition: Partition, values: Values) -> list[str]:
    return [
        f"{block.name} ({percent(block.n_params, partition.n_params)} %): "
        f"{values.reason(block.reason)}"
        for block in partition.blocks
        if block.kind == "oversize"
    ]


def _glue(partition: Partition, values: Values) -> list[str]:
    glue = [(b.reason, b.name) for b in partition.blocks if b.kind == "glue"]
    return [f"{reason}: {_some(names)}" for reason, names in _by_reason(glue, values)]


def _contexts(partition: Partition, values: Values) -> list[str]:
    readers: dict[str, list[str]] = {}
    for block in partition.blocks:
        if block.kind == "context":
            readers.update((name, []) for name in block_outputs(block))
    for block in partition.blocks:
        for name in block.context:
            readers.setdefault(name, []).append(block.name)
    return [
        f"{values.source(name)} {values.type(name)}: read by {_some(blocks) or 'no block'}"
        for name, blocks in readers.items()
    ]


def _flops(partition: Partition, values: Values) -> list[str]:
    blocks: dict[str, list[str]] = {}
    for block in partition.blocks:
        if not (block.flops_by_size or "0").isdecimal():
            blocks.setdefault(block.flops_by_size, []).append(block.name)
    return [f"{flops}: {_some(names)}" for flops, names in blocks.items()]


def _soft_fusions(partition: Partition, values: Values) -> list[str]:
    owner = {name: block.name for block in partition.blocks for name in block.nodes}
    pairs = [
        (
            f"{fusion.rule}: {fusion.reason}",
            f"{owner.get(fusion.producer, '?')} -> {owner.get(fusion.consumer, '?')}",
        )
        for fusion in partition.soft_fusions
    ]
    return [
        f"{len(names)} x {reason} ({_some(names)})" for reason, names in _by_reason(pairs, values)
    ]


def _opaque(partition: Partition, values: Values) -> list[str]:
    return [f"{path}: {reason}" for path, reason in partition.opaque]


def _unused(partition: Partition, values: Values) -> list[str]:
    return list(partition.unused_params)


def _cuts(partition: Partition, values: Values) -> list[str]:
    cuts = [(cut.reason, cut.block) for cut in partition.untaken_cuts]
    groups = sorted(_by_reason(cuts, values), key=lambda group: -len(group[1]))
    lines = [
        f"{len(blocks)} x {reason} (in {_some(list(dict.fromkeys(blocks)))})"
        for reason, blocks in groups
    ]
    return [*lines, "--cuts lists each"]


def _each_cut(partition: Partition, values: Values) -> list[str]:
    return [f"{cut.block} at {cut.value}: {cut.reason}" for cut in partition.untaken_cuts]


_SECTIONS: tuple[tuple[str, Callable[[Partition, Values], list[str]]], ...] = (
    ("oversize: larger than the cap, and nothing to cut at", _oversize),
    ("glue: executed, never replaced", _glue),
    ("contexts: computed once for each input, outside the data stream", _contexts),
    ("FLOPs of one sample, by size", _flops),
    ("soft fusions: fused pairs that a boundary separates", _soft_fusions),
    ("opaque: modules that could not be looked into", _opaque),
    ("unused parameters: never read, not in P0", _unused),
)


def _by_reason(items: Sequence[tuple[str, str]], values: Values) -> list[tuple[str, list[str]]]:
    """Group names by reason; reasons that differ only in numbers and node names are equal.

    Args:
        items: (reason, name) pairs.
        values: Finds the node names in a reason.

    Returns:
        For each group its reason and its names. If the numbers differ, the reason has their
        range (``70,400 to 1,512,448``), or ``*`` inside a module path (``layer.*.attention``).
    """
    groups: dict[tuple[str, ...], tuple[list[str], list[str]]] = {}
    for reason, name in items:
        text = values.reason(reason) or "no reason given"
        reasons, names = groups.setdefault(tuple(_GAP.split(text)), ([], []))
        reasons.append(text)
        names.append(name)
    return [
        (_join(parts, [_GAP.findall(reason) for reason in reasons]), names)
        for parts, (reasons, names) in groups.items()
    ]


def _join(parts: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The text with the contents of the gaps in all rows."""
    text = parts[0]
    for column, part in zip(zip(*rows, strict=True), parts[1:], strict=True):
        numbers = sorted(set(column), key=lambda number: float(number.replace(",", "")))
        if len(numbers) == 1:
            text += numbers[0]
        elif text.endswith("."):
            text += "*"
        else:
            text += f"{numbers[0]} to {numbers[-1]}"
        text += part
    return text


def _some(names: Sequence[str]) -> str:
    if len(names) <= _FEW:
        return ", ".join(names)
    return f"{', '.join(names[: _FEW - 1])} and {len(names) - _FEW + 1} more"
