"""What stands in for an interval of blocks, or the reason why nothing does."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fxelastic.ir.movable import MovableGraphModule
from fxelastic.ir.operators import attribute
from fxelastic.spec import BranchSpec

if TYPE_CHECKING:
    from fxelastic.ir.partition import Partition


class FrozenGraphModule(MovableGraphModule):
    """A graph module that never trains: it stays in eval mode, its parameters get no gradients.

    Called, it passes gradients on to its operands. That is not always what the model computes, bit
    for bit: torch chooses kernels by what requires a gradient, even under ``no_grad`` (a matrix
    product is folded or not). `as_model` computes exactly what the model does.

    ``meta["trained"]`` lists the parameters, and those of submodules, that require gradients in
    the model.
    """

    def train(self, mode: bool = True) -> FrozenGraphModule:
        """Stay in eval mode, whatever the mode asked for."""
        super().train(False)
        return self

    def as_model(self, *operands: Any) -> Any:
        """Run over weights that require gradients where the model's own do.

        They are views made for this call, so that the gradients of a backward pass go nowhere.
        """
        trained = {
            name: self.get_parameter(name).detach().requires_grad_()
            for name in self.meta.get("trained", ())
        }
        if not trained:
            return self(*operands)
        # The generated forward reads its weights from what it is given as self. No module is
        # changed for the call, which other threads may be calling too.
        weights = SimpleNamespace()
        for node in self.graph.nodes:
            if node.op in ("get_attr", "call_module"):
                target = str(node.target)
                value = trained.get(target)
                _set(weights, target, self._as_model(target, trained) if value is None else value)
        return type(self).forward(weights, *operands)

    def _as_model(self, target: str, trained: dict[str, torch.Tensor]) -> Any:
        value = attribute(self, target)
        prefix = f"{target}."
        inside = {k.removeprefix(prefix): v for k, v in trained.items() if k.startswith(prefix)}
        if not isinstance(value, nn.Module) or not inside:
            return value
        return lambda *operands: torch.func.functional_call(value, inside, operands)


def _set(owner: SimpleNamespace, target: str, value: object) -> None:
    *path, name = target.split(".")
    for part in path:
        if not hasattr(owner, part):
            setattr(owner, part, SimpleNamespace())
        owner = getattr(owner, part)
    setattr(owner, name, value)


@dataclass(frozen=True, eq=False)
class Branch:
    """A module that computes what an interval of blocks computes for the others.

    The contract:

    - ``module(*inputs, *context)`` returns the tensor of ``outputs``, or a tuple of tensors where
      there are several, of the shapes and dtypes that the interval's own blocks give.
    - ``inputs`` and ``context`` are values of the partition's graph that are live before the
      interval: computed before it, or the model's inputs, and read by a block of it or after it.
    - ``outputs`` are exactly the values that the interval computes for later blocks and for the
      model's result, so that any branches can follow.
    - The module writes to none of its operands.

    Attributes:
        spec: Its id, kind, interval and size.
        module: Computes it; a `FrozenGraphModule` where its weights are the model's.
        inputs: Names of the stream values that it reads.
        outputs: Names of the values that it stands for.
        context: Names of the context values that it reads.
        approximate: Whether it differs from what it was made from by more than the parts removed
            (a norm over a dimension that lost channels).
        note: What a user should know about how it was made; one sentence, or empty.
    """

    spec: BranchSpec
    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    context: tuple[str, ...] = ()
    approximate: bool = False
    note: str = ""

    @property
    def id(self) -> str:
        """Names the branch in an `Arch`."""
        return self.spec.id

    @property
    def kind(self) -> str:
        """What made it."""
        return self.spec.kind

    @property
    def start(self) -> int:
        """The first block that it stands in for."""
        return self.spec.start

    @property
    def stop(self) -> int:
        """The block after the last one."""
        return self.spec.stop

    @property
    def n_params(self) -> int:
        """Parameters that it adds to the supernet."""
        return self.spec.n_params

    @property
    def flops(self) -> int:
        """Floating point operations of one sample."""
        return self.spec.flops

    @property
    def frozen(self) -> bool:
        """Whether it never trains."""
        return isinstance(self.module, FrozenGraphModule)

    def __str__(self) -> str:
        return str(self.spec)


@dataclass(frozen=True)
class Skip:
    """A branch that a maker did not make.

    Attributes:
        reason: Why not, in a sentence.
        kind: The branch's kind.
        start: The first block that it would have stood in for.
        stop: The block after the last one.
    """

    reason: str
    kind: str = ""
    start: int | None = None
    stop: int | None = None


class Crossings:
    """Which values cross the cuts between a partition's blocks.

    Attributes:
        produced: For each value that crosses a cut, the block that computes it; -1 for the
            model's inputs.
        last_read: The last block that reads it; the number of blocks where the model returns it.
    """

    def __init__(self, partition: Partition) -> None:
        """Read the blocks' boundaries and the graph's result."""
        self.produced: dict[str, int] = dict.fromkeys(partition.signature.inputs, -1)
        self.last_read: dict[str, int] = {}
        for i, block in enumerate(partition.blocks):
            self.produced.update(dict.fromkeys(block.outputs, i))
            self.last_read.update(dict.fromkeys((*block.inputs, *block.context), i))
        (output,) = (node for node in partition.graph.nodes if node.op == "output")
        for node in output.all_input_nodes:
            if node.op != "get_attr":
                self.last_read[node.name] = len(partition.blocks)

    def live(self, position: int) -> tuple[str, ...]:
        """Values that are computed before block ``position`` and read by it or later."""
        return tuple(
            name for name, last in self.last_read.items() if self.produced[name] < position <= last
        )

    def outputs(self, start: int, stop: int) -> tuple[str, ...]:
        """Values that blocks ``[start, stop)`` compute and that are read after them."""
        return tuple(
            name
            for name, i in self.produced.items()
            if start <= i < stop <= self.last_read.get(name, -1)
        )
