from __future__ import annotations

import json
import os

import pytest

from longeval.errors import LongEvalError
from longeval.models.embedded import EMBEDDED_MODELS
from longeval.models.files import is_present, local_folder
from longeval.models.resolve import CATALOG, resolve


def test_short_name_hub_id_folder_and_embedded(llama):
    short = resolve("llama2-7b", revision="main")
    assert (short.kind, short.location, short.revision) == ("hub", "meta-llama/Llama-2-7b-hf", "main")
    assert resolve("some-org/some.model-1").kind == "hub"
    folder = resolve(str(llama))
    assert (folder.kind, folder.location) == ("folder", str(llama))
    assert local_folder(folder) == str(llama)
    embedded = resolve("smollm2-135m-q4")
    assert embedded.kind == "embedded"
    assert not is_present(embedded)


def test_a_relative_folder_that_looks_like_a_hub_id_is_the_folder(llama, monkeypatch):
    monkeypatch.chdir(llama.parent.parent)
    ref = resolve(f"{llama.parent.name}/llama")
    assert (ref.kind, ref.location) == ("folder", str(llama))


def test_unknown_name_gets_suggestions():
    with pytest.raises(LongEvalError, match=r"--model lama2-7b: unknown. Did you mean llama2-7b") as caught:
        resolve("lama2-7b")
    assert "hub id" in caught.value.remedy


@pytest.mark.parametrize("name", ["./nothing", "/nothing/here", "~/nothing", "nothing.gguf", "a/b/c"])
def test_missing_path(name):
    with pytest.raises(LongEvalError, match="there is no such file or folder"):
        resolve(name)


def test_revision_is_refused_where_it_would_be_ignored(llama):
    with pytest.raises(LongEvalError, match="--revision main"):
        resolve(str(llama), revision="main")


def test_folder_without_config(llama):
    os.remove(llama / "config.json")
    with pytest.raises(LongEvalError, match=r"this folder is no model, it has no config\.json"):
        resolve(str(llama))
    (llama / "weights.gguf").write_bytes(b"GGUF")
    with pytest.raises(LongEvalError, match=r"Name the GGUF file itself: --model .*weights\.gguf"):
        resolve(str(llama))


def test_pickle_is_refused_and_safetensors_named(llama):
    os.rename(llama / "model.safetensors", llama / "pytorch_model.bin")
    with pytest.raises(LongEvalError, match="pickle") as caught:
        resolve(str(llama))
    assert "Only safetensors" in caught.value.remedy


def test_adapter_is_told_apart(llama):
    os.remove(llama / "model.safetensors")
    (llama / "adapter_config.json").write_text("{}")
    with pytest.raises(LongEvalError, match="merge it into its base model"):
        resolve(str(llama))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a safetensors file"),
        (b"\xff" * 64, "not a safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    ],
)
def test_broken_weights(llama, content, message):
    (llama / "model.safetensors").write_bytes(content)
    with pytest.raises(LongEvalError, match=message):
        resolve(str(llama))


def test_cut_off_weights(llama):
    whole = (llama / "model.safetensors").read_bytes()
    (llama / "model.safetensors").write_bytes(whole[:-1])
    with pytest.raises(LongEvalError, match=f"cut off .{len(whole) - 1} bytes"):
        resolve(str(llama))


def test_missing_shard_is_named(llama):
    os.rename(llama / "model.safetensors", llama / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (llama / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(LongEvalError, match=r"model-00002-of-00002\.safetensors: No such file"):
        resolve(str(llama))


@pytest.mark.parametrize("outside", ["../model.safetensors", "/etc/model.safetensors", "..", ""])
def test_an_index_names_files_of_its_own_folder(llama, outside):
    os.rename(llama / "model.safetensors", llama.parent / "model.safetensors")
    (llama / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": outside}}))
    with pytest.raises(LongEvalError, match=r"model\.safetensors\.index\.json"):
        resolve(str(llama))


@pytest.mark.parametrize("content", ["", "[1]", "{", "[" * 100_000, "\ufeff{}"])
def test_broken_config(llama, content):
    (llama / "config.json").write_text(content)
    with pytest.raises(LongEvalError, match=r"config\.json"):
        resolve(str(llama))


def test_file_that_is_no_gguf(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"PK\x03\x04")
    with pytest.raises(LongEvalError, match="not a GGUF file"):
        resolve(str(tmp_path / "x.gguf"))
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(LongEvalError, match=r"no \.gguf"):
        resolve(str(tmp_path / "x.txt"))


def test_a_configuration_alone_is_enough_where_no_weights_are_needed(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert resolve(str(tmp_path), weights=False).kind == "folder"
    with pytest.raises(LongEvalError, match="no safetensors weights"):
        resolve(str(tmp_path))


def test_a_folder_that_cannot_be_read(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.listdir", refuse)
    with pytest.raises(LongEvalError, match=r"this folder can't be read \(Permission denied\)"):
        resolve(str(tmp_path))


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
