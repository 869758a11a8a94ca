"""Opens a resolved model: config, tokenizer, weights, through transformers and from safetensors only.

The dtype is given at loading: `model.to(bfloat16)` afterwards would cast the rotary frequencies as well, and
wavelengths would miss their integers by up to half a token.
"""

from __future__ import annotations

import json
import logging
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from longeval.errors import LongEvalError
from longeval.models.device import native_bfloat16, resolve_attention, resolve_device, resolve_device_map, resolve_dtype
from longeval.models.geometry import ConfigRope, check_raw, native_length, rope_geometry
from longeval.models.hub import open_hub, unreachable_hub
from longeval.models.identity import weights_digest
from longeval.models.quiet import quiet_transformers
from longeval.models.resolve import ModelRef, is_present, local_folder, read_config, resolve
from longeval.models.tokenizer import open_tokenizer

__all__ = [
    "ConfigRope",
    "ModelRef",
    "is_present",
    "load_config",
    "load_model",
    "load_tokenizer",
    "native_bfloat16",
    "native_length",
    "resolve",
    "resolve_attention",
    "resolve_device",
    "resolve_device_map",
    "resolve_dtype",
    "rope_geometry",
    "weights_digest",
]

logger = logging.getLogger(__name__)

_UNREADABLE = (ValueError, KeyError, TypeError, OSError, ImportError, ArithmeticError, StrictDataclassError)
"""What transformers raises for files that aren't what it expects; the last for config fields of a wrong type."""


def load_config(ref: ModelRef, *, trust_remote_code: bool = False) -> Any:
    """Returns the model's `PreTrainedConfig`; no weights are read.

    Args:
        ref: From `resolve`.
        trust_remote_code: Whether Python code that comes with the model may run.

    Raises:
        LongEvalError: If the model can't be reached, its type is unknown, or it needs code that isn't trusted.
    """
    import transformers

    import longeval.hf  # a model may be saved with one of our rope types

    longeval.hf.register()
    source = _source(ref)
    _check_type(ref, trust_remote_code)
    if trust_remote_code:
        tell_code(ref, "runs")
    try:
        with quiet_transformers():
            return transformers.AutoConfig.from_pretrained(**source, trust_remote_code=trust_remote_code)
    except LongEvalError as error:  # of a rope type of ours: it doesn't know which model it is about
        raise LongEvalError(f"--model {ref.name}: {error.problem}", error.remedy) from error
    except _UNREADABLE as error:
        raise _unloadable(ref, "config", error) from error


def load_tokenizer(ref: ModelRef, *, trust_remote_code: bool = False) -> Any:
    """Returns the model's tokenizer (see `models.tokenizer`); raises LongEvalError if it has none that can be read."""
    source = _source(ref)
    try:
        with quiet_transformers():
            return open_tokenizer(source, trust_remote_code=trust_remote_code)
    except _UNREADABLE as error:
        raise _unloadable(ref, "tokenizer", error) from error


def load_generation_settings(ref: ModelRef, config: Any) -> Any:
    """Returns the model's `GenerationConfig`: from its own file, or where it has none, as its config implies."""
    import transformers

    source = _source(ref)
    where = source.pop("pretrained_model_name_or_path")
    with quiet_transformers():
        try:
            settings = transformers.GenerationConfig.from_pretrained(where, **source)
        except OSError as error:
            if "JSON" in str(error):
                raise _unloadable(ref, "generation settings", error) from error
            settings = transformers.GenerationConfig.from_model_config(config)  # no such file
        except _UNREADABLE as error:
            raise _unloadable(ref, "generation settings", error) from error
    ends = settings.eos_token_id
    if not all(one is None or type(one) is int for one in (ends if isinstance(ends, list) else [ends])):
        raise LongEvalError(
            f"--model {ref.name}: eos_token_id of its generation settings is {ends!r}, no token id",
            "Correct its generation_config.json, or config.json where it has none.",
        )
    return settings


def load_model(
    ref: ModelRef,
    *,
    dtype: str,
    device: str,
    device_map: str | None = None,
    attn: str | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """Loads the weights, in eval mode and without gradients.

    Args:
        ref: From `resolve`.
        dtype: From `resolve_dtype`.
        device: From `resolve_device`; where the model goes unless `device_map` spreads it.
        device_map: accelerate's word (`auto`, `balanced`, …) for a model that needs several devices.
        attn: The value of `--attn`.
        trust_remote_code: Whether Python code that comes with the model may run.

    Returns:
        A transformers `PreTrainedModel` for causal language modelling.

    Raises:
        LongEvalError: If the weights can't be had, are no safetensors, or don't fit the architecture.
    """
    import torch
    import transformers

    import longeval.hf

    longeval.hf.register()
    source = _source(ref)
    _check_type(ref, trust_remote_code)
    options: dict[str, Any] = {"attn_implementation": name} if (name := resolve_attention(attn, device)) else {}
    if device_map is not None or device != "cpu":
        options["device_map"] = resolve_device_map(device_map) or {"": device}
    try:
        with quiet_transformers():
            model, loading = transformers.AutoModelForCausalLM.from_pretrained(
                **source,
                **options,
                dtype=getattr(torch, dtype),
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
            )
    except (*_UNREADABLE, RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise LongEvalError(
                f"--model {ref.name}: its weights in {dtype} don't fit into the memory of {device}",
                "Try --dtype bfloat16, --device-map auto, or a smaller model; --dry-run estimates what is needed.",
            ) from error
        raise _unloadable(ref, "model", error) from error
    _check_complete(ref, loading)
    return model.eval().requires_grad_(False)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out; the CPU allocator and mmap have no class of their own for that."""
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)


def _source(ref: ModelRef) -> dict[str, Any]:
    """The arguments that tell transformers where the model is: a folder, or a commit on the hub."""
    folder = local_folder(ref)
    if folder is not None:
        return {"pretrained_model_name_or_path": folder, "local_files_only": True}
    snapshot = open_hub(ref)
    return {
        "pretrained_model_name_or_path": snapshot.hub_id,
        "revision": snapshot.commit,
        "local_files_only": snapshot.local_only,
    }


def _check_type(ref: ModelRef, trust_remote_code: bool) -> None:
    """Raises LongEvalError for a model type that transformers doesn't know by itself, and RoPE settings of no use."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    folder = local_folder(ref)
    path = f"{folder}/config.json" if folder is not None else open_hub(ref).config_path
    config = read_config(path, ref.name)
    try:
        check_raw(config)
    except LongEvalError as error:
        raise LongEvalError(f"--model {ref.name}: {error.problem}", error.remedy) from error
    model_type = config.get("model_type")
    if model_type in CONFIG_MAPPING:
        return
    if config.get("auto_map"):
        if not trust_remote_code:
            raise LongEvalError(
                f"--model {ref.name}: model type {model_type} runs Python code that comes with the model",
                f"Read that code ({json.dumps(config['auto_map'])}), and if you trust it add --trust-remote-code; a "
                "dry run runs none.",
            )
        return
    raise LongEvalError(
        f"--model {ref.name}: transformers {transformers.__version__} doesn't know model type {model_type!r}",
        "Its config.json must name a causal language model that transformers has.",
    )


def tell_code(ref: ModelRef, does: str) -> None:
    """Says on stderr which Python a model runs, or would run: its config and its tokenizer may name some."""
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    where = _source(ref)
    folder = local_folder(ref)
    config = read_config(f"{folder}/config.json" if folder is not None else open_hub(ref).config_path, ref.name)
    tokenizer = get_tokenizer_config(where.pop("pretrained_model_name_or_path"), **where)
    for file, plain in (("config.json", config), ("tokenizer_config.json", tokenizer)):
        if plain.get("auto_map"):
            logger.warning("%s %s Python that its %s names: %s", ref.name, does, file, json.dumps(plain["auto_map"]))


def _check_complete(ref: ModelRef, loading: dict[str, Any]) -> None:
    """Raises LongEvalError if weights were missing: transformers would have filled them with random numbers."""
    for kind in ("missing_keys", "mismatched_keys"):
        keys = sorted(str(key) for key in loading.get(kind) or ())
        if keys:
            raise LongEvalError(
                f"--model {ref.name}: its files don't fit its config, {len(keys)} weights are "
                f"{kind.removesuffix('_keys')} ({keys[0]}, …)",
                "It may be no causal language model, an incomplete download, or an edited config.json.",
            )


def _quantisation(ref: ModelRef) -> str | None:
    """How a model's weights are quantised, as its config.json says; None where they aren't."""
    folder = local_folder(ref)
    path = f"{folder}/config.json" if folder is not None else open_hub(ref).config_path
    settings = read_config(path, ref.name).get("quantization_config")
    return str(settings.get("quant_method", "by an unknown method")) if isinstance(settings, dict) else None


def _unloadable(ref: ModelRef, part: str, error: Exception) -> LongEvalError:
    """The message for what transformers could not load."""
    if ref.kind == "hub" and isinstance(error, OSError):
        snapshot = open_hub(ref)
        if snapshot.local_only:
            return unreachable_hub(snapshot.hub_id, ref.name, f"its {part} was never downloaded")
    if "trust_remote_code" in str(error):
        return LongEvalError(
            f"--model {ref.name}: its {part} runs Python code that comes with the model",
            "Read that code, and if you trust it add --trust-remote-code; a dry run runs none.",
        )
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    remedy = {
        "config": "Check its config.json.",
        "tokenizer": "The folder needs the tokenizer's files (tokenizer.json): tokenizer.save_pretrained(FOLDER).",
        "generation settings": "Correct its generation_config.json, or remove it: then its config.json counts.",
        "model": "Weights must be the safetensors of a causal language model that transformers knows.",
    }[part]
    if part == "model" and (method := _quantisation(ref)) is not None:
        remedy = (
            f"It is quantised ({method}): install what that needs here, as the reason says, or give it unquantised."
        )
    return LongEvalError(f"--model {ref.name}: its {part} can't be loaded ({reason.rstrip('.')})", remedy)
