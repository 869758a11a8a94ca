"""The model families that longeval serves, each as facts for a tiny model; see `family`."""

from __future__ import annotations

from typing import Any

from family import NATIVE, Family


def _lists(first: float, last: float, num_features: int) -> list[float]:
    """Factors that grow from feature to feature, as a search finds them."""
    return [first + (last - first) * j / (num_features - 1) for j in range(num_features)]


def _longrope(num_features: int) -> dict[str, Any]:
    return {
        "rope_type": "longrope",
        "short_factor": _lists(1.0, 1.4, num_features),
        "long_factor": _lists(1.1, 9.0, num_features),
        "original_max_position_embeddings": NATIVE,
    }


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": NATIVE,
}
LINEAR = {"rope_type": "linear", "factor": 8.0}
LONGROPE = _longrope(8)
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": NATIVE}
YARN_UNSCALED = YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}

MLA = {
    "num_key_value_heads": 2,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "first_k_dense_replace": 2,
}
"""DeepSeek's attention."""
_GATED = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
_VISION = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
_HEAD = {"head_dim": 16}
_WIDE = {"head_dim": 32}
_EXACT_NORM = {"rms_norm_eps": 1e-12}
_ORIGINAL = {"original_max_position_embeddings": NATIVE}
_BY_LAYER = "sliding-window layers keep their own base unless `--layers all`"
_NATIVE = "give `--native`: its config doesn't state the length before its scaling"
_NO_ROPE = "layers that see the whole context have no RoPE: no method reaches them"

FAMILIES = (
    Family(name="Llama 1, 2", examples="Llama-2-7b, TinyLlama, Yi-6B", config="LlamaConfig"),
    Family(name="Llama 3", examples="Meta-Llama-3-8B", config="LlamaConfig", theta=500000.0),
    Family(
        name="Llama 3.1 to 3.3",
        examples="Llama-3.1-8B, Llama-3.2-1B",
        config="LlamaConfig",
        theta=500000.0,
        shipped=LLAMA3,
    ),
    Family(
        name="Llama, linear scaling",
        examples="deepseek-coder-6.7b, longchat-7b-v1.5-32k",
        config="LlamaConfig",
        shipped=LINEAR,
        tells_native=False,
        remark=_NATIVE,
    ),
    Family(name="Llama, YaRN", examples="Yarn-Llama-2-7b-128k", config="LlamaConfig", shipped=YARN),
    Family(name="Mistral", examples="Mistral-7B, Mistral-Nemo", config="MistralConfig", settings=_HEAD),
    Family(
        name="Ministral 3",
        examples="text-only Ministral 3",
        config="Ministral3Config",
        theta=1e6,
        own={"llama_4_scaling_beta": 0.1},
        shipped=YARN_UNSCALED,
        settings=_HEAD,
        remark="queries are scaled by position too, whatever the method",
    ),
    Family(name="Mixtral", examples="Mixtral-8x7B", config="MixtralConfig", theta=1e6),
    Family(name="Qwen2, Qwen2.5", examples="Qwen2.5-7B, QwQ-32B", config="Qwen2Config", theta=1e6),
    Family(name="Qwen2-MoE", examples="Qwen1.5-MoE-A2.7B", config="Qwen2MoeConfig", theta=1e6),
    Family(name="Qwen3", examples="Qwen3-8B", config="Qwen3Config", theta=1e6, settings=_HEAD),
    Family(name="Qwen3-MoE", examples="Qwen3-30B-A3B", config="Qwen3MoeConfig", theta=1e6, settings=_HEAD),
    Family(
        name="Qwen3-Next",
        examples="Qwen3-Next-80B-A3B",
        config="Qwen3NextConfig",
        theta=1e7,
        head_dim=32,
        rotated=8,
        layers=4,
        attention_layers=(3,),
        settings=_WIDE | _GATED,
        remark="three of four layers are linear attention without RoPE",
    ),
    Family(
        name="Qwen3.5",
        examples="Qwen3.5-0.8B",
        config="Qwen3_5TextConfig",
        theta=10000.0,
        head_dim=32,
        rotated=8,
        layers=4,
        attention_layers=(3,),
        settings=_WIDE | _GATED,
        remark="three of four layers are linear attention without RoPE",
    ),
    Family(name="Arcee", examples="AFM-4.5B", config="ArceeConfig"),
    Family(name="Gemma", examples="gemma-7b, codegemma-7b", config="GemmaConfig", settings=_HEAD),
    Family(name="Gemma 2", examples="gemma-2-9b", config="Gemma2Config", settings=_HEAD),
    Family(
        name="Gemma 3 270m, 1b",
        examples="gemma-3-270m, gemma-3-1b-pt",
        config="Gemma3TextConfig",
        theta=1e6,
        local_theta=10000.0,
        layers=6,
        local_layers=(0, 1, 2, 3, 4),
        settings=_HEAD,
        remark=_BY_LAYER,
    ),
    Family(
        name="Gemma 3 4b to 27b",
        examples="gemma-3-4b-pt, gemma-3-27b-it",
        config="Gemma3Config",
        theta=1e6,
        local_theta=10000.0,
        layers=6,
        local_layers=(0, 1, 2, 3, 4),
        shipped=LINEAR,
        tells_native=False,
        settings=_HEAD,
        wrapped={"vision_config": _VISION},
        remark=f"its language model; {_BY_LAYER}; {_NATIVE}",
    ),
    Family(
        name="Phi-1.5, Phi-2",
        examples="phi-1_5, phi-2",
        config="PhiConfig",
        head_dim=32,
        remark="Phi-2 turns 40% of a head, as its config says",
    ),
    Family(name="Phi-3 4k, Phi-4", examples="Phi-3-mini-4k, phi-4", config="Phi3Config", settings=_ORIGINAL),
    Family(
        name="Phi-3 128k, Phi-3.5",
        examples="Phi-3-mini-128k, Phi-3.5-mini",
        config="Phi3Config",
        shipped=LONGROPE,
        settings=_ORIGINAL,
    ),
    Family(
        name="Phi-4-mini",
        examples="Phi-4-mini-instruct",
        config="Phi3Config",
        head_dim=32,
        rotated=24,
        shipped=_longrope(12),
        settings=_ORIGINAL,
    ),
    Family(
        name="GPT-NeoX, Pythia", examples="pythia-1.4b, gpt-neox-20b", config="GPTNeoXConfig", head_dim=32, rotated=8
    ),
    Family(name="StableLM", examples="stablelm-2-1_6b, stablelm-3b", config="StableLmConfig", head_dim=32, rotated=8),
    Family(name="OLMo", examples="OLMo-7B-hf", config="OlmoConfig"),
    Family(name="OLMo 2", examples="OLMo-2-1124-7B", config="Olmo2Config", theta=500000.0),
    Family(
        name="OLMo 3",
        examples="Olmo-3-1025-7B",
        config="Olmo3Config",
        theta=500000.0,
        local_theta=500000.0,
        layers=4,
        local_layers=(0, 1, 2),
        shipped=YARN,
        remark=_BY_LAYER,
    ),
    Family(name="OLMoE", examples="OLMoE-1B-7B-0924", config="OlmoeConfig"),
    Family(name="Falcon 7b", examples="falcon-7b", config="FalconConfig", settings={"multi_query": True}),
    Family(
        name="Falcon 40b, 180B",
        examples="falcon-40b, falcon-180B",
        config="FalconConfig",
        settings={"new_decoder_architecture": True, "num_kv_heads": 2},
    ),
    Family(
        name="Falcon-H1",
        examples="Falcon-H1-7B-Base",
        config="FalconH1Config",
        theta=1e11,
        settings={"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16},
        remark="the Mamba half of each layer has no RoPE",
    ),
    Family(name="Granite 3", examples="granite-3.1-8b-base", config="GraniteConfig", theta=5e6),
    Family(name="Granite 3 MoE", examples="granite-3.1-3b-a800m-base", config="GraniteMoeConfig"),
    Family(
        name="Granite 4, dense",
        examples="granite-4.0-micro",
        config="GraniteMoeHybridConfig",
        theta=1e7,
        settings={"layer_types": ["attention", "attention"], "position_embedding_type": "rope"},
    ),
    Family(name="Cohere", examples="c4ai-command-r-v01, aya-23-8B", config="CohereConfig", pairing="interleaved"),
    Family(
        name="Cohere 2",
        examples="c4ai-command-r7b-12-2024, c4ai-command-a-03-2025",
        config="Cohere2Config",
        pairing="interleaved",
        theta=50000.0,
        layers=4,
        unrotated_layers=(3,),
        settings=_HEAD,
        remark=_NO_ROPE,
    ),
    Family(
        name="SmolLM3",
        examples="SmolLM3-3B",
        config="SmolLM3Config",
        theta=5e6,
        layers=4,
        unrotated_layers=(3,),
        remark="every fourth layer has no RoPE: no method reaches it",
    ),
    Family(
        name="GLM-4",
        examples="glm-4-9b-chat-hf",
        config="GlmConfig",
        pairing="interleaved",
        head_dim=32,
        settings=_WIDE,
    ),
    Family(
        name="GLM-4-0414",
        examples="GLM-4-9B-0414, GLM-Z1-9B-0414",
        config="Glm4Config",
        pairing="interleaved",
        head_dim=32,
        settings=_WIDE,
    ),
    Family(
        name="GLM-4.5, 4.6",
        examples="GLM-4.5-Air, GLM-4.6",
        config="Glm4MoeConfig",
        theta=1e6,
        head_dim=32,
        settings=_WIDE | {"first_k_dense_replace": 1},
    ),
    Family(name="StarCoder2", examples="starcoder2-3b", config="Starcoder2Config", theta=1e5),
    Family(name="Nemotron", examples="Minitron-4B-Base", config="NemotronConfig", head_dim=32, settings=_WIDE),
    Family(
        name="DeepSeek-V3",
        examples="DeepSeek-V3, DeepSeek-R1",
        config="DeepseekV3Config",
        head_dim=32,
        first=16,
        shipped=YARN_UNSCALED,
        settings=MLA,
        remark="logits keep the scale that belongs to its own yarn, whatever the method; released models turn the last "
        "third of a head, and their weights pair neighbours, which transformers rearranges before it turns halves",
    ),
    Family(
        name="EXAONE 4",
        examples="EXAONE-4.0-32B",
        config="Exaone4Config",
        theta=1e6,
        shipped=LLAMA3,
        layers=4,
        unrotated_layers=(3,),
        settings={"sliding_window_pattern": 4},
        remark=_NO_ROPE,
    ),
    Family(
        name="ERNIE 4.5",
        examples="ERNIE-4.5-0.3B-PT",
        config="Ernie4_5Config",
        pairing="interleaved",
        theta=500000.0,
        settings=_HEAD,
    ),
    Family(name="MiniMax-M2", examples="MiniMax-M2", config="MiniMaxM2Config", theta=5e6, head_dim=32, settings=_WIDE),
    Family(name="Seed-OSS", examples="Seed-OSS-36B-Base", config="SeedOssConfig", theta=1e7, settings=_HEAD),
    Family(
        name="nanochat",
        examples="nanochat-d32",
        config="NanoChatConfig",
        settings=_EXACT_NORM,
        pairing="halves, backwards",
        normalised_after=True,
        remark="queries and keys are normalised after rotation, which undoes attention factors",
    ),
    Family(
        name="LFM2",
        examples="LFM2-1.2B",
        config="Lfm2Config",
        theta=1e6,
        attention_layers=(1,),
        settings={"layer_types": ["conv", "full_attention"]},
        remark="convolution layers have no RoPE",
    ),
    Family(name="Apertus", examples="Apertus-8B-2509", config="ApertusConfig", theta=1.2e7, shipped=LLAMA3),
)
