"""The option ``--dynamic``: from texts to the ``dynamic_shapes`` of `fxelastic.partition`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from fxelastic.errors import UsageError
from fxelastic.spec.symbols import SYMBOL_NAME

_RANGE = re.compile(
    rf"(?P<input>[^:=]+):(?P<dim>[0-9]{{1,3}})=(?:(?P<name>{SYMBOL_NAME})"
    r"(?:\[(?P<min>[0-9]{1,18})?\.\.(?P<max>[0-9]{1,18})?\])?"
    rf"|(?P<sum>{SYMBOL_NAME}(?:\s*\+\s*\w+)+))"
)
_FORMS = (
    "INPUT:DIM=NAME, INPUT:DIM=NAME[MIN..MAX] or INPUT:DIM=NAME+NAME, such as "
    "input_ids:1=seq[2..512]"
)
_HINTS = ("AUTO", "STATIC")


def load_dynamic_shapes(texts: Sequence[str]) -> dict[str, dict[int, Any]] | None:
    """Read the values of all ``--dynamic`` options.

    Args:
        texts: For example ``input_ids:1=seq[2..512]``, or ``mask:1=past+new`` for a sum. ``AUTO``
            and ``STATIC`` as names stand for torch's ``Dim.AUTO`` and ``Dim.STATIC``. A range that
            is given once holds wherever the name occurs.

    Returns:
        The sizes by input and dimension; None without texts.

    Raises:
        UsageError: A text has another form, names a dimension twice, or an empty range.
    """
    from torch.export import Dim

    if not texts:
        return None
    matches = [_matched(text) for text in texts]
    symbols: dict[str, Any] = {hint: getattr(Dim, hint) for hint in _HINTS}
    for text, match in zip(texts, matches, strict=True):
        name, low, high = match["name"], match["min"], match["max"]
        if low is None and high is None:
            continue
        if name in _HINTS or (high and int(low or 1) >= int(high)):
            raise _malformed(text)
        symbol = Dim(name, min=int(low or 1), max=int(high) if high else None)
        known = symbols.setdefault(name, symbol)
        if (known.min, known.max) != (symbol.min, symbol.max):
            raise UsageError(
                f"--dynamic gives {name} two ranges",
                expected="one range for each name",
                got=" and ".join(
                    t for t, m in zip(texts, matches, strict=True) if m["name"] == name
                ),
            )
    shapes: dict[str, dict[int, Any]] = {}
    for text, match in zip(texts, matches, strict=True):
        dims = shapes.setdefault(match["input"], {})
        if int(match["dim"]) in dims:
            raise UsageError(
                f"--dynamic names dimension {match['dim']} of {match['input']} twice",
                expected="each dimension once",
                got=text,
            )
        dims[int(match["dim"])] = match["sum"] or symbols.get(match["name"], match["name"])
    return shapes


def _matched(text: str) -> re.Match[str]:
    match = _RANGE.fullmatch(text.strip())
    if match is None:
        raise _malformed(text)
    return match


def _malformed(text: str) -> UsageError:
    return UsageError(
        "--dynamic has another form than expected",
        expected=_FORMS,
        got=text,
        fix="correct it; for several sizes, repeat the option",
    )
