"""One basic block of a partition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BlockKind = Literal["basic", "oversize", "glue", "context"]


@dataclass(frozen=True)
class Block:
    """An interval of the captured graph that is executed, and mostly replaced, as one.

    The kinds:

    - ``basic``: at most ``gamma * P0`` parameters, one stream value in, one value out. The unit
      that branches replace.
    - ``oversize``: the same, but larger than the cap because it cannot be split; ``reason`` says
      why.
    - ``glue``: joins several stream values (a residual ``add``, a ``cat``). Executed, never
      replaced.
    - ``context``: computes values that are not part of the data stream (masks, rotary tables,
      relative position biases). Executed once per input, read by any block.

    Attributes:
        name: The user's module path where there is one (``layer3.0``); unique in a partition.
        kind: See above.
        nodes: Names of the operator nodes of ``Partition.graph``, in execution order. Parameters
            (``get_attr``), placeholders and the output node belong to no block.
        n_params: Parameters counted for this block. A parameter that several blocks read is
            counted for the first of them only, so that the sum over all blocks is P0.
        input: The stream value that the block reads; None for a block without one (a context
            that depends on parameters alone). The first of ``inputs``.
        output: The value that the block computes for others. The first of ``outputs``.
        context: Context values read, in order of first use: names of placeholders or of values
            that a ``context`` block computes.
        inputs: All stream values read; more than one only in ``glue``.
        outputs: All values that others read; more than one only in ``context``, and in ``glue``
            that is one operator with several results.
        params: Names of the parameters counted in ``n_params``.
        shared_params: Names of parameters that the block reads and an earlier block counts.
        flops: Floating point operations of one sample (batch size 1), multiply and add counted
            as two, matrix operators only.
        path: Path of the innermost module that holds the whole block; empty for the model.
        reason: Why the block is ``oversize``, or why this is ``glue``; empty otherwise.
    """

    name: str
    kind: BlockKind
    nodes: tuple[str, ...]
    n_params: int
    input: str | None
    output: str
    context: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    params: tuple[str, ...] = ()
    shared_params: tuple[str, ...] = ()
    flops: int = 0
    path: str = ""
    reason: str = ""
