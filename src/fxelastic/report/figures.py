"""The figures of a report, drawn from the contents of a run folder."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fxelastic.report.canvas import (
    WIDE,
    colours_of,
    is_wide,
    legend_above,
    literal,
    new_figure,
    recoloured,
    theme,
)
from fxelastic.report.run_folder import RunFolder
from fxelastic.report.subnets import Row, rows_of
from fxelastic.report.supernet_figure import draw_supernet
from fxelastic.report.trace import TraceData
from fxelastic.report.trace_figure import plot_trace
from fxelastic.spec import Arch, BranchSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_RANGES = 6
# The scores of a few subnets at chance level would flatten all others.
_LEAST_QUANTILE = 0.1


@dataclass(frozen=True)
class Plot:
    """A figure of the report.

    Attributes:
        name: The name of its file.
        title: The heading above it.
        text: The caption below the title.
        draw: Draws it.
    """

    name: str
    title: str
    text: str
    draw: Callable[[], Figure]

    def svg(self, name: str, width: float = WIDE) -> bytes:
        """As SVG without a background.

        Args:
            name: The theme, ``light`` or ``dark``.
            width: The width in inches.
        """
        with theme("light", width):
            stream = io.BytesIO()
            # Without a date and with fixed ids: the same run gives the same bytes.
            self.draw().savefig(
                stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
            )
        return recoloured(stream.getvalue(), name)

    def png(self) -> bytes:
        """As PNG, for documents."""
        with theme("light"):
            stream = io.BytesIO()
            self.draw().savefig(stream, format="png", dpi=130, metadata={"Software": None})
        return stream.getvalue()


def plots(run: RunFolder) -> list[Plot]:
    """Every figure for which the run has the data."""
    trace, pool, cuts, rows = run.trace, run.pool, run.cuts, rows_of(run)
    best = next((row for row in rows if row.recommended and row.arch), None)
    path = None if best is None else Arch.parse(best.arch)
    costs = _costs(run)
    candidates = (
        (
            # A table alone has the latency of the original, and no score.
            pool is not None or any(map(_has_score, rows)),
            Plot(
                "tradeoff",
                "Accuracy and latency",
                "Left (on a phone: above), scores on the data of the search: every subnet that it "
                "evaluated, by predicted latency, and their Pareto front. Right (below), the "
                "subnets of the budgets on test data, by measured latency."
                if any(row.accuracy is not None for row in rows)
                else "Every subnet that the search evaluated, their Pareto front, and the subnets "
                "of the budgets, by predicted latency.",
                lambda: _tradeoff(run, rows),
            ),
        ),
        (
            run.bundle is not None,
            Plot(
                "supernet",
                "The supernet" if best is None else f"The supernet, and the path of {best.name}",
                ("" if best is None else "The first row is the recommended subnet. Below, all: ")
                + "a box is a branch and spans the blocks that it replaces. Branches that this "
                "device does not use are left out.",
                lambda: _supernet(run, path, costs),
            ),
        ),
        (
            bool(costs),
            Plot(
                "latency",
                "Latency by block and branch",
                "The latency of each branch in a subnet, in ms; the darker, the longer. Branches "
                "that this device does not use are left out.",
                lambda: _heat_map(run, costs),
            ),
        ),
        (
            bool(costs),
            Plot(
                "roofline",
                "Roofline",
                "The rate of each branch, by its MACs for each byte that it reads or writes. The "
                "lines are the highest rate and the highest bandwidth of any branch.",
                lambda: _roofline(run),
            ),
        ),
        (
            run.search is not None,
            Plot(
                "search",
                "The search",
                "The best score so far by the number of subnets evaluated, for each budget.",
                lambda: _history(run),
            ),
        ),
        (
            pool is not None and len(pool) > 1,
            Plot(
                "ranges",
                "Scores by range of latency",
                "Mean and best score of the subnets that the search evaluated, by their predicted "
                "latency.",
                lambda: _ranges(run),
            ),
        ),
        (
            trace is not None and bool(trace.requests),
            Plot(
                "trace",
                "Serving while the load changes",
                "Latency of requests on a logarithmic axis, their median and 95th percentile, the "
                "subnet in use, its score, and r, the ratio of actual to estimated latency.",
                lambda: _trace(trace or TraceData()),
            ),
        ),
        (
            cuts is not None and bool(cuts["cuts"]),
            Plot(
                "cuts",
                "What the features after each block tell",
                "The score of a linear map from the features to the model's result, by the FLOPs "
                "up to there. Filled points are worth an exit; squares follow blocks that matter "
                "little.",
                lambda: _cuts(cuts or {}),
            ),
        ),
    )
    return [plot for drawn, plot in candidates if drawn]


def _supernet(run: RunFolder, path: Arch | None, costs: Mapping[str, float]) -> Figure:
    assert run.bundle is not None
    used = [spec for spec in run.bundle.space.branches if spec.id in costs or not costs]
    return draw_supernet(run.bundle, used, path)


def _trace(trace: TraceData) -> Figure:
    from matplotlib import rcParams

    return plot_trace(trace, width=rcParams["figure.figsize"][0])


def _costs(run: RunFolder) -> Mapping[str, float]:
    """The latencies of the branches that the device uses, in ms."""
    return {} if run.table is None or run.bundle is None else run.table.costs()


def _cuts(found: Mapping[str, Any]) -> Figure:
    figure, axes = _axes()
    x = [0.0, *(cut["flops"] for cut in found["cuts"]), 1.0]
    y = [found["chance"], *(cut["score"] for cut in found["cuts"]), found["whole"]]
    axes.plot(x, y, color="tab:blue", linewidth=1, zorder=1)
    for cut in found["cuts"]:
        inner = "tab:blue" if cut["position"] in found["exits"] else "none"
        marker = "s" if cut["block"] in found["little"] else "o"
        axes.scatter(
            cut["flops"],
            cut["score"],
            marker=marker,
            facecolors=inner,
            edgecolors="tab:blue",
            zorder=2,
        )
    axes.set_xlabel("share of the FLOPs")
    axes.set_ylabel(literal(found["measure"]))
    drawn: Figure = figure
    return drawn


def _axes(height: float = 4.0) -> Any:
    figure = new_figure(height)
    return figure, figure.subplots()


def _has_score(row: Row) -> bool:
    return row.score is not None or (row.accuracy is not None and bool(row.ms))


def _tradeoff(run: RunFolder, rows: Sequence[Row]) -> Figure:
    tested = [row for row in rows if row.accuracy is not None and row.ms]
    searched = run.pool is not None or any(row.score is not None for row in rows)
    figure = new_figure(4.5)
    n_panels = bool(searched) + bool(tested)
    if is_wide(figure):
        panels = figure.subplots(1, n_panels, squeeze=False)[0]
    else:
        figure.set_figheight(3.4 * n_panels)
        panels = figure.subplots(n_panels, 1, squeeze=False)[:, 0]
    if searched:
        _searched(panels[0], run, rows)
    if tested:
        panels[-1].set_title("on test data", fontsize="medium")
        panels[-1].set_ylabel("accuracy")
        _points(panels[-1], [(row, row.ms or 0.0, row.accuracy or 0.0) for row in tested])
    for axes in panels:
        axes.set_xlabel("latency (ms)")
        axes.grid(alpha=0.2)
        axes.set_xlim(left=0)
        axes.margins(y=0.12)
        axes.legend(loc="lower right", fontsize="small")
    return figure


def _searched(axes: Any, run: RunFolder, rows: Sequence[Row]) -> None:
    """Every subnet that was evaluated; those far below the others are drawn at the edge."""
    axes.set_title("on the data of the search", fontsize="medium")
    axes.set_ylabel("score")
    points = [
        (row, row.predicted_ms, row.score)
        for row in rows
        if row.score is not None and row.predicted_ms
    ]
    if run.pool is not None and len(run.pool):
        entries, front = run.pool.entries, run.pool.pareto
        scores = [e.accuracy for e in entries]
        least = min(scores)
        if len(scores) > 20:
            shown = [score for _, _, score in points] + [e.accuracy for e in front[1:]]
            least = min([float(np.quantile(scores, _LEAST_QUANTILE)), *shown])
        inside = [e for e in entries if e.accuracy >= least]
        below = [e for e in entries if e.accuracy < least]
        axes.scatter(
            [e.ms for e in inside],
            [e.accuracy for e in inside],
            **{"s": 9, "alpha": 0.4, "color": "tab:gray", "label": "evaluated"},
        )
        if below:
            edge = least - 0.06 * (max(scores) - least)
            axes.scatter(
                [e.ms for e in below],
                [edge] * len(below),
                **{"s": 14, "alpha": 0.4, "color": "tab:gray", "marker": "v"},
                label=f"{len(below)} with less",
            )
        drawn = [e for e in front if e.accuracy >= least]
        axes.step(
            [e.ms for e in drawn],
            [e.accuracy for e in drawn],
            **{"where": "post", "color": "tab:blue", "label": "Pareto front"},
        )
    _points(axes, points)


def _points(axes: Any, points: Sequence[tuple[Row, float | None, float | None]]) -> None:
    """Rows of the table as points: subnets, the recommended one, cascades and the original."""
    shapes = {
        "recommended": {"marker": "D", "s": 60, "color": "tab:green", "zorder": 5},
        "original": {"marker": "*", "s": 150, "color": "tab:red", "zorder": 4},
        "cascade": {"marker": "^", "s": 40, "color": "tab:purple", "zorder": 3},
        "best within a budget": {"marker": "D", "s": 30, "color": "tab:orange", "zorder": 3},
    }
    for label, shape in shapes.items():
        chosen = [(ms, score) for row, ms, score in points if _label(row) == label]
        if chosen:
            axes.scatter([ms for ms, _ in chosen], [y for _, y in chosen], label=label, **shape)


def _label(row: Row) -> str:
    if row.recommended:
        return "recommended"
    if row.is_original:
        return "original"
    return "best within a budget" if row.arch else "cascade"


def _heat_map(run: RunFolder, costs: Mapping[str, float]) -> Figure:
    assert run.bundle is not None
    space = run.bundle.space
    used = [spec for spec in space.branches if spec.id in costs]
    labels = {(_name(spec), spec.stop - spec.start) for spec in used}
    order = sorted(labels, key=lambda key: (key[0] != "original", key))
    values = np.full((len(order), space.n_blocks), np.nan)
    for spec in used:
        values[order.index((_name(spec), spec.stop - spec.start)), spec.start] = costs[spec.id]
    figure, axes = _axes(1.2 + 0.3 * len(order))
    image = axes.imshow(values, aspect="auto", cmap="YlOrRd")
    axes.set_yticks(range(len(order)))
    axes.set_yticklabels(
        [literal(name) + (f", {length} blocks" if length > 1 else "") for name, length in order]
    )
    axes.set_xlabel("first block")
    figure.colorbar(image, ax=axes, label="ms")
    return figure  # type: ignore[no-any-return]


def _name(spec: BranchSpec) -> str:
    """What a branch is, without its place: ``u8s8+pruned25``."""
    return spec.id.partition("@")[0]


def _roofline(run: RunFolder) -> Figure:
    assert run.bundle is not None
    assert run.table is not None
    figure, axes = _axes()
    colours = colours_of([spec.kind for spec in run.bundle.space.branches])
    intensities: list[float] = []
    rates: list[float] = []
    for spec in run.bundle.space.branches:
        row = run.table.rows.get(spec.id)
        if row is None:
            continue
        n_bytes = row.weight_bytes + row.activation_bytes
        if not (spec.flops and n_bytes and row.ms > 0):
            continue
        macs = run.table.batch_size * spec.flops / 2
        intensities.append(macs / n_bytes)
        rates.append(macs / row.ms / 1e6)
        axes.scatter([intensities[-1]], [rates[-1]], color=colours[spec.kind], s=18)
    if rates:
        bandwidth = max(rate / x for rate, x in zip(rates, intensities, strict=True))
        low, high = min(intensities) / 1.5, max(intensities) * 1.5
        grid = np.geomspace(low, high, 100)
        axes.plot(grid, np.minimum(max(rates), bandwidth * grid), color="tab:gray", linewidth=1)
        axes.set_xscale("log")
        axes.set_yscale("log")
    for kind, colour in colours.items():
        axes.plot([], [], color=colour, linewidth=5, label=literal(kind))
    axes.set_xlabel("MACs per byte")
    axes.set_ylabel("GMAC/s")
    axes.grid(alpha=0.2)
    legend_above(figure, len(colours))
    return figure  # type: ignore[no-any-return]


def _history(run: RunFolder) -> Figure:
    figure, axes = _axes()
    assert run.search is not None
    budgets: list[Mapping[str, Any]] = list(run.search["budgets"])
    for i, budget in enumerate(budgets):
        steps = budget.get("history")
        if not steps:
            continue
        shade = i / max(1, len(budgets) - 1)
        axes.step(
            [step["subnets"] for step in steps],
            [step["accuracy"] for step in steps],
            where="post",
            color=(0.1 + 0.8 * shade, 0.35, 0.9 - 0.8 * shade),
            label=_limit(budget),
        )
    axes.set_xlabel("subnets evaluated")
    axes.set_ylabel("best score")
    axes.grid(alpha=0.2)
    legend_above(figure, len(budgets))
    return figure  # type: ignore[no-any-return]


def _limit(budget: Mapping[str, Any]) -> str:
    """A budget as text; one without a limit on the latency by its other limits."""
    if budget.get("budget_ms") is not None:
        return f"{budget['budget_ms']:.3g} ms"
    return ", ".join(f"{name} {bound:.3g}" for name, bound in (budget.get("limits") or {}).items())


def _ranges(run: RunFolder) -> Figure:
    figure, axes = _axes()
    assert run.pool is not None
    latencies = np.array([e.ms for e in run.pool])
    scores = np.array([e.accuracy for e in run.pool])
    edges = np.linspace(latencies.min(), latencies.max() * (1 + 1e-9), _RANGES + 1)
    place = np.clip(np.digitize(latencies, edges) - 1, 0, _RANGES - 1)
    filled = [i for i in range(_RANGES) if (place == i).any()]
    means = [float(scores[place == i].mean()) for i in filled]
    tops = [float(scores[place == i].max()) for i in filled]
    names = [f"{edges[i]:.3g}-{edges[i + 1]:.3g}" for i in filled]
    axes.bar(names, tops, color="tab:blue", alpha=0.35, label="best")
    axes.bar(names, means, color="tab:blue", width=0.5, label="mean")
    axes.set_ylim(bottom=max(0.0, min(means) - 0.1))
    axes.tick_params(axis="x", rotation=30)
    axes.set_xlabel("latency (ms)")
    axes.set_ylabel("score")
    legend_above(figure, 2)
    return figure  # type: ignore[no-any-return]
