"""What was asked: values as users write them, and the frozen request that a run is made from."""

from __future__ import annotations

import math
import re

from longeval.errors import LongEvalError

_LENGTH = re.compile(r"(\d+)([km]?)", re.IGNORECASE)
_UNITS = {"": 1, "k": 1024, "m": 1024 * 1024}


def parse_length(text: str, *, flag: str = "--lengths") -> int:
    """One length in tokens: `4k` is 4096, `1m` is 1048576, plain integers as they are; at least 2."""
    match = _LENGTH.fullmatch(text.strip())
    if match is None:
        raise LongEvalError(f"{flag} {text!r}: not a length", "Write tokens as 4096, 4k (= 4096) or 1m (= 1048576).")
    length = int(match[1]) * _UNITS[match[2].lower()]
    if length < 2:
        raise LongEvalError(f"{flag} {text}: must be at least 2 tokens", "A token is scored from the ones before it.")
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
    return tuple(dict.fromkeys(parts))


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
