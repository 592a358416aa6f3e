"""The user's names of parts, parameters and buffers, and how a graph module holds them.

A graph module keeps weights and parts as attributes beside its own (``graph``, ``meta``, ``code``),
and its generated code reads them as ``self.NAME``. Where a name is taken or can't be written so,
the part is held under another name, from which the user's can be read back. Other names stay.
"""

from __future__ import annotations

import functools
import keyword
import unicodedata
from urllib.parse import quote, unquote

from torch import fx, nn

# Names that begin with it are replaced, too, so that no two parts share a name.
_PREFIX = "user__"

# Characters that stay as they are behind the prefix: strings in generated code can hold them.
_SAFE = " !#$&'()*+,/:;<=>?@[]^`{|}~"


def target_of(name: str) -> str:
    """The path under which a graph module holds a part.

    Args:
        name: The user's own path: ``stem.graph.weight``.

    Returns:
        The path, with its first name replaced where it is an attribute of graph modules, and each
        name that can't be written in code, such as ``class``. `name_of` gives the user's path.
    """
    head, *rest = name.split(".")
    return ".".join([_held(head, _attributes()), *(_held(part) for part in rest)])


def name_of(target: str) -> str:
    """The user's own path of a part of a graph module; the inverse of `target_of`."""
    if _PREFIX not in target:
        return target
    return ".".join(
        unquote(part.removeprefix(_PREFIX), errors="surrogatepass")
        if part.startswith(_PREFIX)
        else part
        for part in target.split(".")
    )


def free_name(module: nn.Module, name: str) -> str:
    """A free name in a module: ``name``, with as many ``_`` behind it as that takes."""
    while hasattr(module, name):
        name = f"{name}_"
    return name


def _held(part: str, taken: frozenset[str] = frozenset()) -> str:
    if part in taken or part.startswith(_PREFIX) or not _can_be_written(part):
        return _PREFIX + quote(part, _SAFE, errors="surrogatepass")
    return part


def _can_be_written(part: str) -> bool:
    """Whether generated code can read an attribute of this name."""
    if part.isidentifier():
        # Python normalises identifiers, which may change them.
        return not keyword.iskeyword(part) and unicodedata.normalize("NFKC", part) == part
    return part.isprintable() and not any(c in part for c in '"\\')


@functools.cache
def _attributes() -> frozenset[str]:
    """The attributes of graph modules, ours included."""
    # Imported late: that file imports this one.
    from fxelastic.ir.branch import FrozenGraphModule

    return frozenset(dir(FrozenGraphModule(nn.Module(), fx.Graph())))
