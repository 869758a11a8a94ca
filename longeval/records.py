"""Record and Provenance: the stored outcome of a cell, and where it came from.

`Record` is the contract that other programs read (`--json`, and the files of a run folder): one per cell and metric,
flat, plain JSON types, fields that don't apply are null. A change of meaning of a field raises `SCHEMA_VERSION`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal

SCHEMA_VERSION = 1

Status = Literal["ok", "failed", "skipped"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """Where a record came from: enough to repeat it, and to know what may differ when it doesn't repeat."""

    versions: dict[str, str]
    """Package name to version: longeval, python, torch, transformers, …"""
    commit: str | None
    """Git commit of longeval itself, null outside a checkout."""
    dirty: bool | None
    """Whether that checkout had uncommitted changes to tracked files."""
    command: str
    """The command line, or the name of the function for library use."""
    date: str
    """When the cell was finished, ISO 8601 in UTC."""
    device: str
    """Device name, e.g. `cpu (AMD EPYC, 2 threads)`."""
    platform: str
    """Operating system and machine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One metric of one cell. See the contract in the README; every field is plain JSON."""

    schema_version: int = SCHEMA_VERSION
    cell: str
    """Cell id: a digest of everything that decides the result."""
    model: str
    """The model as the user named it."""
    pe: str
    """Canonical method name."""
    factor: float | None
    """s = target length / native length; null for methods that don't use it (none, abf, the dynamic ones)."""
    length: int
    """Window length in tokens, BOS included."""
    data: str | None
    """Data set as the user named it."""
    task: str | None
    """Downstream task, null for perplexity."""
    protocol: str | None
    """Which tokens are scored with how much context."""
    params: dict[str, Any] = field(default_factory=dict)
    """Everything else that decides the value."""
    backend: str
    dtype: str
    metric: str
    """One name for one definition, lower case: perplexity, bits_per_byte, …"""
    value: float | None
    ci_low: float | None = None
    """Lower end of the 95% bootstrap interval (percentile); how it was drawn is in params.ci."""
    ci_high: float | None = None
    n: int | None = None
    """Windows that were scored (perplexity), samples (tasks)."""
    nll_sum: float | None = None
    """Sum of the scored tokens' negative log-likelihoods, nats. A token scored in k windows counts k times."""
    tokens: int | None = None
    """Scored tokens, counted the same way."""
    documents: int | None = None
    """Documents of which at least one token was scored."""
    truncated: int | None = None
    """Documents of which tokens after the last scored one were left out."""
    skipped: int | None = None
    """Documents that were looked at and left out because they are too short."""
    status: Status
    error: str | None = None
    """Why the cell failed or was skipped."""
    elapsed_s: float | None = None
    """Wall time of the passes that served this cell; cells that share a pass each carry the whole of it."""
    peak_memory_bytes: int | None = None
    """Peak of the process (CPU) or of the device's allocator (GPU) during those passes."""
    rope_digest: str | None = None
    """SHA-256 of the float32 cos/sin table the model held for positions 0…length−1."""
    provenance: Provenance

    def to_json(self) -> dict[str, Any]:
        """Returns the record as plain JSON types; a value that is not finite becomes null (JSON has no NaN)."""
        plain = dataclasses.asdict(self)
        for key in ("value", "ci_low", "ci_high", "nll_sum"):
            if plain[key] is not None and not math.isfinite(plain[key]):
                plain[key] = None
        return plain


def record_from_json(plain: dict[str, Any]) -> Record:
    """Inverse of `Record.to_json`; unknown keys raise TypeError (a record of another schema)."""
    fields = dict(plain)
    fields["provenance"] = Provenance(**fields["provenance"])
    return Record(**fields)


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no spaces: the one text of a value, as digests need it. NaN is refused (ValueError)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
