"""The members of a group file: names, names with changes, groups and tasks written inside it.

By lm-eval's rules (0.4.13, tasks/_factory.py): a change for a group goes to all of its tasks; an unknown name with
keys beside it is a task or group of its own, called `GROUP::NAME`. We also give a task that a group changes that name:
`openllm::hellaswag`, with its 10 examples, isn't `hellaswag`. Names of these kinds can be typed after `--tasks` too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from longeval.studies.tasks.definitions.configs import Config

_GROUP_KEYS = frozenset({"group", "group_alias", "task", "aggregate_metric_list", "metadata"})
"""Keys of a group itself; all others are changes for its tasks."""
_NO_CHANGE = frozenset({"task", "task_alias", "group", "group_alias", "tag", "task_list", "aggregate_metric_list"})
"""Keys beside a member's name that change nothing of what is computed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """What the index says of a name that a member may refer to."""

    kind: Literal["task", "group", "tag"]
    """A tag has members, but no file."""
    config: Callable[[], Config]
    """Reads the file of a group; asked only where its tasks are changed."""
    members: tuple[str, ...] = ()
    """Tasks of a tag."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """A member of a group, after the rules above."""

    name: str
    """The referred name itself, or `GROUP::NAME` if it is changed or written here."""
    base: str | None
    """Name of the task that it is or changes; null: a task written here, or a group."""
    changes: Config = field(default_factory=dict)
    """Keys that differ from the base's, or all keys of a task written here."""
    group: Config | None = None
    """Keys of a group that is written or changed here; null for tasks, and for groups referred to as they are."""
    children: tuple[Member, ...] = ()
    """Members of such a group."""
    problem: str | None = None
    """Why it can't be a member; null: it can."""


Lookup = Callable[[str], Known | None]


def members_of(group: str, config: Config, known: Lookup, changes: Config | None = None) -> tuple[Member, ...]:
    """Lays out a group's members.

    Args:
        group: Name that changed and inner members are called after.
        config: The group's keys.
        known: Looks a name up in the index.
        changes: What an outer group changes.
    """
    changes = {**{key: value for key, value in config.items() if key not in _GROUP_KEYS}, **(changes or {})}
    items = config.get("task")
    items = items if isinstance(items, list) else [] if items is None else [items]
    return tuple(_member(group, item, known, changes) for item in items)


def _member(group: str, item: object, known: Lookup, changes: Config) -> Member:
    if isinstance(item, str):
        return _reference(group, item, known, changes, plain=True)
    if isinstance(item, dict) and isinstance(item.get("group"), str):
        name = item["group"]
        if known(name) is not None:
            return _reference(group, name, known, {**changes, **_without(item, _GROUP_KEYS)})
        inner = f"{group}::{name}"
        return Member(name=inner, base=None, group=item, children=members_of(inner, item, known, changes))
    if isinstance(item, dict) and isinstance(item.get("task"), str):
        return _reference(group, item["task"], known, {**changes, **_without(item, frozenset({"task"}))})
    return Member(
        name=f"{group}::?", base=None, problem="one of its members has neither the key task nor the key group"
    )


def _reference(group: str, name: str, known: Lookup, changes: Config, *, plain: bool = False) -> Member:
    found = known(name)
    changed = f"{group}::{name}"
    if found is None:
        if plain and not _matters(changes):
            return Member(name=name, base=None, problem=f"its member {name} is unknown")
        return Member(name=changed, base=None, changes=changes)
    if not _matters(changes):
        return Member(name=name, base=name)
    if found.kind == "task":
        return Member(name=changed, base=name, changes=changes)
    inner = found.config() if found.kind == "group" else {"task": list(found.members)}
    return Member(name=changed, base=None, group=inner, children=members_of(changed, inner, known, changes))


def _matters(changes: Config) -> bool:
    return bool(set(changes) - _NO_CHANGE)


def _without(item: Config, keys: frozenset[str]) -> Config:
    return {key: value for key, value in item.items() if key not in keys}
