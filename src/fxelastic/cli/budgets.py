"""The option ``--budget``: latencies and shares, and numbers that were meant otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fxelastic.errors import UsageError

if TYPE_CHECKING:
    from fxelastic.edge.bundle import Bundle
    from fxelastic.spec.latency_table import LatencyTable

#: The help of the option.
HELP = "a latency such as 20ms, or a share of the original's latency such as 60%%; may be repeated"

_UNIT = "ms"


def budgets_of(
    texts: Sequence[str] | None, bundle: Bundle, table: LatencyTable, mode: str
) -> list[float | str] | None:
    """The values of ``--budget``.

    Args:
        texts: Shares like ``60%``, latencies like ``20ms``, or numbers in ms.
        bundle: The bundle.
        table: Its latency table.
        mode: How subnets will be run.

    Raises:
        UsageError: A number without a unit is above the original's latency, or below 1 and of the
            quickest subnet's latency, so that it may have been meant as a share.
    """
    from fxelastic.edge.int8_branches import used

    if not texts or mode not in table.modes:
        return None if not texts else [_without_unit(text) for text in texts]
    original_ms = table.predict_ms(bundle.space.original, mode)
    quickest = used(bundle, table, mode).space.min_cost_arch(table.costs(mode))
    quickest_ms = table.predict_ms(quickest, mode)
    for text in texts:
        number = _number(text)
        if number is None or number <= 0:
            continue  # The search says what is wrong with it.
        if number > original_ms:
            percent = f"{text.strip()}%" if 1 <= number <= 100 else None
            raise _questioned(text, f"above the original's {original_ms:.3f} ms", percent)
        if number < 1 and number < quickest_ms:
            what = f"below the {quickest_ms:.3f} ms of the quickest subnet"
            raise _questioned(text, what, f"{100 * number:g}%")
    return [_without_unit(text) for text in texts]


def check_units(texts: Sequence[str]) -> None:
    """Check that each budget has a unit, where no device was measured yet.

    Raises:
        UsageError: One has none.
    """
    for text in texts:
        number = _number(str(text))
        if number is not None:
            percent = 100 * number if number < 1 else number
            meant = f"{percent:g}%" if 0 < percent <= 100 else None
            raise _questioned(str(text), "a number without a unit", meant)


def _number(text: str) -> float | None:
    """A number without a unit; None if there is a unit, or no number."""
    try:
        return float(text)
    except ValueError:
        return None


def _without_unit(text: str) -> str:
    """A latency without its unit; other texts as they are."""
    text = text.strip()
    return text.removesuffix(_UNIT).rstrip() if text.endswith(_UNIT) else text


def _questioned(text: str, what: str, percent: str | None) -> UsageError:
    other = f"{text.strip()}{_UNIT}"
    meant = f"did you mean {percent}? Otherwise write {other}" if percent else f"write {other}"
    return UsageError(
        f"--budget {text} is {what}",
        expected="a share of the original's latency such as 60%, or a latency such as 20ms",
        got=text,
        fix=meant,
    )
