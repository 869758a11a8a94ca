"""What every request says of models, methods, lengths and the machine: the part that `ppl` and `tasks` share."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

from longeval.errors import LongEvalError
from longeval.records import canonical_json
from longeval.spec.values import check_word, format_length

ScaleFrom = Literal["plain", "shipped"]
SCALE_FROM: tuple[ScaleFrom, ...] = get_args(ScaleFrom)
"""What methods start from on a model that comes already scaled: plain RoPE, or the shipped frequencies."""

Layers = Literal["global", "all"]
LAYERS: tuple[Layers, ...] = get_args(Layers)
"""Which layers are scaled where a model rotates by layer type: those that see the whole context, or all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelRequest:
    """Models, methods and lengths, every combination of which is tried, and the machine to do it on."""

    command: ClassVar[str]
    """The command that makes such requests."""

    model: tuple[str, ...]
    """Short names, hub ids, folders, .gguf files."""
    pe: tuple[str, ...]
    """Method names."""
    lengths: tuple[int, ...]
    """Window lengths in tokens, ascending."""
    factor: float | Literal["each"] | None = None
    """s for all lengths; `each`: every length its own; None: longest length / native length, at least 1."""
    pe_args: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Method parameters by method: {"yarn": {"beta_fast": 16}}."""
    bos: bool | None = None
    """Whether a BOS starts every window; None: if the tokenizer itself would add one."""
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
    """Seed of the bootstrap, and of everything that is drawn."""

    def __post_init__(self) -> None:
        for flag, items in (("--model", self.model), ("--pe", self.pe)):
            if not items:
                raise LongEvalError(f"{flag}: nothing named", "Give at least one.")
        if not self.lengths:
            raise LongEvalError("--lengths: nothing named", "Give at least one, such as 4k,8k,16k.")
        if self.native is not None and self.native < 2:
            raise LongEvalError(f"--native {self.native}: must be at least 2 tokens", "Llama 2 has 4096.")
        check_word("--scale-from", self.scale_from, SCALE_FROM)
        check_word("--layers", self.layers, LAYERS)
        if self.device_map is not None and self.device != "auto":
            raise LongEvalError(
                f"--device {self.device}: would be ignored beside --device-map {self.device_map}",
                "Give one of the two.",
            )

    def to_mapping(self) -> dict[str, Any]:
        """As plain YAML: every field that says something, lengths as users write them."""
        plain: dict[str, Any] = {"command": self.command}
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if value is None or value in ({}, ()):
                continue
            if item.name == "lengths":
                value = [int(text) if text.isdigit() else text for text in map(format_length, value)]
            plain[item.name] = value
        untyped: dict[str, Any] = json.loads(canonical_json(plain))  # tuples to lists, also within pe_args
        return {key: untyped[key] for key in plain}

    def digest(self) -> str:
        """A short digest of the request, for naming its run folder."""
        return hashlib.sha256(canonical_json(self.to_mapping()).encode()).hexdigest()[:8]
