"""The first inputs of a plan as the model gets them, with what was made of them: what `--show N` prints.

A plan has every prompt and window before a model is loaded, and the run folder has the answers, so that this works
beside `--dry-run` and for cells that were computed long ago. A cell's id holds a digest of its inputs: what a plan
shows is what a stored cell was asked.

T tokens of a part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy.typing as npt

from longeval.data.special import special_tokens
from longeval.printable import printable
from longeval.run.cell import Cell
from longeval.run.overview import count
from longeval.store.artefact import Artefact
from longeval.store.folder import Store

T = TypeVar("T")

EDGE_TOKENS = 100
"""Tokens at either end of a part that are printed; what is longer loses its middle."""
_MOST_CHARACTERS = 400
"""Characters of an answer that are printed; what is longer loses its middle."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class InputPart:
    """Token ids that the model is given, and what they are."""

    name: str
    """`prompt`, `context`, `choice 2`, …"""
    tokens_T: npt.NDArray[Any]
    """Token ids, shape (T,)."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ShownInput:
    """One sample or window."""

    title: str
    parts: tuple[InputPart, ...]
    """What the model is given, in order."""
    answers: tuple[tuple[str, str], ...]
    """What is to be said of it: (`expected` or a method, text)."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ShownInputs:
    """Inputs that all methods of one model get at one length."""

    title: str
    tokenizer: Any
    """transformers' tokenizer of the model."""
    examples: tuple[ShownInput, ...]

    def lines(self) -> Iterator[str]:
        """The text that is printed, safe for a terminal, line by line."""
        yield printable(self.title)
        for example in self.examples:
            yield f"  {printable(example.title)}"
            for part in example.parts:
                yield f"    {part.name}: {count(len(part.tokens_T), 'token')}{self._special(part)}"
                for line in self._text(part):
                    yield f"      {line}"
            for name, text in example.answers:
                yield f"    {printable(name)}: {printable(text)}"

    def _special(self, part: InputPart) -> str:
        """How often each special token is among them: a text may spell one without having it."""
        found = special_tokens(self.tokenizer).among(part.tokens_T.tolist())
        if not found:
            return ""
        named = ", ".join(f"{name} × {times}" if times > 1 else name for name, times in found.items())
        return f", special tokens {printable(named)}"

    def _text(self, part: InputPart) -> Iterator[str]:
        """Its text behind bars, the middle of a long one left out."""
        ids = part.tokens_T.tolist()
        left_out = len(ids) - 2 * EDGE_TOKENS
        if left_out <= 0:
            yield from self._lines(ids)
            return
        yield from self._lines(ids[:EDGE_TOKENS])
        yield f"… {count(left_out, 'token')} left out …"
        yield from self._lines(ids[-EDGE_TOKENS:])

    def _lines(self, ids: Sequence[int]) -> Iterator[str]:
        text = printable(special_tokens(self.tokenizer).decode(ids), keep="\n\t")
        yield from (f"| {line}" for line in text.split("\n"))  # blanks at an end matter to a model


def shortened(text: str) -> str:
    """A text in quotes, the middle of a long one left out."""
    left_out = len(text) - _MOST_CHARACTERS
    if left_out > 0:
        half = _MOST_CHARACTERS // 2
        text = f"{text[:half]} … {left_out:,} characters left out … {text[-half:]}"
    return f'"{text}"'


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Found(Generic[T]):
    """What one method left in the run folder."""

    method: str
    artefact: T | None
    """None where the cell has none."""
    why_not: str
    """Why it has none; empty where it has one."""

    def tell(self, what: Callable[[T], str]) -> str:
        """What its artefact says, or why there is none."""
        return self.why_not if self.artefact is None else what(self.artefact)


def stored(cell: Cell, store: Store, artefact: Artefact[T]) -> Found[T]:
    """What the run folder has of a cell.

    Args:
        cell: The cell.
        store: The run folder.
        artefact: The kind that the cell leaves.
    """
    method = cell.pe.canonical if cell.factor is None else f"{cell.pe.canonical} (s = {cell.factor:g})"
    there = store.load(cell.id)
    if there is None:
        return Found(method=method, artefact=None, why_not="not computed")
    if there.status != "ok":
        return Found(method=method, artefact=None, why_not=f"{there.status}: {there.records[0].error}")
    found = store.artefact(artefact, cell.id)
    return Found(method=method, artefact=found, why_not="" if found is not None else "only its scores are stored")
