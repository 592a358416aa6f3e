"""Run ``torch.export`` on any signature, with a dynamic batch if the model allows it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from fxelastic.errors import CaptureError
from fxelastic.ir import trees
from fxelastic.ir.quiet import quiet
from fxelastic.ir.recurrent import recurrent_shapes
from fxelastic.passes.allowed_sizes import fixed_symbols, inputs_of, variable_of, with_ranges
from fxelastic.passes.batch import BatchedInputs
from fxelastic.passes.dynamic_shapes import DynamicDim, DynamicShapes, resized
from fxelastic.passes.fixed_sizes import Decisions, recorded_decisions, short_expressions

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
        equal: Sequence[Sequence[tuple[int, int]]] = (),
        sums: Sequence[tuple[int, int, Sequence[tuple[int, int]], int]] = (),
    ) -> None:
        super().__init__()
        self.model = model
        self._arguments = arguments
        self._n_positional = n_positional
        self._equal = equal
        self._sums = sums
        self.seen = _Seen()

    def forward(self, *leaves: Any) -> tuple[Any, ...]:
        """Compute the result's tensors from the arguments' tensors, and record its structure."""
        for (i, dim), *others in self._equal:
            # Each inferred size gets its own symbol unless it is declared equal to others.
            for j, other in others:
                torch._check(leaves[j].shape[other] == leaves[i].shape[dim])
        for i, dim, terms, offset in self._sums:
            total = sum(leaves[j].shape[other] for j, other in terms) + offset
            torch._check(leaves[i].shape[dim] == total)
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
        shapes: The dimensions that vary, with the ranges that the model allows.
        why_static: Why the batch is not dynamic, or empty.
        warnings: Sizes that the user left open and the model fixes, a sentence each.
    """

    program: ExportedProgram
    result: trees.Tree
    batch: BatchedInputs
    shapes: DynamicShapes
    why_static: str = ""
    warnings: tuple[str, ...] = ()


def export(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    batch: BatchedInputs,
    shapes: DynamicShapes,
) -> Exported:
    """Export with the strictest handling of sizes that the model supports.

    In turn, this tries a proven dynamic batch, an inferred one (some reshapes leave guards that the
    solver can't prove), and a static batch.

    Args:
        model: The model, safe to run.
        args: Positional example inputs.
        kwargs: Keyword example inputs.
        batch: The inputs that hold samples. Inputs of its ``rows`` that the graph does not read
            are also exported with as many rows as there are samples.
        shapes: The dimensions that vary, those of the batch included.

    Returns:
        The first that succeeds.

    Raises:
        CaptureError: The model fixes or bounds a size that the user wants to vary.
        Exception: The error of ``torch.export`` for the static batch.
    """
    attempt = _Attempt(model, args, kwargs, shapes)
    why_static = "no input has a batch dimension"
    ways = (True, False) if len(shapes.symbols) == 1 and not shapes.sums else (False,)
    for proven in ways if shapes.batch else ():
        try:
            program, result = attempt.run(proven)
        except CaptureError:
            raise
        except Exception as e:  # noqa: BLE001  # torch.export raises dozens of types
            why_static = _reason(e)
            logger.debug("export with a dynamic batch failed: %s", e)
            continue
        inputs = inputs_of(program)
        if variable_of(inputs, shapes, shapes.batch) is None:
            why_static = "the model fixes the batch size"
            continue
        unread = [i for i in batch.rows if not inputs[i].users]
        if unread:
            more = batch.with_rows(unread)
            n_samples = shapes.symbols[shapes.batch].example
            return export(model, args, kwargs, more, shapes.with_batch(more.dims, n_samples))
        return _finished(attempt, batch, program, result)
    attempt = _Attempt(model, args, kwargs, shapes.without(shapes.batch))
    return _finished(attempt, batch, *attempt.run(proven=False), why_static)


def _finished(
    attempt: _Attempt,
    batch: BatchedInputs,
    program: ExportedProgram,
    result: trees.Tree,
    why_static: str = "",
) -> Exported:
    """The export with the ranges that the model allows.

    If the model fixes symbols, it is exported again without them, with a warning for each.
    """
    fixed = fixed_symbols(program, attempt.shapes, attempt.decisions)
    if not fixed:
        shapes = with_ranges(program, attempt.shapes, attempt.decisions)
        return Exported(program, result, batch, shapes, why_static)
    shapes = attempt.shapes
    for name in fixed:
        shapes = shapes.without(name)
    found = export(attempt.model, attempt.args, attempt.kwargs, batch, shapes)
    return replace(
        found,
        why_static=why_static or found.why_static,
        warnings=(*fixed.values(), *found.warnings),
    )


@dataclass(frozen=True)
class _Attempt:
    """Exports one model on one set of inputs."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shapes: DynamicShapes

    def run(self, proven: bool) -> tuple[ExportedProgram, trees.Tree]:
        """Export with dynamic sizes, which torch has to prove or may infer."""
        leaves, tree = trees.flatten((self.args, self.kwargs))
        example = resized(leaves, self.shapes, self.shapes.traced_sizes())
        flat = Flat(self.model, tree, len(self.args), _equal(self.shapes), _sums(self.shapes))
        sizes = _torch_sizes(self.shapes, proven)
        with quiet(*QUIET), recurrent_shapes(), short_expressions():
            program = torch.export.export(
                flat, tuple(example), dynamic_shapes={"leaves": sizes}, strict=False
            )
        assert flat.seen.result is not None
        return program, flat.seen.result

    def decisions(self) -> Decisions:
        """Export again, and record where the model decides about sizes."""
        with recorded_decisions() as found, contextlib.suppress(Exception):
            self.run(proven=False)
        return found


def _equal(shapes: DynamicShapes) -> list[list[tuple[int, int]]]:
    """The dimensions, as (input, dimension), that torch has to be told to be equal."""
    groups: dict[str, list[tuple[int, int]]] = {}
    for i, dims in enumerate(shapes.dims):
        for dim, size in dims.items():
            if _is_plain(size, shapes):
                groups.setdefault(size.symbol, []).append((i, dim))
    return [group for group in groups.values() if len(group) > 1]


def _sums(shapes: DynamicShapes) -> list[tuple[int, int, list[tuple[int, int]], int]]:
    """The dimensions that are sums: input, dimension, the dimensions to add, and a number."""
    places: dict[str, tuple[int, int, int]] = {}
    for i, dims in enumerate(shapes.dims):
        for dim, size in dims.items():
            if size.factor == 1:
                places.setdefault(size.symbol, (i, dim, size.offset))
    return [
        (
            i,
            dim,
            [places[name][:2] for name in total.symbols],
            total.offset - sum(places[name][2] for name in total.symbols),
        )
        for i, dims in shapes.sums.items()
        for dim, total in dims.items()
        if total.symbols
    ]


def _is_plain(size: DynamicDim, shapes: DynamicShapes) -> bool:
    """Whether torch can infer a size: the symbol itself is one, and takes every value."""
    plain = all(
        (other.factor, other.offset) == (1, 0)
        for dims in shapes.dims
        for other in dims.values()
        if other.symbol == size.symbol
    )
    return plain and shapes.symbols[size.symbol].step == 1


def _torch_sizes(shapes: DynamicShapes, proven: bool) -> tuple[Any, ...]:
    """What torch.export takes as ``dynamic_shapes`` for the flat inputs."""
    roots = {name: Dim(f"_{name}") for name in shapes.symbols}

    def of(size: DynamicDim) -> Any:
        if _is_plain(size, shapes):
            return roots[size.symbol] if proven else Dim.AUTO
        symbol, result = shapes.symbols[size.symbol], roots[size.symbol]
        # symbol = step * root + rest, and the dimension is a linear function of the symbol.
        factor = size.factor * symbol.step
        offset = size.factor * (symbol.example % symbol.step) + size.offset
        result = result * factor if factor != 1 else result
        return result + offset if offset else result

    found: list[dict[int, Any]] = [
        {i: of(size) for i, size in dims.items()} for dims in shapes.dims
    ]
    for i, dims in shapes.sums.items():
        found[i] |= {dim: Dim.AUTO for dim, total in dims.items() if total.symbols}
    return tuple(dims or None for dims in found)


def _reason(e: Exception) -> str:
    lines = [line.strip() for line in str(e).splitlines() if line.strip()]
    text = next((line for line in lines if line.startswith("- ")), lines[0] if lines else "")
    return f"{type(e).__name__}: {text.removeprefix('- ')[:200]}"
