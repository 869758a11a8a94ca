"""The `vllm` backend, which runs an engine from this process, and the server of `longeval serve`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from longeval.backends.base import BACKENDS, Backend, Capabilities
from longeval.backends.vllm import options

if TYPE_CHECKING:
    from longeval.models.prepare import PreparedModel
    from longeval.request import ModelRequest


def _load(spec: ModelRequest, model: PreparedModel) -> Backend:
    from longeval.backends.vllm.backend import VLLMBackend

    return VLLMBackend(model, length=spec.lengths[-1], args=spec.vllm_args, share_prefixes=spec.command == "tasks")


def _check(spec: ModelRequest) -> None:
    options.check_args(spec.vllm_args)
    options.check_first_gpu(spec.device)
    options.check_installed()


def _params(spec: ModelRequest, length_dependent: bool) -> dict[str, Any]:
    deciding = {name: value for name, value in spec.vllm_args.items() if name not in options.DECIDE_NOTHING}
    return {"pin_length": spec.pin_length if length_dependent else None, "vllm_args": deciding}


def _devices(spec: ModelRequest) -> int:
    return int(spec.vllm_args.get("tensor_parallel_size", 1)) * int(spec.vllm_args.get("pipeline_parallel_size", 1))


BACKENDS.register(
    "vllm",
    Capabilities(
        load=_load,
        heeds=frozenset({"vllm_args", "pin_length", "device", "dtype", "adapter"}),
        one_table=True,
        windows_at_once=16,
        devices=_devices,
        own_quantised_weights=True,
        check=_check,
        check_config=options.check_family,
        params=_params,
    ),
)
