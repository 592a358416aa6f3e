"""Run the tutorial, and write it with its output as a notebook.

    python tools/tutorial_notebook.py

The notebook is `examples/notebooks/tutorial.ipynb`; needs the extras `torch` and `examples`.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "tutorial.md"
NOTEBOOK = ROOT / "examples" / "notebooks" / "tutorial.ipynb"


def parts(text: str) -> list[tuple[str, str]]:
    """The page as pairs of ``markdown`` or ``code`` and a text, in order."""
    found = []
    for i, part in enumerate(re.split(r"^```python\n(.*?)^```\n", text, flags=re.M | re.S)):
        if part.strip():
            found.append(("code" if i % 2 else "markdown", part.strip()))
    return found


def run(code: str, namespace: dict[str, Any]) -> str:
    """Run a cell; what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        exec(compile(code, "<cell>", "exec"), namespace)
    return printed.getvalue()


def notebook(text: str) -> dict[str, Any]:
    """The page as a notebook, its code run in the current folder."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    cells: list[dict[str, Any]] = []
    for kind, source in parts(text):
        cell: dict[str, Any] = {"cell_type": kind, "id": f"cell-{len(cells)}", "metadata": {}}
        if kind == "code":
            printed = run(source, namespace)
            count = 1 + sum(other["cell_type"] == "code" for other in cells)
            output = {"name": "stdout", "output_type": "stream", "text": lines(printed)}
            cell |= {"execution_count": count, "outputs": [output] if printed else []}
        else:
            source = re.sub(r"\]\(([\w-]+\.md)", r"](../../docs/\1", source)
        cells.append({**cell, "source": lines(source)})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {
        "cells": cells,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def lines(text: str) -> list[str]:
    """The lines of a text with their ends, as notebooks have them."""
    return text.splitlines(keepends=True)


def main() -> None:
    """Write the notebook."""
    text = PAGE.read_text("utf-8")
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            made = notebook(text)
        finally:
            os.chdir(before)
    NOTEBOOK.parent.mkdir(parents=True, exist_ok=True)
    NOTEBOOK.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
