"""Parses values that users write on the command line and in YAML: lengths, factors, counts, comma lists."""

from __future__ import annotations

import itertools
import math
import os
import re
import urllib.parse
from collections.abc import Mapping
from typing import Any

from longeval.errors import LongEvalError

_LENGTH = re.compile(r"([0-9]{1,15})([km]?)", re.IGNORECASE)
_UNITS = {"": 1, "k": 1024, "m": 1024 * 1024}
_GROUPED = re.compile(r"[0-9]{1,3}([,_.' ][0-9]{3})+")
"""A number with thousands separators."""


def parse_length(text: str, *, flag: str = "--lengths", least: int = 2) -> int:
    """Parses a length in tokens: `4k` is 4096, `1m` is 1048576; plain integers are tokens."""
    match = _LENGTH.fullmatch(text.strip())
    if match is None:
        digits = re.sub(r"[,_.' ]", "", text)
        grouped = digits.isdigit() and digits.isascii() and _GROUPED.fullmatch(text.strip()) is not None
        remedy = f"Write {digits}, without separators." if grouped else ""
        remedy = remedy or "Write tokens as 4096, 4k (= 4096) or 1m (= 1048576)."
        raise LongEvalError(f"{flag} {text!r}: not a length", remedy)
    if match[1].startswith("0") and len(match[1]) > 1:  # the rest of a number with separators
        raise LongEvalError(f"{flag} {text}: a length with a leading zero", "Write 4096, without separators or zeros.")
    length = int(match[1]) * _UNITS[match[2].lower()]
    if length < least:
        raise LongEvalError(f"{flag} {text}: must be at least {least} tokens", "Write more, as 4096, 4k or 1m.")
    return length


def parse_lengths(text: str, *, flag: str = "--lengths") -> tuple[int, ...]:
    """Parses a comma list of lengths; returns them ascending and without duplicates."""
    _check_thousands([part.strip() for part in text.split(",")], text, flag)
    return tuple(sorted({parse_length(part, flag=flag) for part in split_list(text, flag=flag)}))


def _check_thousands(parts: list[str], text: str, flag: str) -> None:
    """Raises LongEvalError for a list that is probably a number with thousands separators, such as `4,096`.

    It is one if three digits follow one to three digits, and the three begin with 0, or the first number is below 10,
    or both together are a usual length: a small multiple of a power of 2, such as 65,536, or a multiple of 500, such as
    12,500. 16,512 and 128,256 are lists.
    """
    for place, (before, group) in enumerate(itertools.pairwise(parts)):
        if not (re.fullmatch("[0-9]{1,3}", before) and re.fullmatch("[0-9]{3}", group)):
            continue
        joined = int(before + group)
        binary = joined > 0 and joined % 1024 == 0 and joined // (joined & -joined) < 32
        decimal = joined % 500 == 0 and int(before) < 32
        if group.startswith("0") or int(before) < 10 or binary or decimal:
            run = itertools.takewhile(re.compile("[0-9]{3}").fullmatch, parts[place + 1 :])
            whole = before + "".join(run)
            raise LongEvalError(
                f"{flag} {text}: one length or several? The comma separates lengths, and {before},{group} would be "
                f"windows of {int(before)} and {int(group)} tokens",
                f"If you mean {whole}, write {whole}; for a list, write the longest first, without leading zeros.",
            )


def split_list(text: str, *, flag: str) -> tuple[str, ...]:
    """Parses a comma list of names; returns them in the given order without duplicates.

    Raises:
        LongEvalError: An item is empty or not valid UTF-8.
    """
    return _unique(text, [part.strip() for part in text.split(",")], flag)


def split_paths(text: str, *, flag: str) -> tuple[str, ...]:
    """Parses a comma list of names and paths. A comma belongs to a path if that path exists or after a backslash.

    Raises:
        LongEvalError: See `split_list`; or the text may mean one path or several names.
    """
    parts = [part.replace("\\,", ",") for part in re.split(r"(?<!\\),", text)]
    found: list[str] = []
    while parts:
        count = next((n for n in range(len(parts), 1, -1) if _exists(",".join(parts[:n]))), 1)
        name = ",".join(parts[:count]).strip()
        if count > 1 and all(_exists(part) or not re.search(r"[/.\\]", part) for part in parts[:count]):
            escaped = name.replace(",", "\\,")
            raise LongEvalError(
                f"{flag} {name}: one path, or {count} names?",
                f"Both can be meant. Write '{escaped}' for the one, or change the order of the names.",
            )
        found.append(name)
        parts = parts[count:]
    return _unique(text, found, flag)


def _unique(text: str, names: list[str], flag: str) -> tuple[str, ...]:
    """Checks the names of a comma list and removes duplicates."""
    if not all(names):
        raise LongEvalError(f"{flag} {text!r}: has an empty item", "Write a comma list such as a,b,c.")
    return tuple(dict.fromkeys(checked_name(name, flag) for name in names))


def _exists(path: str) -> bool:
    return os.path.exists(os.path.expanduser(path.strip()))


def checked_name(name: str, flag: str) -> str:
    """Returns a name; raises LongEvalError if it is empty or not valid UTF-8, because it goes into records."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise LongEvalError(
            f"{flag} {name!a}: not UTF-8", "Rename the file or link to it under another name."
        ) from None
    if not name.strip():
        raise LongEvalError(f"{flag}: the name is empty", "Give a name, or leave it out.")
    return name


_ADDRESS = re.compile(r"(?:(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)|hf:/)/(.*)", re.IGNORECASE)
"""An address of the model hub, and what follows the host."""
_OF_MODEL = re.compile(r"([\w.-]+/[\w.-]+?)(?:/tree/([^/?#]+)|@([^/?#]+))?/?(?:[?#].*)?")
"""Owner and name of a model, and its revision."""


def hub_id(name: str, *, flag: str = "--model") -> str:
    """The hub id of a model, `OWNER/NAME` or `OWNER/NAME@REVISION`, where its address on the hub is given.

    `https://huggingface.co/OWNER/NAME/tree/REVISION`, `hf.co/OWNER/NAME` and `hf://OWNER/NAME` are addresses; anything
    else stays as it is, and so does what exists as a path.
    """
    address = _ADDRESS.fullmatch(name.strip())
    if address is None or _exists(name):
        return name
    found = _OF_MODEL.fullmatch(address[1])
    if found is None or found[1].startswith(("datasets/", "spaces/")):
        raise LongEvalError(
            f"{flag} {name}: not the address of a model",
            "Give its page, https://huggingface.co/OWNER/NAME, or OWNER/NAME.",
        )
    revision = found[2] or found[3]
    return found[1] if revision is None else f"{found[1]}@{urllib.parse.unquote(revision)}"


def format_length(length: int) -> str:
    """A length as text: 4096 as `4k`, 1048576 as `1m`, others in digits."""
    if length % (1024 * 1024) == 0:
        return f"{length // (1024 * 1024)}m"
    return f"{length // 1024}k" if length % 1024 == 0 else str(length)


def format_duration(seconds: float) -> str:
    """Seconds as text, such as `42 s`, `3 min 05 s` or `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def quantization_text(params: Mapping[str, Any]) -> str:
    """What a record's `quantization` says, for readers: `gptq, 4 bits, group size 128`."""
    shown = {"method": "{}", "bits": "{} bits", "format": "{}", "group_size": "group size {}"}
    parts = [template.format(params[key]) for key, template in shown.items() if params.get(key) is not None]
    return ", ".join(parts + (["computed in plain numbers"] if params.get("dequantized") else []))


def parse_factor(text: str, *, flag: str = "--factor") -> float:
    """Parses a finite factor s of at least 1; raises LongEvalError for anything else."""
    factor = _finite(text)
    if factor is None or factor < 1:
        raise LongEvalError(
            f"{flag} {text}: must be a finite number of at least 1",
            "It is target length / native length: 4 stretches 4k to 16k.",
        )
    return factor


def parse_number(text: str, *, flag: str) -> float:
    """Parses a finite number, such as `0.0002` or `2e-4`; raises LongEvalError for anything else."""
    number = _finite(text)
    if number is None:
        raise LongEvalError(f"{flag} {text!r}: not a finite number", "Write it as 0.01 or 2e-4.")
    return number


def _finite(text: str) -> float | None:
    """Parses a number; None for NaN, infinity, and text that isn't a number."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def parse_count(text: str, *, flag: str, least: int = 1) -> int:
    """Parses a whole number of at least `least`; raises LongEvalError for anything else."""
    try:
        count = int(text)
    except ValueError:
        raise LongEvalError(f"{flag} {text!r}: not a whole number", f"Give one of at least {least}.") from None
    if count < least:
        raise LongEvalError(f"{flag} {text}: must be at least {least}", f"Give a whole number of at least {least}.")
    return count
