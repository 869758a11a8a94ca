"""Reads the position encoding from a model's config: native length, rotary geometry, shipped scaling.

In transformers 5 configs, `rope_parameters` holds all settings of RoPE: one flat dictionary, or one per layer type
(Gemma 3). In multimodal models it is in the text config. Backends, export and `longeval rope` all take the settings
from here; they are those that the model's own rotary module uses.
"""

from __future__ import annotations

import copy
import math
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from longeval.errors import LongEvalError

NATIVE = "original_max_position_embeddings"
"""The key of L, inside `rope_parameters` or beside it."""

_WITHOUT_ROPE = {
    **dict.fromkeys(("gpt2", "opt", "gpt_bigcode", "gpt_neo"), "it has learned absolute positions"),
    **dict.fromkeys(("mpt", "bloom"), "it has ALiBi, a bias by distance"),
    **dict.fromkeys(("gptj", "codegen"), "its RoPE is fixed in its code and ignores all settings"),
    **dict.fromkeys(("mamba", "mamba2"), "it has no attention"),
}
"""Model types without a RoPE that can be replaced, and what they have instead."""

_NOT_REPLACEABLE = {
    **dict.fromkeys(("gemma4", "gemma4_text"), "its global layers have larger heads and rotate only a part of them"),
    "gpt_oss": "it uses one cosine for each pair, and its own yarn has an untruncated ramp",
    **dict.fromkeys(("llama4", "llama4_text", "deepseek_v2"), "it multiplies complex numbers"),
    "phimoe": "transformers always uses its short list of factors",
}
"""Model types whose RoPE longeval can't reproduce exactly, and why."""

_BASES = ("rope_theta", "rotary_emb_base", "rope_local_base_freq", "global_rope_theta", "local_rope_theta")
_PARTS = ("partial_rotary_factor", "rotary_pct")
_LENGTHS = (NATIVE, "max_position_embeddings")
_POSITIVE = ("attention_factor", "beta_fast", "beta_slow", "low_freq_factor", "high_freq_factor")
_FROM_ZERO = ("mscale", "mscale_all_dim")

_NUMBERS: tuple[tuple[tuple[str, ...], str, Callable[[float], bool]], ...] = (
    ((*_BASES, *_POSITIVE), "a number above 0 that float32 can hold", lambda number: 1e-30 < number < 1e30),
    (_PARTS, "a number above 0 and at most 1", lambda number: 0 < number <= 1),
    (_LENGTHS, "a number of whole tokens, 2 or more", lambda number: 2 <= number < 2**31 and number.is_integer()),
    (("factor",), "a number of at least 1", lambda number: 1 <= number < 2**31),
    (_FROM_ZERO, "a number of at least 0", lambda number: number >= 0),
)
"""Keys of RoPE settings, a description of their valid values, and a function that checks a number."""

_CORRECT = "Correct it in its config.json."


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfigRope:
    """The RoPE settings of a config."""

    head_dim: int
    """Rotated dimensions of a head: all, or a part of them if `partial_rotary_factor` is given."""
    theta: float
    """Base; that of the full-attention layers if bases differ by layer type."""
    rope_type: str
    """The scaling that the model comes with, in transformers' terms: default, linear, yarn, llama3, …"""
    parameters: dict[str, Any]
    """The config's `rope_parameters` as its rotary module reads them; by layer type if `by_layer_type`."""
    by_layer_type: bool
    """Whether each layer type has its own table."""
    local: float | None
    """Base of the sliding-window layers, if these are one layer type without scaling; otherwise None."""

    @property
    def full_attention(self) -> dict[str, Any]:
        """The parameters of the full-attention layers."""
        return _full_attention(self.parameters) if self.by_layer_type else self.parameters


def rope_geometry(config: Any) -> ConfigRope:
    """Reads the rotary geometry of a `PreTrainedConfig`; of a multimodal model, the text config is used.

    Raises:
        LongEvalError: The config describes no RoPE, or one that can't be replaced. The message names the model type.
    """
    check_rotates(config)
    text = config.get_text_config()
    parameters, by_layer_type = _standard_parameters(text)
    if not parameters:
        raise _no_rope(text, "its config has no rope_parameters")
    for given in parameters.values() if by_layer_type else (parameters,):
        _check_numbers(given or {})
    shipped = _full_attention(parameters) if by_layer_type else parameters
    theta = shipped.get("rope_theta")
    if theta is None:
        raise _no_rope(text, "its rope_parameters have no rope_theta")
    return ConfigRope(
        head_dim=_rotary_dim(text, shipped),
        theta=float(theta),
        rope_type=str(shipped.get("rope_type", "default")),
        parameters=parameters,
        by_layer_type=by_layer_type,
        local=_local_theta(parameters) if by_layer_type else None,
    )


def native_length(config: Any, override: int | None = None) -> int:
    """Returns L, the context length that the model was trained for, in tokens.

    It is `override` (the value of `--native`) if given, or else the config's `original_max_position_embeddings` (at the
    top level or inside `rope_parameters`), or else its `max_position_embeddings`.

    Raises:
        LongEvalError: `override` isn't positive, or the config doesn't state the length.
    """
    if override is not None:
        if override < 1:
            raise LongEvalError(f"--native {override}: must be a positive number of tokens", "Llama 2 has 4096.")
        return override
    text = config.get_text_config()
    parameters, by_layer_type = _standard_parameters(text)
    candidates = [
        getattr(text, NATIVE, None),
        *((given or {}).get(NATIVE) for given in (parameters.values() if by_layer_type else (parameters,))),
        getattr(text, "max_position_embeddings", None),
    ]
    for length in candidates:
        if (number := _number(length)) >= 1:
            return int(number)
    raise LongEvalError(
        f"the config of this {text.model_type} model doesn't state the length it was trained for",
        "Give it with --native, in tokens.",
    )


def check_rotates(config: Any) -> None:
    """Raises LongEvalError for a model type that is known to have no RoPE, or one that a table can't replace."""
    text = config.get_text_config()
    if why := _WITHOUT_ROPE.get(text.model_type):
        raise _no_rope(text, why)
    if getattr(text, "alibi", False):
        raise _no_rope(text, "this one has ALiBi, a bias by distance (alibi: true in its config)")
    if why := _NOT_REPLACEABLE.get(text.model_type):
        raise LongEvalError(
            f"model type {text.model_type}: its rotary embedding can't be replaced exactly ({why})",
            "Use a model of another family: Llama, Mistral, Qwen, Gemma 2 or 3, Phi-3, GPT-NeoX, …",
        )


def _no_rope(text: Any, why: str) -> LongEvalError:
    return LongEvalError(
        f"model type {text.model_type}: no rotary position embedding to replace ({why})",
        "longeval measures RoPE models, such as Llama, Mistral, Qwen, Gemma and GPT-NeoX.",
    )


def _standard_parameters(text: Any) -> tuple[dict[str, Any], bool]:
    """The `rope_parameters` as the model's rotary module reads them, and whether they are by layer type.

    Before the module reads the config, transformers standardises it once more. Only this step takes account of an
    `original_max_position_embeddings` beside `rope_parameters`, which takes precedence over the one inside
    (transformers 5.19, `RotaryEmbeddingConfigMixin.standardize_rope_params`). `text` itself isn't changed.

    Raises:
        LongEvalError: The model would ignore some of the settings.
    """
    from transformers.configuration_utils import ALLOWED_LAYER_TYPES

    given = getattr(text, "rope_parameters", None)
    if not isinstance(given, dict) or not given:
        return {}, False
    text = copy.deepcopy(text)
    text.standardize_rope_params()
    parameters: dict[str, Any] = text.rope_parameters
    kinds = text.nested_rope_parameter_keys(parameters)
    if not kinds and all(value is None or isinstance(value, dict) for value in parameters.values()):
        kinds = list(parameters)  # layer types that this family doesn't declare
    elif kinds:  # also layer types with settings, but without layers
        absent = {key for key in ALLOWED_LAYER_TYPES if isinstance(parameters.get(key), dict)}
        kinds = [key for key in parameters if key in kinds or key in absent]
    by_kind = {kind: parameters[kind] for kind in kinds}
    used = _full_attention(by_kind) if kinds else parameters
    for key, value in parameters.items():
        ignored = isinstance(value, dict) if not kinds else key not in kinds and value != used.get(key)
        if ignored:
            raise LongEvalError(
                f"{key} in its rope_parameters would be ignored: in a {text.model_type} model they must be "
                + (f"by layer type ({', '.join(kinds)})" if kinds else "one flat dictionary"),
                "Correct rope_parameters in its config.json.",
            )
    for settings in by_kind.values() if kinds else (parameters,):
        _remove_ignored_part(text, settings or {})
    return by_kind if kinds else parameters, bool(kinds)


def _remove_ignored_part(text: Any, settings: dict[str, Any]) -> None:
    """Removes `partial_rotary_factor` from the settings of a family that always rotates whole heads.

    The plain RoPE of such a family ignores the key. The scaled types, whose code all families share, would use it and
    make a table that is too small.
    """
    from longeval.hf.parameters import rotates_part  # loads transformers

    if "partial_rotary_factor" not in settings:
        return
    reads_part = rotates_part(text)
    part = settings["partial_rotary_factor"] if reads_part else settings.pop("partial_rotary_factor")
    scaled = settings.get("rope_type", "default") != "default"
    if (scaled and part != 1 and not reads_part) or (part is None and (scaled or reads_part)):
        heads = "" if reads_part else f"{text.model_type} models rotate whole heads, and "
        raise LongEvalError(
            f"partial_rotary_factor in its rope_parameters is {part!r}: {heads}stock transformers can't run it",
            _CORRECT if reads_part else "Remove it from its config.json.",
        )


def _full_attention(parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters of the full-attention layers, from parameters by layer type."""
    chosen = parameters.get("full_attention")
    if chosen is None:
        chosen = next((value for value in parameters.values() if value is not None), {})
    assert isinstance(chosen, dict)
    return chosen


def _local_theta(parameters: dict[str, Any]) -> float | None:
    """The base of the other layers, if these are a single layer type without scaling; otherwise None."""
    others = [value for key, value in parameters.items() if key != "full_attention" and value is not None]
    if len(others) != 1 or others[0].get("rope_type", "default") != "default":
        return None
    theta = others[0].get("rope_theta")
    return None if theta is None else float(theta)


def _rotary_dim(text: Any, shipped: dict[str, Any]) -> int:
    """Rotated dimensions: DeepSeek's own field, or else head_dim (or hidden / heads) times the rotated part."""
    if isinstance(dim := getattr(text, "qk_rope_head_dim", None), int):
        return dim
    head_dim = getattr(text, "head_dim", None)
    if head_dim is None:
        hidden, heads = getattr(text, "hidden_size", None), getattr(text, "num_attention_heads", None)
        if not (isinstance(hidden, int) and isinstance(heads, int)):
            raise _no_rope(text, "its config states neither head_dim nor hidden_size and num_attention_heads")
        head_dim = hidden // heads
    part = shipped.get("partial_rotary_factor")
    return int(head_dim) if part is None else int(head_dim * part)


def check_raw(raw: Mapping[str, Any]) -> None:
    """Raises LongEvalError for impossible RoPE settings in a `config.json`, read as plain JSON.

    transformers silently accepts text as a base, and fails on other values with unclear errors.
    """
    for part in (raw, raw.get("text_config")):
        if not isinstance(part, Mapping):
            continue
        _check_numbers({key: part.get(key) for key in (*_BASES, *_PARTS, *_LENGTHS)})
        length = part.get("max_position_embeddings")
        if isinstance(length, float):
            raise LongEvalError(
                f"max_position_embeddings is {length}, not a whole number", f"Write {int(length)} in its config.json."
            )
        for key in ("rope_parameters", "rope_scaling"):
            given = part.get(key)
            if given is None:
                continue
            if not isinstance(given, Mapping):
                raise LongEvalError(f"{key} is {reprlib.repr(given)}, not a JSON object", _CORRECT)
            for settings in (given, *given.values()):
                if isinstance(settings, Mapping):
                    _check_numbers(settings)


def _check_numbers(settings: Mapping[str, Any]) -> None:
    """Raises LongEvalError for a RoPE setting that should be a number and isn't, or that is impossible.

    `settings` is a flat dictionary of `rope_parameters`, or a `config.json`. Missing keys and None are ignored.
    """
    rope_type = settings.get("rope_type", settings.get("type", "default"))
    if not isinstance(rope_type, str):
        raise LongEvalError(f"rope_type {reprlib.repr(rope_type)}: not text", _CORRECT)
    for key in ("short_factor", "long_factor"):
        value = settings.get(key)
        if value is not None and not (isinstance(value, list | tuple) and all(_number(one) > 0 for one in value)):
            raise LongEvalError(
                f"{key} in its rope_parameters is {reprlib.repr(value)}, not a list of numbers above 0", _CORRECT
            )
    of = "" if rope_type == "default" else f" of its {rope_type} scaling"
    for keys, wanted, fits in _NUMBERS:
        for key in keys:
            value = settings.get(key)
            if value is None or fits(_number(value)):
                continue
            if isinstance(value, str):
                problem = f"{key}{of} is the text {reprlib.repr(value)}, not {wanted}"
                raise LongEvalError(problem, "Write it without quotes in its config.json.")
            raise LongEvalError(f"{key}{of} is {reprlib.repr(value)}, not {wanted}", _CORRECT)


def _number(value: Any) -> float:
    """The value as a float; anything but a finite number becomes NaN, which is outside of every range."""
    try:
        number = math.nan if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
    return number if math.isfinite(number) else math.nan
