"""A generic registry of objects by name. It refuses duplicates and suggests names for unknown ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from longeval.errors import check_word

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """An ordered mapping from unique names to objects.

    Args:
        noun: The kind of object in messages; the flag, such as ``--pe``, if there is one.
    """

    def __init__(self, noun: str) -> None:
        self._noun = noun
        self._things: dict[str, T] = {}

    def register(self, name: str, thing: T) -> T:
        """Adds `thing` under `name` and returns it; raises ValueError if the name is taken (a bug, not user error)."""
        if name in self._things:
            raise ValueError(f"{self._noun} {name!r} is registered twice")
        self._things[name] = thing
        return thing

    def lookup(self, name: str) -> T:
        """Returns the thing called `name`; raises LongEvalError with suggestions if there is none."""
        check_word(self._noun, name, self._things)
        return self._things[name]

    def __getitem__(self, name: str) -> T:
        return self._things[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._things)

    def __len__(self) -> int:
        return len(self._things)
