"""The model hub, without one: what its local cache holds, and what its answers turn into."""

from __future__ import annotations

import json
import os

import huggingface_hub
import huggingface_hub.constants
import pytest
from folders import config_of, loaded
from huggingface_hub import errors

from longeval.errors import LongEvalError
from longeval.models import hub
from longeval.models.load import load_config
from longeval.models.resolve import resolve, weights_digest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def nothing_remembered():
    caches = (hub.open_hub, hub.hub_reachable)  # a test may replace the functions themselves
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
def snapshot(hub_cache, llama):
    """The tiny Llama as org/tiny in the hub's cache, as a download leaves it; the folder of its files."""
    repo = hub_cache / "models--org--tiny"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    (repo / "snapshots").mkdir()
    return llama.rename(repo / "snapshots" / COMMIT)


@pytest.fixture
def answer(monkeypatch):
    """Returns a function that makes a hub that lists `files` and answers every download by calling `download`."""

    def make(download, *files):
        monkeypatch.setattr(hub, "hub_reachable", lambda: None)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
        monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda *_, **__: [*files])

    return make


def test_offline_without_the_model_names_the_ways_that_remain(hub_cache):
    with pytest.raises(LongEvalError, match=r"org/tiny .*HF_HUB_OFFLINE") as caught:
        config_of("org/tiny")
    for way in ("local folder", ".gguf", "HF_HOME", "--model smollm2-135m-q4"):
        assert way in caught.value.remedy


def test_offline_with_the_model_in_the_hubs_cache(snapshot):
    assert weights_digest(resolve("org/tiny")) == f"hub:org/tiny@{COMMIT}"
    assert hub.cached_weights("org/tiny")
    assert loaded("org/tiny").config.hidden_size == 32
    assert load_config(resolve("org/tiny", revision=COMMIT)).hidden_size == 32


def test_offline_with_the_config_alone(snapshot):
    os.remove(snapshot / "model.safetensors")
    assert not hub.cached_weights("org/tiny")
    with pytest.raises(LongEvalError, match="never downloaded"):
        loaded("org/tiny")


def test_sharded_weights_are_cached_only_when_all_of_them_are(snapshot):
    (snapshot / "model.safetensors").rename(snapshot / "1.safetensors")
    index = {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    assert not hub.cached_weights("org/tiny")
    (snapshot / "2.safetensors").touch()
    assert hub.cached_weights("org/tiny")


@pytest.mark.parametrize(
    ("error", "message", "remedy"),
    [
        (errors.GatedRepoError, "gated .Llama 2 Community licence", "meta-llama/Llama-2-7b-hf"),
        (errors.RepositoryNotFoundError, "no public model", "spelling"),
        (errors.RevisionNotFoundError, "--revision v9", "tree/main"),
        (errors.RemoteEntryNotFoundError, r"config\.json", "adapter"),
        (errors.LocalEntryNotFoundError, "reached", "smollm2-135m-q4"),
        (errors.HfHubHTTPError, "reached", "smollm2-135m-q4"),
    ],
)
def test_what_the_hub_answers(answer, error, message, remedy):
    class Response:
        headers: dict[str, str] = {}  # noqa: RUF012 (never changed)
        request = None
        status_code = 403

    def refuse(*_, **__):
        raise error("no", response=Response()) if issubclass(error, errors.HfHubHTTPError) else error("no")

    answer(refuse, "adapter_config.json")
    with pytest.raises(LongEvalError, match=message) as caught:
        load_config(resolve("llama2-7b", revision="v9"))
    assert remedy in caught.value.remedy


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["config.json", "pytorch_model.bin"], "safetensors"),
        (["config.json", "model.safetensors", "adapter_config.json"], r"adapter_config\.json"),
    ],
)
def test_pickles_and_adapters_on_the_hub_are_refused_before_weights_are_downloaded(snapshot, answer, files, said):
    def download(repo_id, filename, **_):
        assert filename == "config.json"
        return str(snapshot / filename)

    answer(download, *files)
    with pytest.raises(LongEvalError, match=f"--model org/tiny: .*{said}"):
        loaded("org/tiny")


def test_an_unreachable_hub_is_noticed_at_once(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert "127.0.0.1:9" in hub.hub_reachable()
