"""The plot of a trace."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxelastic.errors import UsageError
from fxelastic.extras import required
from fxelastic.files import replace_file
from fxelastic.report.canvas import literal
from fxelastic.report.trace import WINDOW_S, TraceData

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Plots up to this width, in inches, are for phones.
_NARROW = 5.0


def plot_trace(trace: TraceData, title: str = "", width: float = 10.0) -> Figure:
    """Draw latency, budget, the subnet in use, its score and r over time.

    Args:
        trace: The trace.
        title: The plot's title.
        width: The width in inches.

    Raises:
        UsageError: matplotlib is not installed.

    Source: AdaptiveNet, Figure 13.
    """
    required("matplotlib", "plots need matplotlib", "report")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 6.5), layout="constrained")
    latency, score, ratio = figure.subplots(
        3, 1, sharex=True, gridspec_kw={"height_ratios": (3, 1, 1)}
    )
    _draw_latency(latency, trace)
    ends = [end for end, _, _ in trace.requests]
    scores = [trace.subnets[subnet].accuracy for _, subnet, _ in trace.requests]
    score.step(ends, scores, where="post", color="tab:green")
    score.set_ylabel("score")
    _draw_ratio(ratio, trace)
    figure.align_ylabels([latency, score, ratio])
    for time, kind, _ in trace.events:
        if kind in ("switched", "rolled_back", "budget_unmet"):
            style = {"switched": ":", "rolled_back": "-.", "budget_unmet": "-"}[kind]
            for axes in (latency, score, ratio):
                axes.axvline(time, color="gray", linestyle=style, linewidth=0.8)
    _mark_phases((latency, score, ratio), trace, " " if width > _NARROW else "\n")
    if latency.get_legend_handles_labels()[0]:
        columns = 3 if width > _NARROW else 2
        figure.legend(*latency.get_legend_handles_labels(), loc="outside upper center",
                      ncols=columns, fontsize="small")  # fmt: skip
    if title:
        figure.suptitle(title)
    return figure


def _draw_latency(axes: Any, trace: TraceData) -> None:
    """Latencies on a logarithmic axis: neither the usual ones nor the longest are lost."""
    ends = [end for end, _, _ in trace.requests]
    axes.plot(
        ends,
        [ms for _, _, ms in trace.requests],
        **{"marker": ".", "markersize": 2, "linestyle": "", "alpha": 0.35, "label": "a request"},
        rasterized=True,  # thousands of points would make an SVG of megabytes
    )
    for percent, name, colour in ((50, "median", "tab:orange"), (95, "p95", "tab:purple")):
        found = trace.percentiles(percent)
        axes.plot(
            [time for time, _ in found],
            [value for _, value in found],
            **{"linewidth": 1.4, "color": colour, "label": f"{name} of {WINDOW_S:g} s"},
        )
    estimated = [trace.subnets[subnet].ms for _, subnet, _ in trace.requests]
    axes.step(ends, estimated, where="post", linewidth=1.2, color="tab:green", label="estimate")
    axes.step(
        [time for time, _, _ in trace.loads],
        [budget for _, _, budget in trace.loads],
        **{"where": "post", "linestyle": "--", "color": "tab:red", "label": "budget"},
    )
    axes.set_ylabel("latency (ms)")
    if any(ms > 0 for _, _, ms in trace.requests):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")


def _draw_ratio(axes: Any, trace: TraceData) -> None:
    axes.plot([time for time, _, _ in trace.loads], [r for _, r, _ in trace.loads], color="tab:red")
    if trace.expected:
        times, values = zip(*trace.expected, strict=True)
        axes.plot(times, values, color="tab:purple", linestyle="--", label="expected in a second")
        axes.legend(loc="upper right", fontsize="small")
    if trace.load_indices:
        times, values = zip(*trace.load_indices, strict=True)
        index = axes.twinx()
        index.plot(times, values, color="tab:gray", linewidth=0.8)
        index.set_ylim(0, 1)
        index.set_ylabel("load index")
    axes.axhline(1.0, color="gray", linewidth=0.8)
    axes.set_ylabel("r")
    axes.set_xlabel("time (s)")


def _mark_phases(panels: Sequence[Any], trace: TraceData, space: str) -> None:
    """Shade every second phase, and write their names above the first panel."""
    ends = [time for time, _ in trace.phases[1:]]
    last = max([time for time, _, _ in trace.requests], default=0.0)
    for i, ((time, name), end) in enumerate(zip(trace.phases, [*ends, last], strict=False)):
        for axes in panels:
            if i % 2:
                axes.axvspan(time, max(time, end), color="tab:gray", alpha=0.12, linewidth=0)
        panels[0].annotate(
            literal(name).replace(" ", space),
            ((time + end) / 2, 1.0),
            xycoords=("data", "axes fraction"),
            **{"ha": "center", "va": "bottom", "fontsize": "x-small"},
            annotation_clip=False,
        )


def write_plot(trace: TraceData, path: str | os.PathLike[str], title: str = "") -> None:
    """Write the plot to a file in the format of its suffix: ``.png``, ``.svg``, ``.pdf``.

    Args:
        trace: The trace.
        path: The file; an existing one is replaced in one step.
        title: The plot's title.

    Raises:
        UsageError: matplotlib is not installed, does not know the format, or the file can't be
            written.
    """
    target = Path(path)
    figure, stream = plot_trace(trace, title), io.BytesIO()
    try:
        figure.savefig(stream, format=target.suffix.lstrip(".") or "png", dpi=130)
        replace_file(target, stream.getvalue())
    except (OSError, ValueError) as e:
        raise UsageError(
            f"the plot can't be written to {target}",
            expected="a .png, .svg or .pdf file in a folder that exists",
            got=f"{type(e).__name__}: {e}",
        ) from e
