"""What a model's config says about its position encoding: native length, rotary geometry, shipped scaling.

Reads transformers 5 configs, where everything about RoPE stands in `rope_parameters`: one flat dictionary, or one per
layer type (Gemma 3). Multimodal models keep it in their text config. Every consumer (the backends, the export,
`longeval rope`) takes the settings from here, as the model's own rotary module would read them.
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
"""The key of L, in `rope_parameters` or beside them."""

_WITHOUT_ROPE = {
    **dict.fromkeys(("gpt2", "opt", "gpt_bigcode", "gpt_neo"), "it has learned absolute positions"),
    **dict.fromkeys(("mpt", "bloom"), "it has ALiBi, a bias by distance"),
    **dict.fromkeys(("gptj", "codegen"), "its RoPE is fixed in its code and heeds no setting"),
    **dict.fromkeys(("mamba", "mamba2"), "it has no attention"),
}
"""Model types that people may try, and what they have instead of a RoPE that can be replaced."""

_OTHERWISE = {
    **dict.fromkeys(("gemma4", "gemma4_text"), "its global layers have heads of another size, of which a part turns"),
    "gpt_oss": "it takes one cosine for a pair, and its own yarn has an untruncated ramp",
    **dict.fromkeys(("llama4", "llama4_text", "deepseek_v2"), "it multiplies complex numbers"),
    "phimoe": "transformers gives it the short list at every length",
}
"""Model types whose RoPE works in a way that longeval doesn't reproduce, and how."""

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
"""Keys of RoPE settings, what they have to be, and whether a number is that."""

_CORRECT = "Correct it in its config.json."


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
    """The config's `rope_parameters` as its rotary module reads them, by layer type where they differ."""
    by_layer_type: bool
    """Whether several tables are in use, one per layer type."""
    local: float | None
    """Base of the layers with a sliding window where there is one kind of them and they are unscaled; else None."""

    @property
    def full_attention(self) -> dict[str, Any]:
        """The parameters of the layers that see the whole context."""
        return _full_attention(self.parameters) if self.by_layer_type else self.parameters


def rope_geometry(config: Any) -> ConfigRope:
    """Reads the rotary geometry of a transformers config.

    Args:
        config: A `PreTrainedConfig`; a multimodal one is read at its text part.

    Raises:
        LongEvalError: If the model has no RoPE that its config describes, naming the model type.
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
        f"the config of this {text.model_type} model doesn't tell the length it was trained for",
        "Give it with --native, in tokens.",
    )


def check_rotates(config: Any) -> None:
    """Raises LongEvalError for a model that is known to have no RoPE, or none that a table can replace."""
    text = config.get_text_config()
    if why := _WITHOUT_ROPE.get(text.model_type):
        raise _no_rope(text, why)
    if getattr(text, "alibi", False):
        raise _no_rope(text, "this one has ALiBi, a bias by distance (alibi: true in its config)")
    if why := _OTHERWISE.get(text.model_type):
        raise LongEvalError(
            f"model type {text.model_type}: its rotary embedding can't be replaced exactly ({why})",
            "Use a model of another family: Llama, Mistral, Qwen, Gemma 2 or 3, Phi-3, GPT-NeoX, …",
        )


def _no_rope(text: Any, why: str) -> LongEvalError:
    return LongEvalError(
        f"model type {text.model_type}: no rotary position embedding to replace ({why})",
        "longeval measures RoPE models: Llama, Mistral, Qwen, Gemma, GPT-NeoX and their kin.",
    )


def _standard_parameters(text: Any) -> tuple[dict[str, Any], bool]:
    """The `rope_parameters` as the model's rotary module reads them, and whether they are by layer type.

    The module has transformers standardise the config once more before it reads it. Only then does an
    `original_max_position_embeddings` beside `rope_parameters` count, and it wins over the one inside (transformers
    5.19, `RotaryEmbeddingConfigMixin.standardize_rope_params`). `config` itself isn't changed.

    Raises:
        LongEvalError: Settings that the model would ignore.
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
        kinds = list(parameters)  # kinds of layers that this family doesn't declare
    elif kinds:  # and those that it has settings for, and no layer
        absent = {key for key in ALLOWED_LAYER_TYPES if isinstance(parameters.get(key), dict)}
        kinds = [key for key in parameters if key in kinds or key in absent]
    by_kind = {kind: parameters[kind] for kind in kinds}
    used = _full_attention(by_kind) if kinds else parameters
    for key, value in parameters.items():
        ignored = isinstance(value, dict) if not kinds else key not in kinds and value != used.get(key)
        if ignored:
            raise LongEvalError(
                f"{key} in its rope_parameters would be ignored: those of a {text.model_type} model are "
                + (f"by layer type ({', '.join(kinds)})" if kinds else "one flat dictionary"),
                "Correct rope_parameters in its config.json.",
            )
    for settings in by_kind.values() if kinds else (parameters,):
        _settle_part(text, settings or {})
    return by_kind if kinds else parameters, bool(kinds)


def _settle_part(text: Any, settings: dict[str, Any]) -> None:
    """Removes `partial_rotary_factor` from the settings of a family that always rotates whole heads.

    Its code for plain RoPE doesn't look at it; the code of the scaled types, which all families share, does, and makes
    a table that is too small for such a model.
    """
    from longeval.hf.parameters import rotates_part  # loads transformers

    if "partial_rotary_factor" not in settings:
        return
    heeded = rotates_part(text)
    part = settings["partial_rotary_factor"] if heeded else settings.pop("partial_rotary_factor")
    scaled = settings.get("rope_type", "default") != "default"
    if (scaled and part != 1 and not heeded) or (part is None and (scaled or heeded)):
        heads = "" if heeded else f"{text.model_type} models rotate whole heads, and "
        raise LongEvalError(
            f"partial_rotary_factor in its rope_parameters is {part!r}: {heads}stock transformers can't run it",
            _CORRECT if heeded else "Remove it from its config.json.",
        )


def _full_attention(parameters: dict[str, Any]) -> dict[str, Any]:
    """Of parameters by layer type, those of the layers that see the whole context."""
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
    return None if theta is None else float(theta)


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
    part = shipped.get("partial_rotary_factor")
    return int(head_dim) if part is None else int(head_dim * part)


def check_raw(raw: Mapping[str, Any]) -> None:
    """Raises LongEvalError for impossible RoPE settings in a `config.json`, read as plain JSON.

    transformers accepts text as a base without a message, and fails on others deep in its own code.
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
    """Raises LongEvalError for a RoPE setting that should be a number and isn't, or is an impossible one.

    `settings` is a flat dictionary of `rope_parameters`, or a `config.json`; what is None or missing is left alone.
    """
    rope_type = settings.get("rope_type", settings.get("type", "default"))
    if not isinstance(rope_type, str):
        raise LongEvalError(f"rope_type {reprlib.repr(rope_type)}: not a name", _CORRECT)
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
    """The value as a float. What is no finite number becomes NaN, which lies in no range."""
    try:
        number = math.nan if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
    return number if math.isfinite(number) else math.nan
