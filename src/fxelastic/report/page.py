"""A report as one HTML file that needs no network."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path

from fxelastic.extras import required
from fxelastic.files import replace_file
from fxelastic.report.figures import Plot, plots
from fxelastic.report.run_folder import RunFolder
from fxelastic.spec.resources import LATENCY

_HEADER = ("budget", "predicted", "measured", "of original", "accuracy", "blocks replaced")


def write_report(run: RunFolder, out: Path) -> list[Path]:
    """Write ``report.html`` and a PNG of each figure.

    Args:
        run: The run to report.
        out: A folder that exists.

    Returns:
        The files, the page first.

    Raises:
        OSError: A file can't be written.
        UsageError: matplotlib or jinja2 is not installed.
    """
    figures = plots(run)
    page = out / "report.html"
    text = html(run, figures)
    files = [page]
    for figure in figures:
        path = out / f"{figure.name}.png"
        replace_file(path, figure.png())
        files.append(path)
    replace_file(page, text.encode())
    return files


def html(run: RunFolder, figures: Sequence[Plot]) -> str:
    """The page.

    Raises:
        UsageError: jinja2 is not installed.
    """
    jinja2 = required("jinja2", "pages need jinja2", "report")
    template = (Path(__file__).parent / "page.html").read_text("utf-8")
    layout = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    text: str = jinja2.Template(template, autoescape=True, **layout).render(
        name=run.bundle.manifest.model.name if run.bundle is not None else run.path.name,
        facts=_facts(run),
        header=_HEADER,
        rows=_rows(run),
        figures=figures,
        uri=_uri,
    )
    return text


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
    return lines


def _rows(run: RunFolder) -> list[tuple[str, ...]]:
    """The subnet of each budget, and the original where it was measured."""
    if not run.chosen:
        return []
    whole = run.original_ms
    rows: list[tuple[str, ...]] = []
    for row in run.chosen:
        predicted = row.get("predicted_ms", row.get(LATENCY))
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
    return rows


def _uri(figure: Plot, theme: str) -> str:
    return f"data:image/svg+xml;base64,{b64encode(figure.svg(theme)).decode()}"
