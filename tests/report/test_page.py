"""Reports: one page without a network, readable in both themes, of whatever a folder holds."""

from __future__ import annotations

import html
import importlib
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from base64 import b64decode
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fxelastic import edge
from fxelastic.cli import main
from fxelastic.edge.monitoring.table_probe import renewed
from fxelastic.errors import UsageError
from fxelastic.report.branch_table import HEADER, Cell
from fxelastic.report.canvas import NARROW, WIDE, new_figure, theme
from fxelastic.report.devices import read_devices
from fxelastic.report.figures import plots
from fxelastic.report.page import page_of
from fxelastic.report.run_folder import RunFolder
from fxelastic.spec import Arch
from tests.edge.serving.tiny_bundle import write_bundle
from tests.hostile.mutations import documents, plain

matplotlib = pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
importlib.import_module("matplotlib.image")
FigureCanvasAgg = importlib.import_module("matplotlib.backends.backend_agg").FigureCanvasAgg

RNG = np.random.default_rng(0)
PARTS = (
    *("bundle.latency.json", "bundle.pool.json", "search.json", "measured.json", "trace.jsonl"),
    "explain.json",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run made by the commands themselves."""
    path = tmp_path_factory.mktemp("report") / "run"
    bundle = write_bundle(path / "bundle")
    x = RNG.standard_normal((30, 8, 8, 8)).astype(np.float32)
    np.savez(path / "local.npz", x=x, targets=RNG.integers(0, 5, 30))
    (path / "in").mkdir()
    np.save(path / "in" / "x.npy", x[:1])
    # No whole subnets: the few runs of so small a model may be marked unusable.
    quick = ["--samples", "3", "--subnets", "0", "--held-out", "0", "--quiet"]
    assert main(["profile", str(bundle.path), *quick]) == 0
    table = edge.LatencyTable.load(path / "bundle.latency.json")
    budgets = [table.predict_ms(bundle.space.original) * share for share in (1.2, 1.5)]
    result = edge.search(
        bundle, table, path / "local.npz", budget_ms=budgets, path=path / "bundle.pool.json"
    )
    from fxelastic.cli.search import report

    search = report(bundle, result, path / "bundle.pool.json", 0)
    (path / "search.json").write_text(json.dumps(search))
    rows = [
        {**row, "predicted_ms": row["latency_ms"], "measured_ms": 1.0, "n_replaced": 1}
        for row in search["budgets"]
    ]
    original = {"predicted_ms": 1.0, "measured_ms": 1.1, "accuracy": 0.9}
    measured = {"schema": "fxelastic.measured/1", "original": original, "subnets": rows}
    (path / "measured.json").write_text(json.dumps(measured))
    cuts = [
        {"position": i + 1, "block": f"b{i}", "score": 0.3 * (i + 1), "gain": 0.3, "flops": 0.3 * i}
        for i in range(3)
    ]
    exits = {"measure": "accuracy", "chance": 0.1, "whole": 0.95, "n_samples": 30, "cuts": cuts}
    exits |= {"exits": [1], "little": ["b2"], "refused": {}}
    explained = {"schema": "fxelastic.explain/1", "blocks": [], "exits": exits}
    (path / "explain.json").write_text(json.dumps(explained))
    serving = ["--pool", str(path / "bundle.pool.json"), "--budget-ms", "1000", "--quiet"]
    serving += ["--inputs", str(path / "in"), "--repeat", "2000", "--mode", "paged"]
    trace = ["--trace", str(path / "trace.jsonl")]
    assert main(["serve", str(bundle.path), *serving, *trace]) == 0
    return path


class Links(HTMLParser):
    """Everything that a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        names = ("src", "srcset", "href")
        self.found += [value or "" for name, value in attrs if name in names]


def test_the_page_has_every_figure_and_loads_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(folder), "-o", str(tmp_path / "out")]) == 0
    assert "wrote" in capsys.readouterr().out
    page = (tmp_path / "out" / "report.html").read_text()
    links = Links()
    links.feed(page)
    assert links.tags.count("img") == 8
    assert all(link.startswith("data:image/svg+xml;base64,") for link in links.found)
    for link in links.found:
        root = ET.fromstring(b64decode(link.partition(",")[2]))
        assert root.tag.endswith("svg")
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport"' in page
    assert links.tags.count("script") == 1
    assert "not met" not in page
    names = ("tradeoff", "supernet", "latency", "roofline", "search", "ranges", "trace", "cuts")
    for name in names:
        data = (tmp_path / "out" / f"{name}.png").read_bytes()
        assert data.startswith(b"\x89PNG")
    assert len(page) < 4_000_000


def test_themes_differ_and_bytes_do_not(folder: Path) -> None:
    for plot in plots(RunFolder.read(folder)):
        assert plot.svg("light") == plot.svg("light")
        assert plot.svg("light") != plot.svg("dark")


@pytest.mark.parametrize("width", [NARROW, WIDE])
def test_no_figure_is_cropped_and_no_labels_overlap(folder: Path, width: float) -> None:
    for plot in plots(RunFolder.read(folder)):
        with theme("light", width):
            figure = plot.draw()
            renderer = FigureCanvasAgg(figure).get_renderer()
            figure.draw(renderer)
            assert overflow(figure, renderer) < 0.02, plot.name
            assert overlapping(figure, renderer) == [], plot.name


def overflow(figure: Any, renderer: Any) -> float:
    """How far anything drawn lies outside of the figure, in inches."""
    box = figure.get_tightbbox(renderer)
    beyond = (-box.x0, -box.y0, box.x1 - figure.get_figwidth(), box.y1 - figure.get_figheight())
    return float(max(beyond))


def overlapping(figure: Any, renderer: Any) -> list[tuple[str, str]]:
    """Pairs of neighbouring labels of an axis, not rotated, that cover each other."""
    found = []
    for axes in figure.axes:
        for axis, low, high in ((axes.xaxis, "x0", "x1"), (axes.yaxis, "y0", "y1")):
            labels = [label for label in axis.get_ticklabels() if label.get_text()]
            if any(label.get_rotation() for label in labels):
                continue
            boxes = [label.get_window_extent(renderer) for label in labels]
            order = sorted(zip(boxes, labels, strict=True), key=lambda pair: getattr(pair[0], low))
            for (one, first), (two, second) in pairwise(order):
                if getattr(one, high) > getattr(two, low):
                    found.append((first.get_text(), second.get_text()))
    return found


def test_what_is_cropped_or_overlaps_would_be_found() -> None:
    with theme("light", NARROW):
        figure = new_figure()
        axes = figure.subplots()
        axes.text(-2, 0.5, "outside")
        axes.set_xticks([0.1, 0.11], ["a long label", "another one"])
        renderer = FigureCanvasAgg(figure).get_renderer()
        figure.draw(renderer)
        assert overflow(figure, renderer) > 0.02
        assert overlapping(figure, renderer) == [("a long label", "another one")]


def test_the_page_begins_with_what_matters(folder: Path) -> None:
    run = RunFolder.read(folder)
    notes = {**(run.measured or {}), "notes": ["a <short> run"]}
    page = page_of(replace(run, measured=notes), ()).html()
    assert re.search(r'<p class="headline">[\d.]+× faster at [+−][\d.]+ points on test data', page)
    assert '<p class="note">a &lt;short&gt; run</p>' in page
    titles = re.findall(r'<th scope="col">([^<]+)</th>', page)
    # A phone shows the first columns.
    assert titles[:4] == ["subnet", "of original", "accuracy", "score"]
    assert page.count('<tr class="recommended">') == 1
    assert "Scores (top1) are measured on the data that the search chose with" in page


def test_search_and_test_scores_have_axes_of_their_own(folder: Path) -> None:
    plot = plots(RunFolder.read(folder))[0]
    searched, tested = plot.draw().axes
    assert (searched.get_title(), searched.get_ylabel()) == ("on the data of the search", "score")
    assert (tested.get_title(), tested.get_ylabel()) == ("on test data", "accuracy")
    assert "Pareto front" in searched.get_legend_handles_labels()[1]


def test_every_branch_has_a_row_that_sorts(folder: Path) -> None:
    run = RunFolder.read(folder)
    assert run.bundle is not None
    page = page_of(run, ()).html()
    table = page.partition('<table class="sorts">')[2].partition("</table>")[0]
    assert table.count("<button") == len(HEADER)
    body = table.partition("<tbody>")[2]
    assert body.count("<tr>") == len(run.bundle.space.branches)
    for spec in run.bundle.space.branches:
        assert f'<td data-value="{spec.n_params}">' in body
    assert "http" not in page.partition("<script>")[2]


def test_phones_have_pictures_of_their_own(folder: Path, tmp_path: Path) -> None:
    run = RunFolder.read(folder)
    (plot, *_) = plots(run)
    page = page_of(run, [plot]).html()
    pictures = re.findall(
        r'<source media="\(max-width: 600px\)[^"]*" srcset="data:[^,]*,([^"]*)"', page
    )
    assert len(pictures) == 2
    root = ET.fromstring(b64decode(pictures[0]))
    assert root.get("width") == f"{72 * NARROW:g}pt"


@pytest.mark.parametrize("missing", PARTS)
def test_what_is_not_there_is_left_out(folder: Path, tmp_path: Path, missing: str) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "run"))
    (copy / missing).unlink()
    run = RunFolder.read(copy)
    assert page_of(run, plots(run)).html().endswith("</html>\n")


def test_a_name_that_looks_like_markup_is_text(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "a <script>"))
    shutil.rmtree(copy / "bundle")
    page = page_of(RunFolder.read(copy), ()).html()
    assert "<h1>a &lt;script&gt;</h1>" in page
    assert "<script" not in page.split("<h2>Branches</h2>")[0]


@pytest.mark.parametrize("only", PARTS)
def test_one_part_is_enough(folder: Path, tmp_path: Path, only: str) -> None:
    shutil.copy(folder / only, tmp_path / only)
    run = RunFolder.read(tmp_path)
    assert page_of(run, plots(run)).html().endswith("</html>\n")


def test_a_large_pool_whose_front_is_one_subnet_is_enough(folder: Path, tmp_path: Path) -> None:
    pool = edge.SubnetPool.load(folder / "bundle.pool.json")
    entry = pool.entries[0]
    worse = [replace(entry, latency_ms=entry.latency_ms + i, accuracy=-i) for i in range(1, 30)]
    branches = [f"a{i}@0" for i in range(len(worse))]
    many = [replace(e, arch=Arch((name,))) for e, name in zip(worse, branches, strict=True)]
    replace(pool, entries=(entry, *many)).save(tmp_path / "bundle.pool.json")
    run = RunFolder.read(tmp_path)
    assert page_of(run, plots(run)).html().endswith("</html>\n")


@pytest.mark.parametrize("only", PARTS)
def test_a_bundle_and_one_part_are_enough(folder: Path, tmp_path: Path, only: str) -> None:
    shutil.copytree(folder / "bundle", tmp_path / "bundle")
    shutil.copy(folder / only, tmp_path / only)
    run = RunFolder.read(tmp_path)
    figures = plots(run)
    assert page_of(run, figures).html().endswith("</html>\n")
    with theme("light"):
        assert all(figure.draw().axes for figure in figures)


@pytest.mark.parametrize("name", PARTS[:4])
@pytest.mark.parametrize("content", ["", "[]", '{"schema": "other"}'])
def test_damaged_files_are_refused(folder: Path, tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=re.escape(name)):
        RunFolder.read(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to report"),
        (["none"], "is not a folder"),
        (["."], "holds nothing to report"),
        ([".", "--trace", "t.jsonl"], "exclude"),
        (["--devices", "none"], "has no latency tables"),
        (["--trace", "none.jsonl"], "none.jsonl"),
    ],
)
def test_wrong_arguments(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_devices_are_compared(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = edge.LatencyTable.load(folder / "bundle.latency.json")
    rng = np.random.default_rng(0)
    slower = renewed(table, {name: rng.uniform(2.0, 3.0) for name in table.rows})
    for name in ("board", "phone"):
        (tmp_path / name).mkdir()
    table.save(tmp_path / "board" / "bundle.latency.json")
    shutil.copy(folder / "bundle.pool.json", tmp_path / "board")
    slower.save(tmp_path / "phone" / "bundle.latency.json")
    assert main(["report", "--devices", str(tmp_path)]) == 0
    assert "devices.html" in capsys.readouterr().out
    page = (tmp_path / "devices.html").read_text()
    board, phone = re.findall(r"<tr><td>(board|phone)</td>(.*?)</tr>", page)
    assert "mJ" in board[1]
    assert f"{read_devices(tmp_path)[0].original_ms:.3f} ms" in board[1]
    assert phone[1].count("<td>-</td>") == 4
    assert all(f"<td>{branch}</td>" in page for branch in table.rows)
    links = Links()
    links.feed(page)
    assert links.tags.count("img") == 1
    assert all(link.startswith("data:") for link in links.found)
    # One device alone has a page, too; tables in one folder go by their files' names.
    slower.save(tmp_path / "phone" / "other.latency.json")
    assert [d.name for d in read_devices(tmp_path / "phone")] == ["bundle", "other"]
    assert [d.name for d in read_devices(tmp_path)] == ["board", "phone/bundle", "phone/other"]


def test_names_of_devices_are_text(folder: Path, tmp_path: Path) -> None:
    """Whatever the folders are called: HTML, formulas of matplotlib, control characters."""
    table = edge.LatencyTable.load(folder / "bundle.latency.json")
    for name in ("<script>x()<", "$\\frac{$", "a\u202e\x1b[2J", "_hidden"):
        (tmp_path / name).mkdir()
        table.save(tmp_path / name / "bundle.latency.json")
    assert main(["report", "--devices", str(tmp_path), "--quiet"]) == 0
    page = (tmp_path / "devices.html").read_text()
    assert "<script>x()" not in page
    assert "&lt;script&gt;x()" in page
    assert not {"\u202e", "\x1b"} & set(page)


def test_devices_without_latencies_have_no_figure(folder: Path, tmp_path: Path) -> None:
    """Symptom: ValueError, the least of no numbers."""
    table = edge.LatencyTable.load(folder / "bundle.latency.json")
    nothing = renewed(table, dict.fromkeys(table.rows, 0.0)).mapped(
        lambda costs: replace(costs, overhead=0.0)
    )
    for name in ("one", "two"):
        nothing.save(tmp_path / f"{name}.latency.json")
    assert main(["report", "--devices", str(tmp_path), "--quiet"]) == 0


@pytest.mark.parametrize("name", ["search.json", "measured.json", "explain.json"])
def test_files_with_other_fields_are_refused_or_shown(
    name: str, folder: Path, tmp_path: Path
) -> None:
    """Symptom: KeyError, TypeError or ValueError while the page is made."""
    shutil.copytree(folder, tmp_path / "run")
    path = tmp_path / "run" / name
    n_refused = 0
    for text in documents(json.loads(path.read_bytes()), 100, name, plain):
        path.write_bytes(text)
        try:
            run = RunFolder.read(path.parent)
            page_of(run, plots(run))
        except UsageError:
            n_refused += 1
    assert 20 < n_refused < 100


def test_devices_of_different_bundles_are_refused(folder: Path, tmp_path: Path) -> None:
    table = edge.LatencyTable.load(folder / "bundle.latency.json")
    table.save(tmp_path / "a.latency.json")
    rows = dict(list(table.rows.items())[1:])

    def without(found: Any) -> Any:
        return replace(found, costs={name: found.costs[name] for name in rows})

    modes = {
        mode: costs.including({name: without(own) for name, own in costs.items()})
        for mode, costs in table.modes.items()
    }
    replace(table, rows=rows, modes=modes).save(tmp_path / "b.latency.json")
    with pytest.raises(UsageError, match="different bundles"):
        read_devices(tmp_path)


def test_a_trace_alone(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "trace.svg"
    trace = str(folder / "trace.jsonl")
    assert main(["report", "--trace", trace, "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == [str(out)]
    assert out.read_text().count("<svg") == 1


# --- in a browser --------------------------------------------------------------------------------

PHONE, DESKTOP = (390, 844), (1280, 900)


def browser() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


def browse(profile: Path, *arguments: object) -> str:
    """Run a headless browser to its end; what it printed."""
    command = [browser(), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={profile}", "--allow-file-access-from-files", *arguments]
    done = subprocess.run(
        [str(part) for part in command], check=True, capture_output=True, text=True, timeout=120
    )
    return done.stdout


@pytest.fixture(scope="module")
def shown(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if browser() is None:
        pytest.skip("no Chromium on the PATH")
    run = RunFolder.read(folder)
    page = page_of(run, plots(run))
    # Notes as of a cascade, and of an 8-bit branch that is not used.
    note = "95% of the samples leave early; the bound on its loss is 0.94 points at 95%"
    rows = [{**row, "cells": [*row["cells"], note]} for row in page.rows]
    branches = [
        [*row[:-1], Cell(f"it takes 0.65 ms, and {row[0].text} 0.19")] for row in page.branches
    ]
    page = replace(page, header=[*page.header, ""], rows=rows, branches=branches)
    path = tmp_path_factory.mktemp("shown") / "report.html"
    path.write_text(page.html())
    return path


@pytest.mark.parametrize("size", [PHONE, DESKTOP])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_browser_shows_it(shown: Path, tmp_path: Path, size: tuple[int, int], theme: str) -> None:
    picture = tmp_path / "page.png"
    browse(
        tmp_path / "profile",
        *(["--force-dark-mode"] if theme == "dark" else []),
        "--window-size={},{}".format(*size),
        f"--screenshot={picture}",
        shown.as_uri(),
    )
    pixels = matplotlib.image.imread(picture)[..., :3]
    # The margin is of the theme's colour, and text and plots are of others.
    margin = pixels[:4, :4].mean()
    assert margin < 0.3 if theme == "dark" else margin > 0.8
    assert (abs(pixels.mean(axis=2) - margin) > 0.4).mean() > 0.01


# Measures a page in a frame: its width, what is cropped, the contrast of texts, which of them
# overlap, and how far to the right the table's first columns reach.
MEASURE = """
<title></title><body><iframe src="PAGE" style="width:WIDTHpx; height:900px; border:0"></iframe>
<script>
const frame = document.querySelector("iframe");
const luminance = (rgb) => rgb.map((c) => (c /= 255) <= 0.03928 ? c / 12.92
  : ((c + 0.055) / 1.055) ** 2.4).reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
frame.onload = () => {
  const page = frame.contentDocument, view = frame.contentWindow;
  const style = (node) => view.getComputedStyle(node), root = page.documentElement;
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const [r, g, b, alpha = 1] = numbers(style(node).backgroundColor);
      if (alpha > 0) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const texts = [], low = [], overlapping = [], cropped = [];
  const walker = page.createTreeWalker(page.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, parent = node.parentElement;
    if (!node.data.trim() || parent.tagName === "SCRIPT") continue;
    const both = [numbers(style(parent).color), behind(parent)]
      .map((rgb) => luminance(rgb.slice(0, 3))).sort((a, b) => b - a);
    const contrast = (both[0] + 0.05) / (both[1] + 0.05);
    if (contrast < 4.5) low.push([node.data.trim(), contrast]);
    const range = page.createRange();
    range.selectNodeContents(node);
    const clip = parent.closest(".wide, .tall")?.getBoundingClientRect() ??
      { left: 0, right: 1e9, top: 0, bottom: 1e9 };
    for (const box of range.getClientRects()) {
      const [left, right] = [Math.max(box.left, clip.left), Math.min(box.right, clip.right)];
      const [top, bottom] = [Math.max(box.top, clip.top), Math.min(box.bottom, clip.bottom)];
      if (left < right && top < bottom) texts.push([node, left, right, top, bottom]);
    }
  }
  texts.forEach(([one, l, r, t, b], i) => texts.slice(i + 1).forEach(([other, L, R, T, B]) => {
    const inside = Math.min(r, R) - Math.max(l, L) > 2 && Math.min(b, B) - Math.max(t, T) > 4;
    if (one !== other && inside) overlapping.push([one.data.trim(), other.data.trim()]);
  }));
  for (const node of page.querySelectorAll("*"))
    if (node.scrollWidth > node.clientWidth + 1 && node.clientWidth && node !== page.body)
      cropped.push(`${node.tagName} ${node.className}`);
  const heads = [...page.querySelectorAll("table")].map((table) =>
    [...table.tHead.rows[0].cells].map((cell) => [cell.textContent,
      cell.getBoundingClientRect().right]));
  const pictures = [...page.images].map((image) => image.naturalWidth && image.width);
  document.title = JSON.stringify({ width: root.scrollWidth, n: texts.length, low, overlapping,
    cropped, heads, pictures });
};
</script>
"""


@pytest.mark.parametrize("width", [PHONE[0], DESKTOP[0]])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_everything_is_seen_and_read(shown: Path, tmp_path: Path, width: int, theme: str) -> None:
    frame = tmp_path / "frame.html"
    frame.write_text(MEASURE.replace("PAGE", shown.as_uri()).replace("WIDTH", str(width)))
    dark = ["--force-dark-mode"] if theme == "dark" else []
    dom = browse(
        tmp_path / "profile", *dark, "--window-size=1600,1000", "--dump-dom", frame.as_uri()
    )
    title = re.search(r"<title>(\{.*?)</title>", dom, re.DOTALL)
    assert title is not None
    found = json.loads(html.unescape(title[1]))
    assert found["n"] > 50
    assert found["width"] <= width
    assert not found["low"]
    assert not found["overlapping"]
    assert all(0 < shown_width <= width for shown_width in found["pictures"])
    assert len(found["pictures"]) > 5
    (subnets, branch_heads) = (dict(heads) for heads in found["heads"])
    if width == PHONE[0]:
        assert subnets["accuracy"] <= width
        assert branch_heads["ms"] <= width
    else:
        assert not found["cropped"]
