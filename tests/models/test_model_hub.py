from __future__ import annotations

import json
import os

import huggingface_hub
import huggingface_hub.constants
import pytest
from huggingface_hub import errors

from longeval.errors import LongEvalError
from longeval.models import hub
from longeval.models.files import weights_digest
from longeval.models.load import load_config, load_model
from longeval.models.resolve import resolve

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def nothing_remembered():
    caches = (hub._open, hub.hub_reachable)  # a test may replace the functions themselves
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty cache of the hub's, and the hub switched off."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hf"


@pytest.fixture
def cached_llama(hub_cache, llama):
    """The tiny Llama as org/tiny in the hub's cache, as a download leaves it."""
    repo = hub_cache / "models--org--tiny"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    (repo / "snapshots").mkdir()
    os.rename(llama, repo / "snapshots" / COMMIT)
    return repo


def test_offline_without_the_model_names_the_ways_that_remain(hub_cache):
    with pytest.raises(LongEvalError, match="org/tiny is not in the hub's local cache") as caught:
        load_config(resolve("org/tiny"))
    assert "HF_HUB_OFFLINE" in caught.value.problem
    for way in ("local folder", ".gguf", "HF_HOME", "--model smollm2-135m-q4"):
        assert way in caught.value.remedy


def test_offline_with_the_model_in_the_hubs_cache(cached_llama):
    ref = resolve("org/tiny")
    assert weights_digest(ref) == f"hub:org/tiny@{COMMIT}"
    assert hub.cached_weights("org/tiny")
    assert load_model(ref, dtype="float32", device="cpu").config.hidden_size == 64
    assert load_config(resolve("org/tiny", revision=COMMIT)).hidden_size == 64


def test_offline_with_the_config_alone(cached_llama):
    os.remove(cached_llama / "snapshots" / COMMIT / "model.safetensors")
    assert not hub.cached_weights("org/tiny")
    with pytest.raises(LongEvalError, match="its model was never downloaded"):
        load_model(resolve("org/tiny"), dtype="float32", device="cpu")


def test_sharded_weights_are_cached_only_when_all_of_them_are(cached_llama):
    snapshot = cached_llama / "snapshots" / COMMIT
    (snapshot / "model.safetensors").rename(snapshot / "1.safetensors")
    index = {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    assert not hub.cached_weights("org/tiny")
    (snapshot / "2.safetensors").touch()
    assert hub.cached_weights("org/tiny")


def _answer(monkeypatch, error):
    """A hub that is there and answers every download with `error`."""

    class Response:
        headers: dict[str, str] = {}  # noqa: RUF012 (never changed)
        request = None
        status_code = 403

    def refuse(*_, **__):
        raise error("no", response=Response()) if issubclass(error, errors.HfHubHTTPError) else error("no")

    monkeypatch.setattr(hub, "hub_reachable", lambda: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda *_, **__: ["adapter_config.json"])


@pytest.mark.parametrize(
    ("error", "message", "remedy"),
    [
        (errors.GatedRepoError, r"is gated \(Llama 2 Community licence\)", "meta-llama/Llama-2-7b-hf .*hf auth login"),
        (errors.RepositoryNotFoundError, "has no public model", "spelling"),
        (errors.RevisionNotFoundError, "--revision v9: .*no such branch", "tree/main"),
        (errors.RemoteEntryNotFoundError, r"has no config\.json", "adapter: merge it"),
        (errors.LocalEntryNotFoundError, "the hub can't be reached", "smollm2-135m-q4"),
        (errors.HfHubHTTPError, "the hub can't be reached", "smollm2-135m-q4"),
    ],
)
def test_what_the_hub_answers(monkeypatch, error, message, remedy):
    _answer(monkeypatch, error)
    with pytest.raises(LongEvalError, match=message) as caught:
        load_config(resolve("llama2-7b", revision="v9"))
    import re

    assert re.search(remedy, caught.value.remedy)


def test_a_hub_model_with_pickles_alone_is_refused_before_anything_is_downloaded(cached_llama, monkeypatch):
    config = cached_llama / "snapshots" / COMMIT / "config.json"
    monkeypatch.setattr(hub, "hub_reachable", lambda: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: str(config))
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda *_, **__: ["config.json", "pytorch_model.bin"])
    with pytest.raises(LongEvalError, match="no safetensors weights") as caught:
        load_config(resolve("org/tiny"))
    assert "Only safetensors" in caught.value.remedy


def test_an_adapter_on_the_hub_beside_full_weights_is_refused(cached_llama, monkeypatch):
    config = cached_llama / "snapshots" / COMMIT / "config.json"
    listed = ["config.json", "model.safetensors", "adapter_config.json"]
    monkeypatch.setattr(hub, "hub_reachable", lambda: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: str(config))
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda *_, **__: listed)
    with pytest.raises(LongEvalError, match=r"--model org/tiny: comes with an adapter \(adapter_config\.json\)"):
        load_model(resolve("org/tiny"), dtype="float32", device="cpu")


def test_an_unreachable_hub_is_noticed_at_once(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    reason = hub.hub_reachable()
    assert reason is not None
    assert "127.0.0.1:9" in reason
