"""The options of 8-bit branches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fxelastic.errors import UsageError
from fxelastic.spec.quantised import FORMATS, INT8, RANGES


@dataclass(frozen=True)
class Int8:
    """Options of ``fxelastic.export(..., quantise=Int8(...))``: branches that compute in 8 bits.

    Each float branch, the model's own blocks included, gets a branch of kind ``int8`` for each
    format that suits it. The device measures which of them it uses.

    Attributes:
        calibration: Some batches of typical inputs without labels: a tensor, which is one batch,
            or an iterable of batches, each in a form of ``example_inputs``. Every fourth batch is
            held out to measure errors; a single batch is divided.
        formats: Some of ``"u8s8"`` (activations of 8 bits without a sign and weights with a sign,
            fixed scales), ``"s8s8"`` (the same with signed activations) and ``"dynamic"`` (linear
            maps alone; the scale of an activation is found when it runs).
        kinds: The kinds of the float branches, such as ``("original", "merged")``; None for all.
        per_channel: Whether each output channel of a weight has its own scale.
        ranges: How the range of an activation is found: ``"minmax"``, ``"entropy"`` or
            ``"percentile"``.
        max_error: The largest squared error of a branch, relative to the variance of its outputs.
            Operators that lose most stay float until the error is within it; a branch with no such
            choice is not made.
    """

    calibration: Any
    formats: Sequence[str] = FORMATS
    kinds: Sequence[str] | None = None
    per_channel: bool = True
    ranges: str = "minmax"
    max_error: float = 0.03

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            UsageError: An option has the wrong type or value.
        """
        _check_names("formats", self.formats, FORMATS)
        object.__setattr__(self, "formats", tuple(f for f in FORMATS if f in self.formats))
        if self.kinds is not None:
            _check_names("kinds", self.kinds, ())
            object.__setattr__(self, "kinds", tuple(self.kinds))
            if INT8 in self.kinds:
                raise UsageError(
                    "kinds must name kinds of float branches",
                    expected="kinds such as original and merged",
                    got=INT8,
                )
        if self.ranges not in RANGES:
            raise UsageError(
                f"ranges must be one of {', '.join(RANGES)}, got {self.ranges!r}",
                expected=" or ".join(RANGES),
                got=repr(self.ranges),
            )
        if not isinstance(self.per_channel, bool):
            raise UsageError(
                "per_channel must be True or False", expected="a bool", got=repr(self.per_channel)
            )
        error = self.max_error
        number = isinstance(error, (int, float)) and not isinstance(error, bool)
        if not number or not 0 < error < math.inf:
            raise UsageError(
                f"max_error must be above 0, got {error!r}",
                expected="a share of the variance, such as 0.03",
                got=repr(error),
            )


def _check_names(option: str, names: Any, known: Sequence[str]) -> None:
    """Check that an option is a sequence of names."""
    expected = "some of " + ", ".join(known) if known else "a sequence of names"
    plain = not isinstance(names, (str, bytes)) and isinstance(names, Sequence) and len(names) > 0
    if not plain or not all(isinstance(n, str) and (not known or n in known) for n in names):
        raise UsageError(
            f"{option} must be {expected}, got {names!r}",
            expected=expected,
            got=repr(names),
            fix=f'pass a tuple, like {option}=("{known[0] if known else "original"}",)',
        )
