"""How a setting of a request is declared, once.

A field of a request class carries a `Declare`:

    stride: Annotated[int | None, Declare(setting.length(least=1), "Tokens between windows.")] = None

From that come the flag `--stride` with its help, the key `stride` in YAML, the check of both, and the name that
messages use. `request/base.py` reads values with it, `cli/command.py` makes flags of it.

A flag gives text, YAML a scalar, a list or a mapping, Python any of these or the value itself; the same reader takes
all of them. What it refuses, it refuses with the name of the setting, the value, and a remedy.
"""

from __future__ import annotations

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
"""Panels of `--help` that several commands have."""

Reader = Callable[[Any, str], Any]
"""(what a flag, YAML or Python gives, what messages call it) → the value; raises LongEvalError for a wrong one."""


@dataclass(frozen=True, slots=True)
class Declare:
    """What a field of a request is called, says and accepts. The field itself has the type and the default."""

    read: Reader
    """Reads and checks a value: one of the readers below."""
    help: str
    """What `--help` says."""
    _: KW_ONLY
    panel: str | None = None
    """The panel of `--help`; None: the first one."""
    unset: str | None = None
    """What `--help` shows as the default where the field's default is None."""
    flag: str | None = None
    """The flag; None: `--name-of-the-field`."""
    off: str | None = None
    """The flag that says no, of a setting that is true or false; None: `--no-name-of-the-field`."""
    switches: Mapping[str, str] = field(default_factory=dict)
    """Flags without a value that stand for words of this setting, with their help: `--bf16`. They replace the flag."""
    metavar: str | None = None
    """What `--help` shows in place of the value."""
    repeated: bool = False
    """Whether the flag may be given several times."""
    example: str = ""
    """A value for messages that say that one is missing."""
    write: Callable[[Any], Any] = lambda value: value
    """The value as YAML shows it."""


def text(value: Any, where: str) -> str:
    """Any text."""
    if not isinstance(value, str):
        raise LongEvalError(f"{where} {written(value)}: must be text", "Put it in quotes.")
    return value


def switch(value: Any, where: str) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise LongEvalError(f"{where} {written(value)}: must be true or false", "Leave it out for the default.")
    return value


def words(kind: Any) -> Reader:
    """One of the words of a `Literal`."""
    known: tuple[str, ...] = get_args(kind)

    def read(value: Any, where: str) -> str:
        if isinstance(value, bool) and {"on", "off"} <= set(known):  # as YAML reads these two words
            return "on" if value else "off"
        check_word(where, text(value, where), known)
        return str(value)

    return read


def several(kind: Any) -> Reader:
    """Words of a `Literal`, in the order given."""
    one = words(kind)
    return lambda value, where: tuple(one(word, where) for word in names(value, where))


def count(least: int = 1) -> Reader:
    """A whole number of at least `least`."""
    return lambda value, where: parse_count(written(value), flag=where, least=least)


def count_or_auto(value: Any, where: str) -> int | None:
    """A whole number of at least 1; None for `auto`."""
    return None if value == "auto" else parse_count(written(value), flag=where)


def number(must_be: str = "a number", holds: Callable[[float], bool] = lambda _: True) -> Reader:
    """A finite number for which something holds: `number("greater than 0", lambda rate: rate > 0)`."""

    def read(value: Any, where: str) -> float:
        found = parse_number(written(value), flag=where)
        if not holds(found):
            raise LongEvalError(f"{where} {found:g}: must be {must_be}", "--help shows the default.")
        return found

    return read


def factor(value: Any, where: str) -> float:
    """A factor s of at least 1."""
    return parse_factor(written(value), flag=where)


def length(least: int = 2) -> Reader:
    """A length in tokens: 4096, `4k`."""
    return lambda value, where: parse_length(written(value), flag=where, least=least)


def either(word: str, other: Reader) -> Reader:
    """A word, or what another reader takes."""
    return lambda value, where: word if value == word else other(value, where)


def lengths(value: Any, where: str) -> tuple[int, ...]:
    """Lengths, ascending: `4k,8k`, or a list."""
    if isinstance(value, list | tuple):  # its items are apart already: 16,384 are two lengths there
        items = _items(value, where)
        return tuple(sorted({item for part in items for item in parse_lengths(part, flag=where)}))
    return parse_lengths(*_items([value], where), flag=where)


def lengths_as_written(value: tuple[int, ...]) -> list[int | str]:
    """Lengths as users write them: 4k, 5000."""
    return [int(shown) if shown.isdigit() else shown for shown in map(format_length, value)]


def names(value: Any, where: str) -> tuple[str, ...]:
    """Names in the order given: `none,yarn`, or a list."""
    return _named(value, where, split_list)


def paths(value: Any, where: str) -> tuple[str, ...]:
    """Names and paths in the order given; in a list, commas belong to the names."""
    return _named(value, where, split_paths)


def models(value: Any, where: str) -> tuple[str, ...]:
    """Names and paths of models; an address on the hub is the id of its model."""
    return tuple(dict.fromkeys(hub_id(name, flag=where) for name in paths(value, where)))


def method_parameters(value: Any, where: str) -> dict[str, dict[str, Any]]:
    """Parameters by method; which there are, the plan looks up."""
    if not (_is_mapping(value) and all(_is_mapping(item) for item in value.values())):
        raise LongEvalError(f"{where}: must map methods to parameters", "Write yarn: {beta_fast: 16}.")
    return {name: dict(item) for name, item in value.items()}


def engine_options(value: Any, where: str) -> dict[str, Any]:
    """Options of vLLM's engine by name, with underscores."""
    if not _is_mapping(value):
        raise LongEvalError(f"{where}: must map options of vLLM's engine to values", "Write tensor_parallel_size: 2.")
    return {name.replace("-", "_"): item for name, item in value.items()}


def written(value: Any) -> str:
    """A value as it may have been written, for parsers of text and for messages."""
    try:
        return str(value)
    except ValueError:  # YAML writes whole numbers in base 16 too, of more digits than Python turns into text
        return "a number of too many digits"


def _named(value: Any, where: str, split: Callable[..., tuple[str, ...]]) -> tuple[str, ...]:
    if isinstance(value, list | tuple):
        return tuple(dict.fromkeys(checked_name(item, where) for item in _items(value, where)))
    return split(*_items([value], where), flag=where)


def _items(items: list[Any] | tuple[Any, ...], where: str) -> list[str]:
    """The items of a list as text, if they are names or whole numbers."""
    if not all(isinstance(item, str | int) and not isinstance(item, bool) for item in items):
        raise LongEvalError(f"{where}: must be a list of names", "Write [a, b] or a,b.")
    return [written(item) for item in items]


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(name, str) for name in value)
