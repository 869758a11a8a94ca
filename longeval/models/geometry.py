"""What a model's config says about its position encoding: native length, rotary geometry, shipped scaling.

Reads transformers 5 configs, where everything about RoPE stands in `rope_parameters`: one flat dictionary, or one per
layer type (Gemma 3). Multimodal models keep it in their text config.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from longeval.errors import LongEvalError


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfigRope:
    """The RoPE settings of a config."""

    head_dim: int
    """Rotated dimensions of a head: all of it, or its part where `partial_rotary_factor` says so."""
    theta: float
    """Base; that of the full-attention layers where they differ by layer type."""
    rope_type: str
    """The scaling that the model is shipped with, in transformers' words: default, linear, yarn, llama3, …"""
    parameters: dict[str, Any]
    """The config's `rope_parameters` as they stand, by layer type where they differ."""
    by_layer_type: bool
    """Whether several tables are in use, one per layer type."""
    local: float | None
    """Base of the layers with a sliding window where there is one kind of them and they are unscaled; else None."""


def rope_geometry(config: Any) -> ConfigRope:
    """Reads the rotary geometry of a transformers config.

    Args:
        config: A `PreTrainedConfig`; a multimodal one is read at its text part.

    Raises:
        LongEvalError: If the model has no RoPE that its config describes, naming the model type.
    """
    check_rotates(config)
    text = config.get_text_config()
    parameters = getattr(text, "rope_parameters", None)
    if not isinstance(parameters, dict) or not parameters:
        raise _no_rope(text, "its config has no rope_parameters")
    by_layer_type = all(value is None or isinstance(value, dict) for value in parameters.values())
    shipped = full_attention(parameters) if by_layer_type else parameters
    theta = shipped.get("rope_theta")
    if not isinstance(theta, int | float):
        raise _no_rope(text, "its rope_parameters have no rope_theta")
    return ConfigRope(
        head_dim=_rotary_dim(text, shipped),
        theta=float(theta),
        rope_type=str(shipped.get("rope_type", "default")),
        parameters=dict(parameters),
        by_layer_type=by_layer_type,
        local=_local_theta(parameters) if by_layer_type else None,
    )


_WITHOUT_ROPE = {
    "gpt2": "it has learned absolute positions",
    "opt": "it has learned absolute positions",
    "gpt_bigcode": "it has learned absolute positions",
    "gpt_neo": "it has learned absolute positions",
    "mpt": "it has ALiBi, a bias by distance",
    "bloom": "it has ALiBi, a bias by distance",
    "gptj": "its RoPE is fixed in its code and heeds no setting",
    "codegen": "its RoPE is fixed in its code and heeds no setting",
    "mamba": "it has no attention",
    "mamba2": "it has no attention",
}
"""Model types that people may try, and what they have instead of a RoPE that can be replaced."""

_OTHERWISE = {
    "gemma4": "its global layers have heads of another size, of which a part turns",
    "gemma4_text": "its global layers have heads of another size, of which a part turns",
    "gpt_oss": "it takes one cosine for a pair, and its own yarn has an untruncated ramp",
    "llama4": "it multiplies complex numbers",
    "llama4_text": "it multiplies complex numbers",
    "deepseek_v2": "it multiplies complex numbers",
    "phimoe": "transformers gives it the short list at every length",
}
"""Model types whose RoPE works in a way that longeval doesn't reproduce, and how."""


def check_rotates(config: Any) -> None:
    """Raises LongEvalError for a model that is known to have no RoPE, or none that a table can replace."""
    text = config.get_text_config()
    if reason := _WITHOUT_ROPE.get(text.model_type):
        raise _no_rope(text, reason)
    if getattr(text, "alibi", False):
        raise _no_rope(text, "this one has ALiBi, a bias by distance (alibi: true in its config)")
    if reason := _OTHERWISE.get(text.model_type):
        raise LongEvalError(
            f"model type {text.model_type}: its rotary embedding can't be replaced exactly ({reason})",
            "Use a model of another family: Llama, Mistral, Qwen, Gemma 2 or 3, Phi-3, GPT-NeoX, …",
        )


def native_length(config: Any, override: int | None = None) -> int:
    """Returns L, the context length the model was trained for, in tokens.

    The config's `original_max_position_embeddings` (top level, or inside `rope_parameters`), else its
    `max_position_embeddings`.

    Args:
        config: A `PreTrainedConfig`; a multimodal one is read at its text part.
        override: The value of `--native`, which wins.

    Raises:
        LongEvalError: If `override` isn't positive, or the config doesn't tell.
    """
    if override is not None:
        if override < 1:
            raise LongEvalError(f"--native {override}: must be a positive number of tokens", "Llama 2 has 4096.")
        return override
    text = config.get_text_config()
    parameters = getattr(text, "rope_parameters", None) or {}
    by_layer = [value for value in parameters.values() if isinstance(value, dict)]
    candidates = [
        getattr(text, "original_max_position_embeddings", None),
        parameters.get("original_max_position_embeddings"),
        *(layer.get("original_max_position_embeddings") for layer in by_layer),
        getattr(text, "max_position_embeddings", None),
    ]
    for length in candidates:
        if isinstance(length, int | float) and math.isfinite(length) and length >= 1:
            return int(length)
    raise LongEvalError(
        f"the config of this {text.model_type} model doesn't tell the length it was trained for",
        "Give it with --native, in tokens.",
    )


def full_attention(parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters of the layers that see the whole context."""
    chosen = parameters.get("full_attention")
    if chosen is None:
        chosen = next((value for value in parameters.values() if value is not None), {})
    assert isinstance(chosen, dict)
    return chosen


def _local_theta(parameters: dict[str, Any]) -> float | None:
    """The base of the layers other than the full-attention ones, if those are of one kind and plain."""
    others = [value for key, value in parameters.items() if key != "full_attention" and value is not None]
    if len(others) != 1 or others[0].get("rope_type", "default") != "default":
        return None
    theta = others[0].get("rope_theta")
    return float(theta) if isinstance(theta, int | float) else None


def _rotary_dim(text: Any, shipped: dict[str, Any]) -> int:
    """Rotated dimensions: DeepSeek's own field, else head_dim (or hidden / heads) times the rotated part."""
    if isinstance(dim := getattr(text, "qk_rope_head_dim", None), int):
        return dim
    head_dim = getattr(text, "head_dim", None)
    if head_dim is None:
        hidden, heads = getattr(text, "hidden_size", None), getattr(text, "num_attention_heads", None)
        if not (isinstance(hidden, int) and isinstance(heads, int)):
            raise _no_rope(text, "its config tells neither head_dim nor hidden_size and num_attention_heads")
        head_dim = hidden // heads
    part = shipped.get("partial_rotary_factor", getattr(text, "partial_rotary_factor", None))
    return int(head_dim * (1.0 if part is None else part))


def _no_rope(text: Any, reason: str) -> LongEvalError:
    return LongEvalError(
        f"model type {text.model_type}: no rotary position embedding to replace ({reason})",
        "longeval measures RoPE models: Llama, Mistral, Qwen, Gemma, GPT-NeoX and their kin.",
    )
