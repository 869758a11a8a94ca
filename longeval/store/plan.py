"""What was asked of a run folder: `spec.yaml` holds the requests, `plan.json` the cells of each, in their order.

A run writes both before its first cell. From the plan a report knows what is unfinished and in which order rows were
asked for:

    {"schema_version": 1, "requests": [{"command": "ppl", "digest": "…", "cells": [{"cell": id, "model", …}, …]}]}
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from longeval.errors import LongEvalError
from longeval.plain import canonical_json, made_from, read_json
from longeval.request import StudyRequest, requests_from_yaml, requests_to_yaml

if TYPE_CHECKING:
    from longeval.store.folder import Store

PLAN_SCHEMA = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedCell:
    """One cell that was asked for, in the words of its records."""

    cell: str
    """Its id."""
    model: str
    pe: str
    """Canonical method name."""
    factor: float | None
    length: int
    data: str | None
    task: str | None
    """A downstream task, or a group whose average this is (`params.members` then names its tasks)."""
    protocol: str | None
    backend: str
    params: dict[str, Any] = field(default_factory=dict)
    """What tells cells of one table apart: regime and seed of PosGen, members of a group."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedRequest:
    """The cells of one request."""

    command: str
    """The study: `ppl`, `tasks`, `posgen`."""
    digest: str
    """The request's own `digest()`: the same request finds its entry again."""
    cells: tuple[PlannedCell, ...]
    """In the order in which they were asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredPlan:
    """All requests that were made of a run folder, in their order."""

    requests: tuple[PlannedRequest, ...] = ()

    @property
    def cells(self) -> tuple[PlannedCell, ...]:
        """All cells, each once, in the order in which they were asked for first."""
        return tuple({cell.cell: cell for request in self.requests for cell in request.cells}.values())

    def with_request(self, new: PlannedRequest) -> StoredPlan:
        """The plan with a request: at its old place if it was made before, else at the end."""
        same = (new.command, new.digest)
        kept = [new if (one.command, one.digest) == same else one for one in self.requests]
        if new not in kept:
            kept.append(new)
        return StoredPlan(requests=tuple(kept))

    def to_json(self) -> str:
        """The text of plan.json."""
        requests = [dataclasses.asdict(request) for request in self.requests]
        plain = {"schema_version": PLAN_SCHEMA, "requests": requests}
        return json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def plan_from_json(text: str) -> StoredPlan:
    """Inverse of `StoredPlan.to_json`; ValueError, saying what is wrong, for anything else."""
    plain = read_json(text.encode())
    if not isinstance(plain, dict) or plain.get("schema_version") != PLAN_SCHEMA:
        raise ValueError(f"it is not a plan of schema {PLAN_SCHEMA}")
    return made_from(StoredPlan, plain)


def stored_requests(store: Store) -> list[dict[str, Any]]:
    """The requests in the folder's spec.yaml, none where it has no such file; LongEvalError where it is damaged."""
    text, origin = store.read_text("spec.yaml"), f"{store.path}/spec.yaml"
    requests = [] if text is None else requests_from_yaml(text, origin=origin)
    try:
        canonical_json(requests)
    except (TypeError, ValueError):  # dates, sets, NaN: nothing that longeval wrote
        raise LongEvalError(f"{origin}: holds no requests", "Mend or remove it; cells stay.") from None
    return requests


def remember_request(store: Store, request: StudyRequest, planned: PlannedRequest) -> None:
    """Writes the request into the folder's spec.yaml and its cells into plan.json.

    It goes after those that are there, or in the place of one that asks for the same.
    """
    store.remember_plan(planned)
    requests = stored_requests(store)
    asked = request.to_mapping()
    left_out = request.how_only | request.retired
    what = _what(asked, left_out)
    new = [asked if _what(one, left_out) == what else one for one in requests]
    if asked not in new:
        new.append(asked)
    if canonical_json(new) != canonical_json(requests):
        store.write_text("spec.yaml", requests_to_yaml(new))


def _what(request: Mapping[str, Any], left_out: Container[str]) -> str:
    """What a written request asks for, without the keys that only say how it is to be computed."""
    return canonical_json({name: value for name, value in request.items() if name not in left_out})
