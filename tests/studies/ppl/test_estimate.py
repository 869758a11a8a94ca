"""Operations and memory of a plan, against what the tiny model's sizes say by hand."""

from __future__ import annotations

import dataclasses

import pytest
from tiny import save_tiny_llama

from longeval.models.prepare import prepare
from longeval.run.cost import Window, memory_bytes, model_size
from longeval.run.host import Host, Silent, backend_of
from longeval.studies.ppl.plan import plan_ppl


def prepared(folder):
    options = dict.fromkeys(("revision", "native", "bos", "device_map", "attn"))
    return prepare(str(folder), **options, dtype="float32", device="cpu", trust_remote_code=False)


def test_operations_by_hand(tiny_llama):
    size = model_size(prepared(tiny_llama))
    # hidden 32, 4 heads and 2 key-value heads of 16, intermediate 48, 2 layers, vocabulary 300, untied head
    attention = 32 * 64 + 2 * 32 * 32 + 64 * 32
    layer = attention + 3 * 32 * 48 + 2 * 32
    assert size.num_parameters == 2 * layer + 32 + 2 * 300 * 32
    assert size.flops_per_token == 2 * (2 * layer + 32)
    window = Window(document=0, start=0, stop=100, score_start=90, prefix=0)
    assert size.window_flops(window) == 100 * size.flops_per_token + 2 * 32 * 300 * 10 + 2 * 2 * 64 * 100**2


def test_a_tied_head_is_counted_where_tokens_are_scored_only(tiny_llama, tmp_path):
    tied = model_size(prepared(save_tiny_llama(tmp_path / "tied", tie_word_embeddings=True)))
    untied = model_size(prepared(tiny_llama))
    assert tied.flops_per_token == untied.flops_per_token
    assert untied.num_parameters - tied.num_parameters == 300 * 32


def test_a_plan_counts_shared_passes_once(request_spec, store):
    plan = plan_ppl(request_spec(pe=("none", "yarn", "dynamic_ntk")))
    host = Host(store=store, progress=Silent(), load=backend_of(plan.request))
    (told,) = plan.overview(host, plan.left(()), ()).costs
    # Two documents reach 128 tokens; none (with dynamic_ntk to 64), yarn, and dynamic_ntk at 128.
    assert f"9 cells in 6 forward passes, {6 * 128} tokens; estimated " in told
    assert len([cost for work in plan.work for cost in work.costs(host)]) == 6
    (told,) = plan.overview(host, [], {cell.id for cell in plan.cells}).costs
    assert told.endswith("0 cells in 0 forward passes, 0 tokens")  # no model is loaded, so nothing is estimated


def test_eager_attention_holds_matrices_of_tokens_by_tokens(tiny_llama):
    model, size = prepared(tiny_llama), model_size(prepared(tiny_llama))
    lean, eager = (memory_bytes(dataclasses.replace(model, attn=attn), size, 128) for attn in (None, "eager"))
    assert eager - lean == 4 * 128**2 * (3 * 4 + 4)
    assert lean > 4 * size.num_parameters


@pytest.mark.parametrize(
    ("hidden", "intermediate", "measured"), [(2048, 8192, 65_170), (4096, 11008, 99_360)], ids=["1B", "7B"]
)
def test_activations_on_a_gpu_are_as_measured(tiny_llama, hidden, intermediate, measured):
    """Bytes a token between windows of 4k and 128k tokens in bfloat16, measured on an H200 (reports/gpu)."""
    model = dataclasses.replace(prepared(tiny_llama), dtype="bfloat16", device="cuda:0")
    size = dataclasses.replace(model_size(model), hidden_size=hidden, intermediate_size=intermediate)
    per_token = (memory_bytes(model, size, 131072) - memory_bytes(model, size, 4096)) / (131072 - 4096)
    assert per_token == pytest.approx(measured, rel=0.02)
