"""How a setting of a request is declared, once.

A field of a request class carries a `Declare`:

    stride: Annotated[int | None, Declare(readers.length(least=1), "Tokens between windows.")] = None

From that come the flag `--stride` with its help, the key `stride` in YAML, the check of both, and the name that
messages use. `request/base.py` reads values with it, `cli/command.py` makes flags of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

METHODS, MACHINE, OUTPUT = "Methods", "Machine", "Output"
"""Panels of `--help` that several commands have."""

Reader = Callable[[Any, str], Any]
"""(what a flag, YAML or Python gives, what messages call it) → the value; raises LongEvalError for a wrong one."""


@dataclass(frozen=True, slots=True)
class Declare:
    """What a field of a request is called, says and accepts. The field itself has the type and the default."""

    read: Reader
    """Reads and checks a value; see `request/readers.py`."""
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
