"""Read the files of a bundle, each verified by the manifest's digest of it."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections.abc import Sequence
from pathlib import Path

from fxelastic.edge.digests import copy_hashed, pieces
from fxelastic.edge.external_data import REFERENCE
from fxelastic.edge.private_folder import PrivateFolder
from fxelastic.errors import BundleError
from fxelastic.files import open_regular, read_regular
from fxelastic.spec.bundle_files import MANIFEST_NAME, FileInfo

_MAX_MANIFEST_BYTES = 2**28


def stat_file(folder: Path, file: FileInfo) -> os.stat_result:
    """The status of a file, which must be a regular file of the listed size, not behind a link.

    Raises:
        BundleError: It is not.
    """
    where = folder
    for part in file.path.split("/"):
        where = where / part
        try:
            found = where.lstat()
        except OSError as e:
            raise _damaged(file, "can't be read", "a file", e.strerror or str(e)) from e
        if stat.S_ISLNK(found.st_mode):
            raise _damaged(file, "is a link", "a regular file", f"a link, {where.name}")
    if not stat.S_ISREG(found.st_mode):
        raise _damaged(file, "is not a file", "a file", "a folder or a device")
    if file.size_bytes not in (-1, found.st_size):
        expected = f"{file.size_bytes} bytes, as in {MANIFEST_NAME}"
        raise _damaged(file, "has a different size", expected, f"{found.st_size} bytes")
    return found


def read_file(folder: Path, file: FileInfo) -> bytes:
    """Read and verify the bytes of a file.

    Raises:
        BundleError: It is missing or damaged.
    """
    size = stat_file(folder, file).st_size
    if file.path == MANIFEST_NAME and size > _MAX_MANIFEST_BYTES:
        raise _damaged(file, "is too large", f"at most {_MAX_MANIFEST_BYTES} bytes", f"{size}")
    try:
        data = read_regular(folder / file.path)
    except OSError as e:
        raise _damaged(file, "can't be read", "a file", e.strerror or str(e)) from e
    if file.sha256:
        _check_digest(file, hashlib.sha256(data).hexdigest())
    return data


class PrivateCopies:
    """Verified copies of a bundle's files in a private folder, under the same paths."""

    def __init__(self) -> None:
        """Start with no copies and no folder."""
        self._lock = threading.Lock()
        self._owner: PrivateFolder | None = None
        self._done: set[str] = set()

    def of(self, folder: Path, files: Sequence[FileInfo]) -> PrivateFolder:
        """Copy the files that are not copied yet. Thread-safe.

        Args:
            folder: The bundle's folder.
            files: Files of it.

        Returns:
            The folder of the copies.

        Raises:
            BundleError: A file is missing or damaged, or can't be copied.
        """
        with self._lock:
            try:
                self._owner = self._owner or PrivateFolder()
                for file in files:
                    if file.path not in self._done:
                        self._copy(folder, file, self._owner.path / file.path)
                        self._done.add(file.path)
            except OSError as e:
                raise BundleError(
                    "the bundle's shared weights can't be copied to a private folder",
                    expected="free space in the folder for temporary files",
                    got=e.strerror or str(e),
                    fix="free some space, or set TMPDIR to a folder with more",
                ) from e
            return self._owner

    def _copy(self, folder: Path, file: FileInfo, target: Path) -> None:
        stat_file(folder, file)
        try:
            source = open_regular(folder / file.path)
        except OSError as e:
            raise _damaged(file, "can't be read", "a file", e.strerror or str(e)) from e
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with source:
                _check_digest(file, copy_hashed(source, target))
        except BaseException:
            target.unlink(missing_ok=True)
            raise


def hash_file(folder: Path, file: FileInfo) -> bool:
    """Verify a file piece by piece.

    Returns:
        Whether the file may refer to other files.

    Raises:
        BundleError: It is missing or damaged.
    """
    stat_file(folder, file)
    digest = hashlib.sha256()
    refers, last = False, b""
    try:
        for piece in pieces(folder / file.path):
            digest.update(piece)
            # The word may be split between two pieces.
            refers = refers or REFERENCE in last[-len(REFERENCE) :] + piece
            last = piece
    except OSError as e:
        raise _damaged(file, "can't be read", "a file", e.strerror or str(e)) from e
    _check_digest(file, digest.hexdigest())
    return refers


def _check_digest(file: FileInfo, digest: str) -> None:
    if digest != file.sha256:
        raise _damaged(
            file,
            "has a different digest",
            f"sha256 {file.sha256}, as in {MANIFEST_NAME}",
            f"sha256 {digest}",
        )


def _damaged(file: FileInfo, problem: str, expected: str, got: str) -> BundleError:
    return BundleError(
        f"{file.path} {problem}",
        expected=expected,
        got=got,
        fix="copy or export the bundle again",
    )
