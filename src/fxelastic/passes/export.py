"""Run ``torch.export`` on any signature, with a dynamic batch where the model allows it."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from fxelastic.ir import trees
from fxelastic.passes.batch import batch_leaves, with_batch_size

logger = logging.getLogger(__name__)

#: Name of the attribute under which the wrapper holds the model; stripped from every path.
WRAPPED = "model"


class _Seen:
    """What a forward pass leaves behind; torch.export takes back what it assigns to attributes."""

    result: trees.Tree | None = None


class Flat(nn.Module):
    """Calls a model from a flat list of tensors and returns a flat tuple of tensors.

    ``torch.export`` then sees tensors only, whatever the model's own signature is.
    """

    def __init__(self, model: nn.Module, arguments: trees.Tree, n_positional: int) -> None:
        super().__init__()
        self.model = model
        self._arguments = arguments
        self._n_positional = n_positional
        self.seen = _Seen()

    def forward(self, *leaves: Any) -> tuple[Any, ...]:
        """The model's tensors from its argument's tensors; notes the result's structure."""
        args, kwargs = trees.unflatten(self._arguments, list(leaves))
        outputs, result = trees.flatten(self.model(*args, **kwargs))
        self.seen.result = result
        return tuple(outputs)


@dataclass(frozen=True)
class Exported:
    """What one successful export gives.

    Attributes:
        program: The exported program.
        result: Structure of the model's result.
        dynamic_batch: Whether the batch is dynamic.
        why_static: Why the batch is not dynamic, if it is not.
    """

    program: ExportedProgram
    result: trees.Tree
    dynamic_batch: bool
    why_static: str = ""


def export(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: bool = True
) -> Exported:
    """Export with the strictest batch handling that the model supports.

    Tried in turn: a proven dynamic batch, an inferred one (some reshapes leave guards that the
    solver can't prove), a static batch.

    Args:
        model: The model, safe to run.
        args: Positional example inputs.
        kwargs: Keyword example inputs.
        dynamic: Whether to try for a dynamic batch.

    Returns:
        The first that succeeded.

    Raises:
        Exception: Whatever ``torch.export`` raised for the static batch.
    """
    leaves, tree = trees.flatten((args, kwargs))
    batched = batch_leaves(leaves)
    why_static = "no input has a batch dimension"
    if batched and dynamic:
        size = leaves[batched[0]].shape[0]
        example = with_batch_size(leaves, batched, size) if size > 1 else None
        example = example or with_batch_size(leaves, batched, 2)
        for dimension in (Dim("batch"), Dim.AUTO):
            try:
                program, result = _export(model, tree, len(args), example, batched, dimension)
            except Exception as e:  # noqa: BLE001  # torch.export raises dozens of types
                why_static = _reason(e)
                logger.debug("export with batch %s failed: %s", dimension, e)
                continue
            if _is_dynamic(program):
                return Exported(program, result, dynamic_batch=True)
            why_static = "the model fixes the batch size"
    program, result = _export(model, tree, len(args), leaves, [], None)
    return Exported(program, result, dynamic_batch=False, why_static=why_static)


def _export(
    model: nn.Module,
    tree: trees.Tree,
    n_positional: int,
    leaves: list[Any],
    batched: list[int],
    dimension: Any,
) -> tuple[ExportedProgram, trees.Tree]:
    flat = Flat(model, tree, n_positional)
    shapes = tuple({0: dimension} if i in batched else None for i in range(len(leaves)))
    with quiet():
        program = torch.export.export(
            flat, tuple(leaves), dynamic_shapes={"leaves": shapes}, strict=False
        )
    assert flat.seen.result is not None
    return program, flat.seen.result


def _is_dynamic(program: ExportedProgram) -> bool:
    return any(
        isinstance(node.meta.get("val"), torch.Tensor)
        # A size that the model turned out to fix is a SymInt too, of a constant.
        and any(
            isinstance(size, torch.SymInt) and not size.node.expr.is_number
            for size in node.meta["val"].shape
        )
        for node in program.graph.nodes
        if node.op == "placeholder"
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the warnings of tracing: none is about something the user did.

    On a failure torch.export prints the half-traced graph to stderr; that goes to the debug log.
    """
    loggers = [logging.getLogger(name) for name in ("torch.export", "torch.fx.experimental")]
    levels = [log.level for log in loggers]
    printed = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stderr(printed):
        warnings.simplefilter("ignore")
        try:
            for log in loggers:
                log.setLevel(logging.CRITICAL)
            yield
        finally:
            for log, level in zip(loggers, levels, strict=True):
                log.setLevel(level)
            if printed.getvalue().strip():
                logger.debug("torch.export printed: %s", printed.getvalue())


def _reason(e: Exception) -> str:
    lines = [line.strip() for line in str(e).splitlines() if line.strip()]
    text = next((line for line in lines if line.startswith("- ")), lines[0] if lines else "")
    return f"{type(e).__name__}: {text.removeprefix('- ')[:200]}"
