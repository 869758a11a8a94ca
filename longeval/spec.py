"""What was asked: values as users write them, and the frozen request that a run is made from.

A request comes from flags or from YAML (`longeval run FILE`), is checked here as far as it can be without looking
anything up (names of methods, models and data are looked up by `plan`), and is written into the run folder as it was
understood.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import yaml

from longeval.errors import LongEvalError, did_you_mean
from longeval.records import canonical_json

ScaleFrom = Literal["plain", "shipped"]
SCALE_FROM: tuple[ScaleFrom, ...] = get_args(ScaleFrom)
"""What methods start from on a model that comes already scaled: plain RoPE, or the shipped frequencies."""

Layers = Literal["global", "all"]
LAYERS: tuple[Layers, ...] = get_args(Layers)
"""Which layers are scaled where a model rotates by layer type: those that see the whole context, or all."""

_LENGTH = re.compile(r"([0-9]{1,15})([km]?)", re.IGNORECASE)
_UNITS = {"": 1, "k": 1024, "m": 1024 * 1024}


def parse_length(text: str, *, flag: str = "--lengths", least: int = 2) -> int:
    """One length in tokens: `4k` is 4096, `1m` is 1048576, plain integers as they are."""
    match = _LENGTH.fullmatch(text.strip())
    if match is None:
        raise LongEvalError(f"{flag} {text!r}: not a length", "Write tokens as 4096, 4k (= 4096) or 1m (= 1048576).")
    length = int(match[1]) * _UNITS[match[2].lower()]
    if length < least:
        remedy = "A token is scored from the ones before it." if least == 2 else "256 is usual."
        raise LongEvalError(f"{flag} {text}: must be at least {least} tokens", remedy)
    return length


def parse_lengths(text: str, *, flag: str = "--lengths") -> tuple[int, ...]:
    """A comma list of lengths, ascending, without repeats."""
    parts = split_list(text, flag=flag)
    return tuple(sorted({parse_length(part, flag=flag) for part in parts}))


def split_list(text: str, *, flag: str) -> tuple[str, ...]:
    """A comma list of names in the order given, without repeats; an empty one raises LongEvalError."""
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise LongEvalError(f"{flag} {text!r}: an empty item", "Write a comma list without blanks: a,b,c.")
    return tuple(dict.fromkeys(_checked_name(part, flag) for part in parts))


def _checked_name(name: str, flag: str) -> str:
    """Names go into records and digests, so they must be text."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise LongEvalError(
            f"{flag} {name!a}: not UTF-8", "Rename the file or link to it under another name."
        ) from None
    if not name.strip():
        raise LongEvalError(f"{flag}: an empty name", "Name something, or leave it out.")
    return name


def format_length(length: int) -> str:
    """`4096` as `4k`, `1048576` as `1m`, others as they are."""
    if length % (1024 * 1024) == 0:
        return f"{length // (1024 * 1024)}m"
    return f"{length // 1024}k" if length % 1024 == 0 else str(length)


def parse_factor(text: str, *, flag: str = "--factor") -> float:
    """A factor s ≥ 1; NaN, infinity and what is no number raise LongEvalError."""
    try:
        factor = float(text)
    except ValueError:
        factor = math.nan
    if not (math.isfinite(factor) and factor >= 1):
        raise LongEvalError(
            f"{flag} {text}: must be a finite number of at least 1",
            "It is target length / native length: 4 stretches 4k to 16k.",
        )
    return factor


def parse_count(text: str, *, flag: str, least: int = 1) -> int:
    """A whole number of at least `least`."""
    try:
        count = int(text)
    except ValueError:
        raise LongEvalError(f"{flag} {text!r}: not a whole number", f"Give one of at least {least}.") from None
    if count < least:
        raise LongEvalError(f"{flag} {text}: must be at least {least}", f"Give a whole number of at least {least}.")
    return count


def check_word(flag: str, word: str, known: tuple[str, ...]) -> None:
    """Raises LongEvalError unless `word` is one of the `known` ones."""
    if word not in known:
        raise LongEvalError(f"{flag} {word}: unknown", f"Use {' or '.join(known)}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class PplSpec:
    """A request of `longeval ppl`. Every combination of model, method, length and data set is a cell."""

    model: tuple[str, ...]
    """Short names, hub ids, folders, .gguf files."""
    pe: tuple[str, ...]
    """Method names."""
    lengths: tuple[int, ...]
    """Window lengths in tokens, ascending."""
    data: tuple[str, ...] = ("gov_report",)
    """Corpora, `leval:NAME`, `stdlib`, files and folders."""
    protocol: str = "prefix"
    """Which tokens are scored with how much context."""
    factor: float | Literal["each"] | None = None
    """s for all lengths; `each`: every length its own; None: longest length / native length, at least 1."""
    pe_args: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Method parameters by method: {"yarn": {"beta_fast": 16}}."""
    stride: int | None = None
    """Tokens between windows (sliding, sliding_window_mean, stream); None: 256."""
    min_tokens: int | None = None
    """Documents with fewer tokens (BOS not counted) are skipped. None: the longest length under prefix, else 2."""
    docs: int | Literal["all"] | None = None
    """At most this many documents; None: what the data set suggests."""
    bos: bool | None = None
    """Whether a BOS starts every window; None: if the tokenizer itself would add one."""
    text_field: str | None = None
    """The field of JSONL and parquet files that holds the text."""
    native: int | None = None
    """Native length L in tokens; None: the model's own."""
    scale_from: ScaleFrom = "plain"
    """On a model that comes already scaled, methods replace that scaling (plain) or build on it (shipped)."""
    layers: Layers = "global"
    """Where a model rotates by layer type: scale its global layers only, or all."""
    backend: str = "hf"
    """What runs the model."""
    dtype: str = "auto"
    """Precision; auto: bfloat16 where the device multiplies it natively, else float32."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto: the first GPU, else the CPU."""
    device_map: str | None = None
    """Spread over several devices: auto, balanced, …"""
    attn: str | None = None
    """Attention implementation: sdpa, eager, flash_attention_2, …; None: the model's default."""
    revision: str | None = None
    """Hub revision of the model."""
    trust_remote_code: bool = False
    """Run code from the model's repository."""
    seed: int = 0
    """Seed of the bootstrap."""

    def __post_init__(self) -> None:
        for flag, items in (("--model", self.model), ("--pe", self.pe), ("--data", self.data)):
            if not items:
                raise LongEvalError(f"{flag}: nothing named", "Give at least one.")
        if not self.lengths:
            raise LongEvalError("--lengths: nothing named", "Give at least one, such as 4k,8k,16k.")
        if self.stride is not None and self.stride < 1:
            raise LongEvalError(f"--stride {self.stride}: must be at least 1", "256 is usual.")
        if self.min_tokens is not None and self.min_tokens < 2:
            raise LongEvalError(f"--min-tokens {self.min_tokens}: must be at least 2", "Leave it out for the default.")
        if self.native is not None and self.native < 2:
            raise LongEvalError(f"--native {self.native}: must be at least 2 tokens", "Llama 2 has 4096.")
        check_word("--scale-from", self.scale_from, SCALE_FROM)
        check_word("--layers", self.layers, LAYERS)
        if isinstance(self.docs, int) and self.docs < 1:
            raise LongEvalError(f"--docs {self.docs}: must be at least 1", "Give a number, or all.")
        if self.device_map is not None and self.device != "auto":
            raise LongEvalError(
                f"--device {self.device}: would be ignored beside --device-map {self.device_map}",
                "Give one of the two.",
            )

    def to_mapping(self) -> dict[str, Any]:
        """As plain YAML: every field that says something, lengths as users write them."""
        plain: dict[str, Any] = {"command": "ppl"}
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if value is None or value == {}:
                continue
            if item.name == "lengths":
                value = [int(text) if text.isdigit() else text for text in map(format_length, value)]
            plain[item.name] = value
        untyped: dict[str, Any] = json.loads(canonical_json(plain))  # tuples to lists, also within pe_args
        return {key: untyped[key] for key in plain}

    def digest(self) -> str:
        """A short digest of the request, for naming its run folder."""
        return hashlib.sha256(canonical_json(self.to_mapping()).encode()).hexdigest()[:8]


def ppl_spec_from_mapping(plain: Mapping[str, Any], *, origin: str) -> PplSpec:
    """A PplSpec from YAML; flags' spellings (`4k,8k`, `text-field`) are understood too.

    Args:
        plain: The mapping, with or without `command: ppl`.
        origin: File name for messages.
    """
    known = {item.name: item for item in dataclasses.fields(PplSpec)}
    values: dict[str, Any] = {}
    for raw_key, value in plain.items():
        key = str(raw_key).replace("-", "_")
        if key == "command":
            continue
        if key not in known:
            raise LongEvalError(f"{origin}: unknown key {raw_key}", did_you_mean(key, ("command", *known)))
        values[key] = _from_yaml(key, value, origin)
    for key in ("model", "pe", "lengths"):
        if key not in values:
            raise LongEvalError(f"{origin}: {key} is missing", f"Add a line such as {_EXAMPLES[key]}.")
    return PplSpec(**values)


_EXAMPLES = {"model": "model: smollm2-135m-q4", "pe": "pe: [none, yarn]", "lengths": "lengths: [4k, 8k]"}


def _from_yaml(key: str, value: Any, origin: str) -> Any:
    """One value of a YAML request, checked and in the spec's type."""
    flag = f"{origin}: {key}"
    if key in ("model", "pe", "data", "lengths"):
        items = value if isinstance(value, list) else [value]
        if not all(isinstance(item, str | int) for item in items):
            raise LongEvalError(f"{flag}: must be a list of names", "Write [a, b] or a,b.")
        if key == "lengths":
            return parse_lengths(",".join(str(item) for item in items), flag=flag)
        if isinstance(value, list):  # items stay whole: a file's name may hold a comma
            return tuple(dict.fromkeys(_checked_name(str(item), flag) for item in items))
        return split_list(str(value), flag=flag)
    if value is None:
        return None
    if key == "factor":
        return "each" if value == "each" else parse_factor(str(value), flag=flag)
    if key == "seed":
        return parse_count(str(value), flag=flag, least=0)
    if key == "stride":
        return parse_length(str(value), flag=flag, least=1)
    if key in ("min_tokens", "native"):
        return parse_length(str(value), flag=flag)
    if key == "docs":
        return "all" if value == "all" else parse_count(str(value), flag=flag)
    if key in ("bos", "trust_remote_code"):
        if not isinstance(value, bool):
            raise LongEvalError(f"{flag} {value}: must be true or false", "Leave it out for the default.")
        return value
    if key == "pe_args":
        if not (isinstance(value, dict) and all(isinstance(item, dict) for item in value.values())):
            raise LongEvalError(f"{flag}: must map methods to parameters", "Write yarn: {beta_fast: 16}.")
        return value
    if not isinstance(value, str):
        raise LongEvalError(f"{flag} {value}: must be text", "Put it in quotes.")
    return value


def requests_to_yaml(requests: list[dict[str, Any]]) -> str:
    """One YAML document per request."""
    head = "# What was asked of this run folder; `longeval run` on this file computes what is missing.\n"
    dumped = [
        yaml.safe_dump(request, sort_keys=False, allow_unicode=True, default_flow_style=None, width=1000)
        for request in requests
    ]
    return head + "---\n".join(dumped)


def requests_from_yaml(text: str, *, origin: str) -> list[dict[str, Any]]:
    """The mappings of a request file, one per YAML document; what is no such file raises LongEvalError."""
    try:
        documents = [document for document in yaml.safe_load_all(text) if document is not None]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "unreadable"
        raise LongEvalError(
            f"{origin}{where}: not YAML ({problem})", "A run folder's spec.yaml is an example."
        ) from None
    if not documents or not all(isinstance(document, dict) for document in documents):
        raise LongEvalError(f"{origin}: holds no request", "It needs keys such as command, model, pe, lengths.")
    return documents
