"""Run ``torch.export`` on any signature, with a dynamic batch if the model allows it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind

from fxelastic.ir import trees
from fxelastic.ir.quiet import quiet
from fxelastic.passes.batch import BatchedInputs, with_batch_size

logger = logging.getLogger(__name__)

#: Name of the attribute under which the wrapper holds the model; stripped from every path.
WRAPPED = "model"

#: Loggers of tracing, none of whose warnings concerns the user.
QUIET = ("torch.export", "torch.fx.experimental")


class _Seen:
    """The outcome of a forward pass, in an object since torch.export undoes assignments."""

    result: trees.Tree | None = None


class Flat(nn.Module):
    """Calls a model from a flat list of tensors and returns a flat tuple of tensors.

    ``torch.export`` then handles tensors only, whatever the model's own signature is.
    """

    def __init__(
        self,
        model: nn.Module,
        arguments: trees.Tree,
        n_positional: int,
        batched: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.model = model
        self._arguments = arguments
        self._n_positional = n_positional
        self._batched = tuple(batched)
        self.seen = _Seen()

    def forward(self, *leaves: Any) -> tuple[Any, ...]:
        """Compute the result's tensors from the arguments' tensors, and record its structure."""
        for i in self._batched[1:]:
            # Each inferred size gets its own symbol unless it is declared equal to others.
            torch._check(leaves[i].shape[0] == leaves[self._batched[0]].shape[0])
        args, kwargs = trees.unflatten(self._arguments, list(leaves))
        outputs, result = trees.flatten(self.model(*args, **kwargs))
        self.seen.result = result
        return tuple(outputs)


@dataclass(frozen=True)
class Exported:
    """The result of a successful export.

    Attributes:
        program: The exported program.
        result: Structure of the model's result.
        batch: The inputs that hold samples.
        dynamic_batch: Whether the batch is dynamic.
        why_static: Why the batch is not dynamic, or empty.
    """

    program: ExportedProgram
    result: trees.Tree
    batch: BatchedInputs
    dynamic_batch: bool
    why_static: str = ""


def export(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    batch: BatchedInputs,
    dynamic: bool = True,
) -> Exported:
    """Export with the strictest batch handling that the model supports.

    In turn, this tries a proven dynamic batch, an inferred one (some reshapes leave guards that the
    solver can't prove), and a static batch.

    Args:
        model: The model, safe to run.
        args: Positional example inputs.
        kwargs: Keyword example inputs.
        batch: The inputs that hold samples. Inputs of its ``rows`` that the graph does not read
            are also exported with as many rows as there are samples.
        dynamic: Whether to try for a dynamic batch.

    Returns:
        The first that succeeds.

    Raises:
        Exception: The error of ``torch.export`` for the static batch.
    """
    leaves, tree = trees.flatten((args, kwargs))
    why_static = "no input has a batch dimension"
    if batch.positions and dynamic:
        size = leaves[batch.positions[0]].shape[0]
        example = with_batch_size(leaves, batch.positions, max(size, 2))
        for dimension in (Dim("batch"), Dim.AUTO):
            try:
                program, result = _export(
                    model, tree, len(args), example, batch.positions, dimension
                )
            except Exception as e:  # noqa: BLE001  # torch.export raises dozens of types
                why_static = _reason(e)
                logger.debug("export with batch %s failed: %s", dimension, e)
                continue
            inputs = _inputs(program)
            if len(_symbols(inputs)) == 1:
                unread = [i for i in batch.rows if not inputs[i].users]
                if unread:
                    rows = tuple(i for i in batch.rows if i not in unread)
                    positions = tuple(sorted((*batch.positions, *unread)))
                    return export(model, args, kwargs, BatchedInputs(positions, rows, batch.untied))
                return Exported(program, result, batch, dynamic_batch=True)
            why_static = "the model fixes the batch size"
    program, result = _export(model, tree, len(args), leaves, (), None)
    return Exported(program, result, batch, dynamic_batch=False, why_static=why_static)


def _export(
    model: nn.Module,
    tree: trees.Tree,
    n_positional: int,
    leaves: list[Any],
    batched: Sequence[int],
    dimension: Any,
) -> tuple[ExportedProgram, trees.Tree]:
    flat = Flat(model, tree, n_positional, batched)
    shapes = tuple({0: dimension} if i in batched else None for i in range(len(leaves)))
    with quiet(*QUIET):
        program = torch.export.export(
            flat, tuple(leaves), dynamic_shapes={"leaves": shapes}, strict=False
        )
    assert flat.seen.result is not None
    return program, flat.seen.result


def _inputs(program: ExportedProgram) -> list[fx.Node]:
    """The placeholders of the user's inputs."""
    nodes = {node.name: node for node in program.graph.nodes}
    specs = program.graph_signature.input_specs
    return [nodes[spec.arg.name] for spec in specs if spec.kind == InputKind.USER_INPUT]


def _symbols(inputs: Sequence[fx.Node]) -> set[Any]:
    """The symbols that sizes of the inputs depend on."""
    values = [node.meta.get("val") for node in inputs]
    sizes: list[Any] = [size for v in values if isinstance(v, torch.Tensor) for size in v.shape]
    # A size that the model fixes is a SymInt with a constant expression.
    return set().union(*(s.node.expr.free_symbols for s in sizes if isinstance(s, torch.SymInt)))


def _reason(e: Exception) -> str:
    lines = [line.strip() for line in str(e).splitlines() if line.strip()]
    text = next((line for line in lines if line.startswith("- ")), lines[0] if lines else "")
    return f"{type(e).__name__}: {text.removeprefix('- ')[:200]}"
