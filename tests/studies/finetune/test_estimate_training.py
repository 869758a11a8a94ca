"""The estimate of a training's memory and operations, against what torch keeps and counts."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from studies.finetune.tiny_training import batches, request
from tiny import save_tiny_llama
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from longeval.models.prepare import prepare
from longeval.run.cost import model_size
from longeval.studies.finetune.attend import forward_arguments
from longeval.studies.finetune.estimate import (
    Resources,
    TrainingSetup,
    kept_bytes,
    num_trained,
    step_flops,
    step_operations,
)
from longeval.studies.finetune.lora import adapt
from longeval.studies.finetune.loss import ModelWithLoss, make_loss

KINDS = {"full": {}, "lora": {"lora": True}, "lora_plus": {"lora_plus": True, "lora_rank": 3}}
NUM_SEQUENCES, NUM_TOKENS = 2, 24


def tiny(folder, asked, *, layers=3, attn="sdpa", **changes):
    """A tiny Llama on disk, prepared; its sizes; and the loaded model that a request trains."""
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 80}
    path = save_tiny_llama(folder / f"llama{layers}", num_hidden_layers=layers, **(sizes | changes))
    prepared = prepare(str(path), dtype="float32", device="cpu", attn=attn)
    model = prepared.load()
    if asked.uses_lora:
        adapted = adapt(model, asked)
        base = adapted.get_base_model()
    else:
        base = model.requires_grad_(True)
    return prepared, model_size(prepared), base.train()


def inputs(*, borders=False):
    batch = batches(NUM_SEQUENCES, NUM_TOKENS, documents=borders)(0)
    parts = (batch.tokens_BT % 50, batch.positions_BT, batch.documents_BT)
    return [None if part is None else torch.from_numpy(part) for part in parts]


def saved_bytes(model, *, mixed, borders):
    """Bytes of the storages that autograd keeps of the decoder's forward pass, without weights."""
    own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address comes twice
        return tensor

    autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed, cache_enabled=False)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast:
        model.get_decoder()(**forward_arguments(*inputs(borders=borders)))
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("borders", [False, True])
def test_a_layer_keeps_what_autograd_keeps_of_it(tmp_path, kind, attn, dtype, borders):
    asked = request(window=NUM_TOKENS, packing="documents" if borders else "continuous", **KINDS[kind])
    totals = {}
    for layers in (3, 4):  # the difference is one layer
        prepared, size, model = tiny(tmp_path, asked, layers=layers, attn=attn)
        totals[layers] = saved_bytes(model, mixed=dtype == "bfloat16", borders=borders)
    resources = Resources(micro_batch=NUM_SEQUENCES, checkpointing=False)
    setup = TrainingSetup.of(asked, prepared, dtype, resources)
    assert kept_bytes(size, setup) == pytest.approx(totals[4] - totals[3], rel=0.002)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False])
def test_the_number_of_trained_weights_is_that_of_the_adapted_model(tmp_path, kind, tied):
    asked = request(**KINDS[kind])
    _, size, model = tiny(tmp_path, asked, tie_word_embeddings=tied)
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert num_trained(size, asked.trains, asked.rank) == trained


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_operations_are_those_that_torch_counts(tmp_path, kind, tied, checkpointing):
    """Eager attention, whose batched products torch counts; those of weights are plain ones."""
    asked = request(window=NUM_TOKENS, batch_size=NUM_SEQUENCES, **KINDS[kind])
    prepared, size, model = tiny(tmp_path, asked, layers=12, attn="eager", tie_word_embeddings=tied)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with FlopCounterMode(display=False) as counter:
        ModelWithLoss(model, None, forward_arguments)(*inputs()).weighted.backward()
    counts = {str(operator): number for operator, number in counter.get_flop_counts()["Global"].items()}
    found = step_operations(asked, prepared, size, Resources(micro_batch=2, checkpointing=checkpointing))
    assert found.attention == pytest.approx(counts.pop("aten.bmm"), rel=0.01)
    assert found.products == pytest.approx(sum(counts.values()), rel=0.03)


def test_fused_attention_goes_back_at_two_and_a_half_times_the_way_forth(tmp_path):
    asked = request(window=NUM_TOKENS, batch_size=1)
    prepared, size, _ = tiny(tmp_path, asked)
    shape = (1, 4, NUM_TOKENS, 16)
    counted = sdpa_flop_count(shape, shape, shape) + sdpa_backward_flop_count(shape, shape, shape, shape)
    once, again = (
        step_operations(asked, prepared, size, Resources(micro_batch=1, checkpointing=checkpointing)).attention
        for checkpointing in (False, True)
    )
    assert once == pytest.approx(3 * counted / 2)  # three layers, and half of all pairs
    assert again - once == pytest.approx(3 * sdpa_flop_count(shape, shape, shape) / 2)


def test_longce_adds_the_operations_of_its_short_contexts(tmp_path):
    plain = request(window=NUM_TOKENS, batch_size=NUM_SEQUENCES)
    weighted = request(
        window=NUM_TOKENS,
        batch_size=NUM_SEQUENCES,
        loss="longce",
        loss_args={"longce": {"context": "8", "step": "5"}},
    )
    prepared, size, model = tiny(tmp_path, weighted, attn="eager")
    counted = []
    for asked in (plain, weighted):
        with FlopCounterMode(display=False) as counter:
            ModelWithLoss(model, make_loss(asked), forward_arguments)(*inputs())
        counted.append(counter.get_total_flops())
    resources = Resources(micro_batch=2, checkpointing=False)
    more = step_flops(weighted, prepared, size, resources) - step_flops(plain, prepared, size, resources)
    assert more == pytest.approx(counted[1] - counted[0], rel=0.01)


@pytest.mark.parametrize("change", [{"window": 64}, {"micro_batch": 4}])
def test_activations_grow_with_the_tokens_of_a_pass(tmp_path, change):
    asked = request(window=32)
    prepared, size, _ = tiny(tmp_path, asked)
    setup = TrainingSetup.of(asked, prepared, "float32", Resources(micro_batch=2, checkpointing=False))
    assert kept_bytes(size, dataclasses.replace(setup, **change)) == 2 * kept_bytes(size, setup)
