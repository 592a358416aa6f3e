"""Read regular files; write atomically: after a crash, the old or the new file is complete."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import logging
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

logger = logging.getLogger(__name__)

# Linux: swap two names in one step.
_EXCHANGE, _HERE = 2, -100


def open_regular(path: Path, *, follow: bool = False) -> BinaryIO:
    """Open a file for reading that is not a pipe or a device; never waits for a writer.

    Args:
        path: The file.
        follow: Whether it may be a symbolic link, as a file that the user names may be.

    Raises:
        OSError: It can't be opened, or is not a regular file.
    """
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0)
    # Without O_NONBLOCK, opening a named pipe would wait until somebody writes to it.
    flags |= getattr(os, "O_NONBLOCK", 0) | (0 if follow else getattr(os, "O_NOFOLLOW", 0))
    stream = os.fdopen(os.open(path, flags), "rb", buffering=0)
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise OSError(f"{path.name} is not a regular file")
    return stream


def read_regular(path: Path, *, follow: bool = False) -> bytes:
    """Read a file, as far as it went when it was opened; see `open_regular`.

    Raises:
        OSError: It can't be read, or is not a regular file.
    """
    with open_regular(path, follow=follow) as raw, open(raw.fileno(), "rb", closefd=False) as file:
        return file.read(os.fstat(raw.fileno()).st_size)


def write_durably(path: Path, data: bytes) -> None:
    """Write a file and flush it to the disk.

    Raises:
        OSError: The disk is full, or the file can't be written.
    """
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes) -> None:
    """Replace or create a file atomically.

    A symbolic link stays, and its target is replaced; the file keeps its mode.

    Raises:
        OSError: The disk is full, or the folder can't be written. The old file is unchanged.
    """
    target = Path(os.path.realpath(path))
    sweep(target)
    temporary = sibling(target, "tmp")
    try:
        write_durably(temporary, data)
        if target.exists():
            temporary.chmod(target.stat().st_mode & 0o777)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    sync(target.parent)


def sync(path: Path) -> None:
    """Flush a file, or a folder's entries where the system supports it, to the disk."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # A folder can't be opened on Windows.
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sibling(path: Path, what: str) -> Path:
    """A new name beside a file or folder, for what this process writes.

    Raises:
        IsADirectoryError: The path is the root, which has no place beside it.
    """
    if not path.name:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    return path.with_name(f".{path.name}.{what}-{os.getpid()}-{secrets.token_hex(4)}")


def siblings(path: Path, what: str = "*") -> Iterator[tuple[Path, int]]:
    """What `sibling` named beside a file or folder, with the processes that made it."""
    for found in sorted(path.parent.glob(f".{glob.escape(path.name)}.{what}-*-*")):
        pid = found.name.rsplit("-", 2)[1]
        if pid.isdigit():
            yield found, int(pid)


def sweep(path: Path) -> None:
    """Remove what processes that were killed left beside a file or folder."""
    for left, pid in siblings(path):
        if is_over(pid):
            logger.warning("%s was left by a process that was killed, and is removed", left)
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


class HeldError(OSError):
    """Another process writes a file or folder.

    Attributes:
        holder: The process, for a message.
    """

    def __init__(self, holder: str) -> None:
        """Record the process."""
        super().__init__(f"{holder} writes it")
        self.holder = holder


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Keep other processes and threads from writing a file or folder at the same time.

    The system ends the lock with the process, also one that is killed. Systems without ``flock``,
    and folders that can't be written, have no locks.

    Args:
        path: The file or folder. The lock is a file beside it, which is removed at the end.

    Raises:
        HeldError: Another process holds it.
    """
    lock = path.with_name(f".{path.name}.lock")
    descriptor = _locked(lock)
    try:
        yield
    finally:
        if descriptor is not None:
            # Removed before it is unlocked, so that nobody waits for a file without a name.
            lock.unlink(missing_ok=True)
            os.close(descriptor)


def _locked(lock: Path) -> int | None:
    try:
        import fcntl
    except ImportError:
        return None
    while True:
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise HeldError(f"process {pid}" if pid.isdigit() else "another process") from None
        except OSError:  # a file system without locks
            os.close(descriptor)
            return None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), lock.stat()):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, str(os.getpid()).encode(), 0)
                return descriptor
        # Its holder has just removed it.
        os.close(descriptor)


def is_over(pid: int) -> bool:
    """Whether a process is known to have ended; never known except on POSIX systems."""
    if os.name != "posix":
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False  # another user's
    # A process that was killed keeps its number until its parent asks for its end, which the first
    # process of some containers never does. Linux says so after the name in parentheses.
    with contextlib.suppress(OSError):
        status = Path(f"/proc/{pid}/stat").read_bytes()
        return status.rpartition(b")")[2].split()[:1] in ([b"Z"], [b"X"])
    return False


def recover_folder(path: Path) -> None:
    """Bring back a folder whose replacement ended between two renames.

    Args:
        path: The folder; nothing happens if it exists.
    """
    if os.path.lexists(path) or not path.parent.is_dir():
        return
    for old, pid in siblings(path, "old"):
        if is_over(pid):
            old.rename(path)
            logger.warning("%s is restored: its replacement was interrupted", path)
            return


def exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step, so that both names exist at any time.

    Returns:
        Whether the system and the file system can; nothing has changed otherwise.
    """
    try:
        swap = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return not swap(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE)
