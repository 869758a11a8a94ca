"""The method of a server that `longeval serve` started, as it says at `/v1/models` under the key `longeval`.

OpenAI's clients ignore a field that they don't know. `--backend openai` compares it with what a request asks for; a
server that says nothing stays unknown.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from longeval.plain import canonical_json
from longeval.rope.base import RopeTable, table_digest
from longeval.rope.resonance import RESONANCE, ResonanceParameters
from longeval.values import format_length

KEY = "longeval"
"""The key of a model's card."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedMethod:
    """One method, set up as a server has it, or as a request asks for it."""

    pe: str
    """Canonical name."""
    parameters: dict[str, Any]
    """All parameters of the method, defaults included, and those of resonance that are not the default."""
    factor: float | None
    """s; None for methods that don't use it."""
    native_length: int
    """L in tokens."""
    pin_length: int | None = None
    """The length whose table a length-dependent method has for all prompts, tokens."""
    length: int
    """Longest prompt with its answer, tokens."""
    rope_digests: tuple[str, ...] = ()
    """Of the tables that the engine's rotary modules hold for positions 0 … length − 1 (see `table_digest`): one, or in
    models that rotate by layer type one for each kind of layer. Empty where the engine wasn't asked."""

    def described(self) -> str:
        """Method, factor and pin, for people."""
        parts = [self.pe]
        parts += [] if self.factor is None else [f"s = {self.factor:g}"]
        parts += [] if self.pin_length is None else [f"pinned to its table at {format_length(self.pin_length)}"]
        return ", ".join(parts)

    def flags_from(self, other: ServedMethod) -> list[str]:
        """The flags with which `other` would ask for this method; empty where it does."""
        flags = [] if self.pe == other.pe else [f"--pe {self.pe}"]
        if self.factor is not None and self.factor != other.factor:
            flags.append(f"--factor {self.factor:g}")
        if self.native_length != other.native_length:
            flags.append(f"--native {self.native_length}")
        base = self.pe.removeprefix("resonance_")
        of_resonance = {field.name for field in dataclasses.fields(ResonanceParameters)}
        if self.pe == other.pe:  # else all of them are other ones
            for name in dict.fromkeys((*self.parameters, *(of_resonance & other.parameters.keys()))):
                value = self.parameters.get(name)
                if canonical_json(value) != canonical_json(other.parameters.get(name)):  # tuples are lists there
                    own = f"--pe-arg {RESONANCE if name in of_resonance else base}.{name}"
                    flags.append(f"no {own}" if value is None else f"{own}={value}")
        return flags

    def holds(self, table: RopeTable) -> bool:
        """Whether the engine holds this table."""
        tables = [table] if table.local is None else [table, table.local]
        positions_T = np.arange(self.length, dtype=np.int64)
        return set(self.rope_digests) == {table_digest(one.cos_sin(positions_T)) for one in tables}
