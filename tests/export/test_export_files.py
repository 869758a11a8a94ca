"""Which files of a model travel, and how those of a hub model are found."""

from __future__ import annotations

import json

import huggingface_hub
import pytest
from tiny_families import save_family

from longeval.errors import LongEvalError
from longeval.export.folder import file_names, is_copied, raised_limit, source_folder
from longeval.models import hub
from longeval.models.resolve import resolve

DATA = """
    tokenizer.json tokenizer.model.v3 vocab.txt merges.txt qwen.tiktoken chat_template.jinja README.md LICENSE
    USE_POLICY.md NOTICE GEMMA_TERMS.html Llama-License.pdf
"""
OTHERS = """
    modeling_x.py tokenizer.py tokenizer.pkl pytorch_model.bin model.pt consolidated.00.pth params.json origin.json
    consolidated.safetensors adapter_config.json .git .gitattributes model.gguf model.onnx config.json longeval.json
    tokenizer.BIN run.sh license.py page.html
"""
COMMIT = "0123456789abcdef0123456789abcdef01234567"
INDEX = "model.safetensors.index.json"


def test_data_travels_and_code_pickles_and_other_weights_stay():
    assert [name for name in DATA.split() if not is_copied(name)] == []
    assert [name for name in OTHERS.split() if is_copied(name)] == []


def test_weights_are_those_of_the_model_alone(tmp_path):
    folder = save_family("llama", tmp_path / "m")
    for name in ("extra.safetensors", "model.bin", "notes.md"):
        (folder / name).write_text("x")
    (folder / "tokenizer").mkdir()
    assert file_names(str(folder)) == ["generation_config.json", "model.safetensors", "notes.md"]


def write_index(folder, *shards):
    (folder / INDEX).write_text(json.dumps({"weight_map": {shard.upper(): shard for shard in shards}}))


def test_shards_travel_with_their_index(tmp_path):
    write_index(tmp_path, "p-1.safetensors", "p-2.safetensors")
    for name in ("p-1.safetensors", "p-2.safetensors", "p-3.safetensors"):
        (tmp_path / name).touch()
    assert file_names(str(tmp_path)) == [INDEX, "p-1.safetensors", "p-2.safetensors"]


@pytest.mark.parametrize(
    ("name", "limit", "expected"),
    [
        ("tokenizer_config.json", {"model_max_length": 2048}, 16384),
        ("tokenizer_config.json", {"model_max_length": 16384}, None),
        ("tokenizer_config.json", {}, None),
        ("generation_config.json", {"max_length": 4096}, 16384),
        ("generation_config.json", {"max_length": 200}, None),
    ],
)
def test_limits_that_would_hold_the_model_back_are_raised(name, limit, expected):
    raised = raised_limit(name, {"a": 1} | limit, native=4096, target=16384)
    assert raised == (None if expected is None else {"a": 1} | dict.fromkeys(limit, expected))


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """A tiny Llama as org/tiny in the hub's cache, as a download leaves it, and the hub switched off."""
    for function in (hub.open_hub, hub.hub_reachable):
        function.cache_clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repo = tmp_path / "hf" / "models--org--tiny"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    yield save_family("llama", repo / "snapshots" / COMMIT)
    hub.open_hub.cache_clear()


def test_a_hub_model_in_the_cache_needs_its_weights(cached):
    folder = source_folder(resolve("org/tiny"))
    assert folder == str(cached)
    assert "model.safetensors" in file_names(folder)
    (cached / "model.safetensors").unlink()
    with pytest.raises(LongEvalError, match=r"org/tiny.*weights"):
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
    listed[listed.index("model.safetensors")] = INDEX
    (cached / "model.safetensors").unlink()
    write_index(cached, "p-1.safetensors")
    source_folder(resolve("org/tiny"))
    assert set(fetched) == {"config.json", INDEX, "tokenizer.json", "LICENSE", "p-1.safetensors"}


def test_a_download_that_breaks_off_is_a_message(online, monkeypatch):
    source_folder(resolve("org/tiny"))

    def broken(*_, **__):
        raise OSError("Connection reset by peer")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", broken)
    with pytest.raises(LongEvalError, match=r"org/tiny.*Connection reset by peer"):
        source_folder(resolve("org/tiny"))
