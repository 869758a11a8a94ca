"""Values of `--vllm-arg` against the types that vLLM annotates its options with."""

from __future__ import annotations

import dataclasses
import sys
import types
from collections.abc import Callable
from typing import Annotated, Any, Literal, Optional

import pytest

from longeval.backends.vllm import options as vllm_options
from longeval.backends.vllm.kinds import check_kinds
from longeval.errors import LongEvalError

TYPES = {
    "tensor_parallel_size": int,
    "block_size": int | None,
    "gpu_memory_utilization": float,
    "enforce_eager": bool,
    "hf_token": bool | str | None,
    "quantization": Optional[str],  # noqa: UP045 (vLLM may write it so)
    "kv_cache_dtype": Literal["auto", "fp8"],
    "tokenizer_mode": Literal["auto", "slow"] | str,
    "lora_rank": Literal[8, 16],
    "level": Literal[0, 1],
    "sizes": Annotated[list[int] | None, "said"],
    "params": set[str],
    "config": dict[str, Any] | None,
    "overrides": dict[str, Any] | Callable[[int], int] | None,
    "executor": str | type[object] | None,
    "quoted": "dict[str, Any] | Unknown",
    "anything": Any,
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tensor_parallel_size", 2), ("block_size", None), ("block_size", 16), ("gpu_memory_utilization", 0.5),
        ("gpu_memory_utilization", 1), ("enforce_eager", True), ("hf_token", True), ("hf_token", "x"),
        ("quantization", "fp8"), ("quantization", None), ("kv_cache_dtype", "fp8"), ("tokenizer_mode", "mistral"),
        ("lora_rank", 16), ("sizes", [1, 2]), ("sizes", None), ("params", ["a"]), ("config", {"a": 1}),
        ("overrides", "anything"), ("executor", 5), ("quoted", 5), ("anything", "x"),
    ],
)  # fmt: skip
def test_values_of_the_right_kind_and_those_that_cant_be_told(name, value):
    check_kinds({name: value}, TYPES)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("tensor_parallel_size", "two", "size=two: vLLM takes a whole number there. It is read as YAML."),
        ("tensor_parallel_size", 2.0, "a whole number"),
        ("tensor_parallel_size", True, "tensor_parallel_size=true: vLLM takes a whole number"),
        ("tensor_parallel_size", None, "tensor_parallel_size=null: vLLM takes a whole number"),
        ("block_size", "big", "a whole number there"),
        ("gpu_memory_utilization", "1e-1x", "takes a number"),
        ("gpu_memory_utilization", True, "takes a number"),
        ("enforce_eager", 1, "true or false"),
        ("enforce_eager", "yes please", "true or false"),
        ("quantization", 8, "takes a text there. It is read as YAML. For a text in digits: --vllm-arg quantization='"),
        ("kv_cache_dtype", "int3", "takes auto, fp8 there"),
        ("lora_rank", 9, "takes 8, 16 there"),
        ("lora_rank", "8", "takes 8, 16 there"),
        ("level", True, "level=true: vLLM takes 0, 1 there"),
        ("sizes", 3, "a list"),
        ("params", "a", "a list"),
        ("config", "a", "a mapping"),
    ],
)  # fmt: skip
def test_values_of_another_kind(name, value, said):
    with pytest.raises(LongEvalError) as caught:
        check_kinds({name: value}, TYPES)
    assert f"--vllm-arg {name}=" in str(caught.value)
    assert said in str(caught.value)


def test_the_installed_vllm_is_asked(monkeypatch):
    module = types.SimpleNamespace(EngineArgs=dataclasses.make_dataclass("EngineArgs", TYPES.items()))
    monkeypatch.setitem(sys.modules, "vllm", types.ModuleType("vllm"))
    monkeypatch.setitem(sys.modules, "vllm.engine", types.ModuleType("vllm.engine"))
    monkeypatch.setitem(sys.modules, "vllm.engine.arg_utils", module)
    vllm_options.check_known({"tensor_parallel_size": 2})
    with pytest.raises(LongEvalError, match="tensor_parallel_size=two: vLLM takes a whole number"):
        vllm_options.check_known({"tensor_parallel_size": "two"})
    with pytest.raises(LongEvalError, match="no such option") as caught:
        vllm_options.check_known({"tensor_paralel_size": 2})
    assert "tensor_parallel_size" in caught.value.remedy
