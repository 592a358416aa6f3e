"""Raise errors for arguments that are not what they should be: paths, or others swapped."""

from __future__ import annotations

import os

from fxelastic.errors import UsageError

# Argument -> the expected type, the function that loads it, and an attribute that all such
# objects have. A pool may be any collection of entries.
_KINDS = {
    "bundle": ("a Bundle", "fxelastic.edge.load(path)", "manifest"),
    "table": ("a LatencyTable", "fxelastic.edge.LatencyTable.load(path)", "check_bundle"),
    "pool": ("a SubnetPool", "fxelastic.edge.SubnetPool.load(path)", "__iter__"),
}


def check_loaded(**arguments: object) -> None:
    """Raise an error if an argument is a path, or another kind of object.

    Args:
        **arguments: The arguments to check, named ``bundle``, ``table`` or ``pool``.

    Raises:
        UsageError: An argument is a path or of another kind; the message names the function that
            loads it.
    """
    for name, value in arguments.items():
        what, reader, _ = _KINDS[name]
        if isinstance(value, (str, os.PathLike)):
            raise UsageError(
                f"{name} must be {what}, not a path",
                expected=what,
                got=repr(os.fspath(value)),
                fix=f"load it with {reader}",
            )
    for name, value in arguments.items():
        what, reader, attribute = _KINDS[name]
        if not hasattr(value, attribute):
            fix = f"load it with {reader}; see the order of the arguments in the documentation"
            if name == "pool" and hasattr(value, "pool"):
                fix = "pass its pool: result.pool"
            raise UsageError(
                f"{name} must be {what}",
                expected=what,
                got=f"a {type(value).__name__}",
                fix=fix,
            )
