"""The user's names of parts, parameters and buffers, and their names in a graph module.

A graph module keeps weights and parts as attributes beside its own (``graph``, ``meta``, ``code``),
and its generated code reads them as ``self.NAME``. A part whose name is taken, or can't be written
in code, gets another name that encodes the user's. Other names stay.
"""

from __future__ import annotations

import functools
import keyword
import unicodedata
from urllib.parse import quote, unquote

from torch import fx, nn

from fxelastic.ir.graph_modules import FrozenGraphModule

# A user's name that begins with it is encoded, too, so that no two parts share a name.
_PREFIX = "user__"

# Characters that need no encoding after the prefix: strings in generated code can hold them.
_SAFE = " !#$&'()*+,/:;<=>?@[]^`{|}~"


def target_of(name: str) -> str:
    """The path under which a graph module holds a part.

    Args:
        name: The user's own path: ``stem.graph.weight``.

    Returns:
        The path. Its first name is encoded if it is an attribute of graph modules, and so is each
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
    """A name that is free in a module: ``name``, followed by ``_`` as often as needed."""
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
    """The attributes of graph modules, including those of this package."""
    return frozenset(dir(FrozenGraphModule(nn.Module(), fx.Graph())))
