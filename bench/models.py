"""Randomly initialised Llamas of known sizes. Weights are drawn on the device, so that no file has to be carried."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longeval.run.cost import ModelSize

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 172,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": 1024,
        "initializer_range": 0.2,
    },
    # SmolLM2-135M; the weights are larger than usual, so that attention is not nearly uniform.
    "135m": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "initializer_range": 0.06,
    },
    # Llama 3.2 1B
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
    },
    # Llama 2 7B
    "7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32000,
    },
}
NATIVE = 4096
"""Native length of all of them, tokens."""
THETA = 10000.0


def make_model(size: str, *, device: str, dtype: str = "float32", attn: str = "sdpa") -> Any:
    """A transformers Llama in eval mode, its weights drawn on `device` with seed 0."""
    import torch
    import transformers

    config = transformers.LlamaConfig(
        **SIZES[size],
        max_position_embeddings=NATIVE,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, dtype), attn_implementation=attn
        )
    return model.eval().requires_grad_(False)


def as_prepared(model: Any) -> Any:
    """What the cost model asks of a `PreparedModel`, for a model that has no folder."""
    return SimpleNamespace(
        config=model.config,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        device_map=None,
        attn=None,
        quantisation=None,
        trust_remote_code=False,
    )


def size_of(model: Any) -> ModelSize:
    """Its sizes as the cost model counts them."""
    from longeval.run.cost import model_size

    return model_size(as_prepared(model))
