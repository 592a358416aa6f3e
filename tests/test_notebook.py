"""The notebook is the tutorial, with what it prints."""

from __future__ import annotations

import importlib.util
import json
from types import ModuleType
from typing import Any

import pytest

from tests.cli.commands import ROOT


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    path = ROOT / "tools" / "tutorial_notebook.py"
    spec = importlib.util.spec_from_file_location("tutorial_notebook", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cells(notebook: dict[str, Any], kind: str) -> list[str]:
    return ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == kind]


def test_the_notebook_has_the_code_of_the_tutorial(tool: ModuleType) -> None:
    """Where it does not, ``python tools/tutorial_notebook.py`` writes it anew."""
    written = json.loads(tool.NOTEBOOK.read_text("utf-8"))
    page = tool.parts(tool.PAGE.read_text("utf-8"))
    assert cells(written, "code") == [text for kind, text in page if kind == "code"]
    assert len(cells(written, "markdown")) == sum(kind == "markdown" for kind, _ in page)
    printed = json.dumps([cell.get("outputs") for cell in written["cells"]])
    assert "of the latency" in printed
    assert "/tmp" not in printed


def test_cells_run_in_order_and_keep_what_they_print(tool: ModuleType) -> None:
    made = tool.notebook("# A\n\n```python\nx = 2\n```\n\n[b](b.md)\n\n```python\nprint(x)\n```\n")
    assert cells(made, "markdown") == ["# A", "[b](../../docs/b.md)"]
    one, two = (cell for cell in made["cells"] if cell["cell_type"] == "code")
    assert (one["execution_count"], one["outputs"]) == (1, [])
    assert (two["execution_count"], two["outputs"][0]["text"]) == (2, ["2\n"])
