"""Run the console sessions of docs/cli.md and write down what they print.

``python -m tests.cli.docs_sessions`` writes the page anew, to be reviewed as a diff.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import tempfile
from pathlib import Path

from fxelastic.cli import export_main, main
from tests.cli.commands import ROOT

PAGE = ROOT / "docs" / "cli.md"


def fenced(text: str, info: str) -> list[str]:
    """The contents of the fenced blocks with this info string."""
    return re.findall(rf"^```{info}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def refreshed(page: str, folder: Path) -> str:
    """The page with what its sessions print today.

    Args:
        page: The page. Its only ``python`` block is ``my_model.py``; ``console`` blocks of more
            than one line are sessions of one command; its only ``text`` block is the golden file.
        folder: An empty folder to work in.
    """
    (model,) = fenced(page, "python")
    (folder / "my_model.py").write_text(model)
    before = os.getcwd()
    os.chdir(folder)
    try:
        for block in fenced(page, "console"):
            command, _, output = block.partition("\n")
            if output:
                page = page.replace(block, f"{command}\n{_stdout(command)}")
    finally:
        os.chdir(before)
    (golden,) = fenced(page, "text")
    return page.replace(golden, (folder / "golden" / "net.txt").read_text())


def _stdout(command: str) -> str:
    program, *argv = shlex.split(command.removeprefix("$ "))
    stdout = io.StringIO()
    with contextlib.redirect_stdout(stdout):
        {"fxelastic": main, "fxelastic-export": export_main}[program](argv)
    return stdout.getvalue()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        PAGE.write_text(refreshed(PAGE.read_text("utf-8"), Path(name)), "utf-8")
