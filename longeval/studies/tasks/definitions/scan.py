"""From task files to entries: the same names from the same files as lm-eval's own index, without importing lm-eval.

lm-eval's rules (0.4.13, tasks/_index.py): a file with `class` or `task` is a task, with `group` a group, anything else
a part for `include`; the first of two files with one name wins; a tag is a group of all tasks that carry it, unless
the name was taken by then. Differences, on purpose: a class task's key `group` makes a group (SCROLLS has no other),
and in our own and users' files a name that is there twice, or a member that is unknown, is an error.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from longeval.errors import LongEvalError
from longeval.studies.tasks.definitions.configs import Config, ConfigReader, place_of
from longeval.studies.tasks.definitions.entries import LM_EVAL, NOTHING, Aggregate, TaskEntry
from longeval.studies.tasks.definitions.folders import yaml_files
from longeval.studies.tasks.definitions.members import Known, Member, members_of
from longeval.studies.tasks.definitions.needs import group_needs, needs_of, own_needs, refusal_of

Entries = dict[str, TaskEntry]


@dataclass(slots=True)
class _Draft:
    """A name, before groups are laid out."""

    kind: Literal["task", "group", "tag"]
    path: str | None
    config: Config = field(default_factory=dict)
    tasks: list[str] = field(default_factory=list)


def scan(files: Iterable[str], *, source: str | None, outer: Callable[[str], TaskEntry | None]) -> Entries:
    """Returns the entries of task files by name, in the order of the files; members written inside groups included.

    Args:
        files: Paths.
        source: `longeval` or `lm_eval`; None: a user's files, each is its own source.
        outer: Looks up names that members may refer to beyond these files.

    Raises:
        LongEvalError: In files that aren't lm-eval's: if one is no YAML, has a name that another has, or a group has
            a member that is unknown; names file and line.
    """
    strict = source != LM_EVAL
    drafts: dict[str, _Draft] = {}
    reader = ConfigReader(checked=strict)
    for path in files:
        try:
            _draft(path, reader.read(path), drafts, strict=strict)
        except LongEvalError:
            if strict:
                raise
    return _Layout(drafts, reader, source, outer, strict=strict).entries()


def scan_folder(folder: str, *, source: str | None, outer: Callable[[str], TaskEntry | None]) -> Entries:
    """`scan` of all .yaml files below a folder."""
    return scan(yaml_files(folder), source=source, outer=outer)


def name_in(config: Config) -> str | None:
    """The name that a file gives its task or group; None for a part to include."""
    name = config.get("task") if "class" in config or "group" not in config else config["group"]
    return name if isinstance(name, str) else None


def _draft(path: str, config: Config, drafts: dict[str, _Draft], *, strict: bool) -> None:
    name = name_in(config)
    if name is None:
        return
    is_task = "class" in config or "group" not in config
    if name in drafts:
        if strict and drafts[name].path is not None:
            key = "task" if is_task else "group"
            raise LongEvalError(
                f"{place_of(path, key)}: {name} is the name of {drafts[name].path} already", "Give it another."
            )
        return
    drafts[name] = _Draft("task" if is_task else "group", path, config)
    if not is_task:
        return
    for tag in _texts(config.get("tag")):
        drafts.setdefault(tag, _Draft("tag", None)).tasks.append(name)
    if "class" in config and isinstance(config.get("group"), str):
        drafts.setdefault(config["group"], _Draft("tag", None)).tasks.append(name)


class _Layout:
    """Turns drafts into entries; groups need all names to be known."""

    def __init__(
        self,
        drafts: Mapping[str, _Draft],
        reader: ConfigReader,
        source: str | None,
        outer: Callable[[str], TaskEntry | None],
        *,
        strict: bool,
    ) -> None:
        self._drafts = drafts
        self._reader = reader
        self._source = source
        self._outer = outer
        self._strict = strict
        self._entries: Entries = {}

    def entries(self) -> Entries:
        groups = []
        for name, draft in self._drafts.items():
            if draft.kind == "task":
                self._entries[name] = self._task(name, draft.config, draft.path)
            else:
                groups.append(name)
                self._entries[name] = self._group(name, draft)
        for name in groups:
            self._settle_needs(name, ())
        return self._entries

    def _known(self, name: str) -> Known | None:
        draft = self._drafts.get(name)
        if draft is not None:
            return Known(kind=draft.kind, config=lambda: draft.config, members=tuple(sorted(draft.tasks)))
        entry = self._outer(name)
        if entry is None:
            return None
        if entry.kind == "task":
            return Known(kind="task", config=dict)
        path = entry.path
        if path is None:
            return Known(kind="tag", config=dict, members=entry.members)
        return Known(kind="group", config=lambda: ConfigReader(checked=False).read(path))

    def _task(self, name: str, config: Config, path: str | None, within: str | None = None) -> TaskEntry:
        refusal = refusal_of(config)
        return TaskEntry(
            name=name,
            kind="task",
            source=self._source or str(path),
            needs=needs_of(config, look=self._strict) if refusal is None else f"not run: {refusal}",
            description=_description(config),
            path=path,
            refusal=refusal,
            within=within,
        )

    def _group(self, name: str, draft: _Draft) -> TaskEntry:
        if draft.kind == "tag":
            return self._group_entry(name, {}, tuple(sorted(draft.tasks)), None, None)
        members = members_of(name, draft.config, self._known)
        for member in members:
            self._inner(member, draft.path, name)
        problem = next((found for member in members if (found := _problem(member))), None)
        if problem and self._strict:
            raise LongEvalError(
                f"{place_of(str(draft.path), 'task')}: group {name}: {problem}",
                "Tasks of other folders are known with --include FOLDER.",
            )
        return self._group_entry(name, draft.config, tuple(m.name for m in members), draft.path, None, problem)

    def _group_entry(
        self,
        name: str,
        config: Config,
        members: tuple[str, ...],
        path: str | None,
        within: str | None,
        problem: str | None = None,
    ) -> TaskEntry:
        return TaskEntry(
            name=name,
            kind="group",
            source=self._source or str(path),
            needs=NOTHING,
            description=_description(config) or str(config.get("group_alias") or ""),
            members=members,
            path=path,
            refusal=problem,
            within=within,
            aggregates=_aggregates(config, str(path)),
        )

    def _inner(self, member: Member, path: str | None, within: str) -> None:
        """Adds what a group's file itself writes or changes."""
        if member.group is not None:
            names = tuple(child.name for child in member.children)
            self._entries[member.name] = self._group_entry(member.name, member.group, names, path, within)
            for child in member.children:
                self._inner(child, path, within)
        elif member.name != member.base and member.problem is None:
            base = self._find(member.base) if member.base is not None else None
            entry = self._task(member.name, {**member.changes, "task": member.name}, path, within)
            if base is not None:
                entry = replace(entry, needs=base.needs, description=base.description, refusal=base.refusal)
            elif "include" in member.changes:
                problem = "it is written with include inside a group, where lm-eval doesn't read it"
                entry = replace(entry, needs=f"not run: {problem}", refusal=problem)
            self._entries[member.name] = entry

    def _find(self, name: str) -> TaskEntry | None:
        if name in self._drafts and name not in self._entries:  # a task further down in the order of the files
            self._entries[name] = self._task(name, self._drafts[name].config, self._drafts[name].path)
        return self._entries.get(name) or self._outer(name)

    def _settle_needs(self, name: str, within: tuple[str, ...]) -> dict[str, str]:
        """Fills in what a group needs, innermost groups first; returns what each of its tasks needs."""
        entry = self._find(name)
        if entry is None or name in within:
            return {}
        if entry.kind == "task":
            return {name: entry.needs}
        if name not in self._entries:
            return {name: entry.needs}
        needs: dict[str, str] = {}
        for member in entry.members:
            needs.update(self._settle_needs(member, (*within, name)))
        said = f"not run: {entry.refusal}" if entry.refusal else group_needs(needs)
        self._entries[name] = replace(entry, needs=own_needs(self._config(name)) or said)
        return needs

    def _config(self, name: str) -> Config:
        return self._drafts[name].config if name in self._drafts else {}


def _problem(member: Member) -> str | None:
    if member.problem is not None:
        return member.problem
    return next((problem for child in member.children if (problem := _problem(child))), None)


def _aggregates(config: Config, path: str) -> tuple[Aggregate, ...]:
    """The averages that a group's keys ask for."""
    metadata = config.get("metadata")
    over = metadata.get("average_over") if isinstance(metadata, dict) else None
    if over is not None:
        if not (isinstance(over, list) and over and all(isinstance(name, str) for name in over)):
            raise LongEvalError(f"{place_of(path, 'metadata')}: average_over must be a list of tasks", "Name some.")
        return (Aggregate(metric=None, filters=None, weight_by_size=False, over=tuple(over)),)
    asked = config.get("aggregate_metric_list")
    asked = asked if isinstance(asked, list) else [] if asked is None else [asked]
    return tuple(_aggregate(item, path) for item in asked)


def _aggregate(item: Any, path: str) -> Aggregate:
    place = place_of(path, "aggregate_metric_list")
    if not isinstance(item, dict) or "metric" not in item:
        raise LongEvalError(f"{place}: each entry needs a metric", "Write {metric: acc, weight_by_size: true}.")
    filters = item.get("filter_list")
    return Aggregate(
        metric=str(item["metric"]),
        filters=None if filters is None else tuple(_texts(filters)),
        weight_by_size=bool(item.get("weight_by_size", True)),
        over=None,
    )


def _description(config: Config) -> str:
    metadata = config.get("metadata")
    said = metadata.get("description") if isinstance(metadata, dict) else None
    return " ".join(said.split()) if isinstance(said, str) else ""


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [str(text) for text in values if text is not None]


def is_task_file(path: str) -> bool:
    """Whether a path has the ending of a task file."""
    return os.path.splitext(path)[1] in (".yaml", ".yml")
