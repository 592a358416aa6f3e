"""A partition as an aligned table, to be read in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from fxelastic.ir.block import Block, BlockGraph, OpenedModule
from fxelastic.ir.values import Values, ValueType, block_outputs, one_line, stream_inputs
from fxelastic.spec.columns import aligned, engineering
from fxelastic.spec.symbols import BATCH


def block_table(partition: BlockGraph) -> str:
    """Write a partition as an aligned table for terminals.

    Args:
        partition: Any partition.

    Returns:
        A title line, a line for each block (name, kind, parameters, share of P0, FLOPs of one
        sample, shapes, other values that it reads), totals, and a summary. Values without a dtype
        are float32; a name that begins with a dot belongs to the block's own module.
    """
    values = Values(partition)
    header = ("block", "kind", "params", "% P0", "FLOPs", "input", "output", "notes")
    rows = [header, *(_row(block, partition, values) for block in partition.blocks)]
    flops = sum(block.flops for block in partition.blocks)
    share = percent(partition.n_params, partition.n_params)
    total = ("total", "", f"{partition.n_params:,}", share, engineering(flops), "", "", "")
    lines = aligned([*rows, total], right={2, 3, 4})
    rule = "-" * max(len(line) for line in lines)
    table = [lines[0], rule, *lines[1:-1], rule, lines[-1]]
    lines = [_title(partition), "", *table, "", summary(partition), *batch_lines(partition)]
    return "\n".join([*lines, *map(one_line, opened_lines(partition.opened_modules))])


def _title(partition: BlockGraph) -> str:
    name = next((s.symbol.name for s in partition.symbols if s.is_batch), BATCH)
    dynamic = "dynamic batch" if name == "batch" else f"dynamic batch {name}"
    batch = dynamic if partition.dynamic_batch else "static batch"
    if len(partition.signature.inputs) > 1:
        batch += f" of {', '.join(partition.batched) or 'no input'}"
    return (
        f"{partition.model_name}: {partition.n_params:,} parameters (P0), "
        f"gamma {partition.gamma:g}: at most {int(partition.max_block_params):,} in a block; "
        f"{batch}; fusion rules of {partition.fusion.name}"
    )


def batch_lines(partition: BlockGraph) -> list[str]:
    """A line on the inputs that hold samples, their dimension, and why they count as the batch."""
    by_dim: dict[int, list[str]] = {}
    for name, dim in partition.batch_dims.items():
        by_dim.setdefault(dim, []).append(name)
    if not by_dim:
        return []
    where = " and ".join(f"dimension {dim} of {', '.join(by_dim[dim])}" for dim in sorted(by_dim))
    return [f"batch: {where} ({partition.batch_reason})"]


def _row(block: Block, partition: BlockGraph, values: Values) -> tuple[str, ...]:
    sources = _relative([values.source(name) for name in stream_inputs(block)], block)
    notes = [f"joins {_some(sources)}"] if len(sources) > 1 else []
    if block.context:
        notes.append(
            f"reads {_some(_relative([values.source(name) for name in block.context], block))}"
        )
    if block.shared_params:
        notes.append(f"shares {_some(_relative(block.shared_params, block))}")
    return (
        one_line(block.name),
        block.kind,
        f"{block.n_params:,}",
        percent(block.n_params, partition.n_params),
        engineering(block.flops),
        _types([values.type(name) for name in stream_inputs(block)]),
        _types([values.type(name) for name in block_outputs(block)]),
        one_line("; ".join(notes)),
    )


def _relative(names: Sequence[str], block: Block) -> list[str]:
    """Names as seen from the block's module: ``.conv3`` for ``layer4.0.conv3`` in ``layer4.0``."""
    prefix = f"{block.path}." if block.path else "\0"
    return [f".{n.removeprefix(prefix)}" if n.startswith(prefix) else n for n in names]


def summary(partition: BlockGraph) -> str:
    """How many blocks of each kind a partition has, and the largest of them, in one line."""
    kinds = [block.kind for block in partition.blocks]
    counts = [
        f"{kinds.count(kind)} {kind}"
        for kind in ("basic", "oversize", "glue", "context")
        if kind in kinds
    ]
    line = f"{len(kinds)} block{'s' * (len(kinds) != 1)}: {', '.join(counts) or 'none'}"
    if partition.blocks and partition.n_params:
        largest = max(partition.blocks, key=lambda block: block.n_params)
        share = percent(largest.n_params, partition.n_params)
        line += f"; the largest is {one_line(largest.name)} with {share} % of the parameters"
    return line


def percent(part: int, whole: int) -> str:
    """A share in percent with one decimal; ``-`` if the whole is 0."""
    return f"{100 * part / whole:.1f}" if whole else "-"


def _types(types: Sequence[ValueType]) -> str:
    texts = dict.fromkeys(str(item).removeprefix("float32") for item in types)
    return _some(list(texts)) or "-"


def _some(items: Sequence[str], most: int = 3) -> str:
    """The first items, and the number of the others."""
    rest = [f"{len(items) - most} more"] if len(items) > most + 1 else []
    shown = items[:most] if rest else items
    return ", ".join([*shown, *rest])


def opened_lines(opened: Sequence[OpenedModule], most: int = 3) -> list[str]:
    """A line for each gamma that keeps modules whole, the smallest first.

    Args:
        opened: The notes of a partition.
        most: How many modules a line names; the line counts the others.
    """
    by_gamma: dict[float, list[OpenedModule]] = {}
    for note in sorted(opened, key=lambda note: note.gamma):
        by_gamma.setdefault(note.gamma, []).append(note)
    lines = []
    for gamma, notes in by_gamma.items():
        names = [note.path for note in notes]
        rest = len(names) - most
        shown = ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
        verb, over = ("is", "it") if len(names) == 1 else ("are", "them")
        share = f"{100 * max(note.over for note in notes):.2g} %"
        lines.append(
            f"{shown} {verb} cut, {share} over the cap: gamma={gamma:g} keeps {over} whole"
        )
    return lines
