"""Branches → ONNX, all of them in one conversion where that is possible.

A conversion has a high fixed price, so the branches are converted side by side as one graph and
taken apart afterwards. Where the exporter can't convert them together, each is converted alone,
and the reason is kept.
"""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes.common import InlinePass
from torch.export import Dim

from fxelastic.backends.onnxruntime.pieces import Piece, SideBySide
from fxelastic.backends.onnxruntime.slicing import slice_model
from fxelastic.errors import ExportError

logger = logging.getLogger(__name__)

#: The operator set that the exporter writes without a version conversion.
DEFAULT_OPSET = 20

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
    progress(f"converting {len(pieces)} branches at once")
    try:
        return Conversion(_convert_together(pieces, opset))
    except Exception as e:  # noqa: BLE001 - the exporter raises dozens of types; recorded
        reason = exporter_reason(e)
        logger.warning("the branches can't be converted at once (%s); converting each", reason)
    models: dict[str, ir.Model] = {}
    failures: list[str] = []
    for i, piece in enumerate(pieces):
        progress(f"converting branch {i + 1} of {len(pieces)}, {piece.name}")
        try:
            models |= _convert_together([piece], opset)
        except Exception as e:  # noqa: BLE001 - as above; all that fail are reported together
            failures.append(f"{piece.name}: {exporter_reason(e)}")
    if failures:
        raise ExportError(
            f"the ONNX exporter can't convert {len(failures)} of {len(pieces)} branches",
            expected="operators that torch.onnx.export knows",
            got="\n".join(failures),
            fix="replace the operators named, or try another opset",
        )
    return Conversion(models, reason)


def exporter_reason(error: BaseException) -> str:
    """The exporter's own reason: the innermost error, and the operator where it names one."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    for e in reversed(chain):
        lines = [line.strip() for line in str(e).splitlines() if line.strip()]
        if lines:
            return f"{type(e).__name__}: {lines[0][:300]}"
    return type(error).__name__


def _convert_together(pieces: Sequence[Piece], opset: int) -> dict[str, ir.Model]:
    examples = tuple(x for piece in pieces for x in piece.examples)
    dynamic = [dims for piece in pieces for dims in piece.dynamic]
    shapes = tuple(dict.fromkeys(dims, Dim.AUTO) for dims in dynamic)
    with quiet(), _paused_collector(), torch.no_grad():
        program = torch.export.export(
            SideBySide(pieces), examples, dynamic_shapes={"operands": shapes}, strict=False
        )
        converted = torch.onnx.export(program, dynamo=True, opset_version=opset, verbose=False)
    assert converted is not None
    model = converted.model
    InlinePass()(model)
    _check_dynamic(pieces, model)
    inputs, outputs = list(model.graph.inputs), list(model.graph.outputs)
    models = {}
    for piece in pieces:
        reads, inputs = inputs[: len(piece.inputs)], inputs[len(piece.inputs) :]
        gives, outputs = outputs[: len(piece.outputs)], outputs[len(piece.outputs) :]
        models[piece.name] = slice_model(
            model,
            dict(zip(piece.inputs, reads, strict=True)),
            dict(zip(piece.outputs, gives, strict=True)),
        )
    return models


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
