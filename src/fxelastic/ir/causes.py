"""The cause of a failed capture or export, and one step that helps.

``torch.export`` raises dozens of error types for a handful of causes, and its messages name its
own symbols. This file derives the cause from the error's type and text, the functions that were
running, and the modules of the model. If these don't show the cause, the result has no advice.
"""

from __future__ import annotations

import linecache
import os
import re
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType, TracebackType

import torch
from torch import nn
from torch.ao.quantization import FakeQuantizeBase
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence

from fxelastic.errors import said

_MAX_SAID = 160

#: Advice for fake quantisation, which rounds differently in each framework.
WITHOUT_FAKES = "pass the model as it was before torch.ao.quantization.prepare_qat"

_QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized")

_TORCH = f"{Path(torch.__file__).parent}{os.sep}"
_OURS = f"{Path(__file__).parents[1]}{os.sep}"
_STANDARD = f"{sysconfig.get_path('stdlib')}{os.sep}"


@dataclass(frozen=True)
class Cause:
    """Why a module can't be recorded.

    Attributes:
        reason: What the module does, where, and torch's message, in one line.
        fix: One step that helps; None if the cause is unknown.
        separable: Whether the user can move the failing part to a submodule of its own, which the
            capture then keeps whole.
        by_values: Whether it decides, or makes numbers, by the values of a tensor.
    """

    reason: str
    fix: str | None = None
    separable: bool = True
    by_values: bool = False


@dataclass(frozen=True)
class _Failure:
    """The parts of an error of torch's tracing.

    Attributes:
        model: The module that torch was recording.
        texts: ``TypeName: first line`` of the error and of the errors that caused it.
        frames: Every frame that was running, outermost first.
    """

    model: nn.Module
    texts: tuple[str, ...]
    frames: tuple[FrameType, ...]

    def says(self, pattern: str) -> re.Match[str] | None:
        """The first match in torch's messages."""
        return next(filter(None, (re.search(pattern, text) for text in self.texts)), None)


def cause_of(error: BaseException, model: nn.Module) -> Cause:
    """Find the reason why torch could not record a module.

    Args:
        error: The error that ``torch.export`` raised.
        model: The module that torch was recording, with its submodules.

    Returns:
        The reason, with advice if the cause is known.
    """
    errors = list(_chain(error))
    texts = tuple(_said(e) for e in errors)
    frames = tuple(call.tb_frame for e in reversed(errors) for call in _calls(e))
    failure = _Failure(model, texts, frames)
    said = f"{_place(errors)}{texts[0]}"
    for find in _CAUSES:
        found = find(failure)
        if found is not None:
            return replace(found, reason=f"{found.reason} ({said})")
    return Cause(said, separable=False)


def _packed(failure: _Failure) -> Cause | None:
    running = any(frame.f_code.co_filename.endswith("utils/rnn.py") for frame in failure.frames)
    held = any(
        isinstance(value, PackedSequence)
        for frame in failure.frames
        if frame.f_code.co_name == "forward"
        for value in frame.f_locals.values()
    )
    if not (running or held):
        return None
    return Cause(
        "it uses packed sequences, whose sizes depend on the lengths",
        "give the recurrent layer padded sequences without pack_padded_sequence, and mask the "
        "results behind each length",
    )


def _quantised(failure: _Failure) -> Cause | None:
    running = any(_is_quantised(frame.f_locals.get("self")) for frame in failure.frames)
    if not (running or failure.says(r"PackedParams|quantized::")):
        return None
    path = next((path for path, m in failure.model.named_modules() if _is_quantised(m)), "")
    return Cause(
        f"{path!r} is a quantised module" if path else "it holds quantised weights",
        "pass the floating-point model, as it was before torch.ao.quantization.convert or "
        "quantize_dynamic",
        separable=False,
    )


def _is_quantised(module: object) -> bool:
    return isinstance(module, nn.Module) and type(module).__module__.startswith(_QUANTISED)


def _faked(failure: _Failure) -> Cause | None:
    running = (frame.f_locals.get("self") for frame in failure.frames)
    found = next((part for part in running if isinstance(part, FakeQuantizeBase)), None)
    if found is None:
        return None
    return Cause(f"{type(found).__name__} reads its own switches", WITHOUT_FAKES, separable=False)


def _parametrised(failure: _Failure) -> Cause | None:
    running = (frame.f_locals.get("self") for frame in failure.frames)
    if not any(isinstance(owner, parametrize.ParametrizationList) for owner in running):
        return None
    return Cause(
        "the parametrisation of a weight can't be recorded",
        "compute it once with torch.nn.utils.parametrize.remove_parametrizations",
        separable=False,
    )


def _numpy(failure: _Failure) -> Cause | None:
    if not failure.says(r"\.numpy\(\)|numpy\.ndarray|__array__"):
        return None
    return Cause(
        "it computes with numpy, which torch can't record",
        "use torch functions instead of numpy's",
    )


def _decides(failure: _Failure) -> Cause | None:
    found = failure.says(r"Could not guard on data-dependent expression (.*)")
    if found is None:
        return None
    # Truth values are compared with 1, and zuf is a fraction; other expressions are sizes.
    if not re.match(r"Eq\(u\d+, 1\)|.*zuf", found[1]):
        return Cause(
            "a size depends on the values of a tensor",
            "compute it for all rows, and mask the results with torch.where",
            by_values=True,
        )
    return Cause(
        "its control flow depends on the values of a tensor",
        "write it with torch.where or torch.cond",
        by_values=True,
    )


def _takes_numbers(failure: _Failure) -> Cause | None:
    if not failure.says(
        "Could not extract specialized|GuardOnDataDependent|DataDependentOutput|_local_scalar_dense"
    ):
        return None
    return Cause(
        "it turns a tensor into a number, as .item(), int() and float() do",
        "keep the number as a tensor",
        by_values=True,
    )


def _operator(failure: _Failure) -> Cause | None:
    pattern = r"(?:UnsupportedOperatorException|DynamicOutputShapeException): ([\w.:]+)"
    found = failure.says(pattern) or failure.says(
        r"(?:no fake impl|Missing Meta|no kernel|fake implementation)\D*?([a-z_]\w*(?:::|\.)\w+)"
    )
    if found is None:
        return None
    operator = found[1].replace("::", ".")
    known = operator.startswith(("aten.", "prims.", "prim."))
    fix = f"replace {operator}" if known else "register one with torch.library.register_fake"
    return Cause(f"the operator {operator} has no implementation for tracing", fix)


#: In order; the first that finds a cause decides.
_CAUSES: tuple[Callable[[_Failure], Cause | None], ...] = (
    _packed,
    _quantised,
    _faked,
    _parametrised,
    _numpy,
    _decides,
    _takes_numbers,
    _operator,
)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, followed by the errors that caused it."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


def _calls(error: BaseException) -> list[TracebackType]:
    """The calls that an error propagated through, outermost first."""
    calls = []
    trace = error.__traceback__
    while trace is not None:
        calls.append(trace)
        trace = trace.tb_next
    return calls


def _said(error: BaseException) -> str:
    # Torch's symbols and the repeated expression mean nothing to a user.
    return re.sub(r"\s*\((?:unhinted|Size-like).*", "", said(error, 2 * _MAX_SAID))[:_MAX_SAID]


def _shortened(text: str) -> str:
    return f"{text[: _MAX_SAID - 1]}…" if len(text) > _MAX_SAID else text


def _place(errors: Sequence[BaseException]) -> str:
    """The innermost line of the model's own code: ``net.py:12: if x.sum() > 0: ``."""
    for error in reversed(errors):
        calls = _calls(error)
        files = [call.tb_frame.f_code.co_filename for call in calls]
        # The frames before this package's last call belong to the code that called it. A frame
        # that hides itself watches a function of torch that the model calls.
        ours = (
            i + 1
            for i, (call, file) in enumerate(zip(calls, files, strict=True))
            if file.startswith(_OURS) and "__tracebackhide__" not in call.tb_frame.f_locals
        )
        inside = max(ours, default=0)
        for call, file in reversed(list(zip(calls, files, strict=True))[inside:]):
            if not is_library(file) and not file.startswith(_OURS):
                return f"{quoted(file, call.tb_lineno)}; "
    return ""


def quoted(file: str, line: int) -> str:
    """A line of code and where it is: ``net.py:12: x + self.positions``."""
    code = linecache.getline(file, line).strip()
    return f"{Path(file).name}:{line}: {_shortened(code)}"


def is_own(file: str) -> bool:
    """Whether a file belongs to this package."""
    return file.startswith(_OURS)


def is_library(file: str) -> bool:
    """Whether a file belongs to Python's standard library or to torch."""
    standard = file.startswith(_STANDARD) and "-packages" not in file
    return standard or file.startswith((_TORCH, "<"))
