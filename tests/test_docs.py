"""Every Python block of README.md and docs/ runs, and links between documents lead somewhere."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
EXECUTED = [page for page in PAGES if page.parent != ROOT or page.name == "README.md"]

# The one way to exempt a block: ```python no-run
NO_RUN = "python no-run"


@dataclass(frozen=True)
class CodeBlock:
    """A fenced block: its info string, its code, and the line of its first line of code."""

    info: str
    code: str
    line: int


def code_blocks(text: str) -> list[CodeBlock]:
    """All fenced blocks of a page, also those that are indented in a list."""
    found: list[CodeBlock] = []
    fence = re.compile(r"^( *)(`{3,})(.*)$")
    opened: tuple[int, str, str, int] | None = None
    lines: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        match = fence.match(line)
        if opened is None:
            if match:
                opened = (len(match[1]), match[2], match[3].strip(), number + 1)
                lines = []
        elif match and match[2] == opened[1] and not match[3].strip():
            code = "\n".join(row[min(opened[0], len(row) - len(row.lstrip())) :] for row in lines)
            found.append(CodeBlock(opened[2], code, opened[3]))
            opened = None
        else:
            lines.append(line)
    if opened is not None:
        raise ValueError(f"the block that starts in line {opened[3]} does not end")
    return found


def run_page(text: str, name: str) -> int:
    """Run a page's Python blocks in one namespace; how many there were."""
    namespace: dict[str, object] = {"__name__": "__docs__"}
    runnable = [block for block in code_blocks(text) if block.info == "python"]
    for block in runnable:
        # Empty lines put first make a traceback show the page's own line numbers.
        exec(compile("\n" * (block.line - 1) + block.code, name, "exec"), namespace)
    return len(runnable)


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", EXECUTED, ids=page_id)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_page(page.read_text(encoding="utf-8"), str(page))


def test_the_readme_has_an_example() -> None:
    assert any(b.info == "python" for b in code_blocks((ROOT / "README.md").read_text("utf-8")))


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_info_strings_are_known(page: Path) -> None:
    """A misspelt info string must not exempt a block unseen."""
    for block in code_blocks(page.read_text(encoding="utf-8")):
        assert not block.info.lower().startswith("py") or block.info in ("python", NO_RUN), (
            f"{page.name}:{block.line}: {block.info!r}"
        )


LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_a_failing_block_fails() -> None:
    with pytest.raises(AssertionError):
        run_page("```python\nassert False\n```", "page")


def test_blocks_of_a_page_share_a_namespace_and_exempt_ones_do_not_run() -> None:
    page = "```python\nx = 1\n```\n- a\n\n  ```python\n  assert x == 1\n  ```\n\n"
    page += "```python no-run\nraise SystemExit\n```\n```console\n$ ls\n```"
    assert run_page(page, "page") == 2


def test_a_traceback_has_the_pages_line_numbers() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        run_page("# Title\n\n```python\nx = 1\n1 / 0\n```", "page")
    assert caught.traceback[-1].lineno + 1 == 5


def test_a_block_without_an_end_is_refused() -> None:
    with pytest.raises(ValueError, match="does not end"):
        code_blocks("```python\nx = 1\n")
