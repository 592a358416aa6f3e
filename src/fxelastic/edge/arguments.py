"""Refuse a path where what it holds is expected."""

from __future__ import annotations

import os

from fxelastic.errors import UsageError

# Argument -> what is expected, and what reads it.
_READERS = {
    "bundle": ("a Bundle", "fxelastic.edge.load(path)"),
    "table": ("a LatencyTable", "fxelastic.edge.LatencyTable.load(path)"),
    "pool": ("a SubnetPool", "fxelastic.edge.SubnetPool.load(path)"),
}


def refuse_paths(**arguments: object) -> None:
    """Refuse arguments that are paths.

    Args:
        **arguments: By name: ``bundle``, ``table`` or ``pool``.

    Raises:
        UsageError: One is the path of a file or a folder; the message names what reads it.
    """
    for name, value in arguments.items():
        if isinstance(value, (str, os.PathLike)):
            what, reader = _READERS[name]
            raise UsageError(
                f"{name} is a path",
                expected=what,
                got=repr(os.fspath(value)),
                fix=f"read it with {reader}",
            )
