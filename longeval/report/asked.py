"""What was asked of the run folders, as their spec.yaml says: whom names stand for, and in which order.

A task file is known by the records that name it as their source, a pattern by the names that it matches. A group of
tasks (`leval`) is known here by name only: looking up its members would need lm-eval. Its average names them once it is
stored; before that, what has records and isn't named by any request is taken for its members, and of several such
groups each is given what begins with its name.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from longeval.errors import LongEvalError
from longeval.report.rows import base_method, is_resonance, method_of, method_sort_key
from longeval.request import PosGenRequest, PplRequest, Spec, request_from_mapping, requests_from_yaml
from longeval.store.records import Record


def read_requests(text: str, origin: str) -> tuple[Spec, ...]:
    """The requests in a run folder's spec.yaml, those of PosGen left out; none in an empty text.

    Raises:
        LongEvalError: It can't be understood; the report can do without.
    """
    if not text:
        return ()
    requests = [request_from_mapping(plain, origin=origin) for plain in requests_from_yaml(text, origin=origin)]
    return tuple(request for request in requests if not isinstance(request, PosGenRequest))


def named_subjects(request: Spec) -> tuple[str, ...]:
    """Tasks and groups, or data sets, as a request names them."""
    return request.data if isinstance(request, PplRequest) else request.tasks


def subject_of(record: Record) -> tuple[str, str]:
    """Kind and name of what a record is about: a task (or group), or data."""
    return ("data", record.data or "") if record.task is None else ("tasks", record.task)


def kind_of(request: Spec) -> str:
    """Kind of a request's subjects, as `subject_of` says it."""
    return "data" if isinstance(request, PplRequest) else "tasks"


@dataclass(frozen=True, kw_only=True, slots=True)
class Subjects:
    """Which tasks or data the names in requests stand for, as far as records show."""

    named: tuple[tuple[str, str], ...]
    """(kind, name) of all that requests name, in their order."""
    members: dict[tuple[str, str], tuple[str, ...]]
    """Groups with a record → their members."""
    present: dict[tuple[str, str], None] = field(default_factory=dict)
    """What has records, averages left out, in the order of the first that was finished."""
    files: dict[tuple[str, str], tuple[tuple[str, str], ...]] = field(default_factory=dict)
    """Task files that requests name → what has records and was defined in them."""

    def stands_for(self, subject: tuple[str, str]) -> list[tuple[str, str]]:
        """The tasks or data that a name stands for: itself, a group's members with records, or all not named."""
        kind, own = subject
        if subject in self.members:
            return [(kind, name) for name in self.members[subject] if (kind, name) in self.present]
        if subject in self.present:
            return [subject]
        if subject in self.files:
            return list(self.files[subject])
        # Members of a group that was itself only meant by another name (a file, a pattern) are that name's.
        groups = {group: names for group, names in self.members.items() if group in self.named}
        matched = {
            name for group, names in self.members.items() if fnmatch.fnmatchcase(group[1], own) for name in names
        }
        matches = [other for other in self.present if other[0] == kind and _matches(other[1], own, matched)]
        if matches:
            return matches
        known = {*self.named} | {(group[0], name) for group, names in groups.items() for name in names}
        known |= {other for found in self.files.values() for other in found}
        unnamed = [other for other in self.present if other[0] == kind and other not in known]
        unknown = [name for name in self.named if name not in self.members and name not in self.present]
        claimed = {other: _longest_beginning(other, unknown) for other in unnamed}
        mine = [other for other in unnamed if claimed[other] == subject]
        return mine or [other for other in unnamed if claimed[other] is None]

    def place(self, subject: tuple[str, str]) -> tuple[int, int]:
        """Sorts subjects as they were asked for, the members of a group together; others come last."""
        if subject in self.named:  # an average stands below its members
            return self.named.index(subject), len(self.members.get(subject, ()))
        for index, name in enumerate(self.named):
            found = self.stands_for(name)
            if subject in found:
                return index, found.index(subject)
        return len(self.named), [*self.present, subject].index(subject)


def _matches(name: str, pattern: str, members: Collection[str]) -> bool:
    """Whether a pattern means a task: by its name, or as a member of a group that it matches."""
    return fnmatch.fnmatchcase(name, pattern) or name in members


def _longest_beginning(subject: tuple[str, str], names: Iterable[tuple[str, str]]) -> tuple[str, str] | None:
    """Of several names, the longest that a task's own begins with: `niah` of `niah_single`."""
    kind, own = subject
    return max(
        (name for name in names if name[0] == kind and own.startswith(name[1])),
        key=lambda name: len(name[1]),
        default=None,
    )


def find_subjects(requests: Iterable[Spec], records: Sequence[Record]) -> Subjects:
    """What the names in requests stand for."""
    named = dict.fromkeys((kind_of(request), name) for request in requests for name in named_subjects(request))
    members: dict[tuple[str, str], tuple[str, ...]] = {}
    present: dict[tuple[str, str], None] = {}
    for record in sorted(records, key=_finished):
        if record.params.get("members") is None:
            present.setdefault(subject_of(record))
        else:
            members[subject_of(record)] = tuple(record.params["members"])
    files = {name: found for name in named if (found := _defined_in(name, records))}
    return Subjects(named=tuple(named), members=members, present=present, files=files)


def _defined_in(subject: tuple[str, str], records: Iterable[Record]) -> tuple[tuple[str, str], ...]:
    """What has records whose source is the file that a request names."""
    kind, path = subject
    if kind != "tasks" or not (path.endswith((".yaml", ".yml")) or os.sep in path):
        return ()
    file = os.path.normpath(os.path.expanduser(path))
    found = (record for record in records if os.path.normpath(str(record.params.get("source"))) == file)
    return tuple(dict.fromkeys(map(subject_of, found)))


class ReadingOrder:
    """Sorts cells as they were asked for: by model, data before tasks, subject, protocol, method, factor and length.

    What no request names comes after what one does: models and subjects as they were finished, methods in the order of
    their publication. Resonance forms stand below their base.
    """

    def __init__(self, requests: Sequence[Spec], records: Sequence[Record]) -> None:
        by_date = sorted(records, key=_finished)
        asked = [name for request in requests for name in request.model]
        self._models = _places([*asked, *(record.model for record in by_date)])
        self._methods = _places(base_method(name) for request in requests for name in request.pe)
        self._subjects = find_subjects(requests, records)

    def key(self, record: Record) -> tuple[object, ...]:
        """What to sort by."""
        base = base_method(record.pe)
        unnamed, name, _ = method_sort_key(base)
        asked = (self._methods[base], 0, "") if base in self._methods else (len(self._methods), unnamed, name)
        subject = (record.task is not None, *self._subjects.place(subject_of(record)))
        setting = (record.protocol or "", record.backend, record.dtype)
        method = (*asked, method_of(record), record.factor or 0.0, is_resonance(record.pe))
        return (
            self._models[record.model],
            *subject,
            *setting,
            *method,
            record.length,
            record.provenance.date,
            record.cell,
        )


def understood(folders: Iterable[tuple[str, str]]) -> tuple[tuple[Spec, ...], tuple[str, ...]]:
    """All requests of run folders, each once, and a sentence for each spec.yaml that can't be understood.

    Args:
        folders: (path, text of spec.yaml).
    """
    requests: dict[str, Spec] = {}
    notes = []
    for path, text in folders:
        try:
            found = read_requests(text, f"{path}/spec.yaml")
        except LongEvalError as error:
            notes.append(f"Whether cells are missing is not known: {error.problem}.")
            continue
        for request in found:
            requests.setdefault(repr(request), request)
    return tuple(requests.values()), tuple(notes)


def _finished(record: Record) -> tuple[str, str, str]:
    """When, and by name what was finished in the same second."""
    return record.provenance.date, record.model, subject_of(record)[1]


def _places(names: Iterable[str]) -> dict[str, int]:
    return {name: place for place, name in enumerate(dict.fromkeys(names))}
