"""Models that longeval can't serve and refuses by name, each as a tiny configuration and what the message says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from families import LONGROPE, MLA
from family import REACH, SIZES


@dataclass(frozen=True, kw_only=True, slots=True)
class Refused:
    """A model that longeval can't serve."""

    name: str
    examples: str
    config: str
    """Class of transformers."""
    settings: dict[str, Any]
    says: str
    """In the message, beside the model type."""
    from_config: bool = True
    """Whether its configuration alone tells; else only the loaded model does."""


_SIZES = SIZES | {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
_GPT2 = {"n_embd": 32, "n_layer": 1, "n_head": 4, "vocab_size": 64, "bos_token_id": 0, "eos_token_id": 0}
_ABSOLUTE = "learned absolute positions"
_ALIBI = "ALiBi"
_FIXED = "fixed in its code"
_UNLIKE = "can't be replaced exactly"

REFUSED = (
    Refused(name="GPT-2", examples="gpt2-xl", config="GPT2Config", settings=_GPT2, says=_ABSOLUTE),
    Refused(name="GPT-BigCode", examples="starcoder", config="GPTBigCodeConfig", settings=_GPT2, says=_ABSOLUTE),
    Refused(
        name="GPT-Neo",
        examples="gpt-neo-1.3B",
        config="GPTNeoConfig",
        settings={"hidden_size": 32, "num_layers": 1, "num_heads": 2, "attention_types": [[["global"], 1]]},
        says=_ABSOLUTE,
    ),
    Refused(
        name="OPT",
        examples="opt-6.7b",
        config="OPTConfig",
        settings={"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 32, "vocab_size": 64},
        says=_ABSOLUTE,
    ),
    Refused(
        name="MPT",
        examples="mpt-7b",
        config="MptConfig",
        settings={"d_model": 32, "n_layers": 1, "n_heads": 2, "vocab_size": 64},
        says=_ALIBI,
    ),
    Refused(
        name="BLOOM",
        examples="bloom-7b1",
        config="BloomConfig",
        settings={"hidden_size": 32, "n_layer": 1, "n_head": 2, "vocab_size": 64},
        says=_ALIBI,
    ),
    Refused(
        name="Falcon with ALiBi",
        examples="falcon-rw-1b",
        config="FalconConfig",
        settings=_SIZES | {"alibi": True},
        says=_ALIBI,
    ),
    Refused(name="GPT-J", examples="gpt-j-6b", config="GPTJConfig", settings=_GPT2 | {"rotary_dim": 8}, says=_FIXED),
    Refused(
        name="CodeGen",
        examples="codegen-2B-mono",
        config="CodeGenConfig",
        settings=_GPT2 | {"rotary_dim": 8},
        says=_FIXED,
    ),
    Refused(
        name="Mamba",
        examples="mamba-1.4b-hf",
        config="MambaConfig",
        settings={"hidden_size": 32, "num_hidden_layers": 1, "vocab_size": 64},
        says="no attention",
    ),
    Refused(
        name="Granite 4, hybrid",
        examples="granite-4.0-h-micro",
        config="GraniteMoeHybridConfig",
        settings=_SIZES
        | {
            "layer_types": ["mamba", "attention"],
            "position_embedding_type": "nope",
            "mamba_n_heads": 4,
            "mamba_d_head": 32,
            "mamba_d_state": 16,
        },
        says="no rotary",
        from_config=False,
    ),
    Refused(
        name="GPT-OSS",
        examples="gpt-oss-20b",
        config="GptOssConfig",
        settings=_SIZES | {"head_dim": 16},
        says=_UNLIKE,
    ),
    Refused(
        name="DeepSeek-V2",
        examples="DeepSeek-V2-Lite",
        config="DeepseekV2Config",
        settings=_SIZES | MLA | {"num_key_value_heads": 4},
        says=_UNLIKE,
    ),
    Refused(
        name="Phi-3.5-MoE",
        examples="Phi-3.5-MoE-instruct",
        config="PhimoeConfig",
        settings=_SIZES
        | {
            "max_position_embeddings": REACH,
            "rope_parameters": LONGROPE | {"rope_theta": 10000.0, "short_mscale": 1.2, "long_mscale": 1.2},
        },
        says=_UNLIKE,
    ),
    Refused(
        name="Llama 4",
        examples="Llama-4-Scout-17B-16E",
        config="Llama4TextConfig",
        settings=_SIZES | {"head_dim": 16, "intermediate_size_mlp": 64},
        says=_UNLIKE,
    ),
    Refused(
        name="Gemma 4",
        examples="gemma-4-E2B",
        config="Gemma4TextConfig",
        settings=_SIZES | {"head_dim": 16, "global_head_dim": 32},
        says=_UNLIKE,
    ),
)
