"""Models that vLLM would refuse, or make others of: refused when a request is planned."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
import transformers

from longeval.backends.vllm import options as vllm_options
from longeval.errors import LongEvalError
from longeval.studies.ppl.plan import plan_ppl


@pytest.fixture(autouse=True)
def as_if_installed(monkeypatch):
    monkeypatch.setattr(vllm_options, "check_installed", lambda *_: None)


ROPE = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 64}
SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
    "num_hidden_layers": 2, "head_dim": 16, "vocab_size": 300, "max_position_embeddings": 128,
}  # fmt: skip


@pytest.fixture
def with_config(tiny_llama, tmp_path):
    """A model folder with another configuration, and weights for it."""

    def make(config):
        folder = shutil.copytree(tiny_llama, tmp_path / "other", dirs_exist_ok=True)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        return str(folder)

    return make


def test_a_model_that_can_see_is_refused_when_planned(request_spec, with_config):
    text = SMALL | {"layer_types": ["sliding_attention", "full_attention"]}
    eyes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    folder = with_config(transformers.Gemma3Config(text_config=text, vision_config=eyes))
    assert plan_ppl(request_spec(model=(folder,))).cells
    with pytest.raises(LongEvalError, match=r"--model .*: can also see or hear") as caught:
        plan_ppl(request_spec(model=(folder,), backend="vllm"))
    assert "--backend hf" in caught.value.remedy


def test_queries_that_grow_with_their_position_are_refused_when_planned(request_spec, with_config):
    def folder(**settings):
        return with_config(transformers.Ministral3Config(**SMALL, rope_parameters=ROPE | settings))

    growing = folder(llama_4_scaling_beta=0.1)
    assert plan_ppl(request_spec(model=(growing,))).cells
    with pytest.raises(LongEvalError, match=r"--model .*llama_4_scaling_beta.*another model"):
        plan_ppl(request_spec(model=(growing,), backend="vllm"))
    assert plan_ppl(request_spec(model=(folder(llama_4_scaling_beta=0.0),), backend="vllm")).cells


def test_models_that_engines_refuse_by_themselves(request_spec):
    """Where nothing was planned, as for a server."""
    plan = plan_ppl(request_spec(backend="vllm"))
    model, table = plan.work[0].model, plan.work[0].table(64)
    growing = transformers.Ministral3Config(**SMALL, rope_parameters=ROPE | {"llama_4_scaling_beta": 0.1})
    for change, said in (({"config": growing}, "llama_4_scaling_beta"), ({"device": "cuda:1"}, "--device cuda:1")):
        with pytest.raises(LongEvalError, match=said):
            vllm_options.engine_arguments(dataclasses.replace(model, **change), table, 65, {}, share_prefixes=False)


def test_capped_attention_logits_are_the_engines_own_affair(request_spec, with_config):
    folder = with_config(transformers.Gemma2Config(**SMALL, attn_logit_softcapping=1.0))
    for backend, attn in (("hf", "eager"), ("vllm", None)):
        plan = plan_ppl(request_spec(model=(folder,), backend=backend))
        assert {cell.params["attn"] for cell in plan.cells} == {attn}
        assert any("attention is eager" in note for note in plan.notes) == (backend == "hf")
