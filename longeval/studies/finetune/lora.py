"""LoRA: small trained matrices beside the frozen weights of attention, with peft.

A projection W becomes W + (α/r)·B·A (Hu et al. 2021, arXiv 2106.09685). LoRA+ of LongLoRA (Chen et al. 2023, arXiv
2309.12307) also trains embeddings and norms whole, which long contexts need. All projections of attention get an
adapter: q, k, v and o, or those in which a family joins them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from longeval.errors import LongEvalError, reason
from longeval.models.adapter import check_peft
from longeval.models.library import quiet_transformers
from longeval.studies.finetune.request import FinetuneRequest
from longeval.studies.finetune.train import seeded


def adapt(model: Any, request: FinetuneRequest, *, seed: int = 0) -> Any:
    """Puts adapters into a model, and switches the gradients of all that is trained on.

    Args:
        model: A transformers causal language model without gradients. It is changed.
        request: Rank, alpha, and whether embeddings and norms are trained.
        seed: Seed of the first values of A; those of B are 0. All processes must start from the same.

    Returns:
        The peft model around it. What is trained is float32 (float64 in a float64 model); the rest stays as it is.

    Raises:
        LongEvalError: peft isn't installed, or has no adapter for such a model or quantisation.
    """
    check_peft("--lora")
    from peft import LoraConfig, get_peft_model

    alpha = request.alpha
    whole = _embeddings_and_norms(model) if request.lora_plus else None
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=request.rank,
        lora_alpha=int(alpha) if alpha == int(alpha) else alpha,  # type: ignore[arg-type]  # peft only divides it
        target_modules=attention_projections(model),
        modules_to_save=whole,
        ensure_weight_tying=request.lora_plus and _is_tied(model),
    )
    try:
        with quiet_transformers(), seeded((seed,), model.device):
            adapted = get_peft_model(model, config)
    except (ValueError, ImportError) as error:
        raise LongEvalError(
            f"--lora: peft can't put adapters into this {model.config.model_type} model ({reason(error)})",
            "Use weights that are not quantised, or leave --lora out.",
        ) from error
    for weight in adapted.parameters():
        if weight.requires_grad:
            weight.data = weight.data.to(torch.promote_types(weight.dtype, torch.float32))
    return adapted


def attention_projections(model: nn.Module) -> list[str]:
    """Names of the linear layers of attention, such as q_proj; with their parent's where others have the same name."""
    names, inside, others = model.named_modules(), set(), set()
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    for name, module in names:
        if not hasattr(module, "in_features"):
            continue
        parent, _, own = name.rpartition(".")
        if "Attention" in kinds.get(parent, ""):
            inside.add((parent.rpartition(".")[2], own))
        else:
            others.add(own)
    if not inside:
        raise LongEvalError(f"--lora: no attention layers found in a {kinds['']} model", "Leave --lora out.")
    return sorted({f"{parent}.{own}" if own in others else own for parent, own in inside})


def merged(model: Any) -> Any:
    """Merges the adapters into the weights.

    Args:
        model: The peft model. It can't be used any more.

    Returns:
        The transformers model, with W + (α/r)·B·A in the place of W, in the dtype that it was loaded in.
    """
    from peft.utils import ModulesToSaveWrapper

    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            loaded = next(module.original_module.parameters()).dtype
            for weight in module.modules_to_save.parameters():
                weight.data = weight.data.to(loaded)
    with quiet_transformers():
        plain = model.merge_and_unload()
    plain.tie_weights()
    return plain.requires_grad_(False).eval()


def save_adapter(model: Any, folder: str, *, base: str, weights: Mapping[str, torch.Tensor] | None = None) -> None:
    """Writes the adapter as peft does, in safetensors.

    Args:
        model: The peft model, before `merged`.
        folder: Where to.
        base: The base model's name, which adapter_config.json tells.
        weights: The whole weights where the model holds parts of them (FSDP2); see `Processes.gather`.

    Raises:
        OSError: It can't be written.
    """
    model.peft_config["default"].base_model_name_or_path = base
    options = {} if weights is None else {"state_dict": dict(weights)}
    # Trained embeddings are in the adapter anyway; "auto" would ask the hub whether they were resized.
    model.save_pretrained(folder, save_embedding_layers=False, **options)


def _embeddings_and_norms(model: Any) -> list[str]:
    """Names of the input embeddings and of all norms."""
    embeddings = model.get_input_embeddings()
    found = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if module is embeddings or type(module).__name__.endswith("Norm")
    }
    return sorted(found)


def _is_tied(model: Any) -> bool:
    """Whether the head has the input embeddings' weights."""
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight
