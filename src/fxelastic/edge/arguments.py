"""Raise errors for paths passed instead of loaded objects."""

from __future__ import annotations

import os

from fxelastic.errors import UsageError

# Argument -> the expected type, and the function that loads it.
_READERS = {
    "bundle": ("a Bundle", "fxelastic.edge.load(path)"),
    "table": ("a LatencyTable", "fxelastic.edge.LatencyTable.load(path)"),
    "pool": ("a SubnetPool", "fxelastic.edge.SubnetPool.load(path)"),
}


def refuse_paths(**arguments: object) -> None:
    """Raise an error if an argument is a path.

    Args:
        **arguments: The arguments to check, named ``bundle``, ``table`` or ``pool``.

    Raises:
        UsageError: An argument is a path; the message names the function that loads it.
    """
    for name, value in arguments.items():
        if isinstance(value, (str, os.PathLike)):
            what, reader = _READERS[name]
            raise UsageError(
                f"{name} must be {what}, not a path",
                expected=what,
                got=repr(os.fspath(value)),
                fix=f"load it with {reader}",
            )
