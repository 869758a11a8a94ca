"""lm-eval's 14,683 names: scanned once (6 to 12 s), then read from a file in the cache folder (JSON, after its digest).

The file is called after lm-eval's version, its folder and the newest change of any file in it, so that an lm-eval that
is edited or installed anew is scanned anew. A cache that can't be read or written costs time, never a result.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
from dataclasses import asdict
from typing import Any

from longeval.cache import cache_dir, write_if_possible
from longeval.studies.tasks.definitions.entries import LM_EVAL, Aggregate, TaskEntry
from longeval.studies.tasks.definitions.folders import find_lm_eval, walk
from longeval.studies.tasks.definitions.scan import Entries, scan_folder

_log = logging.getLogger(__name__)

_FORMAT = 4
"""Raised when entries of the same files change: older files are then not found."""


def lm_eval_entries() -> Entries:
    """Returns the entries of all tasks, groups and tags of lm-eval, by name; neither imports lm-eval nor runs code.

    Raises:
        LongEvalError: If lm-eval isn't installed.
    """
    return _entries(find_lm_eval().folder, find_lm_eval().version, cache_dir())


@functools.cache
def _entries(folder: str, version: str, cache: str) -> Entries:
    path = os.path.join(cache, "tasks", f"lm_eval-{version}-{_digest(folder)}.json")
    entries = _read(path)
    if entries is None:
        _log.info("reading the task files of lm-eval %s (once)", version)
        entries = scan_folder(folder, source=LM_EVAL, outer=lambda name: None)
        write_if_possible(path, _encode(entries))
    return entries


def _digest(folder: str) -> str:
    """Identifies the state of a folder of task files, by names, sizes and times of change."""
    lines = [f"{_FORMAT} {os.path.realpath(folder)}"]
    for path in walk(folder):
        if not path.endswith((".py", ".md")):
            stat = os.stat(path)
            lines.append(f"{path} {stat.st_size} {stat.st_mtime_ns}")
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]


def _encode(entries: Entries) -> bytes:
    rows = [{key: value for key, value in asdict(entry).items() if value} for entry in entries.values()]
    content = json.dumps(rows, ensure_ascii=False).encode()
    return hashlib.sha256(content).hexdigest().encode() + b"\n" + content


def _read(path: str) -> Entries | None:
    """The entries of a cache file; None if there is none that is whole."""
    try:
        with open(path, "rb") as file:
            digest, _, content = file.read().partition(b"\n")
        if hashlib.sha256(content).hexdigest().encode() != digest:
            return None
        rows = json.loads(content)
        return {row["name"]: _decode(row) for row in rows}
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _decode(row: dict[str, Any]) -> TaskEntry:
    texts = {key: row.get(key, "") for key in ("name", "kind", "source", "needs", "description")}
    if not isinstance(row["name"], str) or row["kind"] not in ("task", "group"):
        raise ValueError("no entry")
    aggregates = [
        Aggregate(
            metric=item["metric"],
            filters=None if item["filters"] is None else tuple(item["filters"]),
            weight_by_size=item["weight_by_size"],
            over=None if item["over"] is None else tuple(item["over"]),
        )
        for item in row.get("aggregates", ())
    ]
    return TaskEntry(
        **texts,
        members=tuple(row.get("members", ())),
        path=row.get("path"),
        refusal=row.get("refusal"),
        within=row.get("within"),
        aggregates=tuple(aggregates),
    )
