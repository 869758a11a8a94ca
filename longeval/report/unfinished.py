"""Which cells were asked for and have no record: an interrupted run must not look like a whole one.

Requests are compared with records setting by setting, without looking anything up: a setting that the request leaves to
the program (`auto`, the task's own number of examples) is met by whatever the record has. Averages of groups are not
counted; they follow their members.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from longeval.report.asked import Subjects, find_subjects, kind_of, named_subjects, subject_of
from longeval.report.rows import base_method, canonical
from longeval.request import ModelRequest, PplRequest, Spec, TasksRequest
from longeval.store.records import Record
from longeval.values import format_length

MAX_NAMED = 6
"""More items than this are summed up."""

_TOLD_APART_BY = (
    *("limit", "seed", "overlong", "chat_template", "num_fewshot", "max_new_tokens", "haystack"),
    *("protocol", "stride", "factor", "pe_args", "pin_length", "native", "parse_special", "base_url", "served_model"),
)
"""Settings that are named where requests differ in them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    """A cell that was asked for."""

    model: str
    pe: str
    length: int
    subject: str
    setting: str
    """What tells its request apart from others; empty if nothing does."""


def unfinished_note(requests: Sequence[Spec], records: Sequence[Record]) -> str:
    """A sentence that counts and names the missing cells; empty where all that was asked for has a record.

    Args:
        requests: Of all run folders.
        records: All records of these, older cells too.
    """
    subjects = find_subjects(requests, records)
    asked: set[_Place] = set()
    missing: dict[_Place, None] = {}
    unseen: dict[str, None] = {}
    for request in requests:
        setting = _setting(request, requests)
        mine = [record for record in records if kind_of(request) == subject_of(record)[0]]
        there = {(r.model, r.pe, r.length, subject_of(r)) for r in mine if _meets(r, request)}
        for place, subject in _places(request, subjects, setting):
            asked.add(place)
            if (place.model, place.pe, place.length, subject) not in there:
                missing.setdefault(place)
        unseen |= dict.fromkeys(_unseen(request, subjects))
    if not missing and not unseen:
        return ""
    said = []
    if missing:
        have = "has" if len(missing) == 1 else "have"
        settings = {place.setting for place in missing}
        common = settings.pop() if len(settings) == 1 else ""
        said.append(f"{len(missing):,} of {len(asked):,} cells {have} no record yet")
        said.append(f"{f' ({common})' if common else ''}: {_named(list(missing), common)}")
    if unseen:
        also = "; nor is there any" if missing else "there is no record yet"
        said.append(f"{also} of {', '.join(unseen)}")
    return f"Not finished: {''.join(said)}.{_guessed(subjects)} The same command goes on where it stopped."


def _guessed(subjects: Subjects) -> str:
    """A sentence on groups that are counted by what has records."""
    known = {*subjects.members, *subjects.present, *(name for name, found in subjects.files.items() if len(found) == 1)}
    groups = [name for kind, name in subjects.named if (kind, name) not in known and subjects.stands_for((kind, name))]
    return f" Of {', '.join(groups)} only what has a record somewhere is counted." if groups else ""


def _places(request: Spec, subjects: Subjects, setting: str) -> Iterator[tuple[_Place, tuple[str, str]]]:
    """Every cell of a request, as far as what it names is known."""
    known = [found for name in named_subjects(request) for found in subjects.stands_for((kind_of(request), name))]
    for subject in dict.fromkeys(known):
        for model in request.model:
            for pe in request.pe:
                for length in request.lengths:
                    place = _Place(model=model, pe=pe, length=length, subject=subject[1], setting=setting)
                    yield place, subject


def _unseen(request: Spec, subjects: Subjects) -> list[str]:
    """Names of which no record shows anything."""
    return [name for name in named_subjects(request) if not subjects.stands_for((kind_of(request), name))]


def _meets(record: Record, request: Spec) -> bool:
    """Whether a record's settings are what the request asks for, as far as it says."""
    if not _meets_model(record, request):
        return False
    if isinstance(request, PplRequest):
        asked = {"stride": request.stride, "min_tokens": request.min_tokens}
        return record.protocol == request.protocol and _has(record, asked)
    return _meets_tasks(record, request)


def _meets_model(record: Record, request: ModelRequest) -> bool:
    params = record.params
    asked = {"native_length": request.native, "bos": request.bos, "seed": request.seed, "attn": request.attn}
    asked |= {"base_url": request.base_url, "served_model": request.served_model}
    given = request.pe_args.get(base_method(record.pe), {})
    method = params.get("method") or {}
    return (
        record.backend == request.backend
        and request.dtype in ("auto", record.dtype)
        and _has(record, asked)
        and all(canonical(method.get(name)) == canonical(value) for name, value in given.items())
        and bool(record.params.get("parse_special")) == request.parse_special
        and record.params.get("pin_length") in (None, request.pin_length)
        and _has_factor(record, request)
    )


def _has(record: Record, asked: Mapping[str, object]) -> bool:
    """Whether the record has these parameters; None and what it doesn't record count as met."""
    return all(value is None or record.params.get(name, value) == value for name, value in asked.items())


def _has_factor(record: Record, request: ModelRequest) -> bool:
    native = record.params.get("native_length")
    if record.factor is None or not native:
        return True
    longest = record.length if request.factor == "each" else request.lengths[-1]
    expected = request.factor if isinstance(request.factor, float | int) else max(1.0, longest / native)
    return math.isclose(record.factor, expected, rel_tol=1e-9)


def _meets_tasks(record: Record, request: TasksRequest) -> bool:
    params = record.params
    asked = {"num_fewshot": request.num_fewshot, "max_new_tokens": request.max_new_tokens}
    chat = {"auto": None, "on": True, "off": False}[request.chat_template]
    haystack = params.get("haystack")
    # A sample that is neither cut nor left out is the same under every --overlong.
    untouched = not record.truncated and not record.skipped
    policy = (params.get("overlong"), params.get("same_samples"))
    return (
        _has(record, asked | {"chat_template": chat})
        and (haystack is None or haystack == (request.haystack or "noise"))
        and (untouched or policy == (request.overlong, request.same_samples))
        and _meets_limit(record, request.limit)
    )


def _meets_limit(record: Record, limit: int | None) -> bool:
    """Whether a record has the samples of this limit: it was asked with it, or a task has no more than it has."""
    own = record.params.get("limit")
    if own == limit:
        return True
    seen = (record.n or 0) + (record.skipped or 0)
    is_whole = record.n is not None and (own is None or seen < own)
    return is_whole and (limit is None or limit >= seen)


def _setting(request: Spec, requests: Sequence[Spec]) -> str:
    """`limit 10, seed 1`: in what a request differs from others of its command."""
    others = [other for other in requests if type(other) is type(request)]
    parts = []
    for name in _TOLD_APART_BY:
        value = getattr(request, name, None)
        if any(getattr(other, name, None) != value for other in others):
            parts.append(f"no {name}" if value in (None, {}) else f"{name} {value}")
    return ", ".join(parts)


def _named(places: Sequence[_Place], common: str) -> str:
    """`yarn, resonance_yarn at 8k, 16k (passkey, niah_single); …`, what is missing alike together.

    A `common` setting of all has been said.
    """
    lengths: dict[tuple[str, str, str, str], list[int]] = defaultdict(list)
    for place in places:
        lengths[place.model, place.setting, place.pe, place.subject].append(place.length)
    subjects: dict[tuple[str, str, str, tuple[int, ...]], list[str]] = defaultdict(list)
    for (model, setting, pe, subject), found in lengths.items():
        subjects[model, setting, pe, tuple(found)].append(subject)
    methods: dict[tuple[str, str, tuple[int, ...], tuple[str, ...]], list[str]] = defaultdict(list)
    for (model, setting, pe, at), found_subjects in subjects.items():
        methods[model, setting, at, tuple(found_subjects)].append(pe)
    several = len({place.model for place in places}) > 1
    items = [
        f"{f'{model} ' if several else ''}{', '.join(pes)} at {', '.join(map(format_length, at))} "
        f"({'; '.join(filter(None, (', '.join(about), '' if setting == common else setting)))})"
        for (model, setting, at, about), pes in methods.items()
    ]
    more = f"; and {len(items) - MAX_NAMED} more such" if len(items) > MAX_NAMED else ""
    return "; ".join(items[:MAX_NAMED]) + more
