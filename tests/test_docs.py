"""Every Python block of README.md and docs/ runs, and links between documents lead somewhere."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fxelastic import edge
from fxelastic.spec.latency_table import LatencyTable
from tests import warm
from tests.edge.serving.tiny_bundle import CLASSES, write_bundle

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
EXECUTED = [page for page in PAGES if page.parent != ROOT or page.name == "README.md"]

# A script that several processes run: ```python torchrun
TORCHRUN = "python torchrun"
# A block that runs where packages are installed: ```python needs lightning
NEEDS = "python needs "


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
        # The page is not to inherit this file's future imports.
        code = "\n" * (block.line - 1) + block.code
        exec(compile(code, name, "exec", dont_inherit=True), namespace)
    return len(runnable)


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", EXECUTED, ids=page_id)
def test_python_blocks_run(
    page: Path, device_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # So small a model, timed beside other tests, may well get a table that is marked unusable.
    monkeypatch.setattr(LatencyTable, "check_usable", lambda *args, **options: None)
    limit_times(monkeypatch)
    text = page.read_text(encoding="utf-8")
    if '("bundle' in text and page.name != "README.md":
        shutil.copytree(device_files, tmp_path, dirs_exist_ok=True)
    run_page(text, str(page))
    for block in code_blocks(text):
        if block.info == TORCHRUN:
            run_in_two_processes(block.code)


NEEDING = [
    pytest.param(page, block, id=f"{page.name}:{block.info.removeprefix(NEEDS)}:{block.line}")
    for page in EXECUTED
    for block in code_blocks(page.read_text(encoding="utf-8"))
    if block.info.startswith(NEEDS)
]


@pytest.mark.parametrize(("page", "block"), NEEDING)
def test_blocks_that_need_packages_run_where_they_are_installed(
    page: Path, block: CodeBlock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in block.info.removeprefix(NEEDS).split():
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    blocks = code_blocks(page.read_text(encoding="utf-8"))
    codes = [b.code for b in blocks if b.info == "python" and b.line < block.line]
    namespace: dict[str, object] = {"__name__": "__docs__"}
    exec(compile("\n".join([*codes, block.code]), page.name, "exec", dont_inherit=True), namespace)


@pytest.fixture(scope="module")
def device_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with its table, pool and data, by the names that the commands give them."""
    folder = tmp_path_factory.mktemp("device")
    bundle = write_bundle(folder / "bundle", width=32, size=16)
    x = np.random.default_rng(0).standard_normal((20, 32, 16, 16)).astype(np.float32)
    np.savez(folder / "local.npz", x=x, targets=np.arange(20) % CLASSES)
    table = edge.profile(bundle, n_samples=3, n_subnets=0, n_held_out=0)
    table.save(folder / "bundle.latency.json")
    options: dict[str, Any] = {"budget": "100%", "max_subnets": 5}
    result = edge.search(bundle, table, folder / "local.npz", **options)
    result.pool.save(folder / "bundle.pool.json")
    return folder


def limit_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what may take minutes on the pages take two seconds."""
    profile, search = edge.profile, edge.search

    def short_search(*args: Any, **options: Any) -> Any:
        limited = {"time_budget_s": 2} if "time_budget_s" in options else {}
        return search(*args, **options | limited)

    monkeypatch.setattr(edge, "profile", partial(profile, time_budget_s=2))
    monkeypatch.setattr(edge, "search", short_search)


def run_in_two_processes(code: str) -> None:
    Path("train.py").write_text(code)
    for done in warm.run_together(2, str(Path("train.py").resolve()), cwd=Path.cwd()):
        assert done.returncode == 0, done.stderr


def test_the_readme_has_an_example() -> None:
    assert any(b.info == "python" for b in code_blocks((ROOT / "README.md").read_text("utf-8")))


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_info_strings_are_known(page: Path) -> None:
    """A misspelt info string must not exempt a block unseen."""
    for block in code_blocks(page.read_text(encoding="utf-8")):
        known = block.info in ("python", TORCHRUN) or block.info.startswith(NEEDS)
        assert not block.info.lower().startswith("py") or known, (
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


def test_blocks_of_a_page_share_a_namespace_and_scripts_do_not() -> None:
    page = "```python\nx = 1\n```\n- a\n\n  ```python\n  assert x == 1\n  ```\n\n"
    page += "```python torchrun\nraise SystemExit\n```\n```console\n$ ls\n```"
    assert run_page(page, "page") == 2


def test_a_traceback_has_the_pages_line_numbers() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        run_page("# Title\n\n```python\nx = 1\n1 / 0\n```", "page")
    assert caught.traceback[-1].lineno + 1 == 5


def test_a_block_without_an_end_is_refused() -> None:
    with pytest.raises(ValueError, match="does not end"):
        code_blocks("```python\nx = 1\n")
