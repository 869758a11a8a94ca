"""Declares the settings of requests.

A field of a request class carries a `Declare`:

    stride: Annotated[int | None, Declare(setting.length(least=1), "Tokens between windows.")] = None

This one declaration gives the flag `--stride` with its help, the key `stride` in YAML, the check of both, and the name
in messages. `request/base.py` reads values with it, and `cli/command.py` makes flags from it.

A reader accepts the text of a flag, a scalar, list or mapping of YAML, and Python values. Its errors name the setting,
the value, and a remedy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, get_args

from longeval.errors import LongEvalError, check_word
from longeval.values import (
    checked_name,
    format_length,
    hub_id,
    parse_count,
    parse_factor,
    parse_length,
    parse_lengths,
    parse_number,
    split_list,
    split_paths,
)

METHODS, MACHINE, OUTPUT = "Methods", "Machine", "Output"
"""Panels of `--help` in several commands."""

Reader = Callable[[Any, str], Any]
"""Takes a value from a flag, YAML or Python and the setting's name for messages; returns the checked value.

It raises LongEvalError for a wrong value."""


@dataclass(frozen=True, slots=True)
class Declare:
    """The flag, help and reader of a field of a request. The field itself has the type and the default."""

    read: Reader
    """Reads and checks a value; one of the readers below."""
    help: str
    """The text in `--help`."""
    _: KW_ONLY
    panel: str | None = None
    """The panel in `--help`; None: the first one."""
    unset: str | None = None
    """The default that `--help` shows if the field's default is None."""
    flag: str | None = None
    """The flag; None: `--name-of-the-field`."""
    off: str | None = None
    """The negative flag of a boolean setting; None: `--no-name-of-the-field`."""
    former: str | None = None
    """An earlier name of a boolean setting, as a key: still read, and its flag is accepted and not shown."""
    switches: Mapping[str, str] = field(default_factory=dict)
    """Flags that replace the setting's flag: word of the setting → help. Each, such as `--bf16`, sets that word."""
    metavar: str | None = None
    """The placeholder for the value in `--help`."""
    repeated: bool = False
    """Whether the flag may be given several times."""
    example: str = ""
    """A value for the message that the setting is missing."""
    write: Callable[[Any], Any] = lambda value: value
    """Converts the value for YAML."""


def text(value: Any, where: str) -> str:
    """Reads any text."""
    if not isinstance(value, str):
        raise LongEvalError(f"{where} {written(value)}: must be text", "Put it in quotes.")
    return value


def switch(value: Any, where: str) -> bool:
    """Reads true or false."""
    if not isinstance(value, bool):
        raise LongEvalError(f"{where} {written(value)}: must be true or false", "Leave it out for the default.")
    return value


def words(kind: Any) -> Reader:
    """A reader of one word of a `Literal`."""
    known: tuple[str, ...] = get_args(kind)

    def read(value: Any, where: str) -> str:
        if isinstance(value, bool) and {"on", "off"} <= set(known):  # YAML reads these two words as booleans
            return "on" if value else "off"
        check_word(where, text(value, where), known)
        return str(value)

    return read


def several(kind: Any) -> Reader:
    """A reader of several words of a `Literal`, in the given order."""
    one = words(kind)
    return lambda value, where: tuple(one(word, where) for word in names(value, where))


def count(least: int = 1) -> Reader:
    """A reader of a whole number of at least `least`."""
    return lambda value, where: parse_count(written(value), flag=where, least=least)


def count_or_auto(value: Any, where: str) -> int | None:
    """A whole number of at least 1; None for `auto`."""
    return None if value == "auto" else parse_count(written(value), flag=where)


def number(must_be: str = "a number", holds: Callable[[float], bool] = lambda _: True) -> Reader:
    """A reader of a finite number with a condition, such as `number("greater than 0", lambda rate: rate > 0)`."""

    def read(value: Any, where: str) -> float:
        found = parse_number(written(value), flag=where)
        if not holds(found):
            raise LongEvalError(f"{where} {found:g}: must be {must_be}", "--help shows the default.")
        return found

    return read


def factor(value: Any, where: str) -> float:
    """Reads a factor s of at least 1."""
    return parse_factor(written(value), flag=where)


def length(least: int = 2) -> Reader:
    """A reader of a length in tokens, such as `4096` or `4k`."""
    return lambda value, where: parse_length(written(value), flag=where, least=least)


def either(word: str, other: Reader) -> Reader:
    """A reader that accepts one word, or anything that another reader accepts."""
    return lambda value, where: word if value == word else other(value, where)


def lengths(value: Any, where: str) -> tuple[int, ...]:
    """Reads lengths from `4k,8k` or a list, and sorts them."""
    if isinstance(value, list | tuple):  # the items of a list are separate, so 16, 384 is no thousands separator
        items = _items(value, where)
        return tuple(sorted({item for part in items for item in parse_lengths(part, flag=where)}))
    return parse_lengths(*_items([value], where), flag=where)


def lengths_as_written(value: tuple[int, ...]) -> list[int | str]:
    """Lengths as users write them, such as `4k` or 5000."""
    return [int(shown) if shown.isdigit() else shown for shown in map(format_length, value)]


def names(value: Any, where: str) -> tuple[str, ...]:
    """Reads names from `none,yarn` or a list, in the given order."""
    return _named(value, where, split_list)


def paths(value: Any, where: str) -> tuple[str, ...]:
    """Reads names and paths in the given order. In a list, commas belong to the names."""
    return _named(value, where, split_paths)


def models(value: Any, where: str) -> tuple[str, ...]:
    """Names and paths of models; an address on the hub is the id of its model."""
    return tuple(dict.fromkeys(hub_id(name, flag=where) for name in paths(value, where)))


def one_model(value: Any, where: str) -> str:
    """Name or path of a model; an address on the hub is the id of its model."""
    return hub_id(checked_name(text(value, where), where), flag=where)


def method_parameters(value: Any, where: str) -> dict[str, dict[str, Any]]:
    """Reads a mapping from methods to parameters. The plan checks the parameters."""
    if not (_is_mapping(value) and all(_is_mapping(item) for item in value.values())):
        raise LongEvalError(f"{where}: must map methods to parameters", "Write yarn: {beta_fast: 16}.")
    _check_plain(value, where)
    return {name: dict(item) for name, item in value.items()}


def engine_options(value: Any, where: str) -> dict[str, Any]:
    """Reads options of vLLM's engine; names get underscores."""
    if not _is_mapping(value):
        raise LongEvalError(f"{where}: must map options of vLLM's engine to values", "Write tensor_parallel_size: 2.")
    _check_plain(value, where)
    return {name.replace("-", "_"): item for name, item in value.items()}


def _check_plain(value: Any, where: str) -> None:
    """Raises LongEvalError for a value that JSON can't hold: YAML also has dates, bytes, sets and NaN."""
    if isinstance(value, list | tuple):
        for item in value:
            _check_plain(item, where)
    elif isinstance(value, dict):
        for name, item in value.items():
            if not isinstance(name, str):
                raise LongEvalError(f"{where} {written(name)}: not a name", "Give text, in quotes.")
            _check_plain(item, f"{where} {name}")
    elif not (value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))):
        raise LongEvalError(f"{where} {written(value)}: not a value of a setting", "Give text or a finite number.")


def written(value: Any) -> str:
    """A value as text, for parsers of text and for messages."""
    try:
        return str(value)
    except ValueError:  # hexadecimal YAML integers may have more digits than Python converts to decimal
        return "a number of too many digits"


def _named(value: Any, where: str, split: Callable[..., tuple[str, ...]]) -> tuple[str, ...]:
    if isinstance(value, list | tuple):
        return tuple(dict.fromkeys(checked_name(item, where) for item in _items(value, where)))
    return split(*_items([value], where), flag=where)


def _items(items: list[Any] | tuple[Any, ...], where: str) -> list[str]:
    """The items of a list as text; raises LongEvalError unless they are names or whole numbers."""
    if not all(isinstance(item, str | int) and not isinstance(item, bool) for item in items):
        raise LongEvalError(f"{where}: must be a list of names", "Write [a, b] or a,b.")
    return [written(item) for item in items]


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(name, str) for name in value)
