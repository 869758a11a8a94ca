"""Local files that appear under their name only when they are whole, and working files that don't outlive their run.

A file or folder that is being made has a name of its own, `.longeval-<machine>-<number>`, and is locked (flock) by the
process that makes it. The lock ends with that process however it ends, so `sweep` can tell what a killed run left from
what another one is writing. On a file system without locks, and for what another machine or an earlier boot left, age
decides.
"""

from __future__ import annotations

import atexit
import contextlib
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


def write_whole(path: str, content: bytes) -> None:
    """Writes or replaces a local file, whole or not at all, and makes its folder; the last of several writers wins.

    Raises:
        OSError: If the folder can't be made or the file can't be written. Nothing is left behind then.
    """
    folder = os.path.dirname(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    beside, handle = _make(folder, lambda name: os.open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666))
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


@contextlib.contextmanager
def working_folder(parent: str | None = None) -> Iterator[str]:
    """Makes a folder that is removed after the block; one that the block renames stays.

    What killed runs left in the same place is removed first.

    Args:
        parent: Where it is made; None: in the system's folder for temporary files, readable by the user alone.

    Raises:
        OSError: If it can't be made.
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
    """Renames a complete folder to its place; a damaged one there is moved beside `made`, a complete one stays.

    Args:
        made: The complete folder, inside a working folder.
        folder: Its place, on the same file system.
        is_whole: Whether a folder is there and complete.

    Raises:
        OSError: If it can't be renamed.
    """
    if is_whole(folder):
        return
    with contextlib.suppress(FileNotFoundError):
        os.rename(folder, f"{made}-damaged")
    try:
        os.rename(made, folder)
    except OSError:
        if not is_whole(folder):  # else another process was first, and its folder is as good
            raise


def lasting_folder() -> str:
    """Makes a working folder in the system's folder for temporary files; it lasts as long as this process."""
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(working_folder())


def sweep(*folders: str, prefixes: tuple[str, ...] = ()) -> None:
    """Removes the working files and folders that lie in some folders and that no living process holds.

    What can't be read or removed stays, and so does everything else in these folders.

    Args:
        folders: Where to look; they need not exist.
        prefixes: What names of other working files begin with; age alone decides about those.
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
    """Why `write_whole` can't write a file of this name into an existing folder, or None; leaves nothing behind.

    Asking the file system by writing is the only answer that also covers read-only mounts, root, and long names.
    """
    probe = _working_name(folder)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.lstat(os.path.join(folder, name))
        with open(probe, "xb"):
            pass
        with contextlib.suppress(FileNotFoundError):  # another process may have swept it away
            os.unlink(probe)
    except OSError as error:
        return reason(error)
    return None


def _working_name(folder: str) -> str:
    return os.path.join(folder, f".longeval-{_machine()}-{uuid.uuid4().hex[:8]}")


@functools.cache
def _machine() -> str:
    """What tells this boot of this machine from others: eight hexadecimal digits, alike in all of its containers."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read()
    except OSError:
        boot = platform.node()
    return hashlib.sha256(boot.encode()).hexdigest()[:8]


def _make(folder: str, make: Callable[[str], int]) -> tuple[str, int]:
    """Makes a working file or folder that this process holds; returns its path and the descriptor of the lock."""
    while True:
        name = _working_name(folder)
        try:
            handle = make(name)
        except FileNotFoundError:
            if os.path.isdir(folder):  # taken before it was opened, see below
                continue
            raise
        with contextlib.suppress(OSError):  # a file system without locks
            _lock(handle, wait=True)
        # Until it is locked another process may take it for one that was left, and remove it.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(name), os.fstat(handle)):
                return name, handle
        os.close(handle)


def _lock(handle: int, *, wait: bool) -> None:
    """Locks an open file or folder until it is closed.

    Raises:
        BlockingIOError: Another process holds it; only without `wait`.
        OSError: The file system, or Windows, has no such locks.
    """
    if sys.platform == "win32":
        raise OSError("no locks of files")
    import fcntl

    fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def _remove_if_left(path: str, *, here: bool) -> None:
    """Removes a working file or folder unless it is held; `here`: a process of this machine made it."""
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
