"""Run ``torch.export`` on any signature, with a dynamic batch if the model allows it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sympy
import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind

from fxelastic.errors import CaptureError
from fxelastic.ir import trees
from fxelastic.ir.quiet import quiet
from fxelastic.passes.batch import BatchedInputs
from fxelastic.passes.dynamic_shapes import DynamicDim, DynamicShapes, replace_symbol, resized
from fxelastic.passes.fixed_sizes import Decisions, recorded_decisions
from fxelastic.passes.size_steps import cannot_vary
from fxelastic.spec.symbols import MAX_SIZE

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
    ) -> None:
        super().__init__()
        self.model = model
        self._arguments = arguments
        self._n_positional = n_positional
        self._equal = equal
        self.seen = _Seen()

    def forward(self, *leaves: Any) -> tuple[Any, ...]:
        """Compute the result's tensors from the arguments' tensors, and record its structure."""
        for (i, dim), *others in self._equal:
            # Each inferred size gets its own symbol unless it is declared equal to others.
            for j, other in others:
                torch._check(leaves[j].shape[other] == leaves[i].shape[dim])
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
    leaves, tree = trees.flatten((args, kwargs))
    attempt = _Attempt(model, tree, len(args), resized(leaves, shapes, shapes.traced_sizes()))
    why_static = "no input has a batch dimension"
    only_batch = len(shapes.symbols) == 1
    for proven in (True, False) if only_batch else (False,):
        if not shapes.batch:
            break
        try:
            program, result = attempt.run(shapes, proven)
        except Exception as e:  # noqa: BLE001  # torch.export raises dozens of types
            why_static = _reason(e)
            logger.debug("export with a dynamic batch failed: %s", e)
            continue
        inputs = _inputs(program)
        if _variable(inputs, shapes, shapes.batch) is None:
            why_static = "the model fixes the batch size"
            continue
        unread = [i for i in batch.rows if not inputs[i].users]
        if unread:
            more = batch.with_rows(unread)
            n_samples = shapes.symbols[shapes.batch].example
            return export(model, args, kwargs, more, shapes.with_batch(more.dims, n_samples))
        fixed = _fixed(attempt, program, shapes)
        if fixed:
            return _without_fixed(model, args, kwargs, batch, shapes, fixed)
        return Exported(program, result, batch, _with_ranges(attempt, program, shapes))
    static = shapes.without(shapes.batch) if shapes.batch else shapes
    example = resized(leaves, static, static.traced_sizes())
    attempt = _Attempt(model, tree, len(args), example)
    program, result = attempt.run(static, False)
    fixed = _fixed(attempt, program, static)
    if fixed:
        return _without_fixed(model, args, kwargs, batch, static, fixed)
    return Exported(program, result, batch, _with_ranges(attempt, program, static), why_static)


def _without_fixed(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    batch: BatchedInputs,
    shapes: DynamicShapes,
    fixed: Mapping[str, str],
) -> Exported:
    """The export without symbols that the model fixes, with a warning for each."""
    for name in fixed:
        shapes = shapes.without(name)
    found = export(model, args, kwargs, batch, shapes)
    return replace(found, warnings=(*fixed.values(), *found.warnings))


class _Attempt:
    """Exports one model on one set of inputs."""

    def __init__(
        self, model: nn.Module, tree: trees.Tree, n_positional: int, leaves: list[Any]
    ) -> None:
        self._model = model
        self._tree = tree
        self._n_positional = n_positional
        self._leaves = leaves

    def run(self, shapes: DynamicShapes, proven: bool) -> tuple[ExportedProgram, trees.Tree]:
        """Export with dynamic sizes, which torch has to prove or may infer."""
        flat = Flat(self._model, self._tree, self._n_positional, _equal(shapes))
        sizes = _torch_sizes(shapes, proven)
        with quiet(*QUIET):
            program = torch.export.export(
                flat, tuple(self._leaves), dynamic_shapes={"leaves": sizes}, strict=False
            )
        assert flat.seen.result is not None
        return program, flat.seen.result

    def decisions(self, shapes: DynamicShapes) -> Decisions:
        """Export again, and record where the model decides about sizes."""
        with recorded_decisions() as found, contextlib.suppress(Exception):
            self.run(shapes, False)
        return found


def _equal(shapes: DynamicShapes) -> list[list[tuple[int, int]]]:
    """The dimensions, as (input, dimension), that torch has to be told to be equal."""
    groups: dict[str, list[tuple[int, int]]] = {}
    for i, dims in enumerate(shapes.dims):
        for dim, size in dims.items():
            if _is_plain(size, shapes):
                groups.setdefault(size.symbol, []).append((i, dim))
    return [group for group in groups.values() if len(group) > 1]


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

    return tuple({i: of(size) for i, size in dims.items()} or None for dims in shapes.dims)


def _fixed(attempt: _Attempt, program: ExportedProgram, shapes: DynamicShapes) -> dict[str, str]:
    """The symbols that a program fixes although they may vary, with a warning for each.

    Raises:
        CaptureError: The program fixes a symbol that the user names.
    """
    inputs, found = _inputs(program), {}
    for name, symbol in shapes.symbols.items():
        if name == shapes.batch or _variable(inputs, shapes, name) is not None:
            continue
        why = attempt.decisions(shapes).why_fixed() or "torch.export fixes it"
        if name not in shapes.optional:
            raise cannot_vary(name, why)
        found[name] = f"{name} is fixed to the example's {symbol.example}: {why}"
    return found


def _with_ranges(
    attempt: _Attempt, program: ExportedProgram, shapes: DynamicShapes
) -> DynamicShapes:
    """The shapes with the ranges that the model allows."""
    inputs = _inputs(program)
    for name in shapes.symbols:
        variable = _variable(inputs, shapes, name)
        if name != shapes.batch and variable is not None:
            shapes = _with_range(attempt, program, shapes, name, variable)
    return shapes


def _with_range(
    attempt: _Attempt,
    program: ExportedProgram,
    shapes: DynamicShapes,
    name: str,
    variable: str,
) -> DynamicShapes:
    """The shapes with the range of a symbol cut to what the model allows."""
    symbol = shapes.symbols[name]
    bounds = {str(key): value for key, value in program.range_constraints.items()}.get(variable)
    if bounds is None:
        return shapes
    rest = symbol.example % symbol.step
    low, high = (
        int(bound) * symbol.step + rest if isinstance(bound, (int, sympy.Integer)) else None
        for bound in (bounds.lower, bounds.upper)
    )
    if high is not None and high >= MAX_SIZE:
        high = None
    asked = symbol.max
    if high is not None and asked is not None and high < asked:
        place = attempt.decisions(shapes).why_bounded(variable)
        raise CaptureError(
            f"{name!r} can't be as large as {asked}",
            expected=f"a range up to {high}, the largest size that the model takes",
            got=f"{symbol}" + (f"; the limit is in {place}" if place else ""),
            fix=f"pass torch.export.Dim({name!r}, min={symbol.min}, max={high})",
        )
    smallest = symbol.min
    # torch's own limit of 2 says nothing about the model.
    if low is not None and low > 2 * symbol.step + rest:
        smallest = max(smallest, low)
    return replace_symbol(shapes, replace(symbol, min=smallest, max=asked or high))


def _variable(inputs: Sequence[fx.Node], shapes: DynamicShapes, name: str) -> str | None:
    """The name of torch's own symbol in the dimensions of one of ours; None if it is fixed."""
    for node, dims in zip(inputs, shapes.dims, strict=True):
        for dim, size in dims.items():
            if size.symbol != name:
                continue
            value = node.meta["val"].shape[dim]
            symbols = value.node.expr.free_symbols if isinstance(value, torch.SymInt) else ()
            return str(next(iter(symbols))) if symbols else None
    return None


def _inputs(program: ExportedProgram) -> list[fx.Node]:
    """The placeholders of the user's inputs."""
    nodes = {node.name: node for node in program.graph.nodes}
    specs = program.graph_signature.input_specs
    return [nodes[spec.arg.name] for spec in specs if spec.kind == InputKind.USER_INPUT]


def _reason(e: Exception) -> str:
    lines = [line.strip() for line in str(e).splitlines() if line.strip()]
    text = next((line for line in lines if line.startswith("- ")), lines[0] if lines else "")
    return f"{type(e).__name__}: {text.removeprefix('- ')[:200]}"
