"""What there is to know about a model family's RoPE, and the tiny configuration that follows from it.

The facts are written by hand, from model cards and papers, and not read from a configuration, because reading
configurations is part of what is tested.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

NATIVE = 64
"""Native length of every tiny model, tokens."""
REACH = 8 * NATIVE
"""The length that those with a scaling of their own were stretched to, tokens."""

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "vocab_size": 64,
    "sliding_window": 32,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
"""For every family: what one of them doesn't know does no harm."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """A family that longeval serves."""

    name: str
    examples: str
    """Models that people know."""
    config: str
    """Class of transformers."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Beside SIZES and what the facts below say."""
    wrapped: dict[str, Any] | None = None
    """For a multimodal family: the rest of its configuration, around the language model's."""
    theta: float = 10000.0
    head_dim: int = 16
    rotated: int = 16
    """Dimensions of a head that turn."""
    first: int = 0
    """The first of them."""
    pairing: str = "halves"
    """A key of `rotation_reference.PAIRINGS`."""
    own: dict[str, Any] = field(default_factory=dict)
    """What its code reads from `rope_parameters` beside frequencies."""
    shipped: dict[str, Any] = field(default_factory=dict)
    """Scaling that the model comes with, in the words of `rope_parameters`."""
    tells_native: bool = True
    """Whether the configuration tells the length before that scaling; else `--native` must."""
    layers: int = 2
    attention_layers: tuple[int, ...] | None = None
    """Layers with attention; None: all."""
    unrotated_layers: tuple[int, ...] = ()
    """Those of them without position encoding."""
    local_theta: float | None = None
    """Base of the sliding-window layers where the model rotates by layer type; theta is then the global layers'."""
    local_layers: tuple[int, ...] = ()
    """Layers that turn by `local_theta`."""
    normalised_after: bool = False
    """Whether queries and keys are normalised after they were rotated, which undoes any attention factor."""
    remark: str = ""

    @property
    def part(self) -> str:
        """The part of a head that turns, for readers."""
        if self.rotated == self.head_dim:
            return "all"
        return f"{'last' if self.first else 'first'} {self.rotated / self.head_dim:.0%}"

    @property
    def reach(self) -> int:
        """The length that the model was stretched to, tokens."""
        return REACH if self.shipped else NATIVE

    def parameters(self, scaling: dict[str, Any]) -> dict[str, Any]:
        """`rope_parameters` with a scaling of the global layers, by layer type where the family has that."""
        flat = {"rope_type": "default", "rope_theta": self.theta} | self.own | scaling
        if self.rotated < self.head_dim and not self.first:
            flat["partial_rotary_factor"] = self.rotated / self.head_dim
        if self.local_theta is None:
            return flat
        local = {"rope_type": "default", "rope_theta": self.local_theta}
        return {"full_attention": flat, "sliding_attention": local}

    def constructor(self, scaling: dict[str, Any]) -> dict[str, Any]:
        """Everything for the constructor of the configuration, with a scaling."""
        num_heads = SIZES["hidden_size"] // self.head_dim
        text = SIZES | {
            "num_hidden_layers": self.layers,
            "num_attention_heads": num_heads,
            "num_key_value_heads": num_heads // 2,
            "max_position_embeddings": self.reach,
            "rope_parameters": self.parameters(scaling),
        }
        text |= self.settings
        return text if self.wrapped is None else {"text_config": text, **self.wrapped}
