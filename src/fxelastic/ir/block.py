"""A captured graph as basic blocks, with notes on the cuts between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from torch import fx, nn

from fxelastic.ir.copyable import Copyable
from fxelastic.ir.flops_by_size import FlopsBySize
from fxelastic.ir.fusion import FusionRules
from fxelastic.ir.graph_symbols import GraphSymbol, batch_dim
from fxelastic.ir.operators import node_parameters
from fxelastic.ir.signature import InputChecks, Signature
from fxelastic.spec.cache import Cache, KeptCache

BlockKind = Literal["basic", "oversize", "glue", "context"]

#: The kinds of blocks that branches may replace.
REPLACEABLE: tuple[BlockKind, ...] = ("basic", "oversize")


@dataclass(frozen=True)
class Block:
    """Operators of the captured graph that run, and usually are replaced, as a whole.

    The kinds:

    - ``basic``: at most ``gamma * P0`` parameters, one stream value in, one value out. Branches
      replace basic blocks.
    - ``oversize``: the same, but larger than the cap because it can't be split; ``reason`` says
      why.
    - ``glue``: joins several stream values (a residual ``add``, a ``cat``). It runs and is never
      replaced.
    - ``context``: computes values outside the data stream (masks, rotary tables, relative
      position biases). It runs once for each input; any block may read its values.

    Attributes:
        name: The user's module path where there is one (``layer3.0``); unique in a partition.
        kind: See above.
        nodes: Names of the operator nodes of ``Partition.graph``, in execution order. Parameters
            (``get_attr``), placeholders and the output node belong to no block.
        n_params: Parameters counted for this block. A parameter that several blocks read counts
            for the first of them only, so that the sum over all blocks is P0.
        input: The stream value that the block reads; None if it reads none (a context that
            depends on parameters alone). The first of ``inputs``.
        output: The value that the block computes for others. The first of ``outputs``.
        context: Context values that the block reads, in order of first use: names of placeholders
            or of values that a ``context`` block computes.
        inputs: All stream values that the block reads; only ``glue`` has more than one.
        outputs: All values that others read. More than one only in ``context``, in ``glue``
            that consists of one operator with several results, and if the block extends caches,
            which come last.
        params: Names of the parameters counted in ``n_params``.
        shared_params: Names of parameters that the block reads and an earlier block counts.
        flops: Floating point operations for one sample (batch size 1). A multiply and an add count
            as two; only matrix operators count. They are counted at the example's sizes.
        flops_by_size: The same as an expression of the sizes that vary besides the batch; empty if
            there are none.
        path: Path of the innermost module that holds the whole block; empty for the model.
        reason: Why the block is ``oversize`` or ``glue``; empty otherwise.
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
    flops_by_size: str = ""
    path: str = ""
    reason: str = ""


@dataclass(frozen=True)
class UntakenCut:
    """A place where the graph could have been cut and was not.

    Attributes:
        value: Name of the value at which the cut was possible.
        block: Name of the block that holds it.
        reason: Why the partition does not cut there, in words.
    """

    value: str
    block: str
    reason: str


@dataclass(frozen=True)
class SoftFusion:
    """A pair of operators that the inference framework fuses and a boundary separates.

    Attributes:
        rule: Name of the fusion rule.
        producer: Node that computes the value at the boundary.
        consumer: Node that reads it in another block.
        reason: Why the partition separates the pair.
    """

    rule: str
    producer: str
    consumer: str
    reason: str


@dataclass(frozen=True)
class OpenedModule:
    """A repeating module that was cut because it exceeds the cap by a little.

    Attributes:
        path: The module's path; ``path@n`` for its n-th further call.
        n_params: Its parameters.
        over: By how much it exceeds the cap, as a share of the cap.
        gamma: The smallest gamma that keeps it whole, rounded up to three digits.
    """

    path: str
    n_params: int
    over: float
    gamma: float


@dataclass(frozen=True)
class BlockGraph(Copyable):
    """The facts of a partition; `Partition` adds what can be done with them.

    Attributes:
        graph_module: Holds the graph and, by reference, the user's weights.
        blocks: Every block, in execution order. Running them one after the other runs the model.
        gamma: The cap on a basic block's parameters, as a share of P0.
        signature: The model's calling convention.
        fusion: The inference framework's fusion rules that the cuts respect.
        soft_fusions: Fused pairs that a boundary separates because there was no other cut.
        untaken_cuts: Cuts that were possible and not taken, each with its reason.
        opened_modules: Repeating modules that were cut because they exceed the cap by a little,
            each with the gamma that keeps it whole.
        unused_params: Parameters of the model that the graph never reads; not in P0.
        dynamic_batch: Whether the batch size may differ from the example's.
        symbols: The sizes that may vary, the batch's first.
        batch_dims: The dimension of the samples, by the names of the inputs that hold some. All
            other inputs are passed whole.
        batch_reason: Why these inputs count as the batch, as a clause.
        caches: The inputs that results extend, such as past keys and values.
        model_name: The model's class name.
        opaque: Modules that could not be captured and are single nodes: (path, reason).
        warnings: Warnings for the user, one sentence each.
        example: The example inputs that the model was captured with, in the order of
            ``signature.inputs``.
    """

    graph_module: fx.GraphModule
    blocks: tuple[Block, ...]
    gamma: float
    signature: Signature
    fusion: FusionRules
    soft_fusions: tuple[SoftFusion, ...] = ()
    untaken_cuts: tuple[UntakenCut, ...] = ()
    opened_modules: tuple[OpenedModule, ...] = ()
    unused_params: tuple[str, ...] = ()
    dynamic_batch: bool = True
    symbols: tuple[GraphSymbol, ...] = ()
    batch_dims: Mapping[str, int] = field(default_factory=dict, hash=False)
    batch_reason: str = ""
    caches: tuple[Cache, ...] = ()
    model_name: str = ""
    opaque: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()
    example: tuple[Any, ...] = field(default=(), compare=False, repr=False)

    def _modules_to_copy(self) -> tuple[nn.Module, ...]:
        return (self.graph_module,)

    @property
    def batched(self) -> tuple[str, ...]:
        """Names of the inputs that hold samples."""
        return tuple(self.batch_dims)

    @property
    def graph(self) -> fx.Graph:
        """The graph that the blocks' node names refer to; every node has ``meta["val"]``."""
        return self.graph_module.graph

    @property
    def placeholders(self) -> tuple[fx.Node, ...]:
        """The graph's inputs, in order."""
        return tuple(node for node in self.graph.nodes if node.op == "placeholder")

    @cached_property
    def input_checks(self) -> InputChecks:
        """What the inputs of a call must be."""
        return InputChecks.of(self.signature.names, self.placeholders, self.symbols)

    @cached_property
    def flops_expressions(self) -> FlopsBySize:
        """Writes FLOPs as expressions of the sizes that vary."""
        return FlopsBySize(self.graph, self.symbols)

    @cached_property
    def result_dims(self) -> tuple[int, ...]:
        """The dimension of the samples in each flat result; 0 where no size depends on them."""
        outputs: Any = self.output_node.args[0]
        values = (node.meta.get("val") if isinstance(node, fx.Node) else None for node in outputs)
        return tuple(batch_dim(value, self.symbols) or 0 for value in values)

    def checks_of(self, cache: Sequence[KeptCache]) -> InputChecks:
        """What the inputs of a call must be for a subnet that keeps parts of caches."""
        own = dict(zip(self.signature.inputs, self.signature.names, strict=True))
        return self.input_checks.with_cache({own[kept.past]: kept for kept in cache})

    @property
    def output_node(self) -> fx.Node:
        """The graph's output node."""
        return self.graph.output_node()

    @cached_property
    def nodes(self) -> Mapping[str, fx.Node]:
        """Every node of the graph, by name."""
        return {node.name: node for node in self.graph.nodes}

    @cached_property
    def n_params(self) -> int:
        """P0: elements of the parameters that the graph reads, each parameter once."""
        return sum(block.n_params for block in self.blocks)

    @property
    def max_block_params(self) -> float:
        """The cap ``gamma * P0`` on the parameters of a basic block."""
        return self.gamma * self.n_params

    @cached_property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The parameters that the graph reads, by the user's own names."""
        return {
            name: parameter
            for node in self.graph.nodes
            for name, parameter in node_parameters(node, self.graph_module).items()
        }

    def value(self, name: str) -> Any:
        """The captured value of a node: a fake tensor, tuple or number."""
        return self.nodes[name].meta.get("val")

    def block(self, name: str) -> Block:
        """The block of that name.

        Raises:
            KeyError: No block has this name.
        """
        for block in self.blocks:
            if block.name == name:
                return block
        raise KeyError(name)
