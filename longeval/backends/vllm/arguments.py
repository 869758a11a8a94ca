"""Options of vLLM's engine as a user passes them through, `--vllm-arg NAME=VALUE`; vLLM itself is not imported."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from longeval.errors import LongEvalError

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
"""Options of memory and logging, that no result depends on: they are no part of a cell."""

COUNTS = ("max_num_seqs", "max_num_batched_tokens")
"""Options that longeval computes with: whole numbers of at least 1."""

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
    check_owned(found, owned)
    check_counts(found)
    return found


def check_owned(args: Mapping[str, Any], owned: Mapping[str, str] = OWNED) -> None:
    """Raises LongEvalError for engine options that longeval sets itself."""
    for name in args:
        if name in owned:
            flag, _, why = owned[name].partition(": ")
            decided = "can't be changed" if flag == "nothing" else f"is set by {flag}"
            raise LongEvalError(f"--vllm-arg {name}: {decided}{f' ({why})' if why else ''}", "Leave it out.")


def check_counts(args: Mapping[str, Any]) -> None:
    """Raises LongEvalError for counts that aren't whole numbers of at least 1."""
    for name in COUNTS:
        value = args.get(name)
        if name in args and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise LongEvalError(f"--vllm-arg {name}={value}: not a whole number of at least 1", "Such as 64.")


def check_first_gpu(device: str) -> None:
    """Raises LongEvalError for a `--device` that names another GPU than the first: vLLM always starts at that one."""
    match = re.fullmatch(r"cuda:(\d+)", device)
    if match and int(match[1]) > 0:
        raise LongEvalError(
            f"--device {device}: vLLM takes the first GPU that it sees",
            f"Show it only that one: CUDA_VISIBLE_DEVICES={int(match[1])} longeval …, without --device.",
        )
