"""Golden files hold the text of a partition; users commit them beside the model's tests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from fxelastic.errors import UsageError
from fxelastic.files import replace_file
from fxelastic.ir.text import TITLE


def read_golden(path: Path) -> str | None:
    """Read a golden file.

    Args:
        path: The file.

    Returns:
        Its text, or None if there is no such file.

    Raises:
        UsageError: The file exists and can't be read, or is not text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as e:
        raise UsageError(
            f"the golden file {path} is not text",
            expected="UTF-8 text that fxelastic wrote",
            got=str(e),
            fix="name another file, or delete this one and update",
        ) from e
    except OSError as e:
        raise _unusable(path, "read", e) from e


def write_golden(path: Path, text: str) -> Literal["created", "updated", "unchanged"]:
    """Write a golden file atomically: it holds either the complete old or the complete new text.

    Missing folders are created and symbolic links followed. A file that already holds the text
    stays untouched.

    Args:
        path: The file.
        text: Its new text.

    Returns:
        What the call did.

    Raises:
        UsageError: The file can't be written, or holds something else; it is unchanged.
    """
    target = Path(os.path.realpath(path))
    try:
        # Bytes, so that a file with other line ends is written again.
        before = target.read_bytes() if target.exists() else None
        data = text.encode("utf-8")
        if before == data:
            return "unchanged"
        # Anywhere in the file, so that a file with the marks of a merge is written again.
        if before and TITLE.encode() not in before:
            raise UsageError(
                f"{path} is not a golden file and would be overwritten",
                expected=f"a file with a line that begins with {TITLE.strip()!r}, or no file",
                got=f"{len(before):,} bytes of something else",
                fix="name another file, or delete this one",
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_file(target, data)
    except OSError as e:
        raise _unusable(path, "write", e) from e
    return "created" if before is None else "updated"


def _unusable(path: Path, verb: str, error: OSError) -> UsageError:
    return UsageError(
        f"can't {verb} the golden file {path}",
        expected=f"a file that this user may {verb}",
        got=f"{type(error).__name__}: {error.strerror or error}",
        fix="check the path and its permissions",
    )
