"""The cache folder, for data that can be recomputed: tokenised documents, dequantised models, digests of files.

It is `$LONGEVAL_CACHE`, else `$XDG_CACHE_HOME/longeval`, else `~/.cache/longeval` (XDG Base Directory Specification
0.8, which ignores a relative `XDG_CACHE_HOME`). Files are written atomically, so several runs may share the folder. If
it can't be written, runs are slower but have the same results.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import hashlib
import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Iterable
from typing import Any

from longeval.errors import reason
from longeval.files import sweep, write_whole

_log = logging.getLogger(__name__)

_EARLIER = (".building-", ".fetching-", ".saving-")
"""Prefixes of working folders in earlier versions."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SETTLED_NS = 2_000_000_000
"""Digests of files younger than this are not stored: the file may still change within one tick of a coarse clock."""
_known: dict[str, list[Any]] = {}
"""Digests of files that this process has computed, for when the cache can't be written."""


def cache_dir() -> str:
    """Returns the absolute path of the cache folder, which may not exist. Reads the environment at each call."""
    own = os.environ.get("LONGEVAL_CACHE")
    if own:
        return os.path.abspath(os.path.expanduser(own))
    shared = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(shared):
        shared = os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(shared, "longeval")


def sweep_temporary() -> None:
    """Removes unfinished files of killed runs from the cache and from the system's folder for temporary files."""
    folder = cache_dir()
    folders = [folder, *glob.glob(f"{glob.escape(folder)}/*/"), *glob.glob(f"{glob.escape(folder)}/tokens/*/")]
    sweep(*folders, prefixes=_EARLIER)
    with contextlib.suppress(FileNotFoundError):  # there may be no such folder
        sweep(tempfile.gettempdir())


def write_if_possible(path: str, content: bytes) -> bool:
    """Calls `write_whole`; logs a warning for an OSError, once per reason. Returns whether the file was written."""
    try:
        write_whole(path, content)
    except OSError as error:
        _warn_unwritable(cache_dir(), reason(error))
        return False
    return True


@functools.cache
def _warn_unwritable(folder: str, why: str) -> None:
    """Logs a warning, once for each folder and reason."""
    _log.warning("cache %s can't be written (%s): it is not used; LONGEVAL_CACHE sets another folder", folder, why)


def write_sealed(path: str, content: bytes) -> bool:
    """Writes a cache file with a digest of its name and content; returns whether it could be written."""
    return write_if_possible(path, _seal(path, content) + b"\n" + content)


def read_sealed(path: str) -> bytes | None:
    """Returns the content of a file of `write_sealed`; None if it is missing, damaged or renamed."""
    try:
        with open(path, "rb") as file:
            seal, _, content = file.read().partition(b"\n")
    except OSError:
        return None
    return content if seal == _seal(path, content) else None


def _seal(path: str, content: bytes) -> bytes:
    """SHA-256 (hex) of a file's name and content."""
    return hashlib.sha256(f"{os.path.basename(path)}\0".encode() + content).hexdigest().encode()


def sha256_of(path: str) -> str:
    """Returns the SHA-256 (hex) of a file's content without using the cache."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_digest(folder: str, names: Iterable[str]) -> str:
    """Returns the SHA-256 (hex) of lines `name digest` for some files of a folder, sorted by name."""
    lines = [f"{name} {file_digest(os.path.join(folder, name))}\n" for name in sorted(names)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def file_digest(path: str) -> str:
    """Returns the SHA-256 (hex) of a file's content. It is cached, so that large weights are not read before every run.

    Digests are stored in `<cache>/digests.json` under the file's absolute path, with symbolic links resolved. A digest
    is valid only while the file has the same inode, size, and times of modification and of status change (nanoseconds);
    programs can't set the last one.

    Raises:
        OSError: It can't be read.
    """
    real = os.path.realpath(path)
    stamp = file_stamp(real)
    if known := _believed(_known.get(real), stamp):
        return known
    if known := _believed(_remembered().get(real), stamp):
        _known[real] = [*stamp, known]
        return known
    digest = sha256_of(real)
    if file_stamp(real) == stamp and _now_ns() - stamp[-1] > _SETTLED_NS:
        _known[real] = [*stamp, digest]
        # Read again just before writing, because another process may have added its own.
        remembered = _remembered() | {real: _known[real]}
        write_if_possible(_digests_path(), (json.dumps(remembered, indent=0, sort_keys=True) + "\n").encode())
    return digest


def file_stamp(path: str) -> list[int]:
    """Returns size, inode, and times of modification and status change of a file, which show whether it changed."""
    stat = os.stat(path)
    return [stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns]


def _believed(entry: Any, stamp: list[int]) -> str | None:
    """The digest in an entry of digests.json, if the entry is valid and the file unchanged; else None."""
    if isinstance(entry, list) and entry[:-1] == stamp and _SHA256.fullmatch(str(entry[-1])):
        return str(entry[-1])
    return None


def _digests_path() -> str:
    return os.path.join(cache_dir(), "digests.json")


def _now_ns() -> int:
    """Wall clock; a function of its own so that tests can replace it."""
    return time.time_ns()


def _remembered() -> dict[str, Any]:
    """All stored digests; empty if the file is missing or damaged."""
    try:
        with open(_digests_path(), encoding="utf-8") as file:
            remembered = json.load(file)
    except (OSError, ValueError, RecursionError):
        return {}
    return remembered if isinstance(remembered, dict) else {}
