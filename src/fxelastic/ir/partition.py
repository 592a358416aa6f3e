"""The second stage: a captured graph cut into basic blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import fx, nn

from fxelastic.ir.block import Block
from fxelastic.ir.copyable import Copyable
from fxelastic.ir.fusion import FusionRules
from fxelastic.ir.notes import OpenedModule, SoftFusion, UntakenCut
from fxelastic.ir.signature import Signature, check_tensors


@dataclass(frozen=True)
class Partition(Copyable):
    """A model as basic blocks in execution order (AdaptiveNet §4.1).

    Attributes:
        graph_module: Holds the graph and, by reference, the user's weights.
        blocks: Every block, in execution order; running them one after the other is running
            the model.
        gamma: The cap on a basic block's parameters, as a share of P0.
        signature: The model's calling convention.
        fusion: The inference framework's fusion rules that the cuts respect.
        soft_fusions: Fused pairs that a boundary separates because nothing else was possible.
        untaken_cuts: Cuts that were possible and not taken, each with its reason.
        opened_modules: Repeating modules that were cut because they exceed the cap by a little,
            each with the gamma that keeps it whole.
        unused_params: Parameters of the model that the graph never reads; not in P0.
        dynamic_batch: Whether the batch size may differ from the example's.
        batched: Names of the inputs that hold samples in their first dimension. The others are
            passed whole.
        model_name: The model's class name.
        opaque: Modules that could not be captured, kept as single nodes: (path, reason).
        warnings: What the user should know, one sentence each.
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
    batched: tuple[str, ...] = ()
    model_name: str = ""
    opaque: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()
    example: tuple[Any, ...] = field(default=(), compare=False, repr=False)

    def _modules_to_copy(self) -> tuple[nn.Module, ...]:
        return (self.graph_module,)

    @property
    def graph(self) -> fx.Graph:
        """The graph that the blocks' node names refer to; every node has ``meta["val"]``."""
        return self.graph_module.graph

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
        from fxelastic.ir.operators import node_parameters

        return {
            name: parameter
            for node in self.graph.nodes
            for name, parameter in node_parameters(node, self.graph_module).items()
        }

    @cached_property
    def _by_name(self) -> dict[str, Block]:
        return {block.name: block for block in self.blocks}

    def block(self, name: str) -> Block:
        """The block of that name.

        Raises:
            KeyError: There is none.
        """
        return self._by_name[name]

    def verify(self) -> None:
        """Derive every invariant anew from the graph and compare.

        Raises:
            PartitionError: One does not hold; the message names the block and the node.
        """
        from fxelastic.ir.verify import verify

        verify(self)

    @cached_property
    def modules(self) -> Mapping[str, fx.GraphModule]:
        """Each block as a standalone module, by block name.

        A module takes the block's ``inputs`` and then its ``context`` values as positional
        arguments. It returns one tensor, or a tuple of them for a block with several outputs.
        """
        from fxelastic.ir.extract import extract

        return {block.name: extract(self, block) for block in self.blocks}

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run the blocks in order: the model's own arguments in, its own result out.

        Raises:
            UsageError: The arguments have another structure than the example inputs, or shapes or
                dtypes that were not captured.
        """
        leaves = self.signature.flatten_arguments(args, kwargs)
        placeholders = [node for node in self.graph.nodes if node.op == "placeholder"]
        check_tensors(self.signature.names, placeholders, leaves)
        values: dict[str, Any] = dict(zip(self.signature.inputs, leaves, strict=True))
        for block in self.blocks:
            operands = [values[name] for name in (*block.inputs, *block.context)]
            result = self.modules[block.name](*operands)
            if len(block.outputs) == 1:
                values[block.outputs[0]] = result
            else:
                values.update(zip(block.outputs, result, strict=True))
        return self.signature.unflatten_result(self._outputs(values))

    def _outputs(self, values: Mapping[str, Any]) -> list[Any]:
        from fxelastic.ir.operators import attribute

        (output,) = (node for node in self.graph.nodes if node.op == "output")
        return [
            attribute(self.graph_module, str(value.target))
            if value.op == "get_attr"
            else values[value.name]
            for value in output.args[0]
        ]

    def to_text(self) -> str:
        """A stable dump for people and for diffs; the same model gives the same text."""
        from fxelastic.ir.text import to_text

        return to_text(self)

    def to_dot(self) -> str:
        """The blocks as a Graphviz digraph."""
        from fxelastic.ir.dot import to_dot

        return to_dot(self)

    def __str__(self) -> str:
        from fxelastic.ir.text import block_table

        return block_table(self)
