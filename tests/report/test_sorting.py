"""The script of a report sorts its table of branches; run with Node, if there is one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import fxelastic

PAGE = Path(fxelastic.__file__).parent / "report" / "page.html"

# As much of a document as the script uses: one table with the given rows.
DOCUMENT = """
const cell = ([text, value]) =>
  ({ textContent: text, dataset: value === null ? {} : { value: String(value) } });
const rows = ROWS.map((cells) => ({ cells: cells.map(cell) }));
const head = () => ({
  attributes: {},
  getAttribute(name) { return this.attributes[name] ?? null; },
  setAttribute(name, value) { this.attributes[name] = value; },
  removeAttribute(name) { delete this.attributes[name]; },
  addEventListener(name, call) { this.click = call; },
});
const heads = rows[0].cells.map(head);
const body = { rows, append(...sorted) { this.rows = sorted; } };
const table = { tHead: { rows: [{ cells: heads }] }, tBodies: [body] };
globalThis.document = { querySelectorAll: () => [table] };
"""
REPORT = """
const shown = [];
for (const i of CLICKS) {
  heads[i].click();
  shown.push([body.rows.map((row) => row.cells[0].textContent).join(" "),
    heads.map((head) => head.attributes["aria-sort"] ?? "")]);
}
console.log(JSON.stringify(shown));
"""
# A page's script needs a program to run it, which the tests' environment can't install.
NODE = shutil.which("node") or ""
pytestmark = pytest.mark.skipif(not NODE, reason="the script of a page needs Node to run")

ROWS = [
    [["b", None], ["10", 10]],
    [["c", None], ["9", 9]],
    [["a", None], ["-", None]],
    [["d", None], ["0.5", 0.5]],
]


def clicked(*columns: int) -> list[tuple[str, list[str]]]:
    """The order of the rows, and how the columns are marked, after each click."""
    (script,) = re.findall(r"<script>(.*?)</script>", PAGE.read_text("utf-8"), re.DOTALL)
    code = DOCUMENT.replace("ROWS", json.dumps(ROWS)) + script
    code += REPORT.replace("CLICKS", json.dumps(columns))
    done = subprocess.run([NODE, "-e", code], capture_output=True, text=True, check=True)
    return [(order, marks) for order, marks in json.loads(done.stdout)]


def test_a_click_sorts_and_a_second_one_turns_round() -> None:
    assert clicked(0, 0) == [
        ("a b c d", ["ascending", ""]),
        ("d c b a", ["descending", ""]),
    ]


def test_numbers_sort_by_value_and_what_is_unknown_comes_last() -> None:
    ((order, marks),) = clicked(1)
    assert order == "d c b a"
    assert marks == ["", "ascending"]


def test_only_the_last_column_is_marked() -> None:
    assert clicked(0, 1)[-1][1] == ["", "ascending"]
