"""What a training is given of a device, and the refusal where it doesn't fit."""

from __future__ import annotations

import dataclasses
import re

import pytest
from studies.finetune.tiny_training import request

from longeval.errors import LongEvalError
from longeval.models.prepare import prepare
from longeval.run.cost import PASS_TOKENS, model_size
from longeval.studies.finetune import estimate
from longeval.studies.finetune.estimate import (
    Launch,
    Resources,
    TrainingSetup,
    choose,
    memory_bytes,
    memory_lines,
    peak_bytes,
)

LONG = {"length": 16384, "window": 4096, "batch_size": 8}


@pytest.fixture
def model(tiny_llama, monkeypatch):
    prepared = prepare(str(tiny_llama), dtype="float32", device="cpu")
    monkeypatch.setattr(estimate, "total_memory", lambda model: 1 << 50)
    return prepared


def larger(model):
    """Sizes of a 7B Llama 2, as if the model had them."""
    return dataclasses.replace(
        model_size(model),
        num_parameters=6738415616,
        num_embedding=131072000,
        hidden_size=4096,
        tied=False,
        intermediate_size=11008,
        num_layers=32,
        num_heads=32,
        attention_width=4096,
        key_value_width=4096,
        vocab_size=32000,
    )


def needed(asked, model, **resources):
    return memory_bytes(asked, model, larger(model), "float32", Resources(**resources))


def test_a_cpu_takes_one_sequence_and_a_gpu_a_pass_of_them(model):
    size = larger(model)
    assert choose(request(**LONG), model, size, "float32") == Resources(micro_batch=1, checkpointing=False)
    on_gpu = dataclasses.replace(model, device="cuda:0")
    chosen = choose(request(**LONG), on_gpu, size, "float32")
    assert chosen == Resources(micro_batch=PASS_TOKENS // 4096, checkpointing=False)
    asked = request(**LONG, micro_batch=5, gradient_checkpointing=True)
    assert choose(asked, on_gpu, size, "float32") == Resources(micro_batch=5, checkpointing=True)


def test_fewer_sequences_share_a_pass_before_activations_are_computed_twice(model, monkeypatch):
    asked, on_gpu = request(**LONG), dataclasses.replace(model, device="cuda:0")
    options = [(2, False), (1, False), (2, True)]
    for micro_batch, checkpointing in options:
        expected = Resources(micro_batch=micro_batch, checkpointing=checkpointing)
        there = memory_bytes(asked, on_gpu, larger(model), "float32", expected)
        monkeypatch.setattr(estimate, "total_memory", lambda model, there=there: there)
        assert choose(asked, on_gpu, larger(model), "float32") == expected


def test_what_does_not_fit_is_refused_with_what_would(model, monkeypatch):
    asked = request(**LONG)
    lora = request(**LONG, lora=True)
    there = needed(lora, model, micro_batch=1, checkpointing=True)
    monkeypatch.setattr(estimate, "total_memory", lambda model: there)
    with pytest.raises(LongEvalError) as refused:
        choose(asked, model, larger(model), "float32")
    figure = needed(asked, model, micro_batch=1, checkpointing=True)
    assert f"{figure / 2**30:.1f} GiB" in refused.value.problem
    assert f"{there / 2**30:.1f} GiB" in refused.value.problem
    assert {"--window 4k", "--lora", "--gradient-checkpointing"} <= set(
        re.findall(r"--window \S+|--[a-z-]+", refused.value.remedy)
    )
    choose(lora, model, larger(model), "float32")  # the remedy helps


def test_a_length_alone_is_told_of_shorter_windows_with_pose(model, monkeypatch):
    asked = request(length=16384, window=None, lora=True)
    shorter = request(length=16384, window=2048, lora=True, augment=("pose",))
    there = needed(shorter, model, micro_batch=1, checkpointing=True)
    monkeypatch.setattr(estimate, "total_memory", lambda model: there)
    with pytest.raises(LongEvalError) as refused:
        choose(asked, model, larger(model), "float32")
    assert "--window 2k --augment pose" in refused.value.remedy
    choose(shorter, model, larger(model), "float32")


def test_where_no_window_fits_another_model_is_named(model, monkeypatch):
    monkeypatch.setattr(estimate, "total_memory", lambda model: 1 << 30)
    with pytest.raises(LongEvalError) as refused:
        choose(request(**LONG), model, larger(model), "float32")
    assert "--model" in refused.value.remedy
    assert "--window" not in refused.value.remedy


def test_processes_share_weights_only_when_they_are_sharded(model):
    asked, size = request(**LONG), larger(model)
    alone = TrainingSetup.of(asked, model, "float32", Resources(micro_batch=1, checkpointing=True))
    alone = dataclasses.replace(alone, accumulates=True, is_cpu=False)
    ddp = dataclasses.replace(alone, processes=Launch(number=4, on_this_machine=4))
    fsdp = dataclasses.replace(alone, processes=Launch(number=4, on_this_machine=4, is_sharded=True))
    assert peak_bytes(size, ddp) == peak_bytes(size, alone)
    states = 16 * size.num_parameters  # float32 weights, gradients and two moments
    saved = peak_bytes(size, alone) - peak_bytes(size, fsdp)
    assert 0.6 * states < saved < 0.75 * states  # three quarters, less the layers that are gathered


def test_the_table_marks_what_does_not_fit_and_fits_80_columns(model, monkeypatch):
    asked, size = request(**LONG), larger(model)
    there = needed(asked, model, micro_batch=1, checkpointing=True)
    monkeypatch.setattr(estimate, "total_memory", lambda model: there)
    lines = memory_lines(asked, model, size, "float32", Resources(micro_batch=1, checkpointing=True))
    assert max(map(len, lines)) <= 80
    row = next(line for line in lines if "4k" in line).split()[-4:]
    assert [figure.endswith("*") for figure in row] == [True, False, False, False]
    assert float(row[1]) == pytest.approx(there / 2**30, abs=0.05)
