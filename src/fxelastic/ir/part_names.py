"""The user's names of parts, parameters and buffers, and how a graph module holds them.

A graph module keeps weights and parts as attributes beside its own (``graph``, ``meta``, ``code``),
and its generated code reads them as ``self.NAME``. A name that either has no room for is held under
another, from which the user's own can be read back. All other names are held as they are.
"""

from __future__ import annotations

import functools
import keyword
import unicodedata
from urllib.parse import quote, unquote

from torch import fx, nn

# Names that begin with it are held under another, too, so that no two share one.
_PREFIX = "user__"

# What stays as it is behind the prefix: ASCII that a string in generated code can hold.
_SAFE = " !#$&'()*+,/:;<=>?@[]^`{|}~"


def target_of(name: str) -> str:
    """The path under which a graph module holds a part.

    Args:
        name: The user's own path: ``stem.graph.weight``.

    Returns:
        The same path, but for a first name that is an attribute of graph modules, and for names
        that can't be written in code, such as ``class``. `name_of` gives the user's path again.
    """
    head, *rest = name.split(".")
    return ".".join([_held(head, _attributes()), *(_held(part) for part in rest)])


def name_of(target: str) -> str:
    """The user's own path of what a graph module holds; the inverse of `target_of`."""
    if _PREFIX not in target:
        return target
    return ".".join(
        unquote(part.removeprefix(_PREFIX), errors="surrogatepass")
        if part.startswith(_PREFIX)
        else part
        for part in target.split(".")
    )


def free_name(module: nn.Module, name: str) -> str:
    """A name for something new in a module: ``name``, with as many ``_`` as make it a free one."""
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
        # Python reads an identifier in its normal form, which may be another text.
        return not keyword.iskeyword(part) and unicodedata.normalize("NFKC", part) == part
    return part.isprintable() and not any(c in part for c in '"\\')


@functools.cache
def _attributes() -> frozenset[str]:
    """The attributes of a graph module, whichever of ours."""
    # Imported late: that file reads names of this one.
    from fxelastic.ir.branch import FrozenGraphModule

    return frozenset(dir(FrozenGraphModule(nn.Module(), fx.Graph())))
