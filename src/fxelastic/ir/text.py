"""A partition as stable text, to commit and compare.

A small change of the model changes few lines: the text has no positions, no numbered node names
and no shares of P0, which would change in every block. It names each value by the block that
computes it. `fxelastic.ir.table` writes the table for people.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from fxelastic.ir.block import Block, BlockGraph
from fxelastic.ir.values import Values, block_outputs, one_line, stream_inputs

FORMAT_VERSION = 1
TITLE = "fxelastic partition text, format "

_KEY_WIDTH = 11
_LINE_WIDTH = 96
_MAX_PERIOD = 64


def to_text(partition: BlockGraph) -> str:
    """Write a partition as stable text for golden files.

    The same model, settings and torch version give the same bytes in every process. The text has
    a header with the settings and P0 and a paragraph for each block; docs/cli.md has the format.

    Args:
        partition: Any partition, verified or not.

    Returns:
        Lines that end in a newline.
    """
    values = Values(partition)
    paragraphs = [_header(partition, values)]
    paragraphs += [_block(block, values) for block in partition.blocks]
    if partition.soft_fusions:
        paragraphs.append(_soft_fusions(partition, values))
    if partition.unused_params:
        names = [f"  {name}" for name in partition.unused_params]
        paragraphs.append(["unused parameters", *names])
    text = "\n\n".join("\n".join(one_line(line) for line in lines) for lines in paragraphs)
    return text + "\n"


def _header(partition: BlockGraph, values: Values) -> list[str]:
    lines = [
        f"{TITLE}{FORMAT_VERSION}",
        _entry("model", partition.model_name),
        _entry("gamma", repr(float(partition.gamma))),
        _entry("parameters", str(partition.n_params)),
        _entry("cap", str(int(partition.max_block_params))),
        _entry("fusion", partition.fusion.name),
        _entry("batch", "dynamic" if partition.dynamic_batch else "static"),
    ]
    signature = partition.signature
    for name, own in zip(signature.inputs, signature.names, strict=True):
        lines.append(_entry("input", f"{values.type(name)} {own}"))
    for name in values.results():
        lines.append(_entry("result", f"{values.type(name)} from {values.source(name)}"))
    lines += [_entry("opaque", path) for path, _ in partition.opaque]
    return lines


def _block(block: Block, values: Values) -> list[str]:
    entries = [("kind", block.kind), ("params", str(block.n_params))]
    for name in stream_inputs(block):
        entries.append(("input", f"{values.type(name)} from {values.source(name)}"))
    for name in block.context:
        entries.append(("context", f"{values.type(name)} from {values.source(name)}"))
    for name in block_outputs(block):
        entries.append(("output", str(values.type(name))))
    entries += [("shared", name) for name in block.shared_params]
    if block.path not in ("", block.name):
        entries.append(("path", block.path))
    if block.reason:
        entries.append(("reason", values.reason(block.reason)))
    names = [values.operator(name) for name in block.nodes]
    entries.append(("operators", f"{len(names)}: {' '.join(fold(names))}"))
    lines = [f"block {block.name}"]
    for key, text in entries:
        lines += _wrap(f"  {_entry(key, text)}")
    return lines


def _soft_fusions(partition: BlockGraph, values: Values) -> list[str]:
    owner = {name: block.name for block in partition.blocks for name in block.nodes}
    lines = ["soft fusions"]
    for fusion in partition.soft_fusions:
        pair = " -> ".join(
            f"{owner.get(name, '?')} {values.operator(name)}"
            for name in (fusion.producer, fusion.consumer)
        )
        lines.append(f"  {_entry(fusion.rule, pair)}")
    reasons = dict.fromkeys(
        f"  {fusion.rule}: {values.reason(fusion.reason)}"
        for fusion in partition.soft_fusions
        if fusion.reason
    )
    for reason in reasons:
        lines += _wrap(reason)
    return lines


def _entry(key: str, text: str) -> str:
    return f"{key:<{_KEY_WIDTH}} {text}".rstrip()


def _wrap(line: str) -> list[str]:
    indent = " " * (2 + _KEY_WIDTH + 1)
    return textwrap.wrap(
        line,
        _LINE_WIDTH,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
        drop_whitespace=True,
    )


def fold(names: Sequence[str]) -> Iterator[str]:
    """Write repetitions in a sequence of operators once.

    Args:
        names: Operators in execution order.

    Yields:
        The same sequence, ``a b a b c c c`` as ``(a b)*2``, ``c*3``. Expanding every group gives
        ``names`` again.
    """
    i = 0
    while i < len(names):
        period, times = _repetition(names, i)
        group = names[i : i + period]
        if times == 1:
            yield group[0]
        elif period == 1:
            yield f"{group[0]}*{times}"
        else:
            yield f"({' '.join(fold(group))})*{times}"
        i += period * times


def _repetition(names: Sequence[str], start: int) -> tuple[int, int]:
    """Length and number of repetitions of the group at ``start`` that covers most."""
    best = (1, 1)
    for period in range(1, min(_MAX_PERIOD, (len(names) - start) // 2) + 1):
        group = names[start : start + period]
        times = 1
        while names[start + times * period : start + (times + 1) * period] == group:
            times += 1
        if (times - 1) * period > (best[1] - 1) * best[0]:
            best = (period, times)
    return best
