"""Adapters of tiny models, made and saved by peft, and what peft itself computes with them."""

from __future__ import annotations

from pathlib import Path

LORA = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}


def save_adapter(base: Path, folder: Path, config=None, *, seed: int = 0, **settings) -> Path:
    """Saves an adapter whose weights are far from where peft starts them; LoRA without a `config`."""
    import peft
    import torch

    from longeval.models.library import quiet_transformers

    with quiet_transformers():
        torch.manual_seed(seed)
        config = config or peft.LoraConfig(**(LORA | settings))
        model = peft.get_peft_model(plain(base), config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        model.save_pretrained(folder)
    return folder


def plain(base: Path):
    """The base model as stock transformers loads it."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()


def unmerged(base: Path, adapter: Path):
    """The adapted model of stock transformers and peft, whose adapter stays beside the weights."""
    import peft

    from longeval.models.library import quiet_transformers

    with quiet_transformers():
        return peft.PeftModel.from_pretrained(plain(base), adapter).eval()


def nll(model, tokens_T) -> list[float]:
    """Negative log-likelihoods of all tokens but the first, nats."""
    import torch

    with torch.no_grad():
        logits_TV = model(torch.tensor([list(tokens_T)])).logits[0]
    targets = torch.tensor(list(tokens_T))[1:]
    return torch.nn.functional.cross_entropy(logits_TV[:-1].double(), targets, reduction="none").tolist()
