"""Write a folder so that it appears completely or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TypeAlias

from fxelastic.errors import UsageError
from fxelastic.files import exchange, is_over, recover_folder, sibling, siblings, sweep, sync

Owned: TypeAlias = Callable[[Path], "Collection[str] | None"]
"""Returns the files of a folder that the package wrote, relative to it; None for other folders."""

_SHOWN = 3


@contextlib.contextmanager
def replace_folder(path: Path, owned: Owned, *, force: bool = False) -> Iterator[Path]:
    """Provide a new folder to write into, which becomes ``path`` when the block succeeds.

    Until then ``path`` is unchanged. If the block fails, the new folder is removed. If the process
    is killed, it stays beside ``path`` under a name that starts with a dot, until the next call
    removes it.

    Args:
        path: The folder to make.
        owned: Returns the files that may be replaced. A folder with any other file is never
            replaced.
        force: Replace an existing folder.

    Yields:
        The folder to write into.

    Raises:
        UsageError: ``path`` exists and may not be replaced, can't be written, or another process is
            writing it.
    """
    path = Path(os.path.abspath(path))
    recover_folder(path)
    check_target(path, owned, force=force)
    _check_alone(path)
    staging = sibling(path, "new")
    # The folder is made inside: Ctrl-C may come as soon as it exists.
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Unlike tempfile.mkdtemp, this gives the usual permissions.
        staging.mkdir()
        sweep(path)
        _check_alone(path, staging)
        yield staging
        check_target(path, owned, force=force)
        for folder, _, _ in os.walk(staging):
            sync(Path(folder))
        _swap(staging, path)
    except OSError as e:
        raise _unwritable(path, e) from e
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _check_alone(path: Path, staging: Path | None = None) -> None:
    """Check that no other process writes the folder.

    Args:
        path: The folder.
        staging: This process's own new folder: of two processes that begin at the same time, one
            goes on.

    Raises:
        UsageError: One does.
    """
    for other, pid in siblings(path, "new"):
        first = staging is None or other.name < staging.name
        if first and pid != os.getpid() and not is_over(pid):
            raise UsageError(
                f"another process is writing {path}",
                expected="one export at a time",
                got=f"process {pid}",
                fix="wait until it has ended, or choose another path",
            )


def _swap(staging: Path, path: Path) -> None:
    """Replace the old folder by the new one.

    Where the system can't exchange two folders in one step, ``path`` does not exist between two
    renames; `recover_folder` brings the old one back if the process is killed there.
    """
    if not path.exists():
        staging.rename(path)
        sync(path.parent)
        return
    if exchange(staging, path):
        sync(path.parent)
        return  # the old one has the new one's former name, and is removed with it
    old = sibling(path, "old")
    path.rename(old)
    try:
        staging.rename(path)
    except BaseException:  # also Ctrl-C: restore the old folder
        old.rename(path)
        raise
    sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def check_target(path: Path, owned: Owned, *, force: bool = False) -> None:
    """Check that a folder may be written.

    Raises:
        UsageError: ``path`` exists, and it is not a bundle, also holds other files, or ``force`` is
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
            f"{path} exists and is not a bundle",
            expected="a new folder, an empty folder, or a bundle with force",
            got="a folder with other files" if is_folder else "a file or a link",
            fix="choose another path",
        )
    if not force:
        raise UsageError(
            f"{path} exists already",
            expected="a new folder",
            got="a bundle",
            fix="pass force=True (--force) to replace it",
        )
    others = sorted(_files(path) - set(files))
    if others:
        raise UsageError(
            f"{path} also holds other files, which would be lost",
            expected="a folder with only the files of its manifest",
            got=", ".join(others[:_SHOWN]) + (", …" if len(others) > _SHOWN else ""),
            fix="move them elsewhere, or choose another path",
        )


def _files(folder: Path) -> set[str]:
    """All files and links in a folder, by their relative paths."""
    return {
        (Path(parent) / name).relative_to(folder).as_posix()
        for parent, folders, names in os.walk(folder)
        for name in [*names, *(n for n in folders if (Path(parent) / n).is_symlink())]
    }


def _unwritable(path: Path, error: OSError) -> UsageError:
    return UsageError(
        f"can't write {path}",
        expected="a writable folder, and free disk space",
        got=f"{type(error).__name__}: {error.strerror or error}",
        fix="check the path and the free space; the folder is unchanged",
    )
