"""Capture: any ``nn.Module`` → `Traced`."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fxelastic.errors import CaptureError, said
from fxelastic.ir import trees
from fxelastic.ir.graph_symbols import concrete_shape
from fxelastic.ir.operators import operator_name
from fxelastic.ir.traced import Traced
from fxelastic.passes.arguments import resolve_arguments
from fxelastic.passes.batch import BatchedInputs, batch_by_name, copies, find_batch
from fxelastic.passes.batch_dimension import with_dimensions
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
    shapes_of,
)
from fxelastic.passes.clone import clone_for_capture, kept_weights
from fxelastic.passes.dynamic_shapes import DynamicShapes
from fxelastic.passes.requested_shapes import requested_shapes
from fxelastic.passes.size_steps import cannot_vary, coarser, whole, with_steps
from fxelastic.passes.size_ties import with_ties
from fxelastic.passes.tracing import (
    FIXED_BATCH,
    ModelCall,
    forward_parameters,
    named_arguments,
    trace,
)
from fxelastic.spec.symbols import Symbol

logger = logging.getLogger(__name__)


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
        UsageError: ``model`` is not a module, ``example_inputs`` has an unsupported type or no
            samples, or ``batched`` or ``dynamic_shapes`` does not fit it.
        CaptureError: No inputs could be inferred, the model does not run on the inputs, or it can't
            be captured (control flow over data in its outermost ``forward``).

    Source: AdaptiveNet, section 6, which traces models with torch.fx.
    """
    check_model(model)
    check_weights(model)
    with kept_weights(model):
        return _captured(model, example_inputs, batched, dynamic_shapes)


def _captured(
    model: nn.Module,
    example_inputs: Any,
    batched: str | Sequence[str] | None,
    dynamic_shapes: Any,
) -> Traced:
    """See `capture`; the model's forward passes may write to its weights."""
    clone = clone_for_capture(model)
    args, kwargs = _in_order(clone, *resolve_arguments(clone, example_inputs))
    check_input_types(args, kwargs)
    check_inputs(args, kwargs)
    args, kwargs = copies(args, kwargs)  # a model may write to its inputs
    results = _check_runs(clone, *copies(args, kwargs))
    leaves, tree = trees.flatten((args, kwargs))
    named = named_arguments(model, args, kwargs)
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
    call = ModelCall(model, clone, args, kwargs, batch)
    traced = _checked(call, shapes)
    if batch.rows and not traced.dynamic_batch:
        # An input that ran with one more row may still be tied, if values decide what is read.
        tied = batch.with_rows(batch.rows)
        shapes = _with_batch(shapes.without(shapes.batch), tied, leaves)
        other = _checked(dataclasses.replace(call, batch=tied), shapes)
        traced = other if other.dynamic_batch else traced
    return dataclasses.replace(traced, warnings=(*fixed, *traced.warnings))


def _with_batch(
    shapes: DynamicShapes, batch: BatchedInputs, leaves: Sequence[Any]
) -> DynamicShapes:
    if not batch.dims:
        return shapes
    first, dim = next(iter(batch.dims.items()))
    return shapes.with_batch(batch.dims, leaves[first].shape[dim])


def _checked(call: ModelCall, shapes: DynamicShapes) -> Traced:
    """The capture, if need be traced at other sizes than the example's, or with coarser steps."""
    try:
        traced = _with_possible_sizes(call, shapes)
        return _without_single_rows(traced, call, shapes)
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
            traced = _with_possible_sizes(call, way)
            notes = _steps_in_words(shapes, way.symbols, str(error.got))
            return dataclasses.replace(traced, warnings=(*notes, *traced.warnings))
    raise error


def _without_single_rows(traced: Traced, call: ModelCall, shapes: DynamicShapes) -> Traced:
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
            larger = _with_possible_sizes(call, way)
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


def _coarser_steps(traced: Traced, call: ModelCall, shapes: DynamicShapes) -> dict[str, Symbol]:
    """The symbols with larger steps at which a capture holds that does not hold at all sizes.

    A model that pads odd sizes decides this in Python, so its capture pads as the example's needs.
    """
    found = {}
    for name, symbol in shapes.symbols.items():
        if name == shapes.batch:
            continue

        def agrees(size: int, name: str = name) -> bool | None:
            return agrees_at(traced, call.clone, call.args, call.kwargs, shapes, {name: size})

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


def _with_possible_sizes(call: ModelCall, shapes: DynamicShapes) -> Traced:
    """The capture; sizes are fixed that it does not hold for, if the user does not name them."""
    warnings: list[str] = []
    while True:
        traced, used = trace(call, shapes)
        _check_expressions(traced)
        known = any(warning.startswith(FIXED_BATCH) for warning in warnings)
        others = (w for w in traced.warnings if not (known and w.startswith(FIXED_BATCH)))
        traced = dataclasses.replace(traced, warnings=(*warnings, *others))
        try:
            traced = check_capture(traced, call.clone, call.args, call.kwargs, used)
            return with_empty_caches(traced, call.clone, call.args, call.kwargs, used)
        except SizeFixedError as e:
            logger.info("the capture with a dynamic %s does not hold (%s)", e.symbol, e)
            steps = _coarser_steps(traced, call, shapes)
            if e.symbol in steps:
                warnings += _steps_in_words(shapes, steps, str(e))
                shapes = dataclasses.replace(shapes, symbols={**shapes.symbols, **steps})
                continue
            if e.symbol != shapes.batch and e.symbol not in shapes.optional:
                raise cannot_vary(e.symbol, str(e)) from e
            if e.symbol == shapes.batch:
                warnings.append(f"{FIXED_BATCH}: {e}")
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


def _in_order(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Keyword inputs in the order of ``forward``'s parameters, whatever the caller's order."""
    names = forward_parameters(model)
    ordered = [name for name in names if name in kwargs]
    ordered += [name for name in kwargs if name not in names]
    return args, {name: kwargs[name] for name in ordered}


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
