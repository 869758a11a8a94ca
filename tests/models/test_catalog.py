from __future__ import annotations

from longeval.models.catalog import CATALOG
from longeval.models.embedded import EMBEDDED


def test_promised_names_stand_for_their_hub_ids():
    assert CATALOG["llama2-7b"].hub_id == "meta-llama/Llama-2-7b-hf"
    assert CATALOG["llama2-13b-chat"].hub_id == "meta-llama/Llama-2-13b-chat-hf"
    promised = "llama2-7b-chat llama2-13b llama3.1-8b mistral-7b qwen2.5-7b qwen3-8b gemma3-1b smollm2-135m"
    assert set(promised.split()) <= set(CATALOG)


def test_only_the_embedded_model_has_no_hub_id():
    assert [entry.name for entry in CATALOG.values() if entry.hub_id is None] == [EMBEDDED]


def test_metas_models_are_gated_and_native_means_before_stretching():
    assert all(entry.gated for entry in CATALOG.values() if (entry.hub_id or "").startswith("meta-llama/"))
    assert CATALOG["llama3.1-8b"].native_length == 8192
    assert CATALOG["llama2-7b"].native_length == 4096
