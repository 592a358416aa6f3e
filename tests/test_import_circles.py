"""No modules import one another in a circle, and no two classes have the same name."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import fxelastic
from tests.import_circles import circles

SOURCE = Path(fxelastic.__file__).parent

#: Circles that are left: the loader of a bundle and its parts.
KNOWN_CIRCLES = [
    ["edge.bundle", "edge.structure_digest"],
    ["spec.cost_window", "spec.search_space"],
    ["spec.manifest", "spec.manifest_checks"],
]


def test_no_modules_import_one_another() -> None:
    assert [found for found in circles(SOURCE) if found not in KNOWN_CIRCLES] == []


def test_no_two_classes_have_one_name() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(str(path.relative_to(SOURCE)))
    twice = {name: found for name, found in places.items() if len(found) > 1}
    assert not twice


def test_a_circle_is_found_wherever_the_imports_stand(tmp_path: Path) -> None:
    """Inside functions, for types alone, and over several modules."""
    files = {
        "__init__.py": "",
        "a.py": "from pkg import b",
        "b.py": "def f():\n    from pkg.c import C",
        "c.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pkg.a import x",
        "d.py": "from pkg import a",
        "e/__init__.py": "from pkg.e.inner import y",
        "e/inner.py": "from pkg import d",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert circles(tmp_path, "pkg") == [["a", "b", "c"]]
