"""What choices and answers should be: every sequence in full, one plain pass each, no cache and no other sequence."""

from __future__ import annotations

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM

from longeval.backends.hf.backend import HFBackend
from longeval.rope.base import Geometry
from longeval.rope.build import build_table

VOCABULARY = 300
WINDOW = 32
"""Of the sliding layers; far shorter than the test's prompts."""
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
_GATED = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
_MAMBA = {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16}
MODELS = {
    "llama": ("LlamaConfig", {}),
    "llama, a window in its file": ("LlamaConfig", {"sliding_window": WINDOW}),
    "mistral": ("MistralConfig", {"sliding_window": WINDOW}),
    "gemma2": (
        "Gemma2Config",
        {"sliding_window": WINDOW, "final_logit_softcapping": 2.0, "attn_logit_softcapping": 5.0},
    ),
    "gemma3": ("Gemma3TextConfig", {"sliding_window": WINDOW, "num_hidden_layers": 6}),
    "qwen3.5": ("Qwen3_5TextConfig", {"num_hidden_layers": 4, "head_dim": 16, "partial_rotary_factor": 1.0} | _GATED),
    "falcon-h1": ("FalconH1Config", _MAMBA),
    "lfm2": ("Lfm2Config", {"layer_types": ["conv", "full_attention"]}),
}
FORGETFUL = ("mistral", "gemma2", "gemma3", "qwen3.5", "falcon-h1", "lfm2")
"""Those with layers that can't go back."""
BRANCHING = ("llama", "llama, a window in its file", "mistral", "gemma2", "gemma3")
"""Those that take several continuations in one pass."""
GEOMETRY = Geometry(head_dim=16, theta=10000.0, native_length=64, factor=4.0)


def make_model(name="llama", attn="sdpa"):
    """A tiny random one in float32, whose positions matter."""
    torch.manual_seed(1)
    config, settings = MODELS[name]
    config = getattr(transformers, config)(**(SIZES | {"initializer_range": 0.3} | settings))
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attn).eval()
    model.generation_config.eos_token_id = None
    return model


def make_backend(name="llama", method="none", length=400, attn="sdpa"):
    backend = HFBackend(make_model(name, attn))
    backend.serve(build_table(method, GEOMETRY), length)
    return backend


def log_p(model, tokens_T):
    """Log-probabilities after each token, (T, V)."""
    with torch.no_grad():
        logits_TV = model(torch.from_numpy(tokens_T.astype(np.int64))[None], use_cache=False).logits[0].double()
    return torch.log_softmax(logits_TV, dim=-1).numpy()


def choice(model, context_T, tokens_S):
    """(log-likelihood, greedy) of one continuation."""
    before_SV = log_p(model, join(context_T, tokens_S))[len(context_T) - 1 : -1]
    total = sum(before_V[token] for before_V, token in zip(before_SV, tokens_S, strict=True))
    return total, bool((before_SV.argmax(axis=1) == tokens_S).all())


def greedy(model, prompt_T, num_tokens):
    """The most probable tokens, each from a pass over all before it."""
    tokens_T = prompt_T
    for _ in range(num_tokens):
        tokens_T = join(tokens_T, [log_p(model, tokens_T)[-1].argmax()])
    return tokens_T[len(prompt_T) :]


def join(*parts):
    return np.concatenate([np.asarray(part) for part in parts]).astype(np.int32)


class Counted:
    """Counts the tokens that went through a model's decoder, by pass."""

    def __init__(self, backend):
        self.passes = []
        backend.model.get_input_embeddings().register_forward_pre_hook(self._count)

    def _count(self, module, arguments):
        self.passes.append(arguments[0].numel())

    @property
    def total(self):
        return sum(self.passes)
