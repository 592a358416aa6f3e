"""Compare the tables and pools of several devices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fxelastic.edge.pool import PoolEntry, SubnetPool
from fxelastic.errors import UsageError, printable
from fxelastic.report.branch_table import Cell
from fxelastic.report.canvas import legend_above, literal, new_figure
from fxelastic.report.figures import Plot
from fxelastic.report.page import Page, write_page
from fxelastic.report.subnets import TOLERANCE
from fxelastic.spec.branch_spec import ORIGINAL
from fxelastic.spec.costs import BranchCosts
from fxelastic.spec.latency_table import LatencyTable, original_cost
from fxelastic.spec.resources import ENERGY, LATENCY

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TABLE, _POOL = ".latency.json", ".pool.json"
_DASH = "-"


@dataclass(frozen=True)
class Device:
    """What was measured and found on a device.

    Attributes:
        name: Its name: that of its folder, or of its table's file.
        table: Its latency table.
        pool: The subnets found on it; None if nothing was searched.
    """

    name: str
    table: LatencyTable
    pool: SubnetPool | None = None

    @property
    def original_ms(self) -> float:
        """The original's latency, in ms."""
        return original_cost(self._latency)

    @property
    def shares(self) -> dict[str, float]:
        """The latency of each branch, as a share of the original's."""
        whole_ms = max(self.original_ms, 1e-9)
        return {name: ms / whole_ms for name, ms in self._latency.costs.items()}

    def best(self) -> PoolEntry | None:
        """The quickest subnet whose score is nearly the best of the pool."""
        entries = [] if self.pool is None else [e for e in self.pool if math.isfinite(e.accuracy)]
        if not entries:
            return None
        least = max(entry.accuracy for entry in entries) - TOLERANCE - 1e-9
        return min((e for e in entries if e.accuracy >= least), key=lambda entry: entry.ms)

    @property
    def original_mj(self) -> float | None:
        """The original's energy, in mJ; None if the table does not have it."""
        known = self.table.costs_of(self._mode)
        return original_cost(known[ENERGY]) if ENERGY in known else None

    @property
    def _mode(self) -> str:
        return next(iter(self.table.modes))

    @property
    def _latency(self) -> BranchCosts:
        return self.table.costs_of(self._mode)[LATENCY]


def read_devices(path: str | Path) -> list[Device]:
    """Read the tables, and the pools beside them, in a folder and its folders.

    A table ``NAME.latency.json`` and a pool ``NAME.pool.json`` belong together.

    Args:
        path: The folder.

    Raises:
        UsageError: There are no tables, a file is damaged, or the tables are of several bundles.
    """
    folder = Path(path)
    files = sorted(folder.rglob(f"*{_TABLE}")) if folder.is_dir() else []
    if not files:
        raise UsageError(
            f"{folder} has no latency tables",
            expected=f"a folder with files *{_TABLE}, in it or in its folders",
            got="no folder" if not folder.is_dir() else "a folder without such files",
            fix="write them with fxelastic profile on each device",
        )
    found = []
    for file in files:
        stem = file.name.removesuffix(_TABLE)
        pool = file.with_name(stem + _POOL)
        alone = sum(other.parent == file.parent for other in files) == 1
        name = file.parent if alone and file.parent != folder else file.with_name(stem)
        found.append(
            Device(
                printable(str(name.relative_to(folder))),
                LatencyTable.load(file),
                SubnetPool.load(pool) if pool.exists() else None,
            )
        )
    branches = [set(device.table.rows) for device in found]
    for device, own in zip(found, branches, strict=True):
        if own != branches[0]:
            raise UsageError(
                "the tables are of different bundles",
                expected=f"the {len(branches[0])} branches of {found[0].name}",
                got=f"{len(own)} branches in {device.name}, "
                f"{len(own & branches[0])} of them the same",
                fix="compare devices that measured one bundle",
            )
    return found


def write_devices(devices: Sequence[Device], name: str, out: Path) -> list[Path]:
    """Write ``devices.html`` and its figures as PNG.

    Args:
        devices: The devices.
        name: The title.
        out: A folder that exists.

    Returns:
        The files, the page first.

    Raises:
        OSError: A file can't be written.
        UsageError: matplotlib or jinja2 is not installed.
    """
    page = Page(
        name=name,
        facts=_facts(devices),
        header=("device", "of original", "score", "recommended", "original", "energy", "replaced"),
        rows=[{"cells": _cells(device)} for device in devices],
        caption="Recommended is the quickest subnet whose score, on the device's own data, is at "
        f"most {100 * TOLERANCE:g} point below the best that was found there.",
        figures=[_plot(devices)] if len(devices) > 1 and _is_shown(devices) else [],
        branch_header=("branch", *(f"{device.name}, ms" for device in devices), "spread"),
        branches=_branch_rows(devices),
        branch_caption="Latencies by device. The spread is the largest share of the original's "
        "latency, divided by the smallest. Click a title to sort.",
    )
    return write_page(page, out, "devices.html")


def _facts(devices: Sequence[Device]) -> list[str]:
    lines = []
    for device in devices:
        about, table = device.table.device, device.table
        lines.append(
            f"{device.name}: {about.get('processor', 'unknown')}, {about.get('cores', '?')} cores, "
            f"onnxruntime {about.get('onnxruntime', '?')}; batch size {table.batch_size}, "
            f"{table.threads or 'all'} thread{'' if table.threads == 1 else 's'}."
        )
    return lines


def _cells(device: Device) -> list[str]:
    best, energy = device.best(), device.original_mj
    whole = f"{device.original_ms:.3f} ms"
    if best is None:
        shown = "" if energy is None else f"original {energy:.2f} mJ"
        return [device.name, _DASH, _DASH, _DASH, whole, shown or _DASH, _DASH]
    mj = best.costs.get(ENERGY)
    return [
        device.name,
        f"{best.ms / max(device.original_ms, 1e-9):.0%}",
        f"{best.accuracy:.3f}",
        f"{best.ms:.3f} ms",
        whole,
        _DASH if mj is None else f"{mj:.2f} mJ",
        f"{sum(not name.startswith(ORIGINAL) for name in best.arch)} of {len(best.arch)}",
    ]


def _branch_rows(devices: Sequence[Device]) -> list[list[Cell]]:
    shares = [device.shares for device in devices]
    whole_ms = [device.original_ms for device in devices]
    rows = []
    for name in shares[0]:
        own = [found[name] for found in shares]
        spread = max(own) / min(own) if min(own) > 0 else math.inf
        ms = [share * whole for share, whole in zip(own, whole_ms, strict=True)]
        last = Cell(f"{spread:.2f}", spread) if math.isfinite(spread) else Cell(_DASH)
        rows.append([Cell(name), *(Cell(f"{value:.4f}", value) for value in ms), last])
    return rows


def _is_shown(devices: Sequence[Device]) -> bool:
    return any(share > 0 for device in devices for share in device.shares.values())


def _plot(devices: Sequence[Device]) -> Plot:
    first, *others = devices

    def draw() -> Figure:
        figure = new_figure(4.5)
        axes = figure.subplots()
        x = first.shares
        for device in others:
            y = device.shares
            axes.scatter(
                [100 * x[name] for name in x],
                [100 * y[name] for name in x],
                s=12,
                label=literal(device.name),
            )
        shown = [100 * v for device in devices for v in device.shares.values() if v > 0]
        ends = [min(shown), max(shown)]
        axes.plot(ends, ends, color="tab:gray", linewidth=1, label="the same share")
        axes.set(
            xscale="log",
            yscale="log",
            xlabel=f"% of the original's latency on {literal(first.name)}",
            ylabel="% on the other device",
        )
        axes.grid(alpha=0.3)
        legend_above(figure, len(devices))
        return figure

    return Plot(
        "devices",
        "Branches on each device",
        f"Each point is a branch: its share of the original's latency on {first.name}, and on "
        "another device. Far from the line, the device favours or dislikes it.",
        draw,
    )
