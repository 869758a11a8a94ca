"""What a checkpoint says of its quantisation, what that changes in a plan, and refusals before anything is loaded."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import transformers
from folders import edit_config, prepared
from fp8 import BLOCK, to_fp8

from longeval.backends.base import capabilities
from longeval.backends.hf.backend import load_backend
from longeval.errors import LongEvalError
from longeval.models import load, quantisation
from longeval.models.folder import Stored
from longeval.models.quantisation import Quantisation, read_quantisation, stored_bytes
from longeval.run.cost import memory_bytes, model_size
from longeval.studies.ppl.plan import plan_ppl


@pytest.fixture
def fp8(llama):
    to_fp8(llama)
    return llama


CONFIGS = {
    "nf4": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        {"method": "bitsandbytes", "bits": 4, "format": "nf4"},
    ),
    "llm.int8": (
        {"load_in_8bit": True, "load_in_4bit": False},
        {"method": "bitsandbytes", "bits": 8, "format": "int8"},
    ),
    "gptq": (
        {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True, "checkpoint_format": "gptq"},
        {"method": "gptq", "bits": 4, "format": "gptq", "group_size": 128},
    ),
    "awq": (
        {"quant_method": "awq", "w_bit": 4, "q_group_size": 64, "zero_point": True},
        {"method": "awq", "bits": 4, "group_size": 64},
    ),
    "w4a16": (
        {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 32}, "input_activations": None}},
        },
        {"method": "compressed-tensors", "bits": 4, "format": "pack-quantized", "group_size": 32},
    ),
    "mixed": (
        {
            "quant_method": "compressed-tensors",
            "format": "mixed-precision",
            "config_groups": {"a": {"weights": {"num_bits": 4}}, "b": {"weights": {"num_bits": 8}}},
        },
        {"method": "compressed-tensors", "format": "mixed-precision"},
    ),
    "torchao": (
        {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8DynamicActivationInt4WeightConfig"}}},
        {"method": "torchao", "bits": 4, "format": "Int8DynamicActivationInt4WeightConfig"},
    ),
    "quanto": ({"quant_method": "quanto", "weights": "float8"}, {"method": "quanto", "bits": 8, "format": "float8"}),
    "hqq": (
        {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 3, "group_size": 64}}},
        {"method": "hqq", "bits": 3, "group_size": 64},
    ),
    "mxfp4": ({"quant_method": "mxfp4"}, {"method": "mxfp4", "bits": 4}),
    "nonsense": ({"bits": "many", "group_size": [1], "quant_method": 7, "format": {}}, {"method": "7"}),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_what_a_configuration_says(name):
    settings, expected = CONFIGS[name]
    assert read_quantisation(settings).params == expected


@pytest.mark.parametrize(
    ("settings", "packages"),
    [
        (CONFIGS["nf4"][0], "bitsandbytes"),
        (CONFIGS["gptq"][0], "optimum gptqmodel"),
        (CONFIGS["awq"][0], "gptqmodel"),
        (CONFIGS["w4a16"][0], "compressed-tensors"),
        (CONFIGS["torchao"][0], "torchao"),
    ],
)
def test_missing_packages_are_told_with_the_command_before_anything_is_loaded(
    llama, request_spec, monkeypatch, settings, packages
):
    edit_config(llama, quantization_config=settings)
    monkeypatch.setattr(quantisation, "_is_installed", lambda _: False)
    monkeypatch.setattr(load, "load_model", lambda *_, **__: pytest.fail("was loaded"))
    with pytest.raises(
        LongEvalError, match=f"--model {llama}: .*{settings.get('quant_method')}.* not installed"
    ) as caught:
        plan_ppl(request_spec(model=(str(llama),)))
    held = f"transformers=={transformers.__version__} torch=={torch.__version__.partition('+')[0]}"
    assert f"pip install {packages} {held}" in caught.value.remedy
    assert caught.value.status == 2
    # vLLM and servers load weights by themselves.
    assert prepared(llama, backend=capabilities("vllm")).quantisation == read_quantisation(settings)
    assert prepared(llama, backend=capabilities("openai")).quantisation is None


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"quant_method": "spqr"}, "spqr.*GPU"),
        ({"quant_method": "frobnicate"}, "frobnicate.*doesn't know"),
        ({"bits": 4}, "unknown"),
        ({"quant_method": "fp8", "weight_block_size": [1, 2, 3]}, "fp8"),
        ([1], "quantization_config"),
    ],
)
def test_what_transformers_cannot_load_here_is_told_before_anything_is_loaded(llama, settings, said):
    edit_config(llama, quantization_config=settings)
    with pytest.raises(LongEvalError, match=f"--model {llama}: .*{said}"):
        prepared(llama)


def test_a_method_that_has_one_dtype_decides_it(fp8, monkeypatch):
    monkeypatch.setattr(transformers.quantizers.base.HfQuantizer, "update_dtype", lambda self, dtype: torch.bfloat16)
    assert prepared(fp8).dtype == load_backend(prepared(fp8)).dtype == "bfloat16"


def test_the_estimate_of_memory_knows_the_size_of_quantised_weights(fp8, tiny_llama, monkeypatch):
    model = prepared(fp8)
    plain, put_back = model_size(prepared(tiny_llama)), model_size(model)
    assert put_back == plain  # plain numbers are what is in memory
    kept = Quantisation(method="gptq", bits=4, format=None, group_size=None)
    held = model_size(dataclasses.replace(model, quantisation=kept))
    linear = 2 * (32 * 64 + 2 * 32 * 32 + 64 * 32 + 3 * 32 * 48)
    assert held.quantised_bytes == linear + 4 * linear // BLOCK**2 + 4 * (plain.num_parameters - linear)
    difference = memory_bytes(model, plain, 64) - memory_bytes(model, held, 64)
    assert difference == 4 * plain.num_parameters - held.quantised_bytes
    monkeypatch.setattr("longeval.run.cost.is_present", lambda _: False)  # on the hub still: its bits are known
    guessed = model_size(dataclasses.replace(model, quantisation=kept))
    embedding_and_head = 2 * 300 * 32
    assert guessed.quantised_bytes == (plain.num_parameters - embedding_and_head) // 2 + 4 * embedding_and_head


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("F4", 48), ("F6_E2M3", 72), ("F8_E4M3", 96), ("BOOL", 96), ("I32", 384), ("BF16", 384)],
)
def test_the_bytes_of_stored_weights_count_elements_smaller_than_a_byte(dtype, expected):
    assert stored_bytes([Stored(shape=(8, 12), dtype=dtype)], 4) == expected
