"""Write a folder so that it appears whole or not at all."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TypeAlias

from fxelastic.errors import UsageError
from fxelastic.files import sync

logger = logging.getLogger(__name__)

Owned: TypeAlias = Callable[[Path], "Collection[str] | None"]
"""Tells the files of a folder that are ours, relative to it; None of a folder that is not."""

_SHOWN = 3


@contextlib.contextmanager
def replace_folder(path: Path, owned: Owned, *, force: bool = False) -> Iterator[Path]:
    """Give a new folder to write into, which becomes ``path`` when the block ends well.

    Until then ``path`` is as it was. When the block fails, the new folder is removed; when the
    process is killed, it stays next to ``path``, its name beginning with a dot.

    Args:
        path: The folder to make.
        owned: Tells what may be replaced: a folder with any other file in it never is.
        force: Replace a folder that is there.

    Yields:
        The folder to write into.

    Raises:
        UsageError: ``path`` is there and may not be replaced, or it can't be written.
    """
    path = Path(os.path.abspath(path))
    check_target(path, owned, force=force)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = _sibling(path, "new")
        # Unlike tempfile.mkdtemp, this gives the rights that the user's folders have.
        staging.mkdir()
    except OSError as e:
        raise _unwritable(path, e) from e
    for stale in sorted(path.parent.glob(f".{path.name}.*-*")):
        if stale != staging:
            logger.warning("%s was left by an interrupted export; delete it", stale)
    try:
        yield staging
        check_target(path, owned, force=force)
        for folder, _, _ in os.walk(staging):
            sync(Path(folder))
        _swap(staging, path)
    except OSError as e:
        raise _unwritable(path, e) from e
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _swap(staging: Path, path: Path) -> None:
    """Put the new folder in the place of the old one.

    Between the two renames there is no folder, and the old one stands next to it.
    """
    if not path.exists():
        staging.rename(path)
        sync(path.parent)
        return
    old = _sibling(path, "old")
    path.rename(old)
    try:
        staging.rename(path)
    except BaseException:  # Ctrl-C too: the old one goes back
        old.rename(path)
        raise
    sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def check_target(path: Path, owned: Owned, *, force: bool = False) -> None:
    """Refuse to write a folder over something.

    Raises:
        UsageError: ``path`` is there, and it is no bundle, holds other files too, or ``force`` is
            not set.
    """
    if not os.path.lexists(path):
        return
    is_folder = path.is_dir() and not path.is_symlink()
    if is_folder and not any(path.iterdir()):
        return
    files = owned(path) if is_folder else None
    if files is None:
        raise UsageError(
            f"{path} is there and is no bundle",
            expected="a folder that is not there yet, an empty one, or a bundle with force",
            got="a folder with other files" if is_folder else "a file or a link",
            fix="choose another path",
        )
    if not force:
        raise UsageError(
            f"{path} is there already",
            expected="a folder that is not there yet",
            got="a bundle",
            fix="pass force=True (--force) to replace it",
        )
    others = sorted(_files(path) - set(files))
    if others:
        raise UsageError(
            f"{path} holds more than a bundle, which would be lost",
            expected="a folder with nothing but the files that its manifest lists",
            got=", ".join(others[:_SHOWN]) + (", …" if len(others) > _SHOWN else ""),
            fix="move them elsewhere, or choose another path",
        )


def _files(folder: Path) -> set[str]:
    """Everything in a folder that is no folder, by its path relative to it."""
    return {
        (Path(parent) / name).relative_to(folder).as_posix()
        for parent, folders, names in os.walk(folder)
        for name in [*names, *(n for n in folders if (Path(parent) / n).is_symlink())]
    }


def _sibling(path: Path, what: str) -> Path:
    return path.with_name(f".{path.name}.{what}-{os.getpid()}-{secrets.token_hex(4)}")


def _unwritable(path: Path, error: OSError) -> UsageError:
    return UsageError(
        f"can't write {path}",
        expected="a folder that may be written, on a disk with space",
        got=f"{type(error).__name__}: {error.strerror or error}",
        fix="check the path and the space left; what was there before is unchanged",
    )
