"""What a GGUF file states about its model, and transformers leaves out when it reads the file.

- Whether a text begins with BOS (`tokenizer.ggml.add_bos_token`). transformers' tokenizer of a GGUF never adds it, and
  Gemma 3 without BOS scores 5.9e9 instead of 3.46. Where the key is missing, llama.cpp's defaults (`llama-vocab.cpp`):
  sentencepiece vocabularies have it, and so do those byte-level ones whose splitting rules are Llama 3's or Tekken's.
- Gemma 2 and 3: the divisor of the attention logits, which llama.cpp derives from the sizes (`gemma2.cpp`,
  `gemma3.cpp`); soft caps; which layers have a sliding window, and that there may be none.
- The position encoding, said as transformers' `rope_parameters`; transformers drops most of it.

What llama.cpp reads of the position encoding, and how it computes with it (`llama-model.cpp`, `llama-context.cpp`,
`ggml_rope_ext`):

- `rope.freq_base` is b (10000 where it is missing), `rope.freq_base_swa` that of sliding-window layers, and
  `rope.dimension_count` the rotated part of a head, in dimensions.
- `rope.scaling.type` is `none`, `linear` (also where it is missing), `yarn` or `longrope`; `rope.scaling.factor`, or in
  old files `rope.scale_linear`, is s. `none` ignores s.
- linear: θ/s. yarn: as published, the ramp laid out over `rope.scaling.original_context_length` (by default
  `context_length`), β from `rope.scaling.yarn_beta_fast` and `yarn_beta_slow` (32 and 1; llama.cpp heeds them in few
  families, here they count in all: the model was made with them), attention factor 0.1·ln(s)+1.
- `rope.scaling.attn_factor` multiplies the attention factor, whatever the type.
- The tensor `rope_freqs.weight` holds a divisor for each frequency (Llama 3.1); `rope_factors_short.weight` and
  `rope_factors_long.weight` are two such lists, the long one for contexts beyond the original length (Phi-3).

Divisors are said as transformers' longrope, which divides by lists too: one list as the short and the long one is a
table that doesn't depend on length. Llama 3.1's list is said as what it was made from, so that its native length is
known. What can't be said exactly is refused by the name of its key.
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
"""Splitting rules of byte-level vocabularies, `tokenizer.ggml.pre`."""
_GEMMA_27B = {"gemma2": 46, "gemma3": 62}
"""Numbers of layers by which llama.cpp tells the one size whose logits are not divided by √head_dim."""

_FREQS, _SHORT, _LONG = "rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"
_TYPES = ("none", "linear", "yarn", "longrope")
_READ = ("type", "factor", "original_context_length", "attn_factor", "finetuned", "yarn_beta_fast", "yarn_beta_slow")
"""Keys under `rope.scaling` that are read here; `finetuned` only informs."""
_SILENT: dict[str, tuple[float, ...]] = {
    "yarn_log_multiplier": (0.0,),
    "yarn_ext_factor": (0.0, -1.0),
    "yarn_attn_factor": (1.0,),
    "alpha": (0.0,),
}
"""Keys whose meaning isn't the same everywhere, and the values at which they change nothing."""
_SILENT_IN_YARN = _SILENT | {"yarn_ext_factor": (1.0, -1.0), "yarn_attn_factor": ()}
"""The same where the type is yarn: its ramp is weighed by ext_factor, and writers put transformers' whole attention
factor into yarn_attn_factor, which llama.cpp multiplies by its own or ignores."""
_GLOBAL, _LOCAL = "full_attention", "sliding_attention"
_DEFAULT_BASE = 10000.0
_LLAMA3_LENGTH, _LLAMA3_LOW, _LLAMA3_HIGH = 8192, 1.0, 4.0
"""Of all Llama 3.1, 3.2 and 3.3 models; only s differs."""


def adds_bos(header: GgufHeader) -> bool:
    """Whether the file's tokenizer puts BOS before a text."""
    stated = header.fields.get("tokenizer.ggml.add_bos_token")
    if stated is not None:
        if not isinstance(stated, bool):
            raise header.refused(f"tokenizer.ggml.add_bos_token = {stated!r}", "it must be true or false")
        return stated
    if header.fields.get("tokenizer.ggml.model") in ("llama", "gemma4"):
        return True
    return header.fields.get("tokenizer.ggml.pre") in _BOS_BY_DEFAULT


def complete_config(header: GgufHeader, config: Any) -> Any:
    """Returns a new config of a file's model with everything that the file states.

    Args:
        header: The file's.
        config: What transformers made of the file, a `PreTrainedConfig`.

    Raises:
        LongEvalError: If the file states something that can't be said in transformers' terms; names its key.
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
    """What transformers leaves at the defaults of one size of Gemma 2 or 3."""
    stated: dict[str, Any] = {"query_pre_attn_scalar": config.head_dim}
    if config.num_hidden_layers == _GEMMA_27B[header.architecture]:
        stated["query_pre_attn_scalar"] = config.hidden_size // config.num_attention_heads
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if (cap := header.own(key)) is not None:
            stated[key] = float(cap) or None
    pattern = header.own("attention.sliding_window_pattern", 2 if header.architecture == "gemma2" else 6)
    if header.architecture == "gemma3" and not header.own("attention.sliding_window"):
        pattern = 1
    if not isinstance(pattern, list):  # every n-th layer sees all; 0 means that none does
        pattern = [pattern == 0 or (layer + 1) % pattern != 0 for layer in range(config.num_hidden_layers)]
    stated["layer_types"] = [_LOCAL if slides else _GLOBAL for slides in pattern]
    return stated


def rope_parameters(header: GgufHeader, config: Any) -> dict[str, Any] | None:
    """Returns a model's `rope_parameters` as its file states them.

    Args:
        header: The file's.
        config: What transformers made of the file, a `PreTrainedConfig`.

    Returns:
        A new dictionary in the form of `config.rope_parameters`, by layer type where that is; None where transformers
        knows no RoPE in this family.

    Raises:
        LongEvalError: If the file states something that can't be said exactly in transformers' terms; names its key.
    """
    text = config.get_text_config()
    given = getattr(text, "rope_parameters", None)
    if not isinstance(given, dict) or not given:
        for name in (*header.tensors, *header.fields):
            if "rope_f" in name or ".rope.scal" in name:
                raise header.refused(name, f"transformers knows no RoPE in {text.model_type} models")
        return None
    by_layer_type = isinstance(given.get(_GLOBAL), dict)
    said = dict(given[_GLOBAL] if by_layer_type else given)
    num_rotated, part = _rotated_part(header, text, said)
    scaling = read_scaling(header, num_rotated // 2)
    if not scaling.changes_nothing and scaling.context_length < 1:
        raise header.refused("scaling", "it has no context_length")
    own_type = said.get("rope_type", "default")
    if own_type != "default" and not scaling.changes_nothing:
        raise header.refused("rope.scaling", f"transformers gives {text.model_type} models {own_type} scaling already")
    if by_layer_type and scaling.divides:
        raise header.refused(_FREQS, f"{text.model_type} models rotate by layer type")
    base = _positive(header, "rope.freq_base", _DEFAULT_BASE)
    local_base = _positive(header, "rope.freq_base_swa", base)
    said |= {"rope_theta": base} | part | scaling.in_transformers_words(base)
    if not by_layer_type:
        if local_base != base:
            raise header.refused("rope.freq_base_swa", f"{text.model_type} models rotate all their layers alike")
        return said
    local = dict(given.get(_LOCAL) or {})
    if local and header.own("rope.freq_base_swa") is not None:
        local["rope_theta"] = local_base
    return given | {_GLOBAL: said} | ({_LOCAL: local} if local else {})


def _rotated_part(header: GgufHeader, text: Any, said: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """The rotated dimensions of a head, and the setting for them where transformers assumed another number."""
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    assumed = int(head_dim * (said.get("partial_rotary_factor") or 1.0))
    stated = int(header.own("rope.dimension_count", assumed))
    if stated == assumed:
        return stated, {}
    part = stated / head_dim
    if not 0 < stated <= head_dim or int(head_dim * part) != stated:
        raise header.refused(f"rope.dimension_count = {stated}", f"its heads have {head_dim} dimensions")
    return stated, {"partial_rotary_factor": part}


def _positive(header: GgufHeader, key: str, default: float) -> float:
    """A positive number that the file states, or the default."""
    value = header.own(key)
    number = default if value is None else float(value)
    if not (math.isfinite(number) and number > 0.0):
        raise header.refused(f"{key} = {number:g}", "it must be a positive number")
    return number


@dataclass(frozen=True, kw_only=True, slots=True)
class FileScaling:
    """What a file says about scaling, in llama.cpp's terms."""

    kind: str
    """`none`, `linear`, `yarn` or `longrope`."""
    factor: float
    """s, at least 1; 1 where the kind is none."""
    attn_factor: float
    """Multiplies cos and sin, besides the kind's own factor."""
    context_length: int
    """The length that the file is made for, tokens."""
    original: int | None
    """The length before scaling, tokens, where the file states one."""
    beta_fast: float
    beta_slow: float
    short_F: tuple[float, ...]
    """Divisors of the frequencies for contexts up to `original`; ones where the file has none."""
    long_F: tuple[float, ...]
    """Those for longer contexts; the same as `short_F` where the file has one list."""

    @property
    def divides(self) -> bool:
        """Whether the lists change anything."""
        return any(divisor != 1.0 for divisor in (*self.short_F, *self.long_F))

    @property
    def changes_nothing(self) -> bool:
        """Whether this is plain RoPE."""
        return self.factor == 1.0 and self.attn_factor == 1.0 and not self.divides

    def in_transformers_words(self, base: float) -> dict[str, Any]:
        """The keys of `rope_parameters` that say this, for frequencies of base `base`; none for plain RoPE."""
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
            # Only a stated length: without scaling that is the one that other methods start from.
            return {"rope_type": "linear", "factor": self.factor} | (before if self.original else {})
        return before | {
            "rope_type": "longrope",
            "short_factor": [divisor * self.factor for divisor in self.short_F],
            "long_factor": [divisor * self.factor for divisor in self.long_F],
            # Always stated: left out, it would become sqrt(1 + ln(s) / ln(L)).
            "attention_factor": self.attn_factor,
            "factor": max(1.0, self.context_length / (self.original or self.context_length)),
        }

    def _is_llama3(self, base: float) -> bool:
        """Whether the divisors are those of Llama 3.1's formula, to the accuracy of float32."""
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
    """Reads what a file says about scaling.

    Args:
        header: The file's.
        num_features: F, the length that lists of divisors must have.

    Raises:
        LongEvalError: For a key or a tensor whose meaning isn't certain, or an impossible value.
    """
    kind = str(header.own("rope.scaling.type", "linear"))
    if kind not in _TYPES:
        raise header.refused(f"rope.scaling.type = {kind}", f"known are {', '.join(_TYPES)}")
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
        raise header.refused(f"{kind} scaling with lists of divisors", "both together have no name in transformers")
    if kind == "longrope" and factor != 1.0:
        raise header.refused("rope.scaling.type = longrope", "the file has no lists of divisors")
    return scaling


def _check_keys(header: GgufHeader, kind: str) -> None:
    """Raises LongEvalError for what is not read here although it may change the frequencies."""
    prefix = f"{header.architecture}.rope.scaling."
    silent = _SILENT_IN_YARN if kind == "yarn" else _SILENT
    for name, value in header.fields.items():
        key = name.removeprefix(prefix)
        if key != name and key not in _READ and value not in silent.get(key, ()):
            raise header.refused(f"{name} = {value}", "its meaning isn't the same everywhere")
    for name in header.tensors:
        if "rope_f" in name and name not in (_FREQS, _SHORT, _LONG):
            raise header.refused(name, "only lists that hold for all layers are read")


def _divisors(header: GgufHeader, num_features: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The short and the long list of divisors; ones where there are none."""
    lists = {name: _list(header, name, num_features) for name in (_FREQS, _SHORT, _LONG) if name in header.tensors}
    if not lists:
        return (1.0,) * num_features, (1.0,) * num_features
    if set(lists) == {_FREQS}:
        return lists[_FREQS], lists[_FREQS]
    if set(lists) == {_SHORT, _LONG}:
        return lists[_SHORT], lists[_LONG]
    raise header.refused(" and ".join(lists), "it takes one list for all contexts, or a short and a long one")


def _list(header: GgufHeader, name: str, num_features: int) -> tuple[float, ...]:
    """One list of divisors, checked."""
    shape = header.tensors[name].shape
    if math.prod(shape) != num_features:
        raise header.refused(name, f"it has shape {shape}, and the model rotates {num_features} pairs")
    divisors = tuple(header.values(name).ravel().tolist())
    if not all(math.isfinite(divisor) and divisor > 0.0 for divisor in divisors):
        raise header.refused(name, "its divisors must be positive numbers")
    return divisors
