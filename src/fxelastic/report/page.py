"""A report as one HTML file that needs no network."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fxelastic.extras import required
from fxelastic.files import replace_file
from fxelastic.report.branch_table import HEADER, Cell, branch_rows
from fxelastic.report.canvas import INK, NARROW, WIDE, recoloured
from fxelastic.report.figures import Plot, plots
from fxelastic.report.run_folder import RunFolder
from fxelastic.report.subnets import TOLERANCE, Row, headline, rows_of
from fxelastic.spec.resources import ENERGY

# The figures that matter most come first: a phone shows them without scrolling.
_COLUMNS: tuple[tuple[str, Callable[[Row], object], str], ...] = (
    ("accuracy", lambda row: row.accuracy, "{:.1%}"),
    ("score", lambda row: row.score, "{:.3f}"),
    ("measured", lambda row: row.measured_ms, "{:.3f} ms"),
    ("predicted", lambda row: row.predicted_ms, "{:.3f} ms"),
    ("energy", lambda row: row.energy_mj, "{:.2f} mJ"),
    ("blocks replaced", lambda row: row.n_replaced, "{}"),
    ("best for", lambda row: ", ".join(row.budgets) or None, "{}"),
    ("", lambda row: row.note or None, "{}"),
)


@dataclass(frozen=True)
class Page:
    """What a page shows, from the top.

    Attributes:
        name: The title.
        headline: What matters most.
        notes: What to know before reading on.
        facts: Where the figures come from.
        header: The titles of the table's columns.
        rows: Its rows, with ``cells``, and ``recommended`` for one that stands out.
        caption: What the table's terms mean.
        figures: The figures.
        branch_header: The titles of the table of branches.
        branches: Its rows.
        branch_caption: What it shows.
    """

    name: str
    headline: str = ""
    notes: Sequence[str] = ()
    facts: Sequence[str] = ()
    header: Sequence[str] = ()
    rows: Sequence[Mapping[str, object]] = ()
    caption: str = ""
    figures: Sequence[Plot] = ()
    branch_header: Sequence[str] = ()
    branches: Sequence[Sequence[Cell]] = ()
    branch_caption: str = "Costs on this device. Click a title to sort."

    def html(self) -> str:
        """The page.

        Raises:
            UsageError: jinja2 is not installed.
        """
        jinja2 = required("jinja2", "pages need jinja2", "report")
        template = (Path(__file__).parent / "page.html").read_text("utf-8")
        layout = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
        made = jinja2.Template(template, autoescape=True, **layout)
        text: str = made.render(page=self, uris=_uris)
        return text


def write_page(page: Page, out: Path, name: str) -> list[Path]:
    """Write a page, and a PNG of each figure.

    Args:
        page: The page.
        out: A folder that exists.
        name: The name of the page's file.

    Returns:
        The files, the page first.

    Raises:
        OSError: A file can't be written.
        UsageError: matplotlib or jinja2 is not installed.
    """
    text = page.html()
    files = [out / name]
    for figure in page.figures:
        path = out / f"{figure.name}.png"
        replace_file(path, figure.png())
        files.append(path)
    replace_file(files[0], text.encode())
    return files


def write_report(run: RunFolder, out: Path) -> list[Path]:
    """Write ``report.html`` and a PNG of each figure; see `write_page`.

    Args:
        run: The run to report.
        out: A folder that exists.
    """
    return write_page(page_of(run, plots(run)), out, "report.html")


def page_of(run: RunFolder, figures: Sequence[Plot]) -> Page:
    """The page of a run."""
    rows = rows_of(run)
    header, cells = _cells(run, rows)
    return Page(
        name=run.bundle.manifest.model.name if run.bundle is not None else run.path.name,
        headline=headline(rows),
        notes=list((run.measured or {}).get("notes") or ()),
        facts=_facts(run),
        header=header,
        rows=cells,
        caption=_caption(run, rows),
        figures=figures,
        branch_header=HEADER,
        branches=branch_rows(run),
    )


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


def _cells(run: RunFolder, rows: Sequence[Row]) -> tuple[list[str], list[dict[str, object]]]:
    """The titles of the columns that any row fills, and the cells of each row."""
    columns = [column for column in _COLUMNS if any(column[1](row) is not None for row in rows)]
    whole = run.original_ms
    found = []
    for row in rows:
        share = "-" if whole is None or not row.ms else f"{row.ms / whole:.0%}"
        cells = [row.name + (" ★" if row.recommended else ""), share]
        for _, value, form in columns:
            cells.append("-" if value(row) is None else form.format(value(row)))
        found.append({"recommended": row.recommended, "cells": cells})
    return ["subnet", "of original", *(title for title, _, _ in columns)], found


def _caption(run: RunFolder, rows: Sequence[Row]) -> str:
    parts = []
    if any(row.recommended for row in rows):
        parts.append(
            "★ is recommended: the quickest whose score is at most "
            f"{100 * TOLERANCE:g} point below the best."
        )
    if any(row.score is not None for row in rows):
        name = "" if run.pool is None else f" ({run.pool.score})"
        parts.append(f"Scores{name} are measured on the data that the search chose with.")
    if any(row.accuracy is not None for row in rows):
        parts.append("Accuracies are measured on test data, which no choice depended on.")
    if any(row.energy_mj is not None for row in rows) and run.table is not None:
        energy = dict(run.table.costs_of("assembled").items())[ENERGY]
        parts.append(f"Energy is predicted ({energy.source}).")
    return " ".join(parts)


def _uris(figure: Plot) -> dict[str, str]:
    """The pictures of a figure: for both themes, as wide as a page and as a phone."""
    found = {}
    for width, suffix in ((WIDE, ""), (NARROW, "-narrow")):
        svg = figure.svg("light", width)
        for name in INK:
            encoded = b64encode(recoloured(svg, name)).decode()
            found[f"{name}{suffix}"] = f"data:image/svg+xml;base64,{encoded}"
    return found
