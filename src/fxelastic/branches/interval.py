"""The interval of blocks that a branch replaces, and the operations that all kinds share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from fxelastic.branches.propagation import (
    BATCH_SIZES,
    computes_nothing,
    graph_flops,
    misfit,
    shapes_at,
)
from fxelastic.branches.trainable import Trainable, trainable
from fxelastic.ir.block import REPLACEABLE, Block
from fxelastic.ir.branch import Branch, Refusal
from fxelastic.ir.graph_symbols import one_sample
from fxelastic.ir.liveness import Liveness
from fxelastic.ir.operators import attribute, operator_name
from fxelastic.ir.partition import Partition
from fxelastic.spec import BranchSpec, branch_id
from fxelastic.spec.cache import Cache, KeptCache

NOTHING_LEFT = "nothing would be left to compute: 0 FLOPs"


class NoBranchError(Exception):
    """Raised while a branch is made, with the reason why there is none.

    `Interval.attempt` turns it into a `Refusal`; it never reaches the user.
    """


@dataclass(frozen=True)
class Interval:
    """Blocks ``[start, stop)`` of a partition, for a branch of one kind.

    Attributes:
        partition: The partition.
        liveness: Its liveness.
        kind: The kind of the branch.
        start: The first block.
        stop: The block after the last one.
    """

    partition: Partition
    liveness: Liveness
    kind: str
    start: int
    stop: int

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks."""
        return self.partition.blocks[self.start : self.stop]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the stream values that the blocks read from outside."""
        made = {name for block in self.blocks for name in block.nodes}
        read = (name for block in self.blocks for name in block.inputs if name not in made)
        return tuple(dict.fromkeys(read))

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the values that the blocks compute for others."""
        return self.liveness.outputs(self.start, self.stop)

    @property
    def caches(self) -> tuple[Cache, ...]:
        """The caches that the blocks extend; their presents are the last outputs."""
        return self.liveness.caches(self.start, self.stop)

    def ends(self) -> tuple[Tensor, Tensor]:
        """Fake tensors of the only input and the only output, apart from caches.

        Raises:
            NoBranchError: There are several, or one of them is not a tensor.
        """
        inputs = self.inputs
        outputs = self.outputs[: len(self.outputs) - len(self.caches)]
        if len(inputs) != 1 or len(outputs) != 1:
            counted = f"{_counted(len(inputs), 'input')} and {_counted(len(outputs), 'output')}"
            raise NoBranchError(f"it has {counted} instead of one each")
        ends = self.partition.value(inputs[0]), self.partition.value(outputs[0])
        if not all(isinstance(end, Tensor) for end in ends):
            raise NoBranchError("its input or output is not a tensor")
        return ends

    def copy(self, *, share: bool = False) -> Trainable:
        """Copy the blocks as a module with its own weights; see `trainable`."""
        return trainable(self.partition, self.start, self.stop, self.liveness, share=share)

    def attempt(self, make: Callable[[Interval], Branch]) -> Branch | Refusal:
        """Make a branch, or refuse with the reason of a `NoBranchError`."""
        try:
            return make(self)
        except NoBranchError as e:
            return self.refuse(str(e))

    def rewrite(
        self,
        change: Callable[[fx.GraphModule], str],
        *,
        variant: str = "",
        approximate: bool = False,
    ) -> Branch | Refusal:
        """Copy the blocks, change the copy's graph, and make a branch of it.

        Args:
            change: Called with the copy, a graph module with its own weights and fake tensors as
                ``meta["val"]`` of its nodes. Changes its graph and weights in place and returns a
                note for the user (or an empty text); raises `NoBranchError` if it can't.
            variant: Tells several branches of this kind for one interval apart; part of the id.
            approximate: See `Branch`.

        Returns:
            The branch, or a refusal if the blocks have several inputs or outputs, the copy can't be
            changed, its result has another shape or dtype, or there is nothing left to compute.
        """

        def make(self: Interval) -> Branch:
            _, result = self.ends()
            copied = self.copy()
            note = change(copied.module)
            problem = self.misfit(copied, result)
            if problem:
                raise NoBranchError(f"the changed block would not fit: {problem}")
            if computes_nothing(copied.module, self.partition.symbols):
                raise NoBranchError(NOTHING_LEFT)
            return self.branch(copied, variant=variant, note=note, approximate=approximate)

        return self.attempt(make)

    def misfit(
        self,
        copied: Trainable,
        result: Tensor,
        operands: Sequence[Any] | None = None,
        cache: Sequence[KeptCache] = (),
        batch_sizes: Sequence[int] = BATCH_SIZES,
    ) -> str:
        """The reason why a copy does not give the shapes that it must.

        Args:
            copied: The copy, whose first output is the result and whose others are caches.
            result: Fake tensor of the right result.
            operands: Fake tensors of what it reads; those of the partition if None.
            cache: The caches of which it keeps a part.
            batch_sizes: See `propagation.misfit`.
        """
        operands = self.operands(copied, cache, operands)
        narrow = {part.present: part for part in cache}
        results = [result]
        for name in copied.outputs[1:]:
            value = self.partition.value(name)
            results.append(kept_part(value, narrow[name]) if name in narrow else value)
        return misfit(copied.module, operands, results, self.partition.symbols, batch_sizes)

    def operands(
        self,
        copied: Trainable,
        cache: Sequence[KeptCache] = (),
        values: Sequence[Any] | None = None,
    ) -> list[Any]:
        """Fake tensors of what a copy reads, one for each placeholder.

        Args:
            copied: The copy.
            cache: The caches of which it keeps a part.
            values: What it reads, with whole caches; the partition's values if None.
        """
        names, narrow = (*copied.inputs, *copied.context), {part.past: part for part in cache}
        if values is None:
            values = [self.partition.value(name) for name in names]
        return [
            kept_part(value, narrow[name]) if name in narrow else value
            for name, value in zip(names, values, strict=True)
        ]

    def branch(
        self,
        copied: Trainable,
        *,
        variant: str = "",
        note: str = "",
        approximate: bool = False,
        cache: Sequence[KeptCache] = (),
    ) -> Branch:
        """Make a branch of a graph module whose nodes have shapes, which its FLOPs depend on.

        Args:
            copied: The module, and the names of what it reads and computes.
            variant: See `rewrite`.
            note: See `Branch`.
            approximate: See `Branch`.
            cache: The caches of which it keeps a part.
        """
        copied.module.graph.lint()
        copied.module.recompile()
        flops = graph_flops(copied.module, one_sample(self.partition.symbols))
        by_size = self._flops_by_size(copied, cache)
        spec = self.spec(n_weights(copied.module), flops, variant, by_size, cache)
        return Branch(
            *(spec, copied.module, copied.inputs, copied.outputs, copied.context),
            approximate=approximate,
            note=note,
            presents=tuple(cache.present for cache in self.caches),
        )

    def _flops_by_size(self, copied: Trainable, cache: Sequence[KeptCache]) -> str:
        by_size = self.partition.flops_expressions
        if not by_size:
            return ""
        shapes = shapes_at(copied.module, self.operands(copied, cache), by_size.tries)
        return by_size.of_changed(shapes, shapes) if shapes else ""

    def spec(
        self,
        n_params: int,
        flops: int,
        variant: str = "",
        flops_by_size: str = "",
        cache: Sequence[KeptCache] = (),
    ) -> BranchSpec:
        """The entry of a branch in the search space."""
        return BranchSpec(
            branch_id(f"{self.kind}{variant}", self.start, self.stop),
            *(self.kind, self.start, self.stop, n_params, flops, flops_by_size),
            tuple(cache),
        )

    def refuse(self, reason: str) -> Refusal:
        """The refusal of a branch."""
        return Refusal(reason, self.kind, self.start, self.stop)


def intervals(partition: Partition, kind: str) -> Iterator[Interval]:
    """Each block that branches may replace, as an interval, in execution order."""
    liveness = Liveness(partition)
    for i, block in enumerate(partition.blocks):
        if block.kind in REPLACEABLE:
            yield Interval(partition, liveness, kind, i, i + 1)


def kept_part(value: Tensor, kept: KeptCache) -> Tensor:
    """The fake tensor of a branch's past or present, from that of the model's."""
    return value.narrow(kept.dim, 0, len(kept.kept))


def n_weights(module: nn.Module) -> int:
    """Number of parameters of a module; of a parameter that it only slices, those of the slices."""
    whole = sum(parameter.numel() for parameter in module.parameters())
    return whole - (_unread(module) if isinstance(module, fx.GraphModule) else 0)


def _unread(module: fx.GraphModule) -> int:
    """Number of parameters outside the slices that are all that is read of their tensors."""
    n = 0
    for node in module.graph.nodes:
        if node.op == "get_attr" and len(node.users) == 1:
            (reader,) = node.users
            value = attribute(module, str(node.target))
            if operator_name(reader) == "aten.slice" and isinstance(value, nn.Parameter):
                n += value.numel() - reader.meta["val"].numel()
    return n


def _counted(n: int, noun: str) -> str:
    return f"{n} {noun}{'s' * (n != 1)}"
