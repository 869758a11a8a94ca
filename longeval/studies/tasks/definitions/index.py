"""Names of tasks: what there is, and what a name after `--tasks` stands for.

A name is one of our own tasks, else one of the user's folders (`--include DIR`), else lm-eval's; `lm_eval:NAME` is
lm-eval's where a name means something else too (`passkey`). A path is a user's YAML file. A name with `*`, `?` or `[`
stands for all that it matches, as in lm-eval. Nothing here runs code of task files or uses the network.

lm-eval's 14,683 names come from its own index, which takes 10 s to build, then from a file in the cache folder (JSON).
The file is called after the state of lm-eval's folder, so that an lm-eval that is edited or installed anew is read
anew. lm-eval is only imported to build the index. A cache that can't be read or written costs time, never a result.
"""

from __future__ import annotations

import difflib
import fnmatch
import functools
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from longeval.cache import cache_dir, write_if_possible
from longeval.errors import LongEvalError
from longeval.studies.tasks.definitions.entries import (
    LM_EVAL,
    OURS,
    Entries,
    GroupAverage,
    Layout,
    Named,
    TaskEntry,
    scan,
)
from longeval.studies.tasks.definitions.files import (
    FunctionName,
    is_path,
    lm_eval_folder,
    task_folders,
    walk,
    yaml_files,
)
from longeval.studies.tasks.definitions.guards import quiet
from longeval.studies.tasks.definitions.needs import group_needs

_log = logging.getLogger(__name__)

_PREFIX = f"{LM_EVAL}:"

_FORMAT = 8
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolved:
    """What one name after `--tasks` stands for."""

    name: str
    """As the user typed it."""
    title: str
    """What it is called in notes: the name that a file gives itself in place of its path."""
    kind: Literal["task", "group"]
    source: str
    """`longeval`, `lm_eval`, or the path of the user's YAML file."""
    leaves: tuple[str, ...]
    """Its tasks, in order, each once. Each can itself be given to `--tasks` or `load_task`."""
    averages: tuple[GroupAverage, ...]
    """Averages to report: of the group itself, then of groups inside it; none for tasks."""
    needs: str
    """What must be there before it can run, in one line."""


class Index:
    """All names, read as far as they are asked for.

    Args:
        include: Folders with task files of the user's, later ones win.
        root: Our own folder of tasks; None: where it is installed.

    Raises:
        LongEvalError: If a folder is missing, or a file in one of them is broken.
    """

    def __init__(self, include: Sequence[str] = (), *, root: str | None = None) -> None:
        ours = [path for folder in task_folders(root) for path in yaml_files(folder)]
        self._ours = scan(ours, source=OURS, outer=_lm_evals)
        self._users: Entries = {}
        for folder in include:
            full = os.path.expanduser(folder)
            if not os.path.isdir(full):
                raise LongEvalError(f"--include {folder}: no such folder", "It takes folders; a file goes to --tasks.")
            users = scan(yaml_files(full), source=None, outer=self._named)
            for name, entry in users.items():
                self._refuse_ours(name, f"{entry.path}", "Give it another.")
            self._users.update(users)
        self._files: dict[str, Entries] = {}

    def find(self, name: str) -> TaskEntry | None:
        """The entry of a name or path; None if there is none. Raises LongEvalError for a file that is broken."""
        if name.startswith(_PREFIX):
            entry = _lm_evals(name.removeprefix(_PREFIX))
            return None if entry is None else self._qualified(entry)
        path, _, _ = name.partition("::")
        return self._from_file(path).get(name) if is_path(path) else self._named(name)

    def entry(self, name: str) -> TaskEntry:
        """As `find`, but raises LongEvalError with suggestions for a name that is unknown."""
        found = self.find(name)
        if found is None:
            raise LongEvalError(f"--tasks {name}: unknown", self._suggest(name))
        return found

    def resolve(self, names: Iterable[str]) -> tuple[Resolved, ...]:
        """What each name after `--tasks` stands for; a name that is there twice, once.

        Args:
            names: Names and patterns of tasks, groups and tags, `lm_eval:NAME`, paths of YAML files.

        Raises:
            LongEvalError: If a name is unknown (with suggestions), or a file is broken (file, line, what).
        """
        return tuple(
            self._resolve_pattern(name) if _is_pattern(name) else self._resolve(name) for name in dict.fromkeys(names)
        )

    def matching(self, pattern: str) -> list[TaskEntry]:
        """All entries whose names match `*`, `?` and `[…]`, in the order of the list; LongEvalError for none."""
        found = [entry for entry in self.listed() if fnmatch.fnmatchcase(entry.name, pattern)]
        if not found:
            raise LongEvalError(f"--tasks {pattern}: no task or group has such a name", self._suggest(pattern))
        return found

    def leaves(self, name: str) -> tuple[str, ...]:
        """Tasks of a name in order, each once; the task itself if it is one. Raises LongEvalError as `entry` does."""
        return tuple(dict.fromkeys(self._leaves(self.entry(name), ())))

    def averages(self, name: str) -> tuple[GroupAverage, ...]:
        """Averages that a group asks for, and the groups inside it."""
        entry = self.entry(name)
        if entry.kind == "task":
            return ()
        own = [self._average(entry, asked) for asked in entry.averages]
        inner = [average for member in entry.members for average in self.averages(self.scoped(entry, member))]
        return tuple(dict.fromkeys([*own, *inner]))

    def listed(self) -> tuple[TaskEntry, ...]:
        """All entries that have a name of their own: the user's, ours, long-text groups of lm-eval, then all others."""

        def groups_first(entry: TaskEntry) -> tuple[bool, str]:
            return entry.kind == "task", entry.name

        users = sorted((entry for entry in self._users.values() if entry.within is None), key=groups_first)
        ours = sorted((entry for entry in self._ours.values() if entry.within is None), key=groups_first)
        theirs = {name: self._qualified(e) for name, e in lm_eval_entries().items() if e.within is None}
        first = [theirs.pop(name) for name in LONG_CONTEXT if name in theirs]
        members = {member for entry in first for member in self.leaves(entry.name)}
        rest = sorted(theirs.values(), key=lambda entry: (entry.name not in members, entry.name))
        return (*users, *ours, *first, *rest)

    def scoped(self, group: TaskEntry, member: str) -> str:
        """The name by which a group's member is found from outside: lm-eval's members are lm-eval's."""
        entry = _lm_evals(member) if group.source == LM_EVAL else None
        return member if entry is None else self._qualified(entry).name

    def _resolve(self, name: str) -> Resolved:
        entry = self.entry(name)
        return Resolved(
            name=name,
            title=entry.title,
            kind=entry.kind,
            source=entry.source,
            leaves=self.leaves(name),
            averages=self.averages(name),
            needs=entry.needs,
        )

    def _resolve_pattern(self, pattern: str) -> Resolved:
        """All that a pattern matches, as a group; tasks that aren't run here are left out, unless nothing else is."""
        found = [entry for entry in self.matching(pattern) if entry.refusal is None]
        leaves = dict.fromkeys(leaf for entry in found for leaf in self.leaves(entry.name))
        run = tuple(leaf for leaf in leaves if self.entry(leaf).refusal is None)
        if not run:
            raise LongEvalError(f"--tasks {pattern}: not run: nothing that matches is", "Name other tasks.")
        return Resolved(
            name=pattern,
            title=pattern,
            kind="group",
            source=found[0].source,
            leaves=run,
            averages=tuple(dict.fromkeys(average for entry in found for average in self.averages(entry.name))),
            needs=group_needs({leaf: self.entry(leaf).needs for leaf in run}),
        )

    def _leaves(self, entry: TaskEntry, within: tuple[str, ...]) -> list[str]:
        if entry.kind == "task":
            return [entry.name]
        if entry.refusal is not None:
            raise LongEvalError(f"--tasks {entry.name}: {entry.refusal}", "Name its tasks instead.")
        if entry.name in within:
            raise LongEvalError(f"--tasks {within[0]}: group {entry.name} contains itself", "Correct its file.")
        return [
            leaf
            for member in entry.members
            for leaf in self._leaves(self.entry(self.scoped(entry, member)), (*within, entry.name))
        ]

    def _average(self, entry: TaskEntry, asked: GroupAverage) -> GroupAverage:
        """An average with its tasks, by names that are known from outside."""
        leaves = self.leaves(entry.name)
        strangers = [name for name in asked.members if name not in leaves]
        if strangers:
            raise LongEvalError(
                f"{entry.path}: average_over names {', '.join(strangers)}, no task of {entry.name}", "Correct the file."
            )
        return replace(asked, group=entry.name, members=asked.members or leaves)

    def _qualified(self, entry: TaskEntry) -> TaskEntry:
        """An entry of lm-eval's under a name that means it and nothing else."""
        hidden = entry.name in self._users or entry.name in self._ours
        return replace(entry, name=f"{_PREFIX}{entry.name}") if hidden else entry

    def _named(self, name: str) -> TaskEntry | None:
        """The entry of a name: of ours, the user's or lm-eval's."""
        return self._ours.get(name) or self._users.get(name) or _lm_evals(name)

    def _refuse_ours(self, name: str, place: str, remedy: str) -> None:
        """A user's task may take the place of lm-eval's, but scores under our names must be scores of our tasks."""
        if name in self._ours:
            raise LongEvalError(f"{place}: {name} is the name of a {self._ours[name].kind} of longeval", remedy)

    def _from_file(self, path: str) -> Entries:
        """The entries of one file of the user's, called after the path as it was typed."""
        if path not in self._files:
            full = os.path.expanduser(path)
            if os.path.isdir(full):
                raise LongEvalError(
                    f"--tasks {path}: is a folder", f"Add --include {path}, and name tasks of it after --tasks."
                )
            if not os.path.isfile(full):
                raise LongEvalError(f"--tasks {path}: no such file", "A folder of task files goes to --include.")
            entries = scan([full], source=None, outer=self._named, name=path)
            if path not in entries:
                raise LongEvalError(
                    f"--tasks {path}: the file has neither the key task nor the key group", "Give it a name."
                )
            own = entries[path].title
            self._refuse_ours(own, f"--tasks {path}", f"Give it another, or say --tasks {own}.")
            self._files[path] = entries
        return self._files[path]

    def _suggest(self, name: str) -> str:
        """A remedy for an unknown name: near names, ours first."""
        if os.path.isdir(name):
            return f"It is a folder: add --include {name}, and name tasks of it after --tasks."
        wanted = name.removeprefix(_PREFIX).lower()
        own = [known for known in {**self._users, **self._ours} if "::" not in known]
        theirs = [known for known in lm_eval_entries() if "::" not in known]
        near = difflib.get_close_matches(wanted, own, n=3, cutoff=0.6)
        near += [known for known in difflib.get_close_matches(wanted, theirs, n=3, cutoff=0.7) if known not in near]
        hint = f"Did you mean {' or '.join(near[:4])}? " if near else ""
        return f"{hint}`longeval tasks --list` shows all."


def all_leaves(resolved: Iterable[Resolved]) -> tuple[str, ...]:
    """The tasks of a whole request, in order, each once."""
    return tuple(dict.fromkeys(leaf for item in resolved for leaf in item.leaves))


def _is_pattern(name: str) -> bool:
    """Whether a name stands for all names that it matches; paths are taken as they are."""
    return any(sign in name for sign in "*?[") and not is_path(name)


def lm_eval_entries() -> Entries:
    """Returns the entries of all tasks, groups and tags of lm-eval, by name."""
    return _entries(lm_eval_folder(), cache_dir())


def _lm_evals(name: str) -> TaskEntry | None:
    return lm_eval_entries().get(name)


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

    def function(item: dict[str, Any]) -> Any:
        return FunctionName(**item) if item.keys() == {"qualified", "file", "line"} else item

    try:
        with open(path, "rb") as file:
            rows = json.loads(file.read(), object_hook=function)
        return {entry.name: entry for entry in TypeAdapter(list[TaskEntry]).validate_python(rows)}
    except (OSError, ValueError):
        return None


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
            _with_names(entry.cfg or {}, os.path.realpath(folder)),
            sorted(entry.tags) if entry.kind == Kind.TAG else [],
        )
        for name, entry in found.items()
    }
    entries = Layout(names, source=LM_EVAL, outer=lambda name: None, strict=False).entries()
    for name, description in LONG_CONTEXT.items():
        if name in entries:
            entries[name] = replace(entries[name], description=entries[name].description or description)
    return entries


def _with_names(value: Any, folder: str) -> Any:
    """A config of lm-eval's index, where a `!function` is a text: the folder of its file, then `module.name`."""
    if isinstance(value, str) and value.startswith(f"{folder}{os.sep}"):
        return FunctionName(os.path.basename(value), os.path.join(os.path.dirname(value), ""))
    if isinstance(value, dict):
        return {key: _with_names(inner, folder) for key, inner in value.items()}
    return [_with_names(inner, folder) for inner in value] if isinstance(value, list) else value
