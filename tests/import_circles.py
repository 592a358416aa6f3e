"""Modules of the package that import one another in a circle.

An import counts wherever it stands: inside a function and under ``if TYPE_CHECKING`` too. A package
whose ``__init__`` imports its own modules is not a circle by itself: only the imports of a module's
own text count, not those of the packages that hold it.
"""

from __future__ import annotations

from pathlib import Path

import networkx

from tests.import_layers import PACKAGE, imports_of, module_name


def circles(root: Path, package: str = PACKAGE) -> list[list[str]]:
    """The groups of modules that import one another, directly or through others.

    Args:
        root: The package's folder.
        package: Its name.

    Returns:
        Each group in order of names, without the package's own name.
    """
    files = {
        module_name(p.relative_to(root), package).removesuffix(".__init__"): p
        for p in root.rglob("*.py")
    }
    graph = networkx.DiGraph()
    for name, path in files.items():
        for imported in imports_of(path, module_name(path.relative_to(root), package)):
            target = _module(imported.target, files)
            if target is not None and target != name:
                graph.add_edge(name, target)
    groups = networkx.strongly_connected_components(graph)
    found = [
        sorted(n.removeprefix(f"{package}.") for n in group) for group in groups if len(group) > 1
    ]
    return sorted(found)


def _module(target: str, files: dict[str, Path]) -> str | None:
    """The module of the package that an imported name is or belongs to."""
    while target and target not in files:
        target = target.rpartition(".")[0]
    return target or None
