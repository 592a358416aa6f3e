"""Names of a call's tensors for people and devices: the user's own names where possible."""

from __future__ import annotations

import re
from collections.abc import Collection

from fxelastic.ir import trees

_MAX_LENGTH = 200


def value_names(
    tree: trees.Tree, taken: Collection[str] = (), nameless: str = "input"
) -> tuple[str, ...]:
    """A name for each tensor of a structure.

    Args:
        tree: The arguments by name, or a result.
        taken: Names that the result must not contain.
        nameless: Prefix for tensors that have only a number, as in a tuple.

    Returns:
        Distinct names in the order of the tensors. A tensor at the top of the structure has the
        name of its argument, entry or field; a tensor inside a container is named by the path to
        it (``boxes_0``), followed by a number if another tensor has that name. ``_`` replaces
        characters that a name can't hold (a blank, a dash).
    """
    paths = trees.leaf_paths(tree)
    cleaned = [_clean("_".join(path), nameless) for path in paths]
    own = [path == (name,) for path, name in zip(paths, cleaned, strict=True)]
    result = ["" for _ in paths]
    used = set(taken)
    # The user's own names first: a list `a` and a tensor `a_0` both have an `a_0`.
    for i in sorted(range(len(paths)), key=lambda i: not own[i] or cleaned[i] in taken):
        name, n = cleaned[i], 2
        while name in used:
            name, n = f"{cleaned[i]}_{n}", n + 1
        used.add(name)
        result[i] = name
    return tuple(result)


def _clean(path: str, nameless: str) -> str:
    name = re.sub(r"\W", "_", path)[:_MAX_LENGTH]
    return name if name and not name[0].isdigit() else f"{nameless}_{name}".rstrip("_")
