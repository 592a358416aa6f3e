"""Find the line of a model that makes torch.export fix a size, bound it, or lose track of it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any
from unittest import mock

import torch
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from fxelastic.errors import CaptureError
from fxelastic.ir.causes import is_library, is_own, quoted

# What Python does with a size, by the functions of torch that this calls.
_PYTHON = {"guard_int": "int() of a size", "guard_bool": "a comparison of sizes"}

# Those of usual networks have up to 300; torch takes seconds for one of twice as many.
_LONGEST = 600


@dataclass
class Decisions:
    """What torch decides about sizes during an export, each with its place.

    Attributes:
        fixed: The place that fixes a size, by the name of torch's symbol.
        bounds: The conditions that torch takes for granted, in order, with their places.
    """

    fixed: dict[str, str] = field(default_factory=dict)
    bounds: list[tuple[set[str], str]] = field(default_factory=list)

    def why_fixed(self) -> str:
        """The operator and the line that first fix a size; empty if they are not known."""
        return next(iter(self.fixed.values()), "")

    def why_bounded(self, variable: str) -> str:
        """The operator and the line of the first condition on a symbol alone."""
        return next((place for names, place in self.bounds if names == {variable}), "")


@contextlib.contextmanager
def short_expressions() -> Iterator[None]:
    """End an export whose sizes become long expressions, which would take torch hours.

    Each window or patch that a model pads to a whole number adds remainders and quotients of the
    expressions before it.

    Raises:
        CaptureError: A condition on sizes is too long; the message has its operator and line.
    """
    evaluate: Any = getattr(ShapeEnv, "evaluate_expr", None)

    def checked(self: Any, orig_expr: Any, *rest: Any, **more: Any) -> Any:
        __tracebackhide__ = True
        if _is_long(orig_expr):
            place = _place(sys._getframe(1))
            raise CaptureError(
                "the sizes of the model become too complicated",
                expected=f"conditions on sizes of at most {_LONGEST} symbols and operations",
                got=place or str(orig_expr)[:200],
                fix="let fewer dimensions vary: leave some out of dynamic_shapes",
            )
        return evaluate(self, orig_expr, *rest, **more)

    with contextlib.ExitStack() as stack:
        if evaluate is not None:
            stack.enter_context(mock.patch.object(ShapeEnv, "evaluate_expr", checked))
        yield


def _is_long(expression: Any) -> bool:
    pending, n = [expression], 0
    while pending:
        pending += getattr(pending.pop(), "args", ())
        n += 1
        if n > _LONGEST:
            return True
    return False


@contextlib.contextmanager
def recorded_decisions() -> Iterator[Decisions]:
    """Record what torch decides about sizes.

    torch offers no interface for this, so its own log calls are watched. Without them nothing is
    recorded, and messages have no line.
    """
    found = Decisions()

    replace: Any = getattr(ShapeEnv, "_set_replacement", None)
    guard: Any = getattr(ShapeEnv, "_log_guard", None)

    def note_replacement(self: Any, a: Any, tgt: Any, *rest: Any, **more: Any) -> Any:
        if getattr(tgt, "is_number", False):
            found.fixed.setdefault(str(a), _place(sys._getframe(1)))
        return replace(self, a, tgt, *rest, **more)

    def note_guard(self: Any, prefix: str, g: Any, *rest: Any, **more: Any) -> Any:
        names = {str(symbol) for symbol in getattr(g, "free_symbols", ())}
        found.bounds.append((names, _place(sys._getframe(1))))
        return guard(self, prefix, g, *rest, **more)

    with contextlib.ExitStack() as stack:
        if replace is not None and guard is not None:
            stack.enter_context(mock.patch.object(ShapeEnv, "_set_replacement", note_replacement))
            stack.enter_context(mock.patch.object(ShapeEnv, "_log_guard", note_guard))
        yield found


def _place(frame: FrameType | None) -> str:
    """What is running, an operator if possible, and the innermost line of the model's own code."""
    operator = python = ""
    while frame is not None:
        running = frame.f_locals.get("self")
        if isinstance(running, torch._ops.OpOverload):  # the last is what the model calls
            operator = running.name().replace("::", ".")
        file = frame.f_code.co_filename
        if file != __file__ and not is_library(file):
            what = operator or python
            at = f"{what} at " if what else ""
            return "" if is_own(file) else f"{at}{quoted(file, frame.f_lineno)}"
        python = python or _PYTHON.get(frame.f_code.co_name, "")
        frame = frame.f_back
    return ""
