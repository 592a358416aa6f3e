"""What JSON that a report reads must hold: each field that is there is checked before its use."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fxelastic.spec.resources import LATENCY

#: A finite number.
NUMBER = "a finite number"
# Larger ones are in no run.
_MOST = 1e100

# A key that ends in "!" is required, others may be null. A list is of any length, a tuple has at
# least one item.
_ROW: Mapping[str, Any] = {
    "arch!": str,
    **dict.fromkeys((LATENCY, "predicted_ms", "measured_ms", "budget_ms"), NUMBER),
    **dict.fromkeys(("accuracy", "held_out_accuracy", "energy_mj", "n_replaced"), NUMBER),
}
_BUDGET = {
    **_ROW,
    "history": [{"subnets!": NUMBER, "accuracy!": NUMBER}],
    "limits": {"*": NUMBER},
}
_CASCADE = {
    **{key: shape for key, shape in _ROW.items() if key != "arch!"},
    "coverage!": (NUMBER,),
    "bound!": NUMBER,
}
_CUT = {"position!": NUMBER, "block!": str, "flops!": NUMBER, "score!": NUMBER}
_EXITS = {
    "cuts!": [_CUT],
    "chance!": NUMBER,
    "whole!": NUMBER,
    "exits!": [NUMBER],
    "little!": [str],
    "measure!": str,
}

SEARCH: Mapping[str, Any] = {
    "budgets!": [_BUDGET],
    "original": {key.rstrip("!"): shape for key, shape in _ROW.items()},
    "original_ms": NUMBER,
    "cascades": [_CASCADE],
}
MEASURED: Mapping[str, Any] = {
    "subnets!": [{**_ROW, "accuracy!": NUMBER}],
    "original": {
        **{key.rstrip("!"): shape for key, shape in _ROW.items()},
        "measured_ms!": NUMBER,
    },
    "notes": [str],
    "cascades": [_CASCADE],
}
EXPLAINED: Mapping[str, Any] = {"blocks!": list, "exits": _EXITS}


def problem(value: Any, shape: Any, where: str = "") -> str:
    """The first field that does not fit, with what it must be; empty if all do.

    Args:
        value: What was read.
        shape: What it must be, such as `SEARCH`.
        where: The field, for the message.
    """
    if shape == NUMBER:
        number = type(value) in (int, float) and math.isfinite(value) and abs(value) <= _MOST
        return "" if number else f"{where} is not {shape}"
    if isinstance(shape, type):
        return "" if isinstance(value, shape) else f"{where} is not of the type {shape.__name__}"
    if isinstance(shape, (list, tuple)):
        if not isinstance(value, list) or (isinstance(shape, tuple) and not value):
            return f"{where} is not a list"
        found = (problem(item, shape[0], f"{where}[{i}]") for i, item in enumerate(value))
        return next(filter(None, found), "")
    if not isinstance(value, dict):
        return f"{where or 'it'} is not an object"
    for key, inner in shape.items():
        name = key.rstrip("!")
        place = f"{where}.{name}" if where else name
        if key == "*":
            found = (problem(item, inner, f"{where}.{name}") for name, item in value.items())
            return next(filter(None, found), "")
        if value.get(name) is not None:
            text = problem(value[name], inner, place)
        else:
            text = f"{place} is missing" if key != name else ""
        if text:
            return text
    return ""
