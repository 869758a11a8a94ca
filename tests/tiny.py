"""A tiny random Llama with a byte-level tokenizer, and text for it: real files, real code paths."""

from __future__ import annotations

import random
from pathlib import Path

WORDS = ["the", "model", "reads", "a", "long", "report", "says", "that", "context", "grows", "with", "every", "line"]


def make_text(num_words: int, seed: int = 0) -> str:
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) for _ in range(num_words)) + "."


def save_tiny_llama(folder: Path, *, bos: bool = False, prefix: tuple[str, ...] = (), **overrides: object) -> Path:
    """head_dim 16 (8 features), base 10000, native 64; weights large enough that positions matter.

    `prefix`: special tokens, beside `<s>` (id 0), that the tokenizer puts in front of a text; it has no BOS then.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    torch.manual_seed(0)
    settings: dict[str, object] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 48,
        "vocab_size": 300,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    model = AutoModelForCausalLM.from_config(LlamaConfig(**(settings | overrides)))
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", *prefix], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([make_text(500)], trainer)
    front = ["<s>"] if bos else list(prefix)
    if front:
        ids = [(token, tokenizer.token_to_id(token)) for token in front]
        tokenizer.post_processor = processors.TemplateProcessing(single=" ".join([*front, "$A"]), special_tokens=ids)
    named = {} if prefix else {"bos_token": "<s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(folder)
    return folder
