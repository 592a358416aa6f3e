"""Liveness: which values cross the cuts between a partition's blocks."""

from __future__ import annotations

from fxelastic.ir.block import BlockGraph


class Liveness:
    """Where each value that crosses a cut is computed and where it is read last.

    Attributes:
        produced: For each such value, the block that computes it; -1 for the model's inputs.
        last_read: The last block that reads it; the number of blocks if the model returns it.
    """

    def __init__(self, partition: BlockGraph) -> None:
        """Read the blocks' boundaries and the graph's result."""
        self.produced: dict[str, int] = dict.fromkeys(partition.signature.inputs, -1)
        self.last_read: dict[str, int] = {}
        for i, block in enumerate(partition.blocks):
            self.produced.update(dict.fromkeys(block.outputs, i))
            self.last_read.update(dict.fromkeys((*block.inputs, *block.context), i))
        for node in partition.output_node.all_input_nodes:
            if node.op != "get_attr":
                self.last_read[node.name] = len(partition.blocks)

    def live(self, position: int) -> tuple[str, ...]:
        """Values computed before block ``position`` that it or a later block reads."""
        return tuple(
            name for name, last in self.last_read.items() if self.produced[name] < position <= last
        )

    def outputs(self, start: int, stop: int) -> tuple[str, ...]:
        """Values computed by blocks ``[start, stop)`` that are read after them."""
        return tuple(
            name
            for name, i in self.produced.items()
            if start <= i < stop <= self.last_read.get(name, -1)
        )
