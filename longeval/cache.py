"""The cache folder: what can be made again at any time (tokenised documents, dequantised models, digests of files).

`$LONGEVAL_CACHE`, else `$XDG_CACHE_HOME/longeval`, else `~/.cache/longeval` (XDG Base Directory Specification 0.8,
by which a relative `XDG_CACHE_HOME` is ignored). Files appear under their name only when they are whole, so several
runs may share the folder. A cache that can't be written costs time, never a result.
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
"""What names of working folders began with in earlier versions."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SETTLED_NS = 2_000_000_000
"""A file younger than this may still change within one tick of a coarse clock: its digest is not remembered."""
_known: dict[str, list[Any]] = {}
"""Digests of files that this process has read itself, also where the cache can't be written."""


def cache_dir() -> str:
    """Returns the absolute path of the cache folder, which need not exist yet; reads the environment at each call."""
    own = os.environ.get("LONGEVAL_CACHE")
    if own:
        return os.path.abspath(os.path.expanduser(own))
    shared = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(shared):
        shared = os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(shared, "longeval")


def sweep_temporary() -> None:
    """Removes what killed runs left in the cache, and in the system's folder for temporary files."""
    folder = cache_dir()
    folders = [folder, *glob.glob(f"{glob.escape(folder)}/*/"), *glob.glob(f"{glob.escape(folder)}/tokens/*/")]
    sweep(*folders, prefixes=_EARLIER)
    with contextlib.suppress(FileNotFoundError):  # there may be none
        sweep(tempfile.gettempdir())


def write_if_possible(path: str, content: bytes) -> bool:
    """As `write_whole`, but an OSError becomes one logged warning for each reason; returns whether it wrote."""
    try:
        write_whole(path, content)
    except OSError as error:
        _warn_unwritable(cache_dir(), reason(error))
        return False
    return True


@functools.cache
def _warn_unwritable(folder: str, why: str) -> None:
    """Warns once for a folder and reason: a run over a thousand documents needs no thousand lines."""
    _log.warning("cache %s can't be written (%s): going on without; LONGEVAL_CACHE names another folder", folder, why)


def write_sealed(path: str, content: bytes) -> bool:
    """Writes a cache file that `read_sealed` reads only while it is whole; returns whether it could be written."""
    return write_if_possible(path, _seal(path, content) + b"\n" + content)


def read_sealed(path: str) -> bytes | None:
    """Returns the content of a file from `write_sealed`; None if there is none, or it was damaged or renamed."""
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
    """Returns the SHA-256 (hex) of a file's content, reading all of it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_digest(folder: str, names: Iterable[str]) -> str:
    """Returns the SHA-256 (hex) over the lines `name digest` of some files of a folder, sorted by name."""
    lines = [f"{name} {file_digest(os.path.join(folder, name))}\n" for name in sorted(names)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def file_digest(path: str) -> str:
    """Returns the SHA-256 (hex) of a file's content; 13 GB of weights are read once, not before every run.

    Digests are remembered in `<cache>/digests.json` under the file's absolute path, symbolic links followed (the hub's
    cache is made of them). One is believed only while it is the same file (inode) with the same size and times of
    modification and change (nanoseconds): nobody can set the last one back.

    Raises:
        OSError: If it can't be read.
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
        # Read again just before writing: another process may have added its own meanwhile.
        remembered = _remembered() | {real: _known[real]}
        write_if_possible(_digests_path(), (json.dumps(remembered, indent=0, sort_keys=True) + "\n").encode())
    return digest


def file_stamp(path: str) -> list[int]:
    """Returns size, inode and times of a file, which tell whether it changed; only the system sets the last."""
    stat = os.stat(path)
    return [stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns]


def _believed(entry: Any, stamp: list[int]) -> str | None:
    """The digest of an entry, if it is one and of the same file as it is now."""
    if isinstance(entry, list) and entry[:-1] == stamp and _SHA256.fullmatch(str(entry[-1])):
        return str(entry[-1])
    return None


def _digests_path() -> str:
    return os.path.join(cache_dir(), "digests.json")


def _now_ns() -> int:
    """Wall clock; a name of its own so that tests can let time pass."""
    return time.time_ns()


def _remembered() -> dict[str, Any]:
    """All remembered digests; a missing or damaged file is an empty memory."""
    try:
        with open(_digests_path(), encoding="utf-8") as file:
            remembered = json.load(file)
    except (OSError, ValueError, RecursionError):
        return {}
    return remembered if isinstance(remembered, dict) else {}
