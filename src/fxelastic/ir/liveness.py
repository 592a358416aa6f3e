"""Liveness: which values cross the cuts between a partition's blocks."""

from __future__ import annotations

from fxelastic.ir.block import BlockGraph
from fxelastic.spec.cache import Cache


class Liveness:
    """Where each value that crosses a cut is computed and where it is read last.

    Attributes:
        produced: For each such value, the block that computes it; -1 for the model's inputs.
        last_read: The last block that reads it; the number of blocks if the model returns it.
        last_reader: The last block that reads it, whether the model returns it or not.
    """

    def __init__(self, partition: BlockGraph) -> None:
        """Read the blocks' boundaries and the graph's result."""
        self.produced: dict[str, int] = dict.fromkeys(partition.signature.inputs, -1)
        self.last_read: dict[str, int] = {}
        for i, block in enumerate(partition.blocks):
            self.produced.update(dict.fromkeys(block.outputs, i))
            self.last_read.update(dict.fromkeys((*block.inputs, *block.context), i))
        self.last_reader = dict(self.last_read)
        self._caches = partition.caches
        for node in partition.output_node.all_input_nodes:
            if node.op != "get_attr":
                self.last_read[node.name] = len(partition.blocks)

    def live(self, position: int) -> tuple[str, ...]:
        """Values computed before block ``position`` that it or a later block reads."""
        return tuple(
            name for name, last in self.last_read.items() if self.produced[name] < position <= last
        )

    def outputs(self, start: int, stop: int) -> tuple[str, ...]:
        """Values computed by blocks ``[start, stop)`` that are read after them; `caches` last."""
        found = [
            name
            for name, i in self.produced.items()
            if start <= i < stop <= self.last_read.get(name, -1)
        ]
        presents = [cache.present for cache in self.caches(start, stop)]
        return (*(name for name in found if name not in presents), *presents)

    def caches(self, start: int, stop: int) -> tuple[Cache, ...]:
        """The caches that blocks ``[start, stop)`` extend and that no later block reads."""
        return tuple(
            cache
            for cache in self._caches
            if start <= self.produced[cache.present] < stop
            and self.last_reader.get(cache.present, -1) < stop
        )
