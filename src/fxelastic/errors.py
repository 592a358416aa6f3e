"""Every exception the package raises.

User errors and internal errors have different types, so that a caller can tell them apart without
reading messages:

* `UsageError` - an argument, a file or the environment does not meet a function's requirements.
* `CaptureError` - the user's model can't be captured as a graph.
* `PartitionError` - a partition breaks an invariant.
* `ExportError` - a supernet can't be converted, or the result computes different values.
* `BundleError` - a bundle on disk is damaged, incomplete, or not a bundle.
* `TrainingError` - training can't continue: a loss is not finite, or no checkpoint is usable.
* `ServingError` - no subnet can answer a request.
* `InternalError` - the package contradicts itself; please report it.

All of them derive from `FxElasticError`. A message says what happened and, where it helps, what was
expected, what came instead and how to fix it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from textwrap import indent

# The most bytes of the parts of a message, which may quote a file. With labels, 2 KB.
_MOST = 1900
_CUT = "…".encode()
# Of a part's further lines.
_INDENT = " " * 12
# Control and format characters, surrogates, and characters that end a line.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})

__all__ = [
    "BundleError",
    "CaptureError",
    "ExportError",
    "FxElasticError",
    "InternalError",
    "PartitionError",
    "ServingError",
    "TrainingError",
    "UsageError",
]


class FxElasticError(Exception):
    """Base class of every exception the package raises.

    Its text is ``what``, followed by a line for each other part that was given::

        gamma is out of range
          expected: a number in (0, 1]
          got:      1.5
          fix:      pass gamma=0.1 for blocks of at most a tenth of the parameters

    Attributes:
        what: What happened, in one sentence.
        expected: The correct value or state, or None.
        got: The actual value or state, or None.
        fix: A way to fix it, or None.
    """

    def __init__(
        self,
        what: str,
        *,
        expected: str | None = None,
        got: str | None = None,
        fix: str | None = None,
    ) -> None:
        """Build the error from the parts of its message.

        Args:
            what: What happened, in one sentence.
            expected: The correct value or state.
            got: The actual value or state.
            fix: A way to fix it.
        """
        # Only `what` goes to args: unpickling calls the class with args, then restores the rest.
        parts = {"what": what, "expected": expected, "got": got, "fix": fix}
        found = _shortened({name: text for name, text in parts.items() if text is not None})
        super().__init__(found["what"])
        self.what = found["what"]
        self.expected = found.get("expected")
        self.got = found.get("got")
        self.fix = found.get("fix")

    def __str__(self) -> str:
        """Join the parts into one readable text."""
        parts = (("expected:", self.expected), ("got:", self.got), ("fix:", self.fix))
        lines = [self.what]
        for label, part in parts:
            if part is not None:
                first, *rest = part.split("\n")
                lines.append(f"  {label:<9} {first}".rstrip())
                lines.extend(indent(line, _INDENT) for line in rest)
        return "\n".join(lines)


def _shortened(parts: Mapping[str, str]) -> dict[str, str]:
    """The texts without control characters, the longest ones cut so that the message has 2 KB."""
    # The lines as they are shown, so that their indentation counts.
    shown = {
        name: printable(text[: _MOST + 1]).replace("\n", f"\n{_INDENT}").encode()
        for name, text in parts.items()
    }
    left, found = _MOST, dict(parts)
    for i, name in enumerate(sorted(shown, key=lambda name: len(shown[name]))):
        data, most = shown[name], left // (len(shown) - i)
        if len(data) > most:
            data = data[: most - len(_CUT)] + _CUT
        left -= len(data)
        found[name] = data.decode(errors="ignore").replace(f"\n{_INDENT}", "\n")
    return found


def printable(text: str) -> str:
    """A text with escapes for control characters, which names in files may hold.

    Letters of all scripts stay, and so do line ends and tabs.
    """
    if text.isprintable():
        return text
    return "".join(ascii(c)[1:-1] if _is_hidden(c) else c for c in text)


def _is_hidden(c: str) -> bool:
    return c not in "\n\t" and unicodedata.category(c) in _HIDDEN


class UsageError(FxElasticError, ValueError):
    """An argument, a file or the environment does not meet a function's requirements."""


class CaptureError(FxElasticError):
    """The user's model can't be captured, or its example inputs can't be inferred."""


class PartitionError(FxElasticError):
    """A partition breaks an invariant: the verifier rejects it."""


class TrainingError(FxElasticError):
    """Training can't continue: a loss is not finite, or no checkpoint of the run is usable."""


class ExportError(FxElasticError):
    """A supernet can't be converted for a device, or the result computes different values."""


class BundleError(FxElasticError):
    """A bundle on disk is damaged, incomplete, or not one; the message names file and field."""


class ServingError(FxElasticError):
    """No subnet can answer a request: the runtime is closed, or every subnet fails."""


class InternalError(FxElasticError):
    """The package contradicts itself: a bug in the package, not in the user's input."""

    def __init__(
        self,
        what: str,
        *,
        expected: str | None = None,
        got: str | None = None,
        fix: str | None = None,
    ) -> None:
        """Build the error from the parts of its message.

        Args:
            what: What happened, in one sentence.
            expected: The correct value or state.
            got: The actual value or state.
            fix: A way to fix it; asks the user to report the bug if None.
        """
        super().__init__(
            what,
            expected=expected,
            got=got,
            fix="please report it, with the model and the call" if fix is None else fix,
        )


def listed(names: Iterable[str], most: int = 3) -> str:
    """Join names for a message: ``a, b, c and 57 more``.

    Args:
        names: The names, in order.
        most: How many to write out.

    Returns:
        The first names, and the number of the others.
    """
    found = list(names)
    hidden = len(found) - most
    return ", ".join(found[:most]) + (f" and {hidden} more" if hidden > 0 else "")


def said(error: BaseException, most: int = 200) -> str:
    """Shorten another library's error for a message: ``TypeError: not a number``.

    Args:
        error: The error.
        most: How many characters of its first line to keep.

    Returns:
        Its type and the first line of its text.
    """
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    first = f"{first[: most - 1]}…" if len(first) > most else first
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
