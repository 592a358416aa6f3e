"""Find the line of a model that makes torch.export fix a size, or bound it."""

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

from fxelastic.ir.causes import is_library, is_own, quoted


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
    """The operator that is running and the innermost line of the model's own code."""
    operator = ""
    while frame is not None:
        running = frame.f_locals.get("self")
        if not operator and isinstance(running, torch._ops.OpOverload):
            operator = f"{running.name().replace('::', '.')} at "
        file = frame.f_code.co_filename
        if not is_library(file):
            return "" if is_own(file) else f"{operator}{quoted(file, frame.f_lineno)}"
        frame = frame.f_back
    return ""
