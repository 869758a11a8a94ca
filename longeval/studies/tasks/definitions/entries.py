"""What is known of tasks and groups without loading them: names, files, needs, members.

lm-eval's rules (0.4.13, tasks/_index.py and _factory.py):

- A file with `class` or `task` is a task, with `group` a group, anything else a part for `include`.
- A tag is a group of all tasks that carry it, unless the name was taken by then.
- A change that a group makes to a group goes to all of its tasks.
- A member of an unknown name with keys beside it is a task or group of its own, called `GROUP::NAME`.

Differences, on purpose:

- A task that a group changes is called `GROUP::NAME` too: `openllm::hellaswag` has 10 examples, `hellaswag` none.
- A class task's key `group` makes a group. SCROLLS has no other.
- In our own and users' files a name that is there twice, or a member that is unknown, is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from longeval.errors import LongEvalError
from longeval.studies.tasks.definitions.files import Config, FunctionName, place_of, read_config
from longeval.studies.tasks.definitions.needs import NOTHING, group_needs, needs_of, own_needs, refusal_of

OURS = "longeval"
LM_EVAL = "lm_eval"

_GROUP_KEYS = frozenset({"group", "group_alias", "task", "aggregate_metric_list", "metadata"})
"""Keys of a group itself; all others are changes for its tasks."""

_NO_CHANGE = frozenset({"task", "task_alias", "group", "group_alias", "tag", "task_list", "aggregate_metric_list"})
"""Keys beside a member's name that change nothing of what is computed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupAverage:
    """One average of a group: `aggregate_metric_list` in lm-eval's YAML, or our `average_over`."""

    group: str
    """Name of the group, which may be nested in the one that was asked for."""
    metric: str | None
    """lm-eval's name of the metric, `acc`; null: each member's main metric. A number, as in RULER, whose metrics are
    named by length, stands for the metric of the cell's length."""
    filters: tuple[str, ...] | None
    """Filters to average, one number each; null: all that the members have."""
    weight_by_size: bool
    """Whether a member counts as often as it has samples; otherwise all members count alike."""
    members: tuple[str, ...]
    """The tasks that are averaged; empty in a group's entry where all of its tasks are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskEntry:
    """A task or a group as `longeval tasks --list` shows it, and where it is written."""

    name: str
    """What the user types after `--tasks`."""
    kind: Literal["task", "group"]
    """lm-eval's tags are groups too."""
    source: str
    """`longeval`, `lm_eval`, or the path of the user's YAML file."""
    needs: str
    """One line: `nothing`, or what must be downloaded or installed."""
    description: str = ""
    """One line; empty where its file has none."""
    members: tuple[str, ...] = ()
    """A group's direct members, tasks or groups."""
    path: str | None = None
    """Its YAML file; None for lm-eval's tags."""
    refusal: str | None = None
    """Why longeval doesn't run it; None: it does."""
    within: str | None = None
    """Group in whose file it is written or changed; None: it has a file of its own."""
    base: str | None = None
    """Task that a group changes; None: the task is written where `path` says."""
    changes: Config = field(default_factory=dict)
    """Of a task within a group's file: the keys that differ from those of `base`, or all keys."""
    averages: tuple[GroupAverage, ...] = ()
    """Averages that a group asks for."""
    own_name: str | None = None
    """What its file calls it, where `name` is the path that the user typed; None: `name`."""

    @property
    def title(self) -> str:
        """What results are shown under."""
        return self.own_name or self.name


Entries = dict[str, TaskEntry]
Lookup = Callable[[str], TaskEntry | None]


@dataclass(slots=True)
class Named:
    """A name that task files define, and its keys; members are not looked up yet."""

    kind: Literal["task", "group", "tag"]
    path: str | None
    config: Config = field(default_factory=dict)
    tasks: list[str] = field(default_factory=list)
    """Tasks of a tag."""
    own_name: str | None = None
    """What its file calls it, where it goes by another name; None: the same."""


def scan(files: Iterable[str], *, source: str | None, outer: Lookup, name: str | None = None) -> Entries:
    """Returns the entries of our own or a user's task files by name, those of members within groups included.

    Args:
        files: Paths.
        source: `longeval`; None: a user's files, each is its own source.
        outer: Looks up names that members may refer to beyond these files.
        name: Of a single file: what its task or group is called in place of its own name.

    Raises:
        LongEvalError: If a file is no YAML, has a name that another has, or a group has a member that is unknown;
            names file and line.
    """
    names: dict[str, Named] = {}
    for path in files:
        config = read_config(path, strict=True)
        kind: Literal["task", "group"] = "task" if "class" in config or "group" not in config else "group"
        own = config.get(kind)
        if not isinstance(own, str):
            continue
        key = name or own
        if key in names and names[key].path is not None:
            raise LongEvalError(
                f"{place_of(path, kind)}: {key} is the name of {names[key].path} already", "Give it another."
            )
        if key in names:  # a tag of an earlier file
            continue
        names[key] = Named(kind, path, config, own_name=own if name else None)
        for tag in _texts(config.get("tag")) if kind == "task" else ():
            names.setdefault(tag, Named("tag", None)).tasks.append(key)
    return Layout(names, source=source, outer=outer, strict=True).entries()


class Layout:
    """Makes entries of names, and of the tasks and groups that are written or changed within groups.

    Args:
        names: All names of a set of files.
        source: See `scan`.
        outer: See `scan`.
        strict: Whether a group with a member that is unknown is an error; otherwise it is refused when it is asked for.
    """

    def __init__(self, names: Mapping[str, Named], *, source: str | None, outer: Lookup, strict: bool) -> None:
        self._names = dict(names)
        self._source = source
        self._outer = outer
        self._strict = strict
        self._entries: Entries = {}
        self._file_group = ""
        """The group whose file is laid out."""
        self._problems: list[str] = []
        """What is wrong with its members."""
        for name, named in names.items():
            if "class" in named.config and isinstance(named.config.get("group"), str):
                self._names.setdefault(named.config["group"], Named("tag", None)).tasks.append(name)

    def entries(self) -> Entries:
        """All entries by name."""
        for name, named in self._names.items():
            if named.kind == "task":
                self._entries[name] = self._task(name, named.config, named.path)
        for name, named in self._names.items():
            if named.kind == "tag":
                self._entries[name] = self._group(name, {}, tuple(sorted(named.tasks)), None)
            elif named.kind == "group":
                self._entries[name] = self._group_of_file(name, named)
        for name, named in self._names.items():
            if named.kind != "task":
                self._settle_needs(name, ())
        return {name: self._titled(entry) for name, entry in self._entries.items()}

    def _titled(self, entry: TaskEntry) -> TaskEntry:
        """An entry with the name that results are shown under."""
        outer = entry.within or entry.name
        own = self._names[outer].own_name
        return entry if own is None else replace(entry, own_name=f"{own}{entry.name.removeprefix(outer)}")

    def _task(self, name: str, config: Config, path: str | None) -> TaskEntry:
        refusal = refusal_of(config)
        return TaskEntry(
            name=name,
            kind="task",
            source=self._source or str(path),
            needs=needs_of(config, look=self._strict) if refusal is None else f"not run: {refusal}",
            description=_description(config),
            path=path,
            refusal=refusal,
        )

    def _group_of_file(self, name: str, named: Named) -> TaskEntry:
        self._file_group, self._problems = name, []
        members = self._members(name, named.config, {})
        if self._problems and self._strict:
            raise LongEvalError(
                f"{place_of(str(named.path), 'task')}: group {name}: {self._problems[0]}",
                "Tasks of other folders are known with --include FOLDER.",
            )
        entry = self._group(name, named.config, members, named.path)
        return replace(entry, refusal=self._problems[0]) if self._problems else entry

    def _group(self, name: str, config: Config, members: tuple[str, ...], path: str | None) -> TaskEntry:
        return TaskEntry(
            name=name,
            kind="group",
            source=self._source or str(path),
            needs=NOTHING,
            description=_description(config) or str(config.get("group_alias") or ""),
            members=members,
            path=path,
            averages=_averages(name, config, str(path)),
        )

    def _members(self, group: str, config: Config, changes: Config) -> tuple[str, ...]:
        """Names of a group's members; those that are written or changed here become entries.

        Args:
            group: The group, after which such members are called.
            config: Its keys.
            changes: What an outer group changes.
        """
        changes = {**{key: value for key, value in config.items() if key not in _GROUP_KEYS}, **changes}
        items = config.get("task")
        items = items if isinstance(items, list) else [] if items is None else [items]
        return tuple(self._member(group, item, changes) for item in items)

    def _member(self, group: str, item: object, changes: Config) -> str:
        if isinstance(item, str):
            if self._known(item) is None and not _matters(changes):
                self._problems.append(f"its member {item} is unknown")
                return item
            return self._reference(group, item, changes)
        keys = item if isinstance(item, dict) else {}
        if isinstance(name := keys.get("group"), str):
            if self._known(name) is None:
                return self._inner_group(f"{group}::{name}", keys, changes)
            own = {key: value for key, value in keys.items() if key not in _GROUP_KEYS}
            return self._reference(group, name, {**changes, **own})
        if isinstance(name := keys.get("task"), str):
            own = {key: value for key, value in keys.items() if key != "task"}
            return self._reference(group, name, {**changes, **own})
        self._problems.append("one of its members has neither the key task nor the key group")
        return f"{group}::?"

    def _reference(self, group: str, name: str, changes: Config) -> str:
        """A member by its name: as it is, or in a changed form that is called `GROUP::NAME`."""
        known, changed = self._known(name), f"{group}::{name}"
        if known is not None and not _matters(changes):
            return name
        if known is None or known.kind == "task":
            self._entries[changed] = self._inner_task(changed, None if known is None else name, changes)
            return changed
        if name in group.split("::"):
            self._problems.append(f"its member {name} contains itself")
            return changed
        if known.kind == "tag":
            return self._inner_group(changed, {"task": sorted(known.tasks)}, changes)
        return self._inner_group(changed, known.config or read_config(str(known.path)), changes)

    def _inner_group(self, name: str, config: Config, changes: Config) -> str:
        members = self._members(name, config, changes)
        entry = self._group(name, config, members, self._names[self._file_group].path)
        self._entries[name] = replace(entry, within=self._file_group)
        return name

    def _inner_task(self, name: str, base: str | None, changes: Config) -> TaskEntry:
        entry = self._task(name, {**changes, "task": name}, self._names[self._file_group].path)
        if base is not None:
            own = self._entries.get(base) or self._outer(base)
            assert own is not None
            entry = replace(entry, needs=own.needs, description=own.description, refusal=own.refusal or entry.refusal)
        elif "include" in changes:
            problem = "it is written with include inside a group, where lm-eval doesn't read it"
            entry = replace(entry, needs=f"not run: {problem}", refusal=problem)
        return replace(entry, within=self._file_group, base=base, changes=changes)

    def _known(self, name: str) -> Named | None:
        """What a member's name refers to."""
        if name in self._names:
            return self._names[name]
        entry = self._outer(name)
        if entry is None:
            return None
        kind: Literal["task", "group", "tag"] = "tag" if entry.path is None else entry.kind
        return Named(kind, entry.path, tasks=list(entry.members))

    def _settle_needs(self, name: str, within: tuple[str, ...]) -> dict[str, str]:
        """Fills in what a group needs, innermost groups first; returns what each of its tasks needs."""
        entry = self._entries.get(name) or self._outer(name)
        if entry is None or name in within:
            return {}
        if entry.kind == "task" or name not in self._entries:
            return {name: entry.needs}
        needs: dict[str, str] = {}
        for member in entry.members:
            needs.update(self._settle_needs(member, (*within, name)))
        config = self._names[name].config if name in self._names else {}
        said = f"not run: {entry.refusal}" if entry.refusal else group_needs(needs)
        self._entries[name] = replace(entry, needs=own_needs(config) or said)
        return needs


def _averages(group: str, config: Config, path: str) -> tuple[GroupAverage, ...]:
    """The averages that a group's keys ask for."""
    metadata = config.get("metadata")
    over = metadata.get("average_over") if isinstance(metadata, dict) else None
    if over is not None:
        if not (isinstance(over, list) and over and all(isinstance(name, str) for name in over)):
            raise LongEvalError(f"{place_of(path, 'metadata')}: average_over must be a list of tasks", "Name some.")
        return (GroupAverage(group=group, metric=None, filters=None, weight_by_size=False, members=tuple(over)),)
    asked = config.get("aggregate_metric_list")
    asked = asked if isinstance(asked, list) else [] if asked is None else [asked]
    return tuple(_average(group, item, path) for item in asked)


def _average(group: str, item: Any, path: str) -> GroupAverage:
    if not isinstance(item, dict) or "metric" not in item:
        raise LongEvalError(
            f"{place_of(path, 'aggregate_metric_list')}: each entry needs a metric",
            "Write {metric: acc, weight_by_size: true}.",
        )
    metric, filters = item["metric"], item.get("filter_list")
    return GroupAverage(
        group=group,
        metric=metric.name if isinstance(metric, FunctionName) else str(metric),
        filters=None if filters is None else tuple(_texts(filters)),
        weight_by_size=bool(item.get("weight_by_size", True)),
        members=(),
    )


def _description(config: Config) -> str:
    metadata = config.get("metadata")
    said = metadata.get("description") if isinstance(metadata, dict) else None
    return " ".join(said.split()) if isinstance(said, str) else ""


def _matters(changes: Config) -> bool:
    return bool(set(changes) - _NO_CHANGE)


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [str(text) for text in values if text is not None]
