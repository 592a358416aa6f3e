"""Capture: any ``nn.Module`` → `Traced`."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import keyword
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import fx, nn

from fxelastic.errors import CaptureError, InternalError, said
from fxelastic.ir import trees
from fxelastic.ir.graph_symbols import GraphSymbol, concrete_shape
from fxelastic.ir.operators import node_parameters, operator_name
from fxelastic.ir.quiet import quiet
from fxelastic.ir.signature import Signature, normalise_arguments
from fxelastic.ir.traced import Traced
from fxelastic.ir.value_names import value_names
from fxelastic.passes.arguments import resolve_arguments
from fxelastic.passes.batch import BatchedInputs, batch_by_name, copies, find_batch
from fxelastic.passes.batch_dimension import with_dimensions
from fxelastic.passes.canonical import (
    drop_empty_parts,
    drop_idle_casts,
    fill_empty,
    name_squeezed_dimensions,
    replace_copies,
)
from fxelastic.passes.check_capture import (
    SizeFixedError,
    agrees_at,
    check_capture,
    with_empty_caches,
)
from fxelastic.passes.checks import (
    check_input_types,
    check_inputs,
    check_model,
    check_weights,
    refuse_state,
    shapes_of,
)
from fxelastic.passes.clone import clone_for_capture
from fxelastic.passes.dynamic_shapes import DynamicShapes
from fxelastic.passes.export import QUIET, Exported
from fxelastic.passes.functionalise import functionalise_simple
from fxelastic.passes.normalise import normalise
from fxelastic.passes.opaque import export_with_opaque, restore_opaque
from fxelastic.passes.requested_shapes import requested_shapes
from fxelastic.passes.size_steps import cannot_vary, coarser, whole, with_steps
from fxelastic.passes.size_ties import with_ties
from fxelastic.passes.sizes import localise_sizes
from fxelastic.spec.symbols import Symbol

logger = logging.getLogger(__name__)

_FIXED = "the batch size is fixed to the example's"

# Names that the code of a graph uses for other things.
_TAKEN = frozenset({"torch", "self", "device", "inf", "nan", "NoneType", "fx_pytree", "pytree"})


def capture(
    model: nn.Module,
    example_inputs: Any = None,
    batched: str | Sequence[str] | None = None,
    dynamic_shapes: Any = None,
) -> Traced:
    """Capture a model as one functional graph over its own weights.

    Args:
        model: Any module, in any mode; it is not changed.
        example_inputs: A tensor, a tuple of positional inputs, a dict of keyword inputs or a
            pair ``(tuple, dict)``. Inferred from the model if None.
        batched: Names of the inputs that hold samples. Found by running the model if None (see
            `find_batch` and `with_dimensions`).
        dynamic_shapes: The dimensions that vary besides the batch, as ``torch.export`` takes them,
            or with names (see `fxelastic.passes.requested_shapes.requested_shapes`).

    Returns:
        The captured model.

    Raises:
        UsageError: ``model`` is not a module, or ``example_inputs`` has an unsupported type.
        CaptureError: No inputs could be inferred, the model does not run on the inputs, or it can't
            be captured (control flow over data in its outermost ``forward``).

    Source: AdaptiveNet, section 6, which traces models with torch.fx.
    """
    check_model(model)
    check_weights(model)
    clone = clone_for_capture(model)
    args, kwargs = _in_order(clone, *resolve_arguments(clone, example_inputs))
    check_input_types(args, kwargs)
    check_inputs(args, kwargs)
    args, kwargs = copies(args, kwargs)  # a model may write to its inputs
    results = _check_runs(clone, *copies(args, kwargs))
    leaves, tree = trees.flatten((args, kwargs))
    named = _named(model, args, kwargs)
    shapes = requested_shapes(dynamic_shapes, named, leaves)
    if batched is None:
        batch = find_batch(clone, args, kwargs, results, shapes.whole)
        batch = with_dimensions(clone, args, kwargs, batch, shapes)
    else:
        batch = batch_by_name(batched, named, leaves, shapes.named_batch).without(shapes.whole)
    shapes = _with_batch(shapes, batch, leaves)
    if shapes.batch:
        batch = dataclasses.replace(batch.without(shapes.batch_dims), dims=shapes.batch_dims)
    shapes = with_ties(clone, tree, leaves, shapes)
    shapes, fixed = with_steps(clone, tree, leaves, shapes)
    traced = _checked(model, clone, args, kwargs, batch, shapes)
    if batch.rows and not traced.dynamic_batch:
        # An input that ran with one more row may still be tied, if values decide what is read.
        tied = batch.with_rows(batch.rows)
        shapes = _with_batch(shapes.without(shapes.batch), tied, leaves)
        other = _checked(model, clone, args, kwargs, tied, shapes)
        traced = other if other.dynamic_batch else traced
    return dataclasses.replace(traced, warnings=(*fixed, *traced.warnings))


def _with_batch(
    shapes: DynamicShapes, batch: BatchedInputs, leaves: Sequence[Any]
) -> DynamicShapes:
    if not batch.dims:
        return shapes
    first, dim = next(iter(batch.dims.items()))
    return shapes.with_batch(batch.dims, leaves[first].shape[dim])


def _checked(
    model: nn.Module,
    clone: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    batch: BatchedInputs,
    shapes: DynamicShapes,
) -> Traced:
    """The capture, if need be traced at other sizes than the example's, or with coarser steps."""
    try:
        traced = _with_possible_sizes(model, clone, args, kwargs, batch, shapes)
        return _without_single_rows(traced, model, clone, args, kwargs, batch, shapes)
    except CaptureError as e:
        error = e
    named = {name: s for name, s in shapes.symbols.items() if name != shapes.batch}
    steps = {name: whole(symbol) for name, symbol in named.items()}
    # The model may treat the example's size unlike others: it resizes a table of positions to
    # them. Or torch may lose track of the size, which multiples of the example's size prevent.
    ways = [dataclasses.replace(shapes, elsewhere=True)] if named else []
    if steps != named:
        ways.append(dataclasses.replace(shapes, symbols={**shapes.symbols, **steps}))
    for way in ways:
        logger.info("tracing again with %s (%s)", way.traced_sizes(), error)
        with contextlib.suppress(CaptureError):
            traced = _with_possible_sizes(model, clone, args, kwargs, batch, way)
            notes = _steps_in_words(shapes, way.symbols, str(error.got))
            return dataclasses.replace(traced, warnings=(*notes, *traced.warnings))
    raise error


def _without_single_rows(
    traced: Traced,
    model: nn.Module,
    clone: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    batch: BatchedInputs,
    shapes: DynamicShapes,
) -> Traced:
    """The capture, or one at larger sizes if a size that varies is 1 inside of the model.

    Pooling may leave a single row of the example's sizes. What follows then has a size of 1 for a
    constant, although the graph computes others as well.
    """
    for scale in (2, 4, 8):
        if not _has_single_rows(traced):
            break
        way = dataclasses.replace(shapes, scale=scale)
        logger.info("tracing again with %s, since a size is 1", way.traced_sizes())
        with contextlib.suppress(CaptureError):
            larger = _with_possible_sizes(model, clone, args, kwargs, batch, way)
            # The model may treat larger sizes unlike the example's.
            if all(size.symbol.holds(size.symbol.example) for size in larger.symbols):
                traced = larger
    return traced


def _has_single_rows(traced: Traced) -> bool:
    """Whether a size that varies, besides the batch's, is 1 where it was traced."""
    named = {symbol.variable for symbol in traced.symbols if not symbol.is_batch}
    values = (node.meta.get("val") for node in traced.graph_module.graph.nodes if named)
    sizes = (size for value in values for size in getattr(value, "shape", ()))
    return any(
        isinstance(size, torch.SymInt)
        and not named.isdisjoint(size.node.expr.free_symbols)
        and size.node.has_hint()
        and size.node.hint == 1
        for size in sizes
    )


def _coarser_steps(
    traced: Traced,
    clone: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    shapes: DynamicShapes,
) -> dict[str, Symbol]:
    """The symbols with larger steps at which a capture holds that does not hold at all sizes.

    A model that pads odd sizes decides this in Python, so its capture pads as the example's needs.
    """
    found = {}
    for name, symbol in shapes.symbols.items():
        if name == shapes.batch:
            continue

        def agrees(size: int, name: str = name) -> bool | None:
            return agrees_at(traced, clone, args, kwargs, shapes, {name: size})

        coarse = coarser(symbol, agrees)
        if coarse is None:
            return {}
        if coarse != symbol:
            found[name] = coarse
    return found


def _steps_in_words(shapes: DynamicShapes, steps: Mapping[str, Symbol], why: str) -> list[str]:
    """A warning for each symbol whose step becomes larger than the model's."""
    return [
        f"{name} varies in steps of {symbol.step} only: {' '.join(why.split())}"
        for name, symbol in steps.items()
        if symbol.step > shapes.symbols[name].step
    ]


def _with_possible_sizes(
    model: nn.Module,
    clone: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    batch: BatchedInputs,
    shapes: DynamicShapes,
) -> Traced:
    """The capture; sizes are fixed that it does not hold for, if the user does not name them."""
    warnings: list[str] = []
    while True:
        traced, used = _trace(model, clone, args, kwargs, batch, shapes)
        _check_expressions(traced)
        known = any(warning.startswith(_FIXED) for warning in warnings)
        others = (w for w in traced.warnings if not (known and w.startswith(_FIXED)))
        traced = dataclasses.replace(traced, warnings=(*warnings, *others))
        try:
            traced = check_capture(traced, clone, args, kwargs, used)
            return with_empty_caches(traced, clone, args, kwargs, used)
        except SizeFixedError as e:
            logger.info("the capture with a dynamic %s does not hold (%s)", e.symbol, e)
            steps = _coarser_steps(traced, clone, args, kwargs, shapes)
            if e.symbol in steps:
                warnings += _steps_in_words(shapes, steps, str(e))
                shapes = dataclasses.replace(shapes, symbols={**shapes.symbols, **steps})
                continue
            if e.symbol != shapes.batch and e.symbol not in shapes.optional:
                raise cannot_vary(e.symbol, str(e)) from e
            if e.symbol == shapes.batch:
                warnings.append(f"{_FIXED}: {e}")
            else:
                example = shapes.symbols[e.symbol].example
                warnings.append(f"{e.symbol} is fixed to the example's {example}: {e}")
            shapes = shapes.without(e.symbol)


def _check_expressions(traced: Traced) -> None:
    """Check that every size can be computed, which is not so for all that torch derives.

    Raises:
        CaptureError: torch gives a size as an expression that divides by zero.
    """
    named = [s.symbol.name for s in traced.symbols if not s.is_batch]
    for node in traced.graph.nodes if named else ():
        value = node.meta.get("val")
        try:
            if isinstance(value, torch.Tensor):
                concrete_shape(value, traced.symbols, {})
        except ZeroDivisionError as e:
            reason = f"torch.export finds no usable expression for a size of {operator_name(node)}"
            raise cannot_vary(" and ".join(named), reason) from e


def _trace(
    model: nn.Module,
    clone: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    batch: BatchedInputs,
    shapes: DynamicShapes,
) -> tuple[Traced, DynamicShapes]:
    with export_with_opaque(clone, args, kwargs, batch, shapes) as (exported, opaque):
        signature = _signature(model, args, kwargs, exported)
        graph_module = _functional_graph(exported, model, clone, args, kwargs, signature)
        signature = dataclasses.replace(signature, inputs=_placeholders(graph_module))
        restore_opaque(graph_module, opaque)
    drop_idle_casts(graph_module.graph)
    drop_empty_parts(graph_module.graph)
    name_squeezed_dimensions(graph_module.graph)
    localise_sizes(graph_module.graph)
    graph_module.recompile()
    shapes = exported.shapes
    traced = Traced(
        graph_module=graph_module,
        signature=signature,
        model_name=type(model).__name__,
        method="export+opaque" if opaque else "export",
        dynamic_batch=bool(shapes.batch),
        symbols=_graph_symbols(graph_module, shapes),
        batch_dims={signature.names[i]: dim for i, dim in exported.batch.dims.items()},
        batch_reason=exported.batch.why,
        opaque=tuple((module.path, module.cause.reason) for module in opaque),
        unused_params=_unused(model, graph_module),
        warnings=_warnings(exported, signature.names),
        example=tuple(trees.flatten(signature.normalise(args, kwargs))[0]),
    )
    return traced, shapes


def _in_order(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Keyword inputs in the order of ``forward``'s parameters, whatever the caller's order."""
    names = _forward_parameters(model)
    ordered = [name for name in names if name in kwargs]
    ordered += [name for name in kwargs if name not in names]
    return args, {name: kwargs[name] for name in ordered}


def _forward_parameters(model: nn.Module, by_position: bool = False) -> tuple[str, ...]:
    try:
        return tuple(
            parameter.name
            for parameter in inspect.signature(model.forward).parameters.values()
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            and not (by_position and parameter.kind is parameter.KEYWORD_ONLY)
        )
    except (TypeError, ValueError):
        return ()


def _check_runs(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The model's flat results on the example inputs."""
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            result = model(*args, **kwargs)
    except Exception as e:  # the user's own code
        shown = trees.describe(trees.flatten((args, kwargs))[1])
        raise CaptureError(
            f"{type(model).__name__} does not run on the example inputs",
            expected="inputs that model(*args, **kwargs) accepts",
            got=f"{shapes_of(args, kwargs) or shown}, and {said(e)}",
            fix="pass example_inputs= with the shapes and dtypes that the model takes",
        ) from e
    leaves, shape = trees.flatten(result)
    if not any(isinstance(leaf, torch.Tensor) for leaf in leaves):
        raise CaptureError(
            f"{type(model).__name__} returns no tensor",
            expected="a tensor, or tuples, lists, dicts or dataclasses with tensors in them",
            got=f"{type(result).__name__}: {trees.describe(shape)}",
            fix="return the results from forward",
        )
    return leaves


def _signature(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], exported: Exported
) -> Signature:
    named = _named(model, args, kwargs)
    names = _identifiers(trees.leaf_names(named, ""))
    parameters = _forward_parameters(model, by_position=True)
    return Signature(named, exported.result, tuple(names), parameters, value_names(named))


def _named(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> trees.Tree:
    """The structure of the arguments by name."""
    _, flat = trees.flatten((args, kwargs))
    parameters = _forward_parameters(model, by_position=True)
    _, named = trees.flatten(normalise_arguments(parameters, args, kwargs))
    if len(trees.leaf_names(named, "")) != len(trees.leaf_names(flat, "")):
        raise InternalError("the example inputs could not be bound to the model's arguments")
    return named


def _identifiers(names: list[str]) -> list[str]:
    """Valid, distinct Python identifiers."""
    result: list[str] = []
    for name in names:
        base = re.sub(r"\W", "_", name) or "input"
        base = f"_{base}" if base[0].isdigit() else base
        base = f"{base}_" if base in _TAKEN or keyword.iskeyword(base) else base
        unique, n = base, 1
        while unique in result:
            unique, n = f"{base}_{n}", n + 1
        result.append(unique)
    return result


def _functional_graph(
    exported: Exported,
    model: nn.Module,
    clone: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    signature: Signature,
) -> fx.GraphModule:
    names: dict[int, str] = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        names.setdefault(id(tensor), name)
    result = normalise(exported.program, model, signature.inputs, names)
    if functionalise_simple(result.graph):
        return _without_copies(result)
    logger.info("in-place writes through views: re-tracing with torch's functionalisation")
    with quiet(*QUIET):
        functional = exported.program.run_decompositions({})
    if functional.graph_signature.buffers_to_mutate:
        refuse_state(clone, args, kwargs)
    return _without_copies(normalise(functional, model, signature.inputs, names))


def _without_copies(graph_module: fx.GraphModule) -> fx.GraphModule:
    replace_copies(graph_module.graph)
    fill_empty(graph_module.graph)
    graph_module.recompile()
    return graph_module


def _graph_symbols(graph_module: fx.GraphModule, shapes: DynamicShapes) -> tuple[GraphSymbol, ...]:
    """The symbols of the inputs' sizes, the batch first."""
    found: dict[str, GraphSymbol] = {}
    nodes = [node for node in graph_module.graph.nodes if node.op == "placeholder"]
    for node, dims in zip(nodes, shapes.dims, strict=True):
        for i, dim in dims.items():
            size = node.meta["val"].shape[i]
            if dim.symbol in found or not isinstance(size, torch.SymInt):
                continue
            symbol = shapes.symbols[dim.symbol]
            (variable,) = size.node.expr.free_symbols
            name = sympy.Symbol(symbol.name, integer=True, positive=True)
            # size = a * variable + b, and size = factor * symbol + offset
            b = size.node.expr.subs(variable, 0)
            a = size.node.expr.subs(variable, 1) - b
            expression = (dim.factor * name + dim.offset - b) / a
            is_batch = symbol.name == shapes.batch
            found[symbol.name] = GraphSymbol(symbol, variable, expression, is_batch)
    return tuple(found[name] for name in shapes.symbols if name in found)


def _placeholders(graph_module: fx.GraphModule) -> tuple[str, ...]:
    """The inputs' names in the graph: fx adds a number to a name like ``input``."""
    return tuple(node.name for node in graph_module.graph.nodes if node.op == "placeholder")


def _unused(model: nn.Module, graph_module: fx.GraphModule) -> tuple[str, ...]:
    used = {
        id(parameter)
        for node in graph_module.graph.nodes
        for parameter in node_parameters(node, graph_module).values()
    }
    return tuple(name for name, p in model.named_parameters() if id(p) not in used)


def _warnings(exported: Exported, inputs: tuple[str, ...]) -> tuple[str, ...]:
    if not exported.shapes.batch:
        return (*exported.warnings, f"{_FIXED}: {exported.why_static}")
    batch = exported.batch
    names = ", ".join(repr(inputs[i]) for i in batch.dims)
    found = list(exported.warnings)
    found += [
        f"input {inputs[i]!r} has as many rows as the example has samples, but the model does not "
        f"tie them to the samples of {names}: it keeps its shape; if it holds samples, name it in "
        "batched="
        for i in batch.rows
    ]
    if batch.untied:
        found.append(
            f"inputs {names} are captured with one batch size, though the model does not tie them: "
            "if only some of them hold samples, name those in batched="
        )
    return tuple(found)
