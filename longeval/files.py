"""Atomic writing of local files and folders, and removal of unfinished files that killed runs left.

A file or folder has a temporary name while it is written, `.longeval-<machine>-<number>`, and is locked (flock) by its
process. The lock ends with the process, even if it is killed, so `sweep` can distinguish leftovers from files that
another process is writing. Without locks, and for leftovers of another machine or an earlier boot, their age decides.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import functools
import hashlib
import os
import platform
import re
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator

from longeval.errors import reason

_WORKING = re.compile(r"\.longeval-([0-9a-f]{8})-[0-9a-f]{8}")
_STALE_S = 24 * 3600.0
_NO_LINKS = frozenset({errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.EACCES})
"""Errors of file systems that have no hard links (FAT, some FUSE and SMB mounts)."""


def write_whole(path: str, content: bytes) -> None:
    """Writes or replaces a local file atomically, and makes its folder. The last of several writers wins.

    Raises:
        OSError: The folder can't be made or the file can't be written. Then no temporary file is left.
    """
    beside, handle = _make_file(os.path.dirname(os.path.abspath(path)))
    try:
        with open(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise


def create_whole(path: str, content: bytes) -> bool:
    """Writes a local file atomically if there is none of this name, and makes its folder; the first writer wins.

    Where hard links aren't supported, a reader may see the file before its content is complete.

    Returns:
        Whether this call made the file.

    Raises:
        OSError: The folder can't be made or the file can't be written. Then no temporary file is left.
    """
    beside, handle = _make_file(os.path.dirname(os.path.abspath(path)))
    try:
        with open(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            try:
                os.link(beside, path)
            except FileExistsError:
                # NFS repeats a request whose answer was lost. Then the link may be there because this call made it.
                return os.stat(beside).st_nlink > 1
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                return _create_directly(path, content)
            return True
    finally:
        with contextlib.suppress(OSError):
            os.unlink(beside)


@contextlib.contextmanager
def working_folder(parent: str | None = None) -> Iterator[str]:
    """Yields a new folder, which is removed after the block unless the block renames it.

    Leftovers of killed runs in the same place are removed first.

    Args:
        parent: The folder to make it in; None: the system's folder for temporary files, readable only by the user.

    Raises:
        OSError: It can't be made.
    """
    place = tempfile.gettempdir() if parent is None else parent
    sweep(place)

    def make(name: str) -> int:
        os.mkdir(name, 0o700 if parent is None else 0o777)
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY)

    folder, handle = _make(place, make)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def put_folder(made: str, folder: str, *, is_whole: Callable[[str], bool]) -> None:
    """Renames a complete folder to its final path. If a complete folder exists there, it stays.

    A damaged folder at that path is moved beside `made`.

    Args:
        made: The complete folder, inside a working folder.
        folder: Its final path, on the same file system.
        is_whole: Returns whether a folder exists and is complete.

    Raises:
        OSError: It can't be renamed.
    """
    if is_whole(folder):
        return
    with contextlib.suppress(FileNotFoundError):
        os.rename(folder, f"{made}-damaged")
    try:
        os.rename(made, folder)
    except OSError:
        if not is_whole(folder):  # otherwise another process was faster, and its folder is equal
            raise


def lasting_folder() -> str:
    """Makes a temporary folder that exists until this process ends."""
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(working_folder())


def sweep(*folders: str, prefixes: tuple[str, ...] = ()) -> None:
    """Removes temporary files and folders that no running process is writing.

    Those that can't be read or removed stay.

    Args:
        folders: The folders to search, which may not exist.
        prefixes: Prefixes of further names that count as temporary; only their age decides.
    """
    for folder in folders:
        try:
            names = [entry.name for entry in os.scandir(folder) if entry.name.startswith(".")]
        except OSError:
            continue
        for name in names:
            machine = _WORKING.fullmatch(name)
            if machine or name.startswith(prefixes):
                with contextlib.suppress(OSError):
                    _remove_if_left(os.path.join(folder, name), here=bool(machine and machine[1] == _machine()))


def why_unwritable(folder: str, name: str = "longeval") -> str | None:
    """Why `write_whole` can't write a file of this name into an existing folder, or None.

    A file is written and removed, because only this covers read-only mounts, root, and long names.
    """
    probe = _working_name(folder)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.lstat(os.path.join(folder, name))
        with open(probe, "xb"):
            pass
        with contextlib.suppress(FileNotFoundError):  # `sweep` in another process may have removed it
            os.unlink(probe)
    except OSError as error:
        return reason(error)
    return None


def _working_name(folder: str) -> str:
    return os.path.join(folder, f".longeval-{_machine()}-{uuid.uuid4().hex[:8]}")


@functools.cache
def _machine() -> str:
    """Eight hexadecimal digits for this boot of this machine, equal in all its containers."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read()
    except OSError:
        boot = platform.node()
    return hashlib.sha256(boot.encode()).hexdigest()[:8]


def _make_file(folder: str) -> tuple[str, int]:
    """Makes a locked temporary file, and its folder; returns its path and the descriptor of the lock."""
    while True:
        os.makedirs(folder, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # another process removed the folder when it was empty
            return _make(folder, lambda name: os.open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666))


def _create_directly(path: str, content: bytes) -> bool:
    """`create_whole` for file systems without hard links."""
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    try:
        with open(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise
    return True


def _make(folder: str, make: Callable[[str], int]) -> tuple[str, int]:
    """Makes a locked temporary file or folder; returns its path and the descriptor of the lock."""
    while True:
        name = _working_name(folder)
        try:
            handle = make(name)
        except FileNotFoundError:
            if os.path.isdir(folder):  # removed before it was opened, see below
                continue
            raise
        with contextlib.suppress(OSError):  # a file system without locks
            _lock(handle, wait=True)
        # Before it is locked, another process may remove it as a leftover; then try again.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(name), os.fstat(handle)):
                return name, handle
        os.close(handle)


def _lock(handle: int, *, wait: bool) -> None:
    """Locks an open file or folder until it is closed.

    Raises:
        BlockingIOError: Another process holds the lock, and `wait` is False.
        OSError: The file system or Windows doesn't support such locks.
    """
    if sys.platform == "win32":
        raise OSError("no locks of files")
    import fcntl

    fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def _remove_if_left(path: str, *, here: bool) -> None:
    """Removes a temporary file or folder unless it is locked. `here`: whether a process of this boot made it."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        try:
            _lock(handle, wait=False)
        except BlockingIOError:
            return
        except OSError:
            here = False
        if not here and time.time() - os.fstat(handle).st_mtime < _STALE_S:
            return
        if os.path.isdir(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.unlink(path)
    finally:
        os.close(handle)
