from __future__ import annotations

import pytest
import torch

from longeval.errors import LongEvalError
from longeval.models import device


def test_auto_dtype_follows_the_processor(monkeypatch):
    for flags, dtype in (("avx2", "float32"), ("sse avx512_bf16", "bfloat16"), ("asimd bf16", "bfloat16")):
        monkeypatch.setattr(device, "_processor", lambda *_, flags=flags: flags)
        assert device.resolve_dtype("auto", "cpu") == dtype


def test_auto_dtype_ignores_a_gpu_that_only_emulates(monkeypatch):
    for native, dtype in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation, native=native: native or including_emulation
        )
        assert device.resolve_dtype("auto", "cuda:0") == dtype


def test_dtype_that_the_device_cannot_compute_is_refused(monkeypatch):
    assert device.resolve_dtype("float16", "cpu") == "float16"
    monkeypatch.setattr(device, "unusable", lambda dtype, device: "no such kernel")
    with pytest.raises(LongEvalError, match=r"--dtype float16: cpu can't compute with it \(no such kernel\)"):
        device.resolve_dtype("float16", "cpu")


def test_unusable_tries_the_device():
    assert device.unusable("bfloat16", "cpu") is None
    assert device.unusable("int8", "cpu") is not None


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device.resolve_device("auto") == "cuda:0"
    assert device.resolve_device("cuda") == "cuda:0"
    assert device.resolve_device("cuda:1") == "cuda:1"
    with pytest.raises(LongEvalError, match="--device cuda:2: this machine has 2 GPUs, cuda:0 to cuda:1"):
        device.resolve_device("cuda:2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert device.resolve_device("auto") == "cpu"
    with pytest.raises(LongEvalError, match="--device cuda: this machine sees no"):
        device.resolve_device("cuda")
    with pytest.raises(LongEvalError, match="--device mps"):
        device.resolve_device("mps")


@pytest.mark.parametrize(
    ("resolve", "value", "message"),
    [
        (device.resolve_device, "gpu", "--device gpu: unknown"),
        (lambda name: device.resolve_dtype(name, "cpu"), "bf16", "--dtype bf16: unknown. Did you mean"),
        (lambda name: device.resolve_attention(name, "cpu"), "flash_attention", "Did you mean flash_attention_"),
        (lambda name: device.resolve_attention(name, "cpu"), "flash_attention_2", "needs an NVIDIA or AMD GPU"),
        (device.resolve_device_map, "autto", "--device-map autto: unknown. Did you mean auto"),
    ],
)
def test_unknown_values_get_suggestions(resolve, value, message):
    with pytest.raises(LongEvalError, match=message):
        resolve(value)


def test_attention_is_transformers_choice_by_default():
    assert device.resolve_attention(None, "cpu") is None
    assert device.resolve_attention("auto", "cpu") is None
    assert device.resolve_attention("eager", "cpu") == "eager"
