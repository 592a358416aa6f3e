"""Branches → ONNX, all of them in one conversion where that is possible.

A conversion has a high fixed price, so the branches are converted side by side as one graph and
taken apart afterwards; and a price for each operator, so that of branches with the same graph only
one is converted, and the others are copies of it with their own weights. Optimisation, which may
compute with weights, comes last, for each branch on its own. Where the exporter can't convert the
branches together, each is converted alone, and the reason is kept.
"""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes.common import InlinePass
from torch import nn
from torch.export import Dim

from fxelastic.backends.onnxruntime.padding import keep_padding
from fxelastic.backends.onnxruntime.pieces import Piece, SideBySide
from fxelastic.backends.onnxruntime.refusals import names_operator, refused_operators
from fxelastic.backends.onnxruntime.reshaping import keep_empty_reshapes
from fxelastic.backends.onnxruntime.slicing import Cutter, finish
from fxelastic.backends.onnxruntime.templates import Template, templates
from fxelastic.backends.onnxruntime.translations import translations
from fxelastic.errors import ExportError, listed
from fxelastic.ir.causes import WITHOUT_FAKES, Cause, cause_of
from fxelastic.ir.operators import attribute

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
        reason: Why they were not converted in one go; empty where they were.
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
        progress: Told what is being done.

    Returns:
        A model for each piece.

    Raises:
        ExportError: The exporter can't convert some of them; the message has its own reason for
            each.
    """
    found = templates(pieces)
    progress(f"converting {len(pieces)} branches at once, {len(found)} different graphs")
    try:
        return Conversion(_convert_together(found, opset))
    except Exception as e:  # noqa: BLE001 - the exporter raises dozens of types; recorded
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
        except Exception as e:  # noqa: BLE001 - as above; all that fail are reported together
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
    """Why a branch can't be converted, and one step that helps."""
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
        return Cause(reason, "compute with the real and the imaginary parts apart")
    if operator is None or not names_operator(operator[1], piece.module):
        refused = refused_operators(piece, convert)
        if refused:
            return Cause(f"{listed(refused)}: {reason}", f"replace {listed(refused)}")
    return Cause(reason, f"replace {operator[1].removesuffix('.default')}" if operator else None)


def exporter_reason(error: BaseException) -> str:
    """The exporter's own reason: the innermost error, and the operator where it names one."""
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
    dynamic = [dims for piece in pieces for dims in piece.dynamic]
    shapes = tuple(dict.fromkeys(dims, Dim.AUTO) for dims in dynamic)
    with quiet(), _paused_collector(), torch.no_grad():
        together = SideBySide(pieces)
        # Pieces that read nothing have no dimensions to name: torch refuses to be told none.
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
                torch.onnx.ONNXProgram(model, None).optimize()
                keep_padding(model.graph)
                keep_empty_reshapes(model.graph)
                finish(model, piece.inputs, piece.outputs)
                models[piece.name] = model
    return models


def _weights(together: SideBySide, graph: ir.Graph) -> dict[str, int]:
    """The ``id`` of the weight that an initializer is, by the initializer's name.

    The exporter names a weight by its path in the module; what has another name is a constant. One
    weight may have several names.
    """
    weights = {}
    for name in graph.initializers:
        with contextlib.suppress(AttributeError):
            weights[name] = id(attribute(together, name))
    return weights


def _slots(template: Template, weights: Mapping[str, int]) -> dict[str, int]:
    """Where in a template's weights the initializers of its converted piece are, by name."""
    first = template.first.module
    places = {id(attribute(first, name)): i for i, name in enumerate(template.weights[0])}
    return {name: places[weight] for name, weight in weights.items() if weight in places}


def _fill(graph: ir.Graph, module: nn.Module, weights: Mapping[str, str]) -> None:
    """Give initializers a module's own weights, and their names."""
    found = [value for name, value in graph.initializers.items() if name in weights]
    names = [weights[str(value.name)] for value in found]
    for value, name in zip(found, names, strict=True):
        tensor = attribute(module, name)
        assert isinstance(tensor, torch.Tensor)
        value.const_value = ir.tensor(tensor.detach(), name=name)
    ir.convenience.rename_values(found, names)


def _check_dynamic(pieces: Sequence[Piece], model: ir.Model) -> None:
    """Refuse a conversion that fixed a size that the capture left open."""
    inputs = iter(model.graph.inputs)
    for piece in pieces:
        for name, dims, value in zip(piece.inputs, piece.dynamic, inputs, strict=False):
            fixed = [i for i in dims if value.shape is None or isinstance(value.shape[i], int)]
            if fixed:
                raise ExportError(
                    f"branch {piece.name!r} fixes the batch size of its input {name!r}",
                    expected=f"dimension {fixed[0]} of any size",
                    got=str(value.shape),
                    fix="report it, with the model",
                )


@contextlib.contextmanager
def _paused_collector() -> Iterator[None]:
    """Pause the garbage collector: it would walk through a growing graph again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporter: what it has to say about a failure is in the error it raises."""
    loggers = [logging.getLogger(name) for name in _QUIET]
    levels = [log.level for log in loggers]
    printed = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stderr(printed):
        warnings.simplefilter("ignore")
        with contextlib.redirect_stdout(printed):
            try:
                for log in loggers:
                    log.setLevel(logging.CRITICAL)
                yield
            finally:
                for log, level in zip(loggers, levels, strict=True):
                    log.setLevel(level)


def tool_versions() -> dict[str, Any]:
    """Versions of what the bytes of an export depend on."""
    import onnx
    import onnxscript

    return {
        "onnx": onnx.__version__,
        "onnx_ir": ir.__version__,
        "onnxscript": onnxscript.__version__,
        "torch": torch.__version__,
    }
