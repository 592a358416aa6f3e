"""A hook of MkDocs: pages from outside of docs/, and the reference of the public names.

Links between documents are written for a reader of the repository; here they are changed into those
of the site. Links to files that the site does not have become text.
"""

from __future__ import annotations

import inspect
import posixpath
import re
from pathlib import Path
from typing import Any

import fxelastic
from fxelastic import edge, kinds

ROOT = Path(__file__).resolve().parents[1]
# Pages of the site, and where their text is.
ADDED = {
    "index.md": "README.md",
    "architecture.md": "ARCHITECTURE.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "security.md": "SECURITY.md",
    "results.md": "benchmarks/RESULTS.md",
}
REFERENCE = "reference.md"
_LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that docs/ does not have."""
    from mkdocs.structure.files import File

    texts = {name: (ROOT / source).read_text("utf-8") for name, source in ADDED.items()}
    for name, text in {**texts, REFERENCE: reference()}.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Change the links of a page."""
    name = page.file.src_uri
    return site_links(markdown, ADDED.get(name, f"docs/{name}"))


def site_links(text: str, source: str) -> str:
    """The text with links as the site has them.

    Args:
        text: A page.
        source: Its path in the repository.
    """
    pages = {path: name for name, path in ADDED.items()}

    def changed(match: re.Match[str]) -> str:
        label, target, anchor = match[1], match[2], match[3] or ""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if not (ROOT / path).exists():
            return match[0]
        if path in pages:
            return f"[{label}]({pages[path]}{anchor})"
        if path.startswith("docs/"):
            return f"[{label}]({path.removeprefix('docs/')}{anchor})"
        return f"{label} (`{path}`)"

    return _LINK.sub(changed, text)


def reference() -> str:
    """A page with the docstring of every public name."""
    lines = ["# Python reference", ""]
    for title, module in (("fxelastic", fxelastic), ("edge", edge), ("kinds", kinds)):
        prefix = "fxelastic" if module is fxelastic else f"fxelastic.{title}"
        lines += [f"## {prefix}", ""]
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isclass(value) or inspect.isfunction(value):
                lines += [f"::: {value.__module__}.{value.__qualname__}"]
                lines += ["    options:", f"      heading: {prefix}.{name}", ""]
    return "\n".join(lines)
