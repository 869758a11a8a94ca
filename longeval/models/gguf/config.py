"""What a GGUF file states about its model and transformers, reading it, leaves out.

- RoPE scaling, bases and the rotated part of a head: see `gguf_rope`.
- Whether a text begins with BOS (`tokenizer.ggml.add_bos_token`). transformers' tokenizer of a GGUF never adds it, and
  Gemma 3 without BOS scores 5.9e9 instead of 3.46. Where the key is missing, llama.cpp's defaults (`llama-vocab.cpp`):
  sentencepiece vocabularies have it, and so do those byte-level ones whose splitting rules are Llama 3's or Tekken's.
- Gemma 2 and 3: the divisor of the attention logits, which llama.cpp derives from the sizes (`gemma2.cpp`,
  `gemma3.cpp`); soft caps; which layers have a sliding window, and that there may be none.
"""

from __future__ import annotations

from typing import Any

from longeval.models.gguf.header import GgufHeader
from longeval.models.gguf.rope import refused, rope_parameters

_BOS_BY_DEFAULT = frozenset(
    (
        *("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),
        *("tekken", "chameleon"),
    )
)
"""Splitting rules of byte-level vocabularies, `tokenizer.ggml.pre`."""
_GEMMA_27B = {"gemma2": 46, "gemma3": 62}
"""Numbers of layers by which llama.cpp tells the one size whose logits are not divided by √head_dim."""


def adds_bos(header: GgufHeader) -> bool:
    """Whether the file's tokenizer puts BOS before a text."""
    stated = header.fields.get("tokenizer.ggml.add_bos_token")
    if stated is not None:
        if not isinstance(stated, bool):
            raise refused(header, f"tokenizer.ggml.add_bos_token = {stated!r}", "it must be true or false")
        return stated
    if header.fields.get("tokenizer.ggml.model") in ("llama", "gemma4"):
        return True
    return header.fields.get("tokenizer.ggml.pre") in _BOS_BY_DEFAULT


def complete_config(header: GgufHeader, config: Any) -> Any:
    """Returns the config of a file's model with everything that the file states.

    Args:
        header: The file's.
        config: What transformers made of the file, a `PreTrainedConfig`; not changed.

    Raises:
        LongEvalError: If the file states something that can't be said in transformers' terms, naming its key.
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
    stated["layer_types"] = ["sliding_attention" if slides else "full_attention" for slides in pattern]
    return stated
