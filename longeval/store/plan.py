"""The stored plan of a run folder: `spec.yaml` holds its requests, `plan.json` the cells of each request, in order.

A run writes both before its first cell. Reports learn from the plan which cells are unfinished, and the order of rows:

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
    """One cell of a request. Fields have the names and meanings of a record's."""

    cell: str
    """The cell's id."""
    model: str
    pe: str
    """Canonical method name."""
    factor: float | None
    length: int
    data: str | None
    task: str | None
    """A downstream task, or a task group (then `params.members` names its tasks and the cell is their average)."""
    protocol: str | None
    backend: str
    params: dict[str, Any] = field(default_factory=dict)
    """Parameters that tell the cells of one table apart: PosGen's regime and seed, a group's members."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedRequest:
    """The cells of one request."""

    command: str
    """Name of the study, such as `ppl`."""
    digest: str
    """The request's `digest()`. A request that is repeated replaces its earlier entry."""
    cells: tuple[PlannedCell, ...]
    """Its cells, in the order of the request."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredPlan:
    """All requests of a run folder, oldest first."""

    requests: tuple[PlannedRequest, ...] = ()

    @property
    def cells(self) -> tuple[PlannedCell, ...]:
        """All cells, each once, in the order in which they were first requested."""
        return tuple({cell.cell: cell for request in self.requests for cell in request.cells}.values())

    def with_request(self, new: PlannedRequest) -> StoredPlan:
        """The plan with a request added: in the place of an earlier equal request, otherwise at the end."""
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
    """Inverse of `StoredPlan.to_json`; raises ValueError with the reason for any other text."""
    plain = read_json(text.encode())
    if not isinstance(plain, dict) or plain.get("schema_version") != PLAN_SCHEMA:
        raise ValueError(f"it is not a plan of schema {PLAN_SCHEMA}")
    return made_from(StoredPlan, plain)


def stored_requests(store: Store) -> list[dict[str, Any]]:
    """The requests in the folder's spec.yaml; none without the file. Raises LongEvalError if the file is damaged."""
    text, origin = store.read_text("spec.yaml"), f"{store.path}/spec.yaml"
    requests = [] if text is None else requests_from_yaml(text, origin=origin)
    try:
        canonical_json(requests)
    except (TypeError, ValueError):  # dates, sets, NaN: longeval writes none of these
        raise LongEvalError(
            f"{origin}: holds no requests", "Correct or remove the file; finished cells stay."
        ) from None
    return requests


def remember_request(store: Store, request: StudyRequest, planned: PlannedRequest) -> None:
    """Writes a request into the folder's spec.yaml and its cells into plan.json.

    It replaces an earlier request with the same cells; otherwise it is appended.
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
    """A stored request as canonical JSON, without the settings that only say how it is computed."""
    return canonical_json({name: value for name, value in request.items() if name not in left_out})
