from __future__ import annotations

from longeval.models.embedded import EMBEDDED_MODELS
from longeval.models.resolve import CATALOG


def test_promised_names_stand_for_their_hub_ids():
    assert CATALOG["llama2-7b"].hub_id == "meta-llama/Llama-2-7b-hf"
    assert CATALOG["llama2-13b-chat"].hub_id == "meta-llama/Llama-2-13b-chat-hf"
    promised = "llama2-7b-chat llama2-13b llama3.1-8b mistral-7b qwen2.5-7b qwen3-8b gemma3-1b smollm2-135m"
    assert set(promised.split()) <= set(CATALOG)


def test_only_embedded_models_have_no_hub_id():
    assert [entry.name for entry in CATALOG.values() if entry.hub_id is None] == list(EMBEDDED_MODELS)


def test_a_model_that_is_not_open_source_names_its_licence():
    entry = CATALOG["gemma3-270m-q4"]
    assert (entry.licence, entry.native_length, entry.parameters) == ("Gemma terms", 32768, 268_000_000)
    for name, model in EMBEDDED_MODELS.items():
        assert (model.notice is None) == (CATALOG[name].licence == "Apache-2.0")


def test_metas_models_are_gated_and_native_means_before_stretching():
    assert all(entry.gated for entry in CATALOG.values() if (entry.hub_id or "").startswith("meta-llama/"))
    assert CATALOG["llama3.1-8b"].native_length == 8192
    assert CATALOG["llama2-7b"].native_length == 4096
