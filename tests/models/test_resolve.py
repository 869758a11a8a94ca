"""From `--model` to a hub id, a folder, a GGUF file or an embedded model, and which folders are refused."""

from __future__ import annotations

import json
import os
import re

import pytest

from longeval.errors import LongEvalError
from longeval.models.embedded import EMBEDDED_MODELS
from longeval.models.resolve import CATALOG, is_present, local_folder, resolve
from longeval.studies.ppl.request import PplRequest


def test_short_name_hub_id_folder_and_embedded(llama, monkeypatch):
    short = resolve("llama2-7b", revision="main")
    assert (short.kind, short.location, short.revision) == ("hub", "meta-llama/Llama-2-7b-hf", "main")
    assert resolve("some-org/some.model-1").kind == "hub"
    folder = resolve(str(llama))
    assert (folder.kind, folder.location) == ("folder", str(llama))
    assert local_folder(folder) == str(llama)
    monkeypatch.chdir(llama.parent.parent)
    assert resolve(f"{llama.parent.name}/llama").location == str(llama)  # although it looks like a hub id
    embedded = resolve("smollm2-135m-q4")
    assert embedded.kind == "embedded" and not is_present(embedded)
    with pytest.raises(LongEvalError, match="--revision main"):
        resolve(str(llama), revision="main")


@pytest.mark.parametrize(
    ("name", "location", "revision"),
    [
        ("https://huggingface.co/some-org/some.model-1", "some-org/some.model-1", None),
        ("https://huggingface.co/some-org/some.model-1/", "some-org/some.model-1", None),
        ("http://www.huggingface.co/some-org/m?library=transformers", "some-org/m", None),
        ("https://huggingface.co/some-org/m/tree/refs%2Fpr%2F1", "some-org/m", "refs/pr/1"),
        ("https://hf.co/some-org/m/tree/v1.0/", "some-org/m", "v1.0"),
        ("hf.co/some-org/m", "some-org/m", None),
        ("hf://some-org/m@step1000", "some-org/m", "step1000"),
        ("some-org/m@refs/pr/1", "some-org/m", "refs/pr/1"),
    ],
)
def test_an_address_is_the_id_of_its_model(name, location, revision, monkeypatch, tmp_path):
    ref = resolve(name)
    assert (ref.kind, ref.location, ref.revision) == ("hub", location, revision)
    assert ref.name == (location if revision is None else f"{location}@{revision}")
    asked = PplRequest(model=f"{name},{ref.name},other/m", pe="none", lengths="4k")
    assert asked.model == (ref.name, "other/m")
    assert resolve(name, revision=revision).revision == revision
    if revision is not None:
        with pytest.raises(LongEvalError, match=r"--revision main: .* names another"):
            resolve(name, revision="main")


def test_a_folder_that_is_called_like_an_address_is_that_folder(llama, monkeypatch):
    (llama.parent / "hf.co" / "org").mkdir(parents=True)
    (llama.parent / "hf.co" / "org" / "m").symlink_to(llama)
    monkeypatch.chdir(llama.parent)
    assert resolve("hf.co/org/m").kind == "folder"
    assert PplRequest(model="hf.co/org/m", pe="none", lengths="4k").model == ("hf.co/org/m",)


@pytest.mark.parametrize(
    "name",
    [
        "https://huggingface.co/some-org",
        "https://huggingface.co/datasets/some-org/m",
        "https://huggingface.co/some-org/m/blob/main/config.json",
        "https://huggingface.co/some-org/m/tree/main/folder",
        "https://example.com/some-org/m",
        "hf://some-org/m/config.json",
    ],
)
def test_other_addresses_are_refused(name):
    with pytest.raises(LongEvalError, match=r"not (the|an) address") as caught:
        resolve(name)
    assert "https://huggingface.co/OWNER/NAME" in caught.value.remedy


def test_unknown_name_gets_suggestions():
    with pytest.raises(LongEvalError, match=r"--model lama2-7b: .* Did you mean llama2-7b") as caught:
        resolve("lama2-7b")
    assert "hub id" in caught.value.remedy


@pytest.mark.parametrize("name", ["./nothing", "/nothing/here", "~/nothing", "nothing.gguf", "a/b/c"])
def test_missing_path(name):
    with pytest.raises(LongEvalError, match="no such file or folder"):
        resolve(name)


def refused(path, said):
    with pytest.raises(LongEvalError, match=said) as caught:
        resolve(str(path))
    return caught.value.remedy


def test_folder_without_config(llama):
    os.remove(llama / "config.json")
    refused(llama, r"no config\.json")
    (llama / "weights.gguf").write_bytes(b"GGUF")
    refused(llama, r"--model .*weights\.gguf")


def test_pickles_and_adapters_are_refused(llama):
    os.rename(llama / "model.safetensors", llama / "pytorch_model.bin")
    assert "safetensors" in refused(llama, "pickle")
    os.remove(llama / "pytorch_model.bin")
    (llama / "adapter_config.json").write_text("{}")
    refused(llama, f"--model BASE --adapter {llama}")
    (llama / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    refused(llama, f"--model org/base --adapter {llama}")


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
    refused(llama, message)


def test_cut_off_weights(llama):
    whole = (llama / "model.safetensors").read_bytes()
    (llama / "model.safetensors").write_bytes(whole[:-1])
    refused(llama, f"cut off .{len(whole) - 1} bytes")


def test_an_index_names_files_of_its_own_folder(llama):
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    os.rename(llama / "model.safetensors", llama / shards[0])
    os.link(llama / shards[0], llama.parent / "model.safetensors")
    for second in (shards[1], "../model.safetensors", "/etc/model.safetensors", "..", ""):
        index = {"weight_map": {"a": shards[0], "b": second}}
        (llama / "model.safetensors.index.json").write_text(json.dumps(index))
        refused(llama, re.escape(f"{second}: No such file" if second == shards[1] else "model.safetensors.index.json"))


@pytest.mark.parametrize("content", ["", "[1]", "{", "[" * 100_000, "\ufeff{}"])
def test_broken_config(llama, content):
    (llama / "config.json").write_text(content)
    refused(llama, r"config\.json")


@pytest.mark.parametrize(("name", "said"), [("x.gguf", "not a GGUF file"), ("x.txt", r"not a \.gguf")])
def test_file_that_is_no_gguf(tmp_path, name, said):
    (tmp_path / name).write_bytes(b"PK\x03\x04")
    refused(tmp_path / name, said)


def test_a_configuration_alone_is_enough_where_no_weights_are_needed(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert resolve(str(tmp_path), weights=False).kind == "folder"
    refused(tmp_path, "safetensors")

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.listdir", refuse)
    refused(tmp_path, "Permission denied")


def test_promised_names_stand_for_their_hub_ids():
    assert CATALOG["llama2-7b"].hub_id == "meta-llama/Llama-2-7b-hf"
    assert CATALOG["llama2-13b-chat"].hub_id == "meta-llama/Llama-2-13b-chat-hf"
    promised = "llama2-7b-chat llama2-13b llama3.1-8b mistral-7b qwen2.5-7b qwen3-8b gemma3-1b smollm2-135m"
    assert set(promised.split()) <= set(CATALOG)
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
