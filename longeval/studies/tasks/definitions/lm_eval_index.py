"""lm-eval's 14,683 names: from its own index, which takes 10 s to build, then from a file in the cache folder (JSON).

The file is called after the state of lm-eval's folder: an lm-eval that is edited or installed anew is read anew.
Only then is lm-eval imported, and no code of its tasks runs. A cache that can't be read or written costs time, never a
result.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from longeval.cache import cache_dir, write_if_possible
from longeval.studies.tasks.definitions.entries import LM_EVAL, Entries, Named, TaskEntry, lay_out
from longeval.studies.tasks.definitions.files import FunctionName, lm_eval_folder, walk
from longeval.studies.tasks.quiet import quiet

_log = logging.getLogger(__name__)

_FORMAT = 7
"""Raised when entries of the same files change: older files are then not found."""

LONG_CONTEXT = {
    "ruler": "RULER: retrieval, tracing and counting in synthetic text of any length (Hsieh et al. 2024)",
    "longbench": "LongBench: 21 tasks on real documents, English and Chinese (Bai et al. 2024)",
    "longbench2": "LongBench v2: multiple choice on documents of up to 2M words (Bai et al. 2025)",
    "infinitebench": "InfiniteBench: tasks beyond 100k tokens (Zhang et al. 2024)",
    "babilong": "BABILong: bAbI's questions hidden in books (Kuratov et al. 2024)",
    "scrolls": "SCROLLS: seven tasks over long texts (Shaham et al. 2022)",
}
"""lm-eval's groups of long-text tasks, shown before all others, and what they are."""


def lm_eval_entries() -> Entries:
    """Returns the entries of all tasks, groups and tags of lm-eval, by name.

    Raises:
        LongEvalError: If lm-eval isn't installed.
    """
    return _entries(lm_eval_folder(), cache_dir())


@functools.cache
def _entries(folder: str, cache: str) -> Entries:
    path = os.path.join(cache, "tasks", f"lm_eval-{_digest(folder)}.json")
    entries = _read(path)
    if entries is None:
        _log.info("reading the task files of lm-eval (once)")
        entries = read_index(folder)
        rows = [{key: value for key, value in asdict(entry).items() if value} for entry in entries.values()]
        write_if_possible(path, json.dumps(rows, ensure_ascii=False).encode())
    return entries


def read_index(folder: str) -> Entries:
    """The entries of a folder of lm-eval's task files, by its own index."""
    with quiet():
        from lm_eval.tasks._index import Kind, TaskIndex

        found = TaskIndex.build([Path(folder)])
    kinds: dict[Any, Literal["task", "group", "tag"]] = {Kind.GROUP: "group", Kind.TAG: "tag"}
    names = {
        name: Named(
            kinds.get(entry.kind, "task"),
            None if entry.yaml_path is None else str(entry.yaml_path),
            _with_functions(entry.cfg or {}, os.path.realpath(folder)),
            sorted(entry.tags) if entry.kind == Kind.TAG else [],
        )
        for name, entry in found.items()
    }
    entries = lay_out(names, source=LM_EVAL, outer=lambda name: None, strict=False)
    for name, description in LONG_CONTEXT.items():
        if name in entries:
            entries[name] = replace(entries[name], description=entries[name].description or description)
    return entries


def _with_functions(value: Any, folder: str) -> Any:
    """A config of lm-eval's index, where a `!function` is a text: the folder of its file, then `module.name`."""
    if isinstance(value, str) and value.startswith(f"{folder}{os.sep}"):
        return FunctionName(os.path.basename(value), os.path.join(os.path.dirname(value), ""))
    if isinstance(value, dict):
        return {key: _with_functions(inner, folder) for key, inner in value.items()}
    return [_with_functions(inner, folder) for inner in value] if isinstance(value, list) else value


def _digest(folder: str) -> str:
    """Identifies the state of a folder of task files, by names, sizes and times of change."""
    lines = [f"{_FORMAT} {os.path.realpath(folder)}"]
    for path in walk(folder):
        if not path.endswith((".py", ".md")):
            stat = os.stat(path)
            lines.append(f"{path} {stat.st_size} {stat.st_mtime_ns}")
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]


def _read(path: str) -> Entries | None:
    """The entries of a cache file; None if there is none that is whole."""
    from pydantic import TypeAdapter

    try:
        with open(path, "rb") as file:
            rows = json.loads(file.read(), object_hook=_function)
        return {entry.name: entry for entry in TypeAdapter(list[TaskEntry]).validate_python(rows)}
    except (OSError, ValueError):
        return None


def _function(item: dict[str, Any]) -> Any:
    return FunctionName(**item) if item.keys() == {"qualified", "file"} else item
