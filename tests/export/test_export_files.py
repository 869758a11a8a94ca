"""Which files travel, and those of a hub model."""

from __future__ import annotations

import os

import huggingface_hub
import pytest
from tiny_families import save_family

from longeval.errors import LongEvalError
from longeval.export.folder import file_names, raised_limit, source_folder, travels
from longeval.models import hub
from longeval.models.resolve import resolve

DATA = (
    "tokenizer.json tokenizer_config.json tokenizer.model tokenizer.model.v3 special_tokens_map.json "
    "vocab.txt merges.txt qwen.tiktoken generation_config.json chat_template.jinja README.md LICENSE "
    "USE_POLICY.md NOTICE GEMMA_TERMS.html Llama-License.pdf preprocessor_config.json"
)

OTHERS = (
    "modeling_x.py tokenizer.py tokenizer.pkl pytorch_model.bin model.pt consolidated.00.pth params.json "
    "origin.json consolidated.safetensors adapter_config.json adapter_model.safetensors .git "
    ".gitattributes model.gguf model.onnx training_args.bin config.json longeval.json tokenizer.BIN "
    "run.sh license.py page.html"
)

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize("name", DATA.split())
def test_data_travels(name):
    assert travels(name)


@pytest.mark.parametrize("name", OTHERS.split())
def test_code_pickles_and_other_weights_stay(name):
    assert not travels(name)


def test_weights_are_those_of_the_model_alone(tmp_path):
    folder = save_family("llama", tmp_path / "m")
    for name in ("extra.safetensors", "model.bin", "code.py", "notes.md"):
        (folder / name).write_text("x")
    (folder / "onnx").mkdir()
    (folder / "tokenizer").mkdir()
    assert file_names(str(folder)) == ["generation_config.json", "model.safetensors", "notes.md"]


def test_shards_travel_with_their_index(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "p-1.safetensors", "b": "p-2.safetensors"}}'
    )
    for name in ("p-1.safetensors", "p-2.safetensors", "p-3.safetensors"):
        (tmp_path / name).touch()
    assert file_names(str(tmp_path)) == ["model.safetensors.index.json", "p-1.safetensors", "p-2.safetensors"]


@pytest.mark.parametrize(
    ("name", "limit", "expected"),
    [
        ("tokenizer_config.json", 4096, 16384),
        ("tokenizer_config.json", 2048, 16384),
        ("tokenizer_config.json", 10**30, None),
        ("tokenizer_config.json", 16384, None),
        ("tokenizer_config.json", None, None),
        ("generation_config.json", 4096, 16384),
        ("generation_config.json", 200, None),
    ],
)
def test_limits_that_would_hold_the_model_back(name, limit, expected):
    key = "model_max_length" if name.startswith("tokenizer") else "max_length"
    settings = {"a": 1} | ({} if limit is None else {key: limit})
    raised = raised_limit(name, settings, native=4096, target=16384)
    assert raised == (None if expected is None else {"a": 1, key: expected})


@pytest.fixture(autouse=True)
def nothing_remembered():
    for cache in (hub._open, hub.hub_reachable):
        cache.cache_clear()
    yield
    hub._open.cache_clear()


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """A tiny Llama as org/tiny in the hub's cache, as a download leaves it, and the hub switched off."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repo = tmp_path / "hf" / "models--org--tiny"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    snapshot = repo / "snapshots" / COMMIT
    save_family("llama", snapshot)
    return snapshot


def test_a_hub_model_from_the_hubs_cache(cached):
    folder = source_folder(resolve("org/tiny"))
    assert folder == str(cached)
    assert "model.safetensors" in file_names(folder)


def test_a_hub_model_whose_weights_were_never_downloaded(cached):
    os.remove(cached / "model.safetensors")
    with pytest.raises(LongEvalError, match="its weights were never downloaded"):
        source_folder(resolve("org/tiny"))


@pytest.fixture
def online(cached, monkeypatch):
    """The hub as it would answer: what it lists, and a record of what is fetched."""
    fetched = []
    listed = ["config.json", "model.safetensors", "tokenizer.json", "code.py", "onnx/model.json", "LICENSE", "x.bin"]

    def download(hub_id, name, *, revision=None, **_):
        assert (hub_id, revision) in (("org/tiny", COMMIT), ("org/tiny", None))
        fetched.append(name)
        return str(cached / name)

    monkeypatch.setattr(hub, "hub_reachable", lambda: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda *_, **__: listed)
    return listed, fetched


def test_only_what_travels_is_fetched(online):
    _, fetched = online
    source_folder(resolve("org/tiny"))
    assert fetched == ["config.json", "tokenizer.json", "LICENSE", "model.safetensors"]


def test_shards_are_fetched_by_the_index(online, cached):
    listed, fetched = online
    listed.remove("model.safetensors")
    listed.append("model.safetensors.index.json")
    (cached / "model.safetensors").unlink()
    (cached / "model.safetensors.index.json").write_text('{"weight_map": {"a": "p-1.safetensors"}}')
    source_folder(resolve("org/tiny"))
    assert set(fetched) == {
        "config.json",
        "model.safetensors.index.json",
        "tokenizer.json",
        "LICENSE",
        "p-1.safetensors",
    }


def test_a_download_that_breaks_off(online, monkeypatch):
    source_folder(resolve("org/tiny"))

    def broken(*_, **__):
        raise OSError("Connection reset by peer")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", broken)
    with pytest.raises(LongEvalError, match="Connection reset by peer"):
        source_folder(resolve("org/tiny"))
