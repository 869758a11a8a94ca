"""Which device, dtype and attention are taken, and which names are refused."""

from __future__ import annotations

import pytest
import torch

from longeval.errors import LongEvalError
from longeval.models import device


@pytest.mark.parametrize(
    ("flags", "dtype"), [("avx2", "float32"), ("sse avx512_bf16", "bfloat16"), ("asimd bf16", "bfloat16")]
)
def test_auto_dtype_follows_the_processor(monkeypatch, flags, dtype):
    monkeypatch.setattr(device, "_processor", lambda *_: flags)
    assert device.resolve_dtype("auto", "cpu") == dtype


@pytest.mark.parametrize(("native", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_auto_dtype_ignores_a_gpu_that_only_emulates(monkeypatch, native, dtype):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native or including_emulation)
    assert device.resolve_dtype("auto", "cuda:0") == dtype


def test_a_dtype_that_the_device_cannot_compute_is_refused(monkeypatch):
    assert device.unusable("bfloat16", "cpu") is None
    assert device.unusable("int8", "cpu") is not None
    assert device.resolve_dtype("float16", "cpu") == "float16"
    monkeypatch.setattr(device, "unusable", lambda dtype, device: "no such kernel")
    with pytest.raises(LongEvalError, match=r"--dtype float16: .*no such kernel"):
        device.resolve_dtype("float16", "cpu")


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    found = [device.resolve_device(name) for name in ("auto", "cuda", "cuda:1")]
    assert found == ["cuda:0", "cuda:0", "cuda:1"]
    monkeypatch.setenv("LOCAL_RANK", "1")  # each process of a launcher has its own GPU
    assert [device.resolve_device(name) for name in ("auto", "cuda", "cuda:0")] == ["cuda:1", "cuda:1", "cuda:0"]
    monkeypatch.delenv("LOCAL_RANK")
    with pytest.raises(LongEvalError, match=r"--device cuda:2: .* cuda:0 to cuda:1"):
        device.resolve_device("cuda:2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert device.resolve_device("auto") == "cpu"
    for name in ("cuda", "mps"):
        with pytest.raises(LongEvalError, match=f"--device {name}: "):
            device.resolve_device(name)


@pytest.mark.parametrize(
    ("resolve", "value", "message"),
    [
        (device.resolve_device, "gpu", "--device gpu: unknown"),
        (lambda name: device.resolve_dtype(name, "cpu"), "bf16", "--dtype bf16: unknown. Did you mean"),
        (lambda name: device.resolve_attention(name, "cpu"), "flash_attention", "Did you mean flash_attention_"),
        (lambda name: device.resolve_attention(name, "cpu"), "flash_attention_2", "GPU"),
        (device.resolve_device_map, "autto", "--device-map autto: unknown. Did you mean auto"),
    ],
)
def test_unknown_values_get_suggestions(resolve, value, message):
    with pytest.raises(LongEvalError, match=message):
        resolve(value)


def test_attention_is_transformers_choice_by_default():
    found = [device.resolve_attention(name, "cpu") for name in (None, "auto", "eager")]
    assert found == [None, None, "eager"]
