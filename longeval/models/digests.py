"""SHA-256 of big files, remembered: a 13 GB folder of weights is read once, not before every run.

Remembered in `<cache>/digests.json` under the file's absolute path, and believed only while its size and its
modification time (nanoseconds) are the same.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

from longeval.cache import cache_dir, write_if_possible

_BLOCK_BYTES = 1 << 22
_SETTLED_NS = 2_000_000_000
"""A file younger than this may still change within one tick of a coarse clock: its digest is not remembered."""


def sha256_of(path: str) -> str:
    """Returns the SHA-256 (hex) of a file's content, reading all of it."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def file_digest(path: str) -> str:
    """Returns the SHA-256 (hex) of a file's content, from memory while size and modification time are unchanged.

    Args:
        path: A local file; symbolic links (the hub's cache is made of them) are followed.

    Raises:
        OSError: If it can't be read.
    """
    real = os.path.realpath(path)
    stat = os.stat(real)
    stamp = [stat.st_size, stat.st_mtime_ns]
    known = _remembered().get(real)
    if isinstance(known, list) and known[:2] == stamp and len(known) == 3:
        return str(known[2])
    digest = sha256_of(real)
    after = os.stat(real)
    if [after.st_size, after.st_mtime_ns] == stamp and _now_ns() - after.st_mtime_ns > _SETTLED_NS:
        # read again just before writing: another process may have added its own meanwhile
        remembered = _remembered() | {real: [*stamp, digest]}
        write_if_possible(_path(), (json.dumps(remembered, indent=0, sort_keys=True) + "\n").encode())
    return digest


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
    except (OSError, ValueError):
        return {}
    return remembered if isinstance(remembered, dict) else {}
