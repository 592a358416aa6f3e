"""The figures of a report, drawn from the contents of a run folder."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fxelastic.extras import required
from fxelastic.report.run_folder import RunFolder
from fxelastic.report.trace import TraceData, plot_trace
from fxelastic.spec import Arch
from fxelastic.spec.resources import LATENCY

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INK = {"light": "#1f2933", "dark": "#e4e7eb"}
_RANGES = 6


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

    def svg(self, theme: str) -> bytes:
        """As SVG, in ``light`` or ``dark``, without a background."""
        with _theme(theme):
            stream = io.BytesIO()
            # Without a date and with fixed ids: the same run gives the same bytes.
            self.draw().savefig(
                stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
            )
        return stream.getvalue()

    def png(self) -> bytes:
        """As PNG, for documents."""
        with _theme("light"):
            stream = io.BytesIO()
            self.draw().savefig(stream, format="png", dpi=130, metadata={"Software": None})
        return stream.getvalue()


def plots(run: RunFolder) -> list[Plot]:
    """Every figure for which the run has the data."""
    trace, pool, cuts = run.trace, run.pool, run.cuts
    candidates = (
        (
            pool is not None or bool(run.chosen),
            Plot(
                "tradeoff",
                "Accuracy and latency",
                "Every subnet that the search evaluated, the Pareto front, the subnet of each "
                "budget as measured, and the original.",
                lambda: _tradeoff(run),
            ),
        ),
        (
            run.bundle is not None,
            Plot(
                "supernet",
                "The supernet, and the path of the smallest budget",
                "Blocks from left to right; a box is a branch and spans the blocks it replaces. "
                "Filled boxes belong to the subnet.",
                lambda: _supernet(run),
            ),
        ),
        (
            run.table is not None and run.bundle is not None,
            Plot(
                "latency",
                "Latency by block and branch",
                "The latency of each branch in a subnet, in ms; the darker, the longer.",
                lambda: _heat_map(run),
            ),
        ),
        (
            run.table is not None and run.bundle is not None,
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
                "Accuracy by range of latency",
                "Mean and best score of the subnets evaluated, by their latency.",
                lambda: _ranges(run),
            ),
        ),
        (
            trace is not None and bool(trace.requests),
            Plot(
                "trace",
                "Serving while the load changes",
                "Latency of requests, the subnet in use, its accuracy, and r over time.",
                lambda: plot_trace(trace or TraceData()),
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


def _cuts(found: Mapping[str, Any]) -> Figure:
    figure, axes = _figure()
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
    axes.set_ylabel(found["measure"])
    drawn: Figure = figure
    return drawn


@contextmanager
def _theme(theme: str) -> Iterator[None]:
    ink = _INK[theme]
    settings: dict[str, Any] = {
        "svg.hashsalt": "fxelastic",
        "font.size": 10.0,
        "legend.framealpha": 0.0,
    }
    colours = "text.color axes.labelcolor axes.edgecolor xtick.color ytick.color grid.color"
    settings.update(dict.fromkeys(colours.split(), ink))
    with required("matplotlib", "plots need matplotlib", "report").rc_context(settings):
        yield


def _figure(height: float = 4.0) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, height), layout="constrained")
    return figure, figure.subplots()


def _tradeoff(run: RunFolder) -> Figure:
    figure, axes = _figure(4.5)
    if run.pool is not None:
        entries = run.pool.entries
        axes.scatter(
            [e.ms for e in entries],
            [e.accuracy for e in entries],
            **{"s": 9, "alpha": 0.35, "color": "tab:gray", "label": "evaluated, predicted latency"},
        )
        pareto = run.pool.pareto
        axes.step(
            [e.ms for e in pareto],
            [e.accuracy for e in pareto],
            **{"where": "post", "color": "tab:blue", "label": "Pareto front"},
        )
    # A search with too little time returns subnets without a score.
    chosen = [row for row in run.chosen if row["accuracy"] is not None]
    if chosen:
        key = "measured_ms" if run.measured is not None else LATENCY
        axes.scatter(
            [row[key] for row in chosen],
            [row["accuracy"] for row in chosen],
            **{"marker": "D", "s": 36, "color": "tab:orange", "zorder": 3},
            label="best within a budget, "
            + ("measured" if run.measured is not None else "predicted"),
        )
    if run.measured is not None and "original" in run.measured:
        original = run.measured["original"]
        point = {"marker": "*", "s": 150, "color": "tab:red", "zorder": 4}
        axes.scatter(
            [original["measured_ms"]], [original["accuracy"]], **point, label="the original"
        )
    accuracies = [e.accuracy for e in run.pool.entries] if run.pool is not None else []
    if len(accuracies) > 20:
        # A few subnets at chance level would flatten all others.
        axes.set_ylim(bottom=float(np.quantile(accuracies, 0.1)) - 0.02)
    axes.set_xlabel("latency (ms)")
    axes.set_ylabel("accuracy")
    axes.grid(alpha=0.2)
    axes.legend(loc="lower right", fontsize="small")
    return figure  # type: ignore[no-any-return]


def _supernet(run: RunFolder) -> Figure:
    from matplotlib.patches import FancyBboxPatch

    assert run.bundle is not None
    space = run.bundle.space
    rows = _rows(run)
    chosen: set[str] = set()
    if run.chosen:
        chosen = set(Arch.parse(run.chosen[0]["arch"]).branches)
    figure, axes = _figure(0.6 + 0.42 * (1 + max(rows.values())))
    colours = _kind_colours(run)
    for spec in space.branches:
        used = spec.id in chosen
        box = FancyBboxPatch(
            (spec.start + 0.08, -rows[spec.id] - 0.35),
            spec.stop - spec.start - 0.16,
            0.7,
            boxstyle="round,pad=0,rounding_size=0.12",
            facecolor=colours[spec.kind] if used else "none",
            edgecolor=colours[spec.kind],
            linewidth=1.2,
            alpha=1.0 if used else 0.55,
        )
        axes.add_patch(box)
    for kind, colour in colours.items():
        axes.plot([], [], color=colour, linewidth=5, label=kind)
    axes.set_xlim(-0.2, space.n_blocks + 0.2)
    axes.set_ylim(-max(rows.values()) - 0.7, 0.7)
    step = max(1, space.n_blocks // 20)
    axes.set_xticks([i + 0.5 for i in range(0, space.n_blocks, step)])
    axes.set_xticklabels([str(i) for i in range(0, space.n_blocks, step)])
    axes.set_xlabel("block")
    axes.set_yticks([])
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    figure.legend(loc="outside upper center", ncols=min(6, len(colours)), fontsize="small")
    return figure  # type: ignore[no-any-return]


def _rows(run: RunFolder) -> dict[str, int]:
    """A row for each branch so that no two overlap; originals are in the first."""
    assert run.bundle is not None
    rows: dict[str, int] = {}
    ends: list[int] = [0]
    order = sorted(
        run.bundle.space.branches, key=lambda s: (s.kind != "original", s.kind, s.start, s.stop)
    )
    for spec in order:
        if spec.kind == "original":
            rows[spec.id] = 0
            continue
        row = next((i for i in range(1, len(ends)) if ends[i] <= spec.start), len(ends))
        if row == len(ends):
            ends.append(0)
        ends[row] = spec.stop
        rows[spec.id] = row
    return rows


def _kind_colours(run: RunFolder) -> dict[str, str]:
    assert run.bundle is not None
    kinds = sorted(
        {s.kind for s in run.bundle.space.branches}, key=lambda kind: (kind != "original", kind)
    )
    palette = ["tab:gray", "tab:blue", "tab:orange", "tab:green", "tab:purple", "tab:brown"]
    return {kind: palette[i % len(palette)] for i, kind in enumerate(kinds)}


def _heat_map(run: RunFolder) -> Figure:
    assert run.bundle is not None
    assert run.table is not None
    space, costs = run.bundle.space, run.table.costs()
    labels: dict[tuple[str, int], int] = {}
    for spec in space.branches:
        labels.setdefault((spec.kind, spec.stop - spec.start), 0)
    order = sorted(labels, key=lambda key: (key[0] != "original", key))
    values = np.full((len(order), space.n_blocks), np.nan)
    for spec in space.branches:
        row = order.index((spec.kind, spec.stop - spec.start))
        values[row, spec.start] = costs[spec.id]
    figure, axes = _figure(1.2 + 0.35 * len(order))
    image = axes.imshow(values, aspect="auto", cmap="YlOrRd")
    axes.set_yticks(range(len(order)))
    axes.set_yticklabels(
        [kind if length == 1 else f"{kind}, {length} blocks" for kind, length in order]
    )
    axes.set_xlabel("first block")
    figure.colorbar(image, ax=axes, label="ms")
    return figure  # type: ignore[no-any-return]


def _roofline(run: RunFolder) -> Figure:
    assert run.bundle is not None
    assert run.table is not None
    figure, axes = _figure()
    colours = _kind_colours(run)
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
        axes.plot([], [], color=colour, linewidth=5, label=kind)
    axes.set_xlabel("MACs a byte")
    axes.set_ylabel("GMAC/s")
    axes.grid(alpha=0.2)
    figure.legend(loc="outside upper center", ncols=min(6, len(colours)), fontsize="small")
    return figure  # type: ignore[no-any-return]


def _history(run: RunFolder) -> Figure:
    figure, axes = _figure()
    assert run.search is not None
    budgets: list[Mapping[str, Any]] = list(run.search["budgets"])
    for i, budget in enumerate(budgets):
        steps = budget["history"]
        if not steps:
            continue
        shade = i / max(1, len(budgets) - 1)
        axes.step(
            [step["subnets"] for step in steps],
            [step["accuracy"] for step in steps],
            where="post",
            color=(0.1 + 0.8 * shade, 0.35, 0.9 - 0.8 * shade),
            label=f"{budget['budget_ms']:.3g} ms",
        )
    axes.set_xlabel("subnets evaluated")
    axes.set_ylabel("best score")
    axes.grid(alpha=0.2)
    axes.legend(loc="lower right", fontsize="small", ncols=2, title="budget")
    return figure  # type: ignore[no-any-return]


def _ranges(run: RunFolder) -> Figure:
    figure, axes = _figure()
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
    axes.set_xlabel("latency (ms)")
    axes.set_ylabel("score")
    axes.legend(loc="lower right", fontsize="small")
    return figure  # type: ignore[no-any-return]
