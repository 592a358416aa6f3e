"""The documentation as a site: every page is in it, its links hold, and it loads nothing."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import pytest

import fxelastic
from fxelastic import edge, kinds
from tests.cli.commands import ROOT, environment


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_site", ROOT / "tools" / "docs_site.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_is_in_the_navigation(hook: ModuleType) -> None:
    listed = re.findall(r": ([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    pages = {page.name for page in (ROOT / "docs").glob("*.md")}
    assert sorted(listed) == sorted({*pages, *hook.ADDED, hook.REFERENCE})
    assert all((ROOT / source).is_file() for source in hook.ADDED.values())


def test_every_public_name_is_in_the_reference(hook: ModuleType) -> None:
    text = hook.reference()
    for prefix, module in (
        ("fxelastic", fxelastic),
        ("fxelastic.edge", edge),
        ("fxelastic.kinds", kinds),
    ):
        for name in set(module.__all__) - {"edge", "kinds", "testing", "__version__"}:
            assert f"heading: {prefix}.{name}\n" in text, name


@pytest.mark.parametrize(
    ("source", "link", "expected"),
    [
        ("README.md", "[a](docs/concepts.md#gamma)", "[a](concepts.md#gamma)"),
        ("README.md", "[a](CONTRIBUTING.md)", "[a](contributing.md)"),
        ("docs/operators.md", "[a](../CONTRIBUTING.md#x)", "[a](contributing.md#x)"),
        ("docs/decoders.md", "[a](../examples/decoder.py)", "a (`examples/decoder.py`)"),
        ("docs/cli.md", "[a](bundle.md)", "[a](bundle.md)"),
        ("docs/cli.md", "[a](https://example.org/b)", "[a](https://example.org/b)"),
        ("docs/cli.md", "table[x](y)", "table[x](y)"),
    ],
)
def test_links_lead_to_the_site(hook: ModuleType, source: str, link: str, expected: str) -> None:
    assert hook.site_links(link, source) == expected


class Loaded(HTMLParser):
    """What a page loads by itself, as opposed to what it links to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        loading = values.get("src") or (values.get("href") if tag == "link" else None)
        self.found.append(loading or "")


def test_the_site_is_built_and_loads_nothing(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    pytest.importorskip("mkdocstrings", reason="the extra docs is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    pages = sorted(tmp_path.glob("*.html"))
    assert len(pages) >= 24
    for page in pages:
        loaded = Loaded()
        loaded.feed(page.read_text("utf-8"))
        assert not [link for link in loaded.found if re.match(r"(https?:)?//", link)], page.name
    assert "Capture a model, cut it into blocks" in (tmp_path / "reference.html").read_text("utf-8")
