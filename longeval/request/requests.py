"""Requests as YAML: one document each, in the words of the flags; what `spec.yaml` holds and `longeval run` reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import yaml

from longeval.bounded_yaml import UNREADABLE, documents, why_unreadable
from longeval.errors import LongEvalError, did_you_mean
from longeval.request.engine import check_owned
from longeval.request.posgen import PosGenRequest, preset_fields
from longeval.request.ppl import PplRequest
from longeval.request.tasks import TasksRequest
from longeval.values import (
    checked_name,
    parse_count,
    parse_factor,
    parse_length,
    parse_lengths,
    parse_number,
    split_paths,
)

Spec = PplRequest | TasksRequest
"""Requests about a user's models."""

Request = Spec | PosGenRequest
"""All requests that can be written down."""

Parser = Callable[[Any, str], Any]
"""(value, where it stands for messages) → the value in the spec's type."""

SPECS: dict[str, type[PplRequest] | type[TasksRequest] | type[PosGenRequest]] = {
    "ppl": PplRequest,
    "tasks": TasksRequest,
    "posgen": PosGenRequest,
}
"""Commands whose requests can be written down."""

_EXAMPLES = {
    "model": "model: smollm2-135m-q4",
    "pe": "pe: [none, yarn]",
    "lengths": "lengths: [4k, 8k]",
    "tasks": "tasks: [passkey]",
}


def request_from_mapping(plain: Mapping[str, Any], *, origin: str) -> Request:
    """A spec from YAML; flags' spellings (`4k,8k`, `text-field`) are understood too.

    Args:
        plain: The mapping; without `command` it is a request of `ppl`. One of `posgen` may name a `preset`.
        origin: File name for messages.
    """
    command = str(plain.get("command", "ppl"))
    if command not in SPECS:
        raise LongEvalError(f"{origin}: command {command}: unknown", f"Known: {', '.join(SPECS)}.")
    kind = SPECS[command]
    if kind is PosGenRequest:
        return _posgen_spec(plain, origin)
    known = {item.name: item for item in dataclasses.fields(kind)}
    values: dict[str, Any] = {}
    for raw_key, value in plain.items():
        key = str(raw_key).replace("-", "_")
        if key == "command":
            continue
        if key not in known:
            raise LongEvalError(f"{origin}: unknown key {raw_key}", did_you_mean(key, ("command", *known)))
        values[key] = None if value is None and known[key].default is None else _parsed(key, value, origin)
    for key, item in known.items():
        if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING and key not in values:
            raise LongEvalError(f"{origin}: {key} is missing", f"Add a line such as {_EXAMPLES[key]}.")
    return kind(**values)


def _posgen_spec(plain: Mapping[str, Any], origin: str) -> PosGenRequest:
    """A request of `posgen`: what it leaves out is its preset's, or else `full`."""
    known = {item.name: item for item in dataclasses.fields(PosGenRequest)}
    values: dict[str, Any] = {}
    for raw_key, value in plain.items():
        key = str(raw_key).replace("-", "_")
        key = {"task": "tasks", "regime": "regimes"}.get(key, key)
        if key in ("command", "preset"):
            continue
        if key not in known:
            raise LongEvalError(f"{origin}: unknown key {raw_key}", did_you_mean(key, ("command", "preset", *known)))
        absent = value is None and known[key].default is None
        parse = _POSGEN_PARSERS.get(key, _PARSERS.get(key, _count))
        values[key] = None if absent else parse(value, f"{origin}: {key}")
    return PosGenRequest(**preset_fields(str(plain.get("preset", "full")), values))


def _parsed(key: str, value: Any, origin: str) -> Any:
    """One value of a YAML request, checked and in the spec's type."""
    flag = f"{origin}: {key}"
    parse: Parser = _PARSERS.get(key, _text)
    return parse(value, flag)


def _names(value: Any, flag: str) -> tuple[str, ...]:
    items = value if isinstance(value, list) else [value]
    _check_items(items, flag)
    if isinstance(value, list):  # items stay whole: a file's name may hold a comma
        return tuple(dict.fromkeys(checked_name(str(item), flag) for item in items))
    return split_paths(str(value), flag=flag)


def _lengths(value: Any, flag: str) -> tuple[int, ...]:
    items = value if isinstance(value, list) else [value]
    _check_items(items, flag)
    if isinstance(value, list):  # its items are apart already
        return tuple(sorted({length for item in items for length in parse_lengths(str(item), flag=flag)}))
    return parse_lengths(str(value), flag=flag)


def _check_items(items: list[Any], flag: str) -> None:
    if not all(isinstance(item, str | int) and not isinstance(item, bool) for item in items):
        raise LongEvalError(f"{flag}: must be a list of names", "Write [a, b] or a,b.")


def _flag_value(value: Any, flag: str) -> bool:
    if not isinstance(value, bool):
        raise LongEvalError(f"{flag} {value}: must be true or false", "Leave it out for the default.")
    return value


def _pe_args(value: Any, flag: str) -> dict[str, dict[str, Any]]:
    if not (isinstance(value, dict) and all(isinstance(item, dict) for item in value.values())):
        raise LongEvalError(f"{flag}: must map methods to parameters", "Write yarn: {beta_fast: 16}.")
    return value


def _vllm_args(value: Any, flag: str) -> dict[str, Any]:
    if not (isinstance(value, dict) and all(isinstance(name, str) for name in value)):
        raise LongEvalError(f"{flag}: must map options of vLLM's engine to values", "Write tensor_parallel_size: 2.")
    args = {name.replace("-", "_"): item for name, item in value.items()}
    check_owned(args)
    return args


def _text(value: Any, flag: str) -> str:
    if not isinstance(value, str):
        raise LongEvalError(f"{flag} {value}: must be text", "Put it in quotes.")
    return value


def _number(value: Any, flag: str) -> float:
    return parse_number("" if isinstance(value, bool) else str(value), flag=flag)


def _count(value: Any, flag: str) -> int:
    return parse_count("" if isinstance(value, bool) else str(value), flag=flag, least=0)


def _chat_template(value: Any, flag: str) -> str:
    """YAML reads `on` and `off` as true and false."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else _text(value, flag)


_PARSERS: dict[str, Parser] = {
    "model": _names,
    "pe": _names,
    "data": _names,
    "tasks": _names,
    "include": _names,
    "lengths": _lengths,
    "factor": lambda value, flag: "each" if value == "each" else parse_factor(str(value), flag=flag),
    "seed": lambda value, flag: parse_count(str(value), flag=flag, least=0),
    "stride": lambda value, flag: parse_length(str(value), flag=flag, least=1),
    "min_tokens": lambda value, flag: parse_length(str(value), flag=flag),
    "pin_length": lambda value, flag: parse_length(str(value), flag=flag),
    "vllm_args": _vllm_args,
    "native": lambda value, flag: parse_length(str(value), flag=flag),
    "docs": lambda value, flag: "all" if value == "all" else parse_count(str(value), flag=flag),
    "limit": lambda value, flag: parse_count(str(value), flag=flag),
    "num_fewshot": lambda value, flag: parse_count(str(value), flag=flag, least=0),
    "max_new_tokens": lambda value, flag: parse_count(str(value), flag=flag),
    "bos": _flag_value,
    "parse_special": _flag_value,
    "trust_remote_code": _flag_value,
    "same_samples": _flag_value,
    "chat_template": _chat_template,
    "pe_args": _pe_args,
}

_POSGEN_PARSERS: dict[str, Parser] = {
    "regimes": _names,
    "length": lambda value, flag: parse_length(str(value), flag=flag),
    "test_length": lambda value, flag: parse_length(str(value), flag=flag),
    "factor": lambda value, flag: parse_factor(str(value), flag=flag),
    **dict.fromkeys(("theta", "dropout", "lr", "weight_decay", "warmup"), _number),
    **dict.fromkeys(("tied", "attention_scale", "start_token", "frozen_mlp", "stack"), _flag_value),
    **dict.fromkeys(("init", "precision", "device"), _text),
}
"""Those of a `posgen` request; keys that are in neither table are whole numbers."""


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
        requests = [document for document in documents(text) if document is not None]
    except UNREADABLE as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise LongEvalError(
            f"{origin}{where}: not YAML ({why_unreadable(error)})", "A run folder's spec.yaml is an example."
        ) from None
    if not requests or not all(isinstance(request, dict) for request in requests):
        raise LongEvalError(f"{origin}: holds no request", "It needs keys such as command, model, pe, lengths.")
    return requests
