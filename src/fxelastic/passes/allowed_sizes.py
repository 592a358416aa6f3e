"""What an exported program allows: the sizes that it fixes, and the ranges of the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import sympy
import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from fxelastic.errors import CaptureError
from fxelastic.passes.dynamic_shapes import DynamicShapes, replace_symbol
from fxelastic.passes.fixed_sizes import Decisions
from fxelastic.passes.size_steps import cannot_vary
from fxelastic.spec.symbols import MAX_SIZE


def fixed_symbols(
    program: ExportedProgram, shapes: DynamicShapes, decisions: Callable[[], Decisions]
) -> dict[str, str]:
    """The symbols that a program fixes although they may vary, with a warning for each.

    Args:
        program: The exported program.
        shapes: The dimensions that may vary.
        decisions: Exports again, and records where the model decides about sizes.

    Raises:
        CaptureError: The program fixes a symbol that the user names.
    """
    inputs, found = inputs_of(program), {}
    for name, symbol in shapes.symbols.items():
        if name == shapes.batch or variable_of(inputs, shapes, name) is not None:
            continue
        why = decisions().why_fixed() or "torch.export fixes it"
        if name not in shapes.optional:
            raise cannot_vary(name, why)
        found[name] = f"{name} is fixed to the example's {symbol.example}: {why}"
    return found


def with_ranges(
    program: ExportedProgram, shapes: DynamicShapes, decisions: Callable[[], Decisions]
) -> DynamicShapes:
    """The shapes with the ranges that the model allows.

    Args:
        program: The exported program.
        shapes: The dimensions that vary.
        decisions: Exports again, and records where the model decides about sizes.

    Raises:
        CaptureError: The model does not allow all of a range that the user gives.
    """
    inputs = inputs_of(program)
    for name in shapes.symbols:
        variable = variable_of(inputs, shapes, name)
        if name != shapes.batch and variable is not None:
            shapes = _with_range(program, shapes, decisions, name, variable)
    return shapes


def _with_range(
    program: ExportedProgram,
    shapes: DynamicShapes,
    decisions: Callable[[], Decisions],
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
        place = decisions().why_bounded(variable)
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


def variable_of(inputs: Sequence[fx.Node], shapes: DynamicShapes, name: str) -> str | None:
    """The name of torch's own symbol in the dimensions of one of ours; None if it is fixed."""
    for node, dims in zip(inputs, shapes.dims, strict=True):
        for dim, size in dims.items():
            if size.symbol != name:
                continue
            value = node.meta["val"].shape[dim]
            symbols = value.node.expr.free_symbols if isinstance(value, torch.SymInt) else ()
            return str(next(iter(symbols))) if symbols else None
    return None


def inputs_of(program: ExportedProgram) -> list[fx.Node]:
    """The placeholders of the user's inputs."""
    nodes = {node.name: node for node in program.graph.nodes}
    specs = program.graph_signature.input_specs
    return [nodes[spec.arg.name] for spec in specs if spec.kind == InputKind.USER_INPUT]
