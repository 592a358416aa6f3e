"""The first stage: a model captured as a single graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import fx, nn

from fxelastic.ir.copyable import Copyable
from fxelastic.ir.graph_symbols import GraphSymbol
from fxelastic.ir.signature import Signature


@dataclass(frozen=True)
class Traced(Copyable):
    """A captured model: one functional graph over the user's own weights.

    Every later stage relies on these properties of the graph:

    - Every operator node has ``meta["val"]`` (a fake tensor, tuple or number) and
      ``meta["nn_module_stack"]`` with the user's module paths.
    - No operator writes to its operands.
    - Parameters and buffers are ``get_attr`` nodes named by the user's own names, one for each
      distinct tensor. They are the user's own tensors, not copies.
    - A size that depends on the batch is computed next to its reader, from the reader's own
      operand or, if the reader has none, from an input of the model.

    Attributes:
        graph_module: Holds the graph and, by reference, the weights.
        signature: The model's calling convention.
        model_name: The model's class name.
        method: How it was captured: ``export``, or ``export+opaque`` if some modules could not
            be captured and are single nodes.
        dynamic_batch: Whether the batch size may differ from the example's.
        symbols: The sizes that may vary, the batch's first.
        batch_dims: The dimension of the samples, by the names of the inputs that hold some. All
            other inputs are passed whole.
        batch_reason: Why these inputs count as the batch, as a clause.
        opaque: Paths of modules that are single nodes, each with its reason.
        unused_params: Parameters of the model that the graph never reads.
        warnings: Warnings for the user, one sentence each.
        example: Copies of the example inputs that it was captured with, in the order of
            ``signature.inputs``.
    """

    graph_module: fx.GraphModule
    signature: Signature
    model_name: str
    method: Literal["export", "export+opaque"]
    dynamic_batch: bool
    symbols: tuple[GraphSymbol, ...] = ()
    batch_dims: Mapping[str, int] = field(default_factory=dict)
    batch_reason: str = ""
    opaque: tuple[tuple[str, str], ...] = ()
    unused_params: tuple[str, ...] = ()
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
        """The captured graph."""
        return self.graph_module.graph

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run the captured graph with the model's own arguments."""
        leaves = self.signature.flatten_arguments(args, kwargs)
        outputs = self.graph_module(*leaves)
        return self.signature.unflatten_result(list(outputs))

    def __str__(self) -> str:
        nodes = sum(node.op.startswith("call") for node in self.graph.nodes)
        batch = "dynamic" if self.dynamic_batch else "static"
        return f"Traced({self.model_name}: {nodes} operators, {batch} batch, {self.method})"
