"""SHA-256 of big files, remembered: a 13 GB folder of weights is read once, not before every run.

Remembered in `<cache>/digests.json` under the file's absolute path, and believed only while it is the same file (inode)
with the same size and times of modification and change (nanoseconds): nobody can set the last one back.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from typing import Any

from longeval.cache import cache_dir, write_if_possible

_BLOCK_BYTES = 1 << 22
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SETTLED_NS = 2_000_000_000
"""A file younger than this may still change within one tick of a coarse clock: its digest is not remembered."""
_known: dict[str, list[Any]] = {}
"""What this process has read itself, where the cache can't be written, too."""


def sha256_of(path: str) -> str:
    """Returns the SHA-256 (hex) of a file's content, reading all of it."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def file_digest(path: str) -> str:
    """Returns the SHA-256 (hex) of a file's content, from memory while the file is unchanged.

    Args:
        path: A local file; symbolic links (the hub's cache is made of them) are followed.

    Raises:
        OSError: If it can't be read.
    """
    real = os.path.realpath(path)
    stamp = _stamp(real)
    if known := _believed(_known.get(real), stamp):
        return known
    if known := _believed(_remembered().get(real), stamp):
        _known[real] = [*stamp, known]
        return known
    digest = sha256_of(real)
    if _stamp(real) == stamp and _now_ns() - stamp[-1] > _SETTLED_NS:
        _known[real] = [*stamp, digest]
        # read again just before writing: another process may have added its own meanwhile
        remembered = _remembered() | {real: _known[real]}
        write_if_possible(_path(), (json.dumps(remembered, indent=0, sort_keys=True) + "\n").encode())
    return digest


def _believed(entry: Any, stamp: list[int]) -> str | None:
    """The digest of an entry, if it is one and of the same file as it is now."""
    if isinstance(entry, list) and entry[:-1] == stamp and _SHA256.fullmatch(str(entry[-1])):
        return str(entry[-1])
    return None


def _stamp(path: str) -> list[int]:
    """What changes when a file does; last the time of its change, which the system alone sets."""
    stat = os.stat(path)
    return [stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns]


def _path() -> str:
    return os.path.join(cache_dir(), "digests.json")


def _now_ns() -> int:
    """Wall clock; a name of its own so that tests can let time pass."""
    import time

    return time.time_ns()


def _remembered() -> dict[str, Any]:
    """All remembered digests; a missing or damaged file is an empty memory."""
    try:
        with open(_path(), encoding="utf-8") as file:
            remembered = json.load(file)
    except (OSError, ValueError, RecursionError):
        return {}
    return remembered if isinstance(remembered, dict) else {}
