"""Completes the config of a GGUF model with settings that transformers ignores when it reads the file.

- Whether a text begins with BOS (`tokenizer.ggml.add_bos_token`). transformers' tokenizer for a GGUF never adds it;
  without BOS, Gemma 3 has a perplexity of 5.9e9 instead of 3.46. If the key is missing, llama.cpp's defaults apply
  (`llama-vocab.cpp`): sentencepiece vocabularies add BOS, and so do byte-level ones with the splitting rules of Llama 3
  or Tekken.
- Gemma 2 and 3: the divisor of the attention logits, which llama.cpp derives from the sizes (`gemma2.cpp`,
  `gemma3.cpp`); soft caps; and which layers, if any, have a sliding window.
- The position encoding, as transformers' `rope_parameters`; transformers ignores most of it.

llama.cpp reads these keys of the position encoding (`llama-model.cpp`, `llama-context.cpp`, `ggml_rope_ext`):

- `rope.freq_base` is b (default 10000), `rope.freq_base_swa` is the base of sliding-window layers, and
  `rope.dimension_count` is the number of rotated dimensions of a head.
- `rope.scaling.type` is `none`, `linear` (the default), `yarn` or `longrope`; `rope.scaling.factor`, or in old files
  `rope.scale_linear`, is s. `none` ignores s.
- linear: θ/s. yarn: as published, with L from `rope.scaling.original_context_length` (default `context_length`), β from
  `rope.scaling.yarn_beta_fast` and `yarn_beta_slow` (32 and 1), and attention factor 0.1·ln(s)+1. llama.cpp uses the β
  in the file only for some families; here they are used for all, because the model was trained with them.
- `rope.scaling.attn_factor` multiplies the attention factor of every type.
- The tensor `rope_freqs.weight` holds a divisor for each frequency (Llama 3.1). `rope_factors_short.weight` and
  `rope_factors_long.weight` are two lists of divisors; the long one is for contexts beyond the original length (Phi-3).

Divisors are expressed as transformers' longrope. If a file has one list, it becomes both the short and the long list,
so that the table doesn't depend on length. Llama 3.1's divisors become rope type llama3, so that the native length is
known. Settings that can't be expressed exactly are refused; the message names the key.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from longeval.models.gguf.header import GgufHeader

_BOS_BY_DEFAULT = frozenset(
    (
        *("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),
        *("tekken", "chameleon"),
    )
)
"""Splitting rules (`tokenizer.ggml.pre`) of byte-level vocabularies that add BOS by default."""
_GEMMA_27B = {"gemma2": 46, "gemma3": 62}
"""Number of layers by which llama.cpp recognises the size whose logits are not divided by √head_dim."""

_FREQS, _SHORT, _LONG = "rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"
_TYPES = ("none", "linear", "yarn", "longrope")
_READ = ("type", "factor", "original_context_length", "attn_factor", "finetuned", "yarn_beta_fast", "yarn_beta_slow")
"""Keys under `rope.scaling` that are read here; `finetuned` has no effect."""
_NEUTRAL: dict[str, tuple[float, ...]] = {
    "yarn_log_multiplier": (0.0,),
    "yarn_ext_factor": (0.0, -1.0),
    "yarn_attn_factor": (1.0,),
    "alpha": (0.0,),
}
"""Keys whose meaning differs between programs, with the values for which they have no effect."""
_NEUTRAL_IN_YARN = _NEUTRAL | {"yarn_ext_factor": (1.0, -1.0), "yarn_attn_factor": ()}
"""The same for type yarn. ext_factor weights its ramp. Some programs store transformers' whole attention factor as
yarn_attn_factor, which llama.cpp ignores or multiplies with its own."""
_GLOBAL, _LOCAL = "full_attention", "sliding_attention"
_DEFAULT_BASE = 10000.0
_LLAMA3_LENGTH, _LLAMA3_LOW, _LLAMA3_HIGH = 8192, 1.0, 4.0
"""Settings of all Llama 3.1, 3.2 and 3.3 models; only s differs."""


def adds_bos(header: GgufHeader) -> bool:
    """Whether the file's tokenizer adds BOS before a text."""
    stated = header.fields.get("tokenizer.ggml.add_bos_token")
    if stated is not None:
        if not isinstance(stated, bool):
            raise header.refused(f"tokenizer.ggml.add_bos_token = {stated!r}", "it must be true or false")
        return stated
    if header.fields.get("tokenizer.ggml.model") in ("llama", "gemma4"):
        return True
    return header.fields.get("tokenizer.ggml.pre") in _BOS_BY_DEFAULT


def complete_config(header: GgufHeader, config: Any) -> Any:
    """Returns a copy of the config that transformers made from a GGUF file, with all settings of the file.

    Raises:
        LongEvalError: The file has a setting that transformers can't express; the message names its key.
    """
    stated: dict[str, Any] = {}
    if (rope := rope_parameters(header, config)) is not None:
        stated["rope_parameters"] = rope
    if hasattr(config, "original_max_position_embeddings"):  # Phi-3; transformers assumes 4096
        before = header.own("rope.scaling.original_context_length") or header.own("context_length")
        stated["original_max_position_embeddings"] = before or config.original_max_position_embeddings
    if header.architecture in _GEMMA_27B:
        stated |= _gemma(header, config)
    return type(config).from_dict(config.to_dict() | stated)


def _gemma(header: GgufHeader, config: Any) -> dict[str, Any]:
    """Settings of Gemma 2 or 3 for which transformers uses the defaults of one model size."""
    stated: dict[str, Any] = {"query_pre_attn_scalar": config.head_dim}
    if config.num_hidden_layers == _GEMMA_27B[header.architecture]:
        stated["query_pre_attn_scalar"] = config.hidden_size // config.num_attention_heads
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if (cap := header.own(key)) is not None:
            stated[key] = float(cap) or None
    pattern = header.own("attention.sliding_window_pattern", 2 if header.architecture == "gemma2" else 6)
    if header.architecture == "gemma3" and not header.own("attention.sliding_window"):
        pattern = 1
    if not isinstance(pattern, list):  # every n-th layer is global; 0 means that none is
        pattern = [pattern == 0 or (layer + 1) % pattern != 0 for layer in range(config.num_hidden_layers)]
    stated["layer_types"] = [_LOCAL if slides else _GLOBAL for slides in pattern]
    return stated


def rope_parameters(header: GgufHeader, config: Any) -> dict[str, Any] | None:
    """Returns the `rope_parameters` of a config that transformers made from a GGUF file, with all settings of the file.

    It is a new dictionary, flat or by layer type as in the config; None if the family has no RoPE in transformers.

    Raises:
        LongEvalError: The file has a setting that transformers can't express exactly; the message names its key.
    """
    text = config.get_text_config()
    given = getattr(text, "rope_parameters", None)
    if not isinstance(given, dict) or not given:
        for name in (*header.tensors, *header.fields):
            if "rope_f" in name or ".rope.scal" in name:
                raise header.refused(name, f"transformers knows no RoPE in {text.model_type} models")
        return None
    by_layer_type = isinstance(given.get(_GLOBAL), dict)
    parameters = dict(given[_GLOBAL] if by_layer_type else given)
    num_rotated, part = _rotated_part(header, text, parameters)
    scaling = read_scaling(header, num_rotated // 2)
    if not scaling.changes_nothing and scaling.context_length < 1:
        raise header.refused("scaling", "it has no context_length")
    own_type = parameters.get("rope_type", "default")
    if own_type != "default" and not scaling.changes_nothing:
        raise header.refused("rope.scaling", f"transformers gives {text.model_type} models {own_type} scaling already")
    if by_layer_type and scaling.divides:
        raise header.refused(_FREQS, f"{text.model_type} models have a RoPE for each layer type")
    base = _positive(header, "rope.freq_base", _DEFAULT_BASE)
    local_base = _positive(header, "rope.freq_base_swa", base)
    parameters |= {"rope_theta": base} | part | scaling.rope_parameters(base)
    if not by_layer_type:
        if local_base != base:
            raise header.refused("rope.freq_base_swa", f"{text.model_type} models have the same RoPE in all layers")
        return parameters
    local = dict(given.get(_LOCAL) or {})
    if local and header.own("rope.freq_base_swa") is not None:
        local["rope_theta"] = local_base
    return given | {_GLOBAL: parameters} | ({_LOCAL: local} if local else {})


def _rotated_part(header: GgufHeader, text: Any, parameters: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """The rotated dimensions of a head, and the setting for them if transformers assumes another number."""
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    assumed = int(head_dim * (parameters.get("partial_rotary_factor") or 1.0))
    stated = int(header.own("rope.dimension_count", assumed))
    if stated == assumed:
        return stated, {}
    part = stated / head_dim
    if not 0 < stated <= head_dim or int(head_dim * part) != stated:
        raise header.refused(f"rope.dimension_count = {stated}", f"its heads have {head_dim} dimensions")
    return stated, {"partial_rotary_factor": part}


def _positive(header: GgufHeader, key: str, default: float) -> float:
    """A positive number from the file, or the default."""
    value = header.own(key)
    number = default if value is None else float(value)
    if not (math.isfinite(number) and number > 0.0):
        raise header.refused(f"{key} = {number:g}", "it must be a positive number")
    return number


@dataclass(frozen=True, kw_only=True, slots=True)
class FileScaling:
    """The scaling settings of a file, in llama.cpp's terms."""

    kind: str
    """`none`, `linear`, `yarn` or `longrope`."""
    factor: float
    """s, at least 1; 1 if the kind is none."""
    attn_factor: float
    """Multiplies cos and sin, in addition to the kind's own attention factor."""
    context_length: int
    """The context length of the model, tokens."""
    original: int | None
    """The length before scaling, tokens; None if the file doesn't state it."""
    beta_fast: float
    beta_slow: float
    short_F: tuple[float, ...]
    """Divisors of the frequencies for contexts up to `original`, shape (F,); ones if the file has no lists."""
    long_F: tuple[float, ...]
    """Divisors for longer contexts, shape (F,); equal to `short_F` if the file has one list."""

    @property
    def divides(self) -> bool:
        """Whether any divisor differs from 1."""
        return any(divisor != 1.0 for divisor in (*self.short_F, *self.long_F))

    @property
    def changes_nothing(self) -> bool:
        """Whether this is plain RoPE."""
        return self.factor == 1.0 and self.attn_factor == 1.0 and not self.divides

    def rope_parameters(self, base: float) -> dict[str, Any]:
        """The scaling as keys of transformers' `rope_parameters` for frequencies of a base; empty for plain RoPE."""
        if self.changes_nothing:
            return {}
        if self._is_llama3(base):
            return {
                "rope_type": "llama3",
                "factor": self.long_F[-1],
                "low_freq_factor": _LLAMA3_LOW,
                "high_freq_factor": _LLAMA3_HIGH,
                "original_max_position_embeddings": _LLAMA3_LENGTH,
            }
        before = {"original_max_position_embeddings": self.original or self.context_length}
        if self.kind == "yarn" and self.factor > 1.0:
            return before | {
                "rope_type": "yarn",
                "factor": self.factor,
                "attention_factor": (0.1 * math.log(self.factor) + 1.0) * self.attn_factor,
                "beta_fast": self.beta_fast,
                "beta_slow": self.beta_slow,
            }
        if not self.divides and self.attn_factor == 1.0:
            # The native length is added only if the file states it.
            return {"rope_type": "linear", "factor": self.factor} | (before if self.original else {})
        return before | {
            "rope_type": "longrope",
            "short_factor": [divisor * self.factor for divisor in self.short_F],
            "long_factor": [divisor * self.factor for divisor in self.long_F],
            # Always given, because its default is sqrt(1 + ln(s) / ln(L)).
            "attention_factor": self.attn_factor,
            "factor": max(1.0, self.context_length / (self.original or self.context_length)),
        }

    def _is_llama3(self, base: float) -> bool:
        """Whether the divisors equal those of Llama 3.1's formula up to float32 rounding."""
        if self.factor != 1.0 or self.attn_factor != 1.0 or self.short_F != self.long_F:
            return False
        stretch = self.long_F[-1]
        if stretch <= 1.0 or self.original not in (None, _LLAMA3_LENGTH):
            return False
        for j, divisor in enumerate(self.long_F):
            turns = _LLAMA3_LENGTH * base ** (-j / len(self.long_F)) / (2.0 * math.pi)
            kept = min(1.0, max(0.0, (turns - _LLAMA3_LOW) / (_LLAMA3_HIGH - _LLAMA3_LOW)))
            if not math.isclose(divisor, 1.0 / ((1.0 - kept) / stretch + kept), rel_tol=1e-6):
                return False
        return True


def read_scaling(header: GgufHeader, num_features: int) -> FileScaling:
    """Reads the scaling settings of a file, whose lists of divisors must have `num_features` numbers.

    Raises:
        LongEvalError: The meaning of a key or tensor isn't certain, or a value is impossible.
    """
    kind = str(header.own("rope.scaling.type", "linear"))
    if kind not in _TYPES:
        raise header.refused(f"rope.scaling.type = {kind}", f"known types are {', '.join(_TYPES)}")
    _check_keys(header, kind)
    factor = float(header.own("rope.scaling.factor", header.own("rope.scale_linear", 0.0))) or 1.0
    if kind == "none":
        factor = 1.0
    if not (math.isfinite(factor) and factor >= 1.0):
        raise header.refused(f"rope.scaling.factor = {factor:g}", "it must be a number of at least 1")
    short_F, long_F = _divisors(header, num_features)
    scaling = FileScaling(
        kind=kind,
        factor=factor,
        attn_factor=_positive(header, "rope.scaling.attn_factor", 1.0),
        context_length=int(header.own("context_length", 0)),
        original=int(header.own("rope.scaling.original_context_length", 0)) or None,
        beta_fast=float(header.own("rope.scaling.yarn_beta_fast", 32.0)),
        beta_slow=float(header.own("rope.scaling.yarn_beta_slow", 1.0)),
        short_F=short_F,
        long_F=long_F,
    )
    if scaling.divides and factor != 1.0 and kind != "linear":
        raise header.refused(
            f"{kind} scaling with lists of divisors", "transformers has no rope type for both together"
        )
    if kind == "longrope" and factor != 1.0:
        raise header.refused("rope.scaling.type = longrope", "the file has no lists of divisors")
    return scaling


def _check_keys(header: GgufHeader, kind: str) -> None:
    """Raises LongEvalError for keys and tensors that are not read here but may change the frequencies."""
    prefix = f"{header.architecture}.rope.scaling."
    neutral = _NEUTRAL_IN_YARN if kind == "yarn" else _NEUTRAL
    for name, value in header.fields.items():
        key = name.removeprefix(prefix)
        if key != name and key not in _READ and value not in neutral.get(key, ()):
            raise header.refused(f"{name} = {value}", "its meaning differs between programs")
    for name in header.tensors:
        if "rope_f" in name and name not in (_FREQS, _SHORT, _LONG):
            raise header.refused(name, "only lists for all layers are supported")


def _divisors(header: GgufHeader, num_features: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The short and the long list of divisors; ones if the file has none."""
    lists = {name: _list(header, name, num_features) for name in (_FREQS, _SHORT, _LONG) if name in header.tensors}
    if not lists:
        return (1.0,) * num_features, (1.0,) * num_features
    if set(lists) == {_FREQS}:
        return lists[_FREQS], lists[_FREQS]
    if set(lists) == {_SHORT, _LONG}:
        return lists[_SHORT], lists[_LONG]
    raise header.refused(" and ".join(lists), "a file must have one list for all contexts, or a short and a long one")


def _list(header: GgufHeader, name: str, num_features: int) -> tuple[float, ...]:
    """Reads and checks one list of divisors."""
    shape = header.tensors[name].shape
    if math.prod(shape) != num_features:
        raise header.refused(name, f"it has shape {shape}, but the model rotates {num_features} pairs")
    divisors = tuple(header.values(name).ravel().tolist())
    if not all(math.isfinite(divisor) and divisor > 0.0 for divisor in divisors):
        raise header.refused(name, "its divisors must be positive numbers")
    return divisors
