"""A report as one HTML file that needs no network."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from html import escape
from pathlib import Path

from fxelastic.files import replace_file
from fxelastic.report.figures import Plot, plots
from fxelastic.report.run_folder import RunFolder

_STYLE = """
:root { color-scheme: light dark;
  --ink: #1f2933; --paper: #ffffff; --line: #d2d6dc; --dim: #52606d }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7eb; --paper: #14181d; --line: #3a424c; --dim: #9aa5b1 }
}
body { margin: 0 auto; max-width: 54rem; padding: 1rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
p { color: var(--dim); margin: .3rem 0 .8rem } img { width: 100%; height: auto }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .92rem }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap }
"""


def write_report(run: RunFolder, out: Path) -> list[Path]:
    """Write ``report.html`` and a PNG of each figure.

    Args:
        run: What to report.
        out: A folder that exists.

    Returns:
        The files, the page first.

    Raises:
        OSError: A file can't be written.
        UsageError: matplotlib is not installed.
    """
    figures = plots(run)
    page = out / "report.html"
    files = [page]
    for figure in figures:
        path = out / f"{figure.name}.png"
        replace_file(path, figure.png())
        files.append(path)
    replace_file(page, html(run, figures).encode())
    return files


def html(run: RunFolder, figures: Sequence[Plot]) -> str:
    """The page."""
    name = run.bundle.manifest.model.name if run.bundle is not None else run.path.name
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(name)} - fxelastic report</title>",
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>{escape(name)}</h1>",
        *_facts(run),
        *_table(run),
    ]
    for figure in figures:
        parts += [
            f"<h2>{escape(figure.title)}</h2>",
            f"<p>{escape(figure.text)}</p>",
            "<picture>"
            f'<source media="(prefers-color-scheme: dark)" srcset="{_uri(figure.svg("dark"))}">'
            f'<img alt="{escape(figure.title)}" src="{_uri(figure.svg("light"))}"></picture>',
        ]
    return "\n".join([*parts, "</body></html>", ""])


def _facts(run: RunFolder) -> list[str]:
    lines = []
    if run.bundle is not None:
        model = run.bundle.manifest.model
        lines.append(f"{model.n_params:,} parameters. {run.bundle.space}.")
    if run.table is not None:
        device = run.table.device
        lines.append(
            f"{device.get('processor', 'unknown')}, {device.get('cores', '?')} cores, onnxruntime "
            f"{device.get('onnxruntime', '?')}; batch size {run.table.batch_size}, "
            f"{run.table.threads or 'all'} thread{'' if run.table.threads == 1 else 's'}."
        )
        error = run.table.error()
        if error is not None:
            lines.append(
                f"Predicted latencies are off by {error.median:.1%} (median) and {error.p90:.1%} "
                f"(90th percentile) on {error.n_held_out} subnets held out."
            )
    if run.pool is not None:
        lines.append(f"{len(run.pool):,} subnets were evaluated.")
    return [f"<p>{escape(line)}</p>" for line in lines]


def _table(run: RunFolder) -> list[str]:
    if not run.chosen:
        return []
    header = ("budget", "predicted", "measured", "of original", "accuracy", "blocks replaced")
    whole = run.original_ms
    rows = []
    for row in run.chosen:
        predicted = row.get("predicted_ms", row.get("latency_ms"))
        measured = row.get("measured_ms")
        shown = measured if measured is not None else predicted
        rows.append(
            (
                f"{row['budget_ms']:.3f} ms",
                f"{predicted:.3f} ms",
                "-" if measured is None else f"{measured:.3f} ms",
                "-" if whole is None else f"{shown / whole:.0%}",
                "-" if row["accuracy"] is None else f"{row['accuracy']:.1%}",
                str(row.get("n_replaced", "-")),
            )
        )
    if run.measured is not None and "original" in run.measured:
        original = run.measured["original"]
        rows.append(
            (
                "the original",
                f"{original['predicted_ms']:.3f} ms",
                f"{original['measured_ms']:.3f} ms",
                "100%",
                f"{original['accuracy']:.1%}",
                "0",
            )
        )
    cells = ["<tr>" + "".join(f"<th>{escape(c)}</th>" for c in header) + "</tr>"]
    cells += ["<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in rows]
    return ['<div class="wide"><table>', *cells, "</table></div>"]


def _uri(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{b64encode(svg).decode()}"
