"""Quantised checkpoints in the hf backend: values against an independent computation, and what records say.

FP8 needs no package on a CPU, because transformers makes plain numbers of it there. The formats that need one run where
it is installed: pip install bitsandbytes compressed-tensors torchao.
"""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from fp8 import is_linear, to_fp8
from llama_reference import llama_nll
from rotation_reference import rotation
from safetensors.torch import load_file, save_file
from tiny import make_text, save_tiny_llama

import longeval
from longeval.models.prepare import prepare
from longeval.report.facts import model_fact
from longeval.run.cost import model_size

LENGTH = 128
"""Twice the native length."""


@pytest.fixture
def fp8(tiny_llama, tmp_path):
    """A quantised folder, and a plain model of the numbers that it stands for."""
    folder = shutil.copytree(tiny_llama, tmp_path / "fp8")
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    plain.load_state_dict(to_fp8(folder))
    return folder, plain


def measured(folder, tmp_path):
    """Results on one short text, whose first tokens fill the window."""
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "text.txt").write_text(make_text(400))
    request = {"pe": ["none", "resonance_yarn"], "lengths": [LENGTH], "data": str(tmp_path / "text.txt")}
    machine = {"dtype": "float32", "device": "cpu", "quiet": True}
    return longeval.ppl(model=str(folder), **request, **machine, out=str(tmp_path / f"run-{folder.name}"))


def test_fp8_weights_give_what_the_numbers_they_stand_for_give(fp8, tiny_llama, tmp_path):
    folder, plain = fp8
    found, unquantised = (measured(one, tmp_path) for one in (folder, tiny_llama))
    tokens_T = np.array(transformers.AutoTokenizer.from_pretrained(folder)(make_text(400)).input_ids[:LENGTH])
    records = {r.pe: r for r in found.records if r.metric == "perplexity"}
    others = {r.pe: r for r in unquantised.records if r.metric == "perplexity"}
    for method, record in records.items():
        by = rotation(method, 16, 10000.0, 64, 2.0)
        expected = np.exp(llama_nll(plain, tokens_T, by.angles(LENGTH), by.factor).mean())
        assert record.value == pytest.approx(expected, rel=3e-4)
        assert record.value != pytest.approx(others[method].value, rel=1e-3)
        assert record.rope_digest == others[method].rope_digest  # the table is ours, whatever the weights
        assert record.params["quantization"] == {"method": "fp8", "bits": 8, "dequantized": True}
        assert "quantization" not in others[method].params
    assert "fp8, 8 bits, computed in plain numbers" in str(model_fact("m", 64, record))
    assert "quantised" not in str(model_fact("m", 64, others[method]))


def bitsandbytes(folder, bits):
    settings = {4: {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, 8: {"load_in_8bit": True}}[bits]
    return transformers.BitsAndBytesConfig(**settings, bnb_4bit_compute_dtype=torch.float32)


def torchao(folder, bits):
    from torchao.quantization import Int8WeightOnlyConfig

    return transformers.TorchAoConfig(Int8WeightOnlyConfig(version=2))


def save_by_transformers(folder, config):
    """Quantises a plain folder and saves it again."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, quantization_config=config, device_map={"": "cpu"}
    )
    model.save_pretrained(folder)


def compressed(folder, bits):
    """Writes what llm-compressor writes: whole numbers packed in int32, with a scale for each group."""
    from compressed_tensors.compressors import pack_to_int32

    stored, group = {}, 16
    for name, weight_OI in load_file(folder / "model.safetensors").items():
        stored[name] = weight_OI
        if not is_linear(name):
            continue
        del stored[name]
        most = 2 ** (bits - 1) - 1
        scale_OG = weight_OI.unfold(1, group, group).abs().amax(-1) / most
        whole_OI = (weight_OI / scale_OG.repeat_interleave(group, 1)).round().to(torch.int8)
        stored[f"{name}_scale"] = scale_OG
        stored[f"{name}_packed"] = pack_to_int32(whole_OI, bits)
        stored[f"{name}_shape"] = torch.tensor(weight_OI.shape)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    weights = {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "group", "group_size": group}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    said = {"quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed"}
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = said | {"config_groups": groups, "ignore": ["lm_head"]}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("package", "bits", "said"),
    [
        ("bitsandbytes", 4, {"method": "bitsandbytes", "bits": 4, "format": "nf4"}),
        ("bitsandbytes", 8, {"method": "bitsandbytes", "bits": 8, "format": "int8"}),
        ("torchao", 8, {"method": "torchao", "bits": 8, "format": "Int8WeightOnlyConfig"}),
        (
            "compressed_tensors",
            4,
            {
                "method": "compressed-tensors",
                "bits": 4,
                "format": "pack-quantized",
                "group_size": 16,
                "dequantized": True,
            },
        ),
        (
            "compressed_tensors",
            8,
            {
                "method": "compressed-tensors",
                "bits": 8,
                "format": "pack-quantized",
                "group_size": 16,
                "dequantized": True,
            },
        ),
    ],
)
def test_formats_that_need_a_package(package, bits, said, tmp_path):
    """Perplexity against stock transformers on the same folder."""
    pytest.importorskip(package)
    folder = save_tiny_llama(tmp_path / "model", hidden_size=64, intermediate_size=64)
    before, plain = measured(folder, tmp_path / "before").records[0], load_file(folder / "model.safetensors")
    if package == "compressed_tensors":
        compressed(folder, bits)
    else:
        save_by_transformers(folder, {"bitsandbytes": bitsandbytes, "torchao": torchao}[package](folder, bits))
    (record, *_) = measured(folder, tmp_path).records
    tokens_BT = torch.tensor([transformers.AutoTokenizer.from_pretrained(folder)(make_text(400)).input_ids[:LENGTH]])
    stock = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map={"": "cpu"})
    with torch.no_grad():
        logits_TV = stock(tokens_BT[:, :-1]).logits[0]
    expected = torch.nn.functional.cross_entropy(logits_TV, tokens_BT[0, 1:]).exp().item()
    assert record.pe == "none" and record.value == pytest.approx(expected, rel=1e-4)
    assert record.value != pytest.approx(before.value, rel=1e-3)
    assert record.params["quantization"] == said
    size = model_size(prepare(str(folder), dtype="float32", device="cpu"))
    if "dequantized" in said:
        assert size.quantised_bytes is None
        return
    linear = sum(weight.numel() for name, weight in plain.items() if is_linear(name))
    numbers = linear * bits // 8 + 4 * (size.num_parameters - linear)
    assert numbers < size.quantised_bytes < 1.1 * numbers  # scales come on top
