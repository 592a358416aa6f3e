"""Branches → ONNX, all of them in one conversion if possible.

A conversion has a high fixed cost, so the branches are converted side by side as one graph and then
separated. It also has a cost for each operator, so only one of several branches with the same graph
is converted, and the others are copies of it with their own weights. Optimisation, which may
compute with weights, comes last, for each branch alone. If the exporter can't convert the branches
together, each is converted alone, and the manifest has the reason.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes.common import InlinePass
from torch import nn

from fxelastic.backends.onnxruntime.graph_fixes import (
    hide_small_terms,
    keep_empty_reshapes,
    keep_padding,
    show_small_terms,
)
from fxelastic.backends.onnxruntime.pieces import Piece, SideBySide, Template, templates
from fxelastic.backends.onnxruntime.refusals import names_operator, refused_operators
from fxelastic.backends.onnxruntime.slicing import Cutter, finish
from fxelastic.backends.onnxruntime.translations import translations
from fxelastic.errors import ExportError, listed
from fxelastic.ir.causes import WITHOUT_FAKES, Cause, cause_of
from fxelastic.ir.operators import attribute
from fxelastic.ir.quiet import collector_paused, quiet
from fxelastic.ir.recurrent import recurrent_shapes

logger = logging.getLogger(__name__)

#: The operator set that the exporter writes without a version conversion.
DEFAULT_OPSET = 20

# Enough to see a pattern.
_MAX_REPORTED = 3

_COMPLEX = " of complex numbers"

_QUIET = ("torch.onnx", "torch.export", "torch.fx.experimental", "onnxscript", "onnx_ir")


@dataclass(frozen=True)
class Conversion:
    """Branches as ONNX models.

    Attributes:
        models: A model for each piece, by its name. Inputs and outputs have the piece's names.
        reason: Why they were not converted together; empty if they were.
    """

    models: Mapping[str, ir.Model]
    reason: str = ""


def convert(
    pieces: Sequence[Piece],
    opset: int = DEFAULT_OPSET,
    progress: Callable[[str], None] = lambda _: None,
) -> Conversion:
    """Convert modules to ONNX.

    Args:
        pieces: The modules.
        opset: Version of the operator set.
        progress: Called with a short text at each step.

    Returns:
        A model for each piece.

    Raises:
        ExportError: The exporter can't convert some of them; the message has its reason for each.
    """
    found = templates(pieces)
    progress(f"converting {len(pieces)} branches at once, {len(found)} different graphs")
    try:
        return Conversion(_convert_together(found, opset))
    except Exception as e:  # noqa: BLE001 - the exporter raises dozens of types
        reason = exporter_reason(e)
        logger.warning("the branches can't be converted at once (%s); converting each", reason)
    models: dict[str, ir.Model] = {}
    failures: list[tuple[Template, Cause]] = []

    def alone(piece: Piece) -> object:
        return _convert_together(templates([piece]), opset)

    for template in found:
        names = ", ".join(piece.name for piece in template.pieces)
        progress(f"converting {names} ({len(models) + 1} of {len(pieces)})")
        try:
            models |= _convert_together([template], opset)
        except Exception as e:  # noqa: BLE001 - as above; all failures are reported together
            failures.append((template, _cause(e, template.first, alone)))
    if failures:
        n_failed = sum(len(template.pieces) for template, _ in failures)
        raise ExportError(
            f"the ONNX exporter can't convert {n_failed} of {len(pieces)} branches",
            expected="operators that torch.onnx.export knows",
            got="\n".join(_reasons(failures)),
            fix=next(
                (cause.fix for _, cause in failures if cause.fix), "report it, with the model"
            ),
        )
    return Conversion(models, reason)


def _reasons(failures: Sequence[tuple[Template, Cause]]) -> list[str]:
    """A line for each reason, with the branches that fail for it."""
    by_reason: dict[str, list[str]] = {}
    for template, cause in failures:
        names = by_reason.setdefault(cause.reason, [])
        names += [piece.name for piece in template.pieces]
    lines = [f"{listed(names)}: {reason}" for reason, names in by_reason.items()]
    hidden = len(lines) - _MAX_REPORTED
    return lines[:_MAX_REPORTED] + ([f"and {hidden} more reasons"] if hidden > 0 else [])


def _cause(error: Exception, piece: Piece, convert: Callable[[Piece], object]) -> Cause:
    """The reason why a branch can't be converted, and one step that helps."""
    parts = dict(piece.module.named_modules())
    whole = next((part for name, part in parts.items() if name.endswith(".module")), None)
    whole = whole if any("_opaque_" in name for name in parts) else None
    if whole is not None:
        cause = cause_of(error, whole)
        reason = f"{type(whole).__name__} is kept whole: {cause.reason}"
        rewrite = cause.fix or "rewrite it so that torch.export can record it"
        return Cause(reason, f"{rewrite}; partition.opaque lists the modules that are kept whole")
    reason = exporter_reason(error)
    operator = re.search(r"(?:has no conversion for|^at) ([\w.]+)", reason)
    if operator and re.search("fake_quant|_obs_fq_", operator[1]):
        return Cause(reason, WITHOUT_FAKES)
    if reason.endswith(_COMPLEX):
        return Cause(reason, "compute with the real and the imaginary parts separately")
    if operator is None or not names_operator(operator[1], piece.module):
        refused = refused_operators(piece, convert)
        if refused:
            return Cause(f"{listed(refused)}: {reason}", f"replace {listed(refused)}")
    return Cause(reason, f"replace {operator[1].removesuffix('.default')}" if operator else None)


def exporter_reason(error: BaseException) -> str:
    """The exporter's own reason: the innermost error, and the operator if there is one."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    said = [(type(e).__name__, line) for e in reversed(chain) if (line := _first_line(e))]
    text = "; ".join(line for _, line in said)
    unknown = re.search(
        r"No ONNX function found for <OpOverload\(op='(.+?)', overload='(.+?)'", text
    )
    if unknown is not None:
        of = _COMPLEX if "complex-valued" in text else ""
        return f"torch.onnx has no conversion for {unknown[1]}.{unknown[2]}{of}"
    if not said:
        return type(error).__name__
    operator = re.search(r"target=torch\.ops\.([\w.]+)", "; ".join(map(str, chain)))
    at = f"at {operator[1]}, " if operator else ""
    return f"{at}{said[0][0]}: {said[0][1][:300]}"


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")


def _convert_together(found: Sequence[Template], opset: int) -> dict[str, ir.Model]:
    pieces = [template.first for template in found]
    examples = tuple(x for piece in pieces for x in piece.examples)
    sizes = [piece.torch_sizes(str(i)) for i, piece in enumerate(pieces)]
    shapes = tuple(operand for operands in sizes for operand in operands)
    with quiet_exporter(), collector_paused(), recurrent_shapes(), torch.no_grad():
        together = SideBySide(pieces)
        # torch takes no empty structure of dimensions, as for pieces without inputs.
        named = {"operands": shapes} if examples else None
        program = torch.export.export(together, examples, dynamic_shapes=named, strict=False)
        converted = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            verbose=False,
            optimize=False,
            custom_translation_table=translations(),
        )
        assert converted is not None
        InlinePass()(converted.model)
        _check_dynamic(pieces, converted.model)
        graph = converted.model.graph
        inputs, outputs = list(graph.inputs), list(graph.outputs)
        cutter, weights = Cutter(converted.model), _weights(together, graph)
        models = {}
        for template in found:
            first = template.first
            reads, inputs = inputs[: len(first.inputs)], inputs[len(first.inputs) :]
            gives, outputs = outputs[: len(first.outputs)], outputs[len(first.outputs) :]
            slots = _slots(template, weights)
            for piece, names in zip(template.pieces, template.weights, strict=True):
                model = cutter.cut(reads, gives)
                _fill(model.graph, piece.module, {k: names[slot] for k, slot in slots.items()})
                hide_small_terms(model.graph)
                torch.onnx.ONNXProgram(model, None).optimize()
                show_small_terms(model.graph)
                keep_padding(model.graph)
                keep_empty_reshapes(model.graph)
                finish(model, piece.inputs, piece.outputs)
                models[piece.name] = model
    return models


def _weights(together: SideBySide, graph: ir.Graph) -> dict[str, int]:
    """The ``id`` of each initializer's weight, by the initializer's name.

    The exporter names a weight by its path in the module; other names are constants. A weight may
    have several names.
    """
    weights = {}
    for name in graph.initializers:
        with contextlib.suppress(AttributeError):
            weights[name] = id(attribute(together, name))
    return weights


def _slots(template: Template, weights: Mapping[str, int]) -> dict[str, int]:
    """The position of each initializer of a converted piece in its template's weights."""
    first = template.first.module
    places = {id(attribute(first, name)): i for i, name in enumerate(template.weights[0])}
    return {name: places[weight] for name, weight in weights.items() if weight in places}


def _fill(graph: ir.Graph, module: nn.Module, weights: Mapping[str, str]) -> None:
    """Set initializers to a module's own weights and names."""
    found = [value for name, value in graph.initializers.items() if name in weights]
    names = [weights[str(value.name)] for value in found]
    for value, name in zip(found, names, strict=True):
        tensor = attribute(module, name)
        assert isinstance(tensor, torch.Tensor)
        value.const_value = ir.tensor(tensor.detach(), name=name)
    ir.convenience.rename_values(found, names)


def _check_dynamic(pieces: Sequence[Piece], model: ir.Model) -> None:
    """Check that the conversion fixes no size that is dynamic in the capture."""
    inputs = iter(model.graph.inputs)
    for piece in pieces:
        for name, sizes, value in zip(piece.inputs, piece.dynamic, inputs, strict=False):
            dims = [size.dim for size in sizes]
            fixed = [i for i in dims if value.shape is None or isinstance(value.shape[i], int)]
            if fixed:
                raise ExportError(
                    f"branch {piece.name!r} fixes a size of its input {name!r} that may vary",
                    expected=f"dimension {fixed[0]} of any size",
                    got=str(value.shape),
                    fix="report it, with the model",
                )


def quiet_exporter() -> AbstractContextManager[None]:
    """Silence the exporter, whose errors have the cause of a failure."""
    return quiet(*_QUIET, stdout=True)


def tool_versions() -> dict[str, Any]:
    """Versions of the libraries that determine the bytes of an export."""
    import onnx
    import onnxscript

    return {
        "onnx": onnx.__version__,
        "onnx_ir": ir.__version__,
        "onnxscript": onnxscript.__version__,
        "torch": torch.__version__,
    }
