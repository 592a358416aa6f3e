"""The costs of branches as ``fxelastic inspect --table`` shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fxelastic.edge.bundle import Bundle
    from fxelastic.spec.latency_table import LatencyTable

_MODE = "assembled"


def table_report(bundle: Bundle, table: LatencyTable) -> dict[str, Any]:
    """The costs of each branch, with their sources and errors, as data for ``json.dumps``."""
    costs = _completed(bundle, table).costs_of(_MODE)
    return {
        "batch_size": table.batch_size,
        "resources": {
            name: {
                "source": found.source,
                "error": None if found.error is None else found.error.to_json(),
                "doubt": found.doubt,
            }
            for name, found in costs.items()
        },
        "branches": {
            branch: {
                **{name: found.costs[branch] for name, found in costs.items()},
                "hit_rate": row.hit_rate,
                "hit_rate_error": row.hit_rate_error,
            }
            for branch, row in table.rows.items()
        },
    }


def table_lines(bundle: Bundle, table: LatencyTable) -> list[str]:
    """The same as lines of text: a row for each branch, then the sources and errors."""
    from fxelastic.spec.columns import aligned, engineering
    from fxelastic.spec.resources import resource

    costs = _completed(bundle, table).costs_of(_MODE)
    names = list(costs)
    header = ["branch", *(resource(n).label for n in names), "MACs per byte", "cache hits"]
    rows = [header]
    for branch, row in table.rows.items():
        cells = []
        for name in names:
            value, unit = costs[name].costs[branch], resource(name)
            plain = unit.unit not in ("ms", "mJ", "bytes")
            cells.append(engineering(round(value)) if plain else unit.text(value))
        n_bytes = row.weight_bytes + row.activation_bytes
        intensity = costs["flops"].costs[branch] / 2 / n_bytes if n_bytes else 0.0
        hits = "-" if row.hit_rate is None else f"{row.hit_rate:.0%} ± {row.hit_rate_error:.0%}"
        rows.append([branch, *cells, f"{intensity:.3g}", hits])
    lines = aligned(rows, right=set(range(1, len(header))))
    notes = []
    for name, found in costs.items():
        parts = [found.source, "" if found.error is None else str(found.error), found.doubt]
        text = "; ".join(filter(None, parts))
        if text:
            notes.append(f"{resource(name).label}: {text}")
    return [lines[0], "-" * max(map(len, lines)), *lines[1:], "", *notes]


def _completed(bundle: Bundle, table: LatencyTable) -> LatencyTable:
    """The table with the costs that follow from the bundle, which older tables lack."""
    from fxelastic.edge.bundle_costs import with_bundle_costs

    return with_bundle_costs(table, bundle.without(set(_names(bundle)) - set(table.rows)))


def _names(bundle: Bundle) -> list[str]:
    return [spec.id for spec in bundle.space.branches]
