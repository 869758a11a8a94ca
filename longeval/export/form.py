"""Writes any frequency table into a model's `config.json`, as rope type `longrope` with two equal lists.

θ̃_j = θ_j / F_j. The divisors F_j are in both `short_factor` and `long_factor`, so that every sequence gets the same
table. transformers reads `attention_factor`; vLLM (and transformers' Phi-MoE) read `short_mscale` and `long_mscale`
instead. Sources: transformers 5.19 `modeling_rope_utils`, vLLM 0.32 `phi3_long_rope_scaled_rope`.

The table is written in two places: `rope_parameters` for transformers 5, and `rope_theta` and `rope_scaling` for
transformers 4. transformers 5 prefers `rope_scaling` if it exists, so both have the same contents. transformers 4.57
reads it in most families; Phi-3 and OLMo 2 refuse its keys there, and Nemotron ignores any scaling.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from longeval.errors import LongEvalError
from longeval.export.encoding import Encoding
from longeval.rope.base import FloatArray, Geometry, RopeTable

GLOBAL_LAYERS = "full_attention"

_READ_ELSEWHERE = {
    "llama_4_scaling_beta": "the scale of its queries",
    "mscale_all_dim": "the scale of its attention",
    "mrope_section": "which features rotate by which axis",
}
"""Keys of rope_parameters that do more than set frequencies, and what they set. An export would lose it."""

_STOCK_TYPES = {"none": "default", "pi": "linear"}
"""Methods whose rope type has another name in transformers."""

_FLAT_TOO = ("gemma3_text",)
"""Model types with a RoPE per layer type, whose `rope_scaling` in transformers 4 and 5 is for the global layers."""


def divisors(inv_freq_F: FloatArray, theta: float) -> FloatArray:
    """F_j = θ_j/θ̃_j, shape (F,), for the base θ_j = theta^(−j/F)."""
    plain = Geometry(head_dim=2 * len(inv_freq_F), theta=theta, native_length=1)
    divisor_F: FloatArray = plain.plain_inv_freq(theta) / inv_freq_F
    return divisor_F


def longrope_form(table: RopeTable, *, theta: float, original: int, factor: float) -> dict[str, Any]:
    """A table as `rope_parameters` of rope type longrope.

    Args:
        table: Frequencies and attention factor; longrope can't express exact periods.
        theta: The base in the configuration.
        original: `original_max_position_embeddings`, tokens.
        factor: s, at least 1; engines use it only if there is no attention factor.
    """
    lists = [float(divisor) for divisor in divisors(table.inv_freq_F, theta)]
    attention = float(table.attention_factor)
    return {
        "rope_type": "longrope",
        "rope_theta": theta,
        "factor": factor,
        "original_max_position_embeddings": original,
        "attention_factor": attention,
        "short_mscale": attention,
        "long_mscale": attention,
        "short_factor": lists,
        "long_factor": list(lists),
    }


def own_form(encoding: Encoding) -> dict[str, Any]:
    """A method as `rope_parameters` of its rope type: transformers' own where there is one, else that of `longeval.hf`.

    A type without parameters of transformers (`yarn` with our attention factor) reads ours, which have the same names.
    """
    arguments = {name: value for name, value in encoding.arguments.items() if value is not None}
    return {
        "rope_type": _STOCK_TYPES.get(encoding.name.canonical, encoding.name.canonical),
        "rope_theta": encoding.theta,
        "original_max_position_embeddings": encoding.native_length,
        **({"factor": encoding.factor} if encoding.name.method.uses_factor else {}),
        **{name: list(value) if isinstance(value, tuple) else value for name, value in arguments.items()},
    }


def new_config(raw: Mapping[str, Any], config: Any, encoding: Encoding, *, own_type: bool = False) -> dict[str, Any]:
    """Returns a copy of `raw`, the content of a model's `config.json`, with the encoding in it.

    Args:
        raw: The content of `config.json`.
        config: The model's PreTrainedConfig.
        encoding: The encoding.
        own_type: Whether it is written as the method's own rope type (`own_form`) instead of longrope.

    Raises:
        LongEvalError: The settings that would be replaced set more than frequencies, or can't be found.
    """
    new = copy.deepcopy(dict(raw))
    new.pop("auto_map", None)  # it names Python files, which are not exported
    text = config.get_text_config()
    part = _text_part(new, config, encoding)
    _check_replaceable(encoding)
    own = encoding.rope.config
    partial = own.full_attention.get("partial_rotary_factor")
    if own.by_layer_type:
        parameters = _by_layer_type(encoding, own_type=own_type)
        flat = parameters[GLOBAL_LAYERS] if text.model_type in _FLAT_TOO else None
    else:
        parameters = (
            own_form(encoding)
            if own_type
            else longrope_form(
                encoding.table, theta=encoding.theta, original=encoding.native_length, factor=encoding.factor
            )
        )
        flat = parameters
    if partial is not None:
        (parameters[GLOBAL_LAYERS] if own.by_layer_type else parameters)["partial_rotary_factor"] = partial
    else:
        part.pop("partial_rotary_factor", None)  # the family ignores it, but longrope would not
    part["rope_parameters"] = parameters
    part.pop("rope_scaling", None)
    if flat is not None:
        part["rope_scaling"] = dict(flat)
        part["rope_theta"] = encoding.theta
    part["max_position_embeddings"] = encoding.target_length
    if own.by_layer_type or hasattr(text, "original_max_position_embeddings"):
        part["original_max_position_embeddings"] = encoding.native_length
    if getattr(text, "head_dim", 0) is None:
        # stock longrope uses the attribute if it exists, and fails if it is None
        part["head_dim"] = text.hidden_size // text.num_attention_heads
    return new


def _by_layer_type(encoding: Encoding, *, own_type: bool) -> dict[str, Any]:
    """`rope_parameters` by layer type; with `own_type` as the method's own rope type.

    `original_max_position_embeddings` is set to the target there. transformers 5.16 to 5.19 fails at the second pass
    if a sequence is longer than it. The two lists are equal, so the result doesn't change. L is stored beside it.
    """

    def form(table: RopeTable, theta: float) -> dict[str, Any]:
        return longrope_form(table, theta=theta, original=encoding.target_length, factor=1.0)

    parameters = copy.deepcopy(encoding.rope.config.parameters)
    if GLOBAL_LAYERS not in parameters:
        raise LongEvalError(
            f"--model {encoding.rope.model}: has a RoPE for each layer type, but no '{GLOBAL_LAYERS}' layers",
            "Such a model can't be exported, because methods scale these layers.",
        )
    parameters[GLOBAL_LAYERS] = own_form(encoding) if own_type else form(encoding.table, encoding.theta)
    if encoding.table.local is not None:
        local_theta = encoding.rope.config.local
        assert local_theta is not None
        for key in parameters:
            if key != GLOBAL_LAYERS and parameters[key] is not None:
                local = own_form(encoding) | {"rope_theta": local_theta}
                parameters[key] = local if own_type else form(encoding.table.local, local_theta)
    return parameters


def _text_part(new: dict[str, Any], config: Any, encoding: Encoding) -> dict[str, Any]:
    """The part of `config.json` that describes the language model: all of it, or `text_config`."""
    if config.get_text_config() is config:
        return new
    part = new.get("text_config")
    if not isinstance(part, dict):
        raise LongEvalError(
            f"--model {encoding.rope.model}: its config.json has no text_config to write the frequencies into",
            "Save its language model alone, and export that.",
        )
    return part


def _check_replaceable(encoding: Encoding) -> None:
    """Raises LongEvalError if the settings that are replaced set more than frequencies."""
    parameters = encoding.rope.config.parameters
    settings = list(parameters.values()) if encoding.rope.config.by_layer_type else [parameters]
    for given in settings:
        for key, what in _READ_ELSEWHERE.items():
            if given is not None and given.get(key):
                raise LongEvalError(
                    f"--model {encoding.rope.model}: takes {what} from {key} in its RoPE settings, which rope type "
                    "longrope can't express",
                    "Such a model can't be exported; longeval itself measures it with any method.",
                )
