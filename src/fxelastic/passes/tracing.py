"""One trace of a model with given inputs and sizes that vary: ``nn.Module`` → `Traced`."""

from __future__ import annotations

import dataclasses
import inspect
import keyword
import logging
import re
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import fx, nn

from fxelastic.errors import InternalError
from fxelastic.ir import trees
from fxelastic.ir.graph_symbols import GraphSymbol
from fxelastic.ir.operators import node_parameters
from fxelastic.ir.quiet import quiet
from fxelastic.ir.signature import Signature, normalise_arguments
from fxelastic.ir.traced import Traced
from fxelastic.ir.value_names import value_names
from fxelastic.passes.batch import BatchedInputs
from fxelastic.passes.canonical import (
    drop_empty_parts,
    drop_idle_casts,
    fill_empty,
    name_squeezed_dimensions,
    replace_copies,
)
from fxelastic.passes.checks import refuse_state
from fxelastic.passes.dynamic_shapes import DynamicShapes
from fxelastic.passes.export import QUIET, Exported
from fxelastic.passes.functionalise import functionalise_simple
from fxelastic.passes.normalise import normalise
from fxelastic.passes.opaque import export_with_opaque, restore_opaque
from fxelastic.passes.sizes import localise_sizes

logger = logging.getLogger(__name__)

#: How the warning begins that the batch can't vary.
FIXED_BATCH = "the batch size is fixed to the example's"

# Names that the code of a graph uses for other things.
_TAKEN = frozenset({"torch", "self", "device", "inf", "nan", "NoneType", "fx_pytree", "pytree"})


@dataclass(frozen=True)
class ModelCall:
    """A model and the call that is traced.

    Attributes:
        model: The user's model, whose weights and names the graph gets.
        clone: Its private clone, which is exported and run.
        args: The positional example inputs.
        kwargs: The keyword example inputs.
        batch: The inputs that hold samples.
    """

    model: nn.Module
    clone: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    batch: BatchedInputs


def trace(call: ModelCall, shapes: DynamicShapes) -> tuple[Traced, DynamicShapes]:
    """Trace a model once, with the sizes that vary as requested.

    Returns:
        The captured model, which is not compared with the model yet, and the sizes that the
        export left to vary.

    Raises:
        CaptureError: The model can't be exported, or a size can't vary.
    """
    with export_with_opaque(call.clone, call.args, call.kwargs, call.batch, shapes) as (
        exported,
        opaque,
    ):
        signature = _signature(call, exported)
        graph_module = _functional_graph(exported, call, signature)
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
        model_name=type(call.model).__name__,
        method="export+opaque" if opaque else "export",
        dynamic_batch=bool(shapes.batch),
        symbols=_graph_symbols(graph_module, shapes),
        batch_dims={signature.names[i]: dim for i, dim in exported.batch.dims.items()},
        batch_reason=exported.batch.why,
        opaque=tuple((module.path, module.cause.reason) for module in opaque),
        unused_params=_unused(call.model, graph_module),
        warnings=_warnings(exported, signature.names),
        example=tuple(trees.flatten(signature.normalise(call.args, call.kwargs))[0]),
    )
    return traced, shapes


def forward_parameters(model: nn.Module, by_position: bool = False) -> tuple[str, ...]:
    """The names of ``forward``'s parameters, those that can be passed by position if asked for."""
    try:
        return tuple(
            parameter.name
            for parameter in inspect.signature(model.forward).parameters.values()
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            and not (by_position and parameter.kind is parameter.KEYWORD_ONLY)
        )
    except (TypeError, ValueError):
        return ()


def named_arguments(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> trees.Tree:
    """The structure of the arguments by name."""
    _, flat = trees.flatten((args, kwargs))
    parameters = forward_parameters(model, by_position=True)
    _, named = trees.flatten(normalise_arguments(parameters, args, kwargs))
    if len(trees.leaf_names(named, "")) != len(trees.leaf_names(flat, "")):
        raise InternalError("the example inputs could not be bound to the model's arguments")
    return named


def _signature(call: ModelCall, exported: Exported) -> Signature:
    named = named_arguments(call.model, call.args, call.kwargs)
    names = _identifiers(trees.leaf_names(named, ""))
    parameters = forward_parameters(call.model, by_position=True)
    return Signature(named, exported.result, tuple(names), parameters, value_names(named))


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


def _functional_graph(exported: Exported, call: ModelCall, signature: Signature) -> fx.GraphModule:
    names: dict[int, str] = {}
    for name, tensor in (*call.model.named_parameters(), *call.model.named_buffers()):
        names.setdefault(id(tensor), name)
    result = normalise(exported.program, call.model, signature.inputs, names)
    if functionalise_simple(result.graph):
        return _without_copies(result)
    logger.info("in-place writes through views: re-tracing with torch's functionalisation")
    with quiet(*QUIET):
        functional = exported.program.run_decompositions({})
    if functional.graph_signature.buffers_to_mutate:
        refuse_state(call.clone, call.args, call.kwargs)
    return _without_copies(normalise(functional, call.model, signature.inputs, names))


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
        return (*exported.warnings, f"{FIXED_BATCH}: {exported.why_static}")
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
