"""`--adapter` as it is typed: what `ppl`, `tasks`, `export`, `serve` and the report make of it."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from adapters import nll, plain, save_adapter, unmerged
from command_lines import command_line, json_of
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import longeval
from longeval.backends.vllm import options as vllm_options
from longeval.cli.app import run_app
from longeval.models.load import load_tokenizer
from longeval.models.resolve import local_folder, resolve


@pytest.fixture
def lora(tiny_llama, here):
    save_adapter(tiny_llama, here / "lora")
    return "lora"


@pytest.fixture
def arguments(tiny_llama, documents, here):
    small = {"model": str(tiny_llama), "pe": "none", "lengths": "64", "data": str(documents), "dtype": "float32"}
    return lambda **change: command_line("ppl", **(small | {"out": "run"} | change))


def test_token_values_are_those_of_transformers_and_peft(tiny_llama, documents, lora):
    results = longeval.ppl(
        model=str(tiny_llama), adapter=lora, pe="none", lengths=64, data=str(documents), dtype="float32", quiet=True
    )
    tokenizer = load_tokenizer(resolve(str(tiny_llama)))
    stock, base = unmerged(tiny_llama, lora), plain(tiny_llama)
    texts = [json.loads(line)["text"] for line in documents.read_text().splitlines()]
    windows = [tokens[:64] for text in texts if len(tokens := tokenizer(text)["input_ids"]) >= 64]
    expected = np.concatenate([nll(stock, window) for window in windows])
    found = results.nll(results.frame.cell.iloc[0]).nll.to_numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(np.concatenate([nll(base, window) for window in windows]) - expected).max() > 0.1


def test_cells_are_of_the_adapters_content(arguments, tiny_llama, lora, here, capsys):
    first, without = json_of(capsys, arguments(adapter=lora)), json_of(capsys, arguments())
    shutil.copytree(lora, "elsewhere")
    assert run_app(arguments(adapter="elsewhere")) == 0
    assert "1 stored already" in capsys.readouterr().err
    save_adapter(tiny_llama, here / "elsewhere", seed=1)
    other = json_of(capsys, arguments(adapter="elsewhere"))
    values = [{record["cell"]: record["value"] for record in records} for records in (first, without, other)]
    assert len({cell for each in values for cell in each}) == len({value for each in values for value in each.values()})
    assert len({cell for each in values for cell in each}) == 3
    params = first[0]["params"]
    assert params["adapter"].startswith("sha256:") and params["adapter_name"] == lora
    assert params["adapter"] != other[0]["params"]["adapter"]
    assert without[0]["params"].keys() == params.keys() - {"adapter", "adapter_name"}
    assert without[0]["params"]["weights"] == params["weights"]


def test_a_run_repeats_it(arguments, lora, capsys):
    first = json_of(capsys, arguments(adapter=lora))
    again = json_of(capsys, ["run", "run/spec.yaml", "--out", "again"])
    assert [(r["cell"], r["value"]) for r in again] == [(r["cell"], r["value"]) for r in first]


def test_a_report_tells_adapters_apart_by_name_and_digest(arguments, tiny_llama, lora, here, capsys, quick_pictures):
    digests = []
    for seed in (0, 1):
        save_adapter(tiny_llama, here / lora, seed=seed)
        digests.append(json_of(capsys, arguments(adapter=lora, min_tokens="128"))[0]["params"]["adapter"][7:15])
    shutil.copytree(lora, "renamed")
    longer = arguments(adapter="renamed", min_tokens="128", lengths="64,128")
    assert run_app(arguments(min_tokens="128")) == run_app(longer) == 0
    assert run_app(["report", "run", "--out", "report.md", "-q"]) == 0
    text = (here / "report.md").read_text()
    titles = [line for line in text.splitlines() if line.startswith("## ") and "prefix" in line]
    assert len(titles) == 3 and len(set(digests)) == 2  # a new name makes no new table
    assert sum("no adapter" in title for title in titles) == 1
    for digest in digests:
        assert sum(f"{lora} ({digest})" in title for title in titles) == 1
        assert text.count(f"adapter lora ({digest}) merged into its weights") == 1


def test_tasks_answer_with_it(tiny_llama, lora, capsys):
    asked = {"model": str(tiny_llama), "pe": "none", "tasks": "passkey", "lengths": "640", "limit": "1", "out": "run"}
    line = command_line("tasks", **asked, max_new_tokens="4", dtype="float32")
    cells = [json_of(capsys, [*line, *more])[0] for more in ([], ["--adapter", lora])]
    assert len({cell["cell"] for cell in cells}) == 2 and cells[1]["params"]["adapter_name"] == lora


def test_what_would_ignore_it_is_refused(arguments, tiny_llama, lora, here, refused):
    assert "--adapter: " in refused(arguments(adapter=lora, backend="openai", base_url="http://127.0.0.1:1/v1"))
    shutil.copytree(tiny_llama, "second")
    assert "--adapter lora: " in refused(arguments(adapter=lora, model=f"{tiny_llama},second"))
    assert f"--model {tiny_llama} --adapter lora" in refused(arguments(model=lora))
    assert "--adapter nowhere: " in refused(arguments(adapter="nowhere"))
    (here / lora / "config.json").write_text((here / "second" / "config.json").read_text())
    shutil.copy("second/model.safetensors", lora)
    assert "as --adapter" in refused(arguments(model=lora))


def test_an_export_holds_merged_weights_and_names_the_adapter(tiny_llama, lora, here):
    words = ["export", "--model", str(tiny_llama), "--adapter", lora, "--pe", "yarn", "--factor", "2", "-q", "--out"]
    assert run_app([*words, "out"]) == 0
    expected = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).state_dict()
    adapter = load_file(f"{lora}/adapter_model.safetensors")
    key = "base_model.model.model.layers.1.self_attn.v_proj.lora_"
    name = "model.layers.1.self_attn.v_proj.weight"
    expected[name] = expected[name] + 1.5 * adapter[f"{key}B.weight"] @ adapter[f"{key}A.weight"]
    found = load_file("out/model.safetensors")
    assert found.keys() == expected.keys()
    torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-5)
    untouched = "model.layers.1.self_attn.o_proj.weight"
    assert torch.equal(found[untouched], expected[untouched])
    note = json.loads((here / "out" / "longeval.json").read_text())
    assert note["adapter_name"] == lora and note["adapter"].startswith("sha256:")
    tokens = list(range(40, 80))
    stock = AutoModelForCausalLM.from_pretrained("out", dtype=torch.float32).eval()
    assert nll(stock, tokens) != pytest.approx(nll(plain(tiny_llama), tokens), abs=1e-2)


def test_an_export_refuses_before_anything_is_merged(tiny_llama, lora, here, refused, monkeypatch):
    words = ["export", "--model", str(tiny_llama), "--adapter", lora, "--factor", "2", "--out"]
    monkeypatch.setattr("longeval.models.load.merge", lambda *_: pytest.fail("merged"))
    assert "out.gguf" not in refused([*words, "out.gguf", "--pe", "yarn"])
    assert "--pe dynamic_ntk" in refused([*words, "out", "--pe", "dynamic_ntk"])
    path = here / lora / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"r": 8}))
    assert "--adapter lora: doesn't fit" in refused([*words, "out", "--pe", "yarn"])


def test_a_server_gets_a_folder_of_merged_weights(tiny_llama, lora, capsys, monkeypatch):
    monkeypatch.setattr(vllm_options, "check_installed", lambda needed_by: None)
    monkeypatch.setattr(vllm_options, "engine_device", lambda device, serving: device)
    words = ["serve", "--model", str(tiny_llama), "--adapter", lora, "--dtype", "float32", "--dry-run"]
    assert run_app(words) == 0
    line = capsys.readouterr().out.split()
    folder = line[line.index("--model") + 1]
    assert line[line.index("--tokenizer") + 1] == folder != str(tiny_llama)
    tokens = list(range(40, 80))
    assert nll(plain(folder), tokens) == pytest.approx(nll(unmerged(tiny_llama, lora), tokens), abs=1e-4)
    assert line[line.index("--served-model-name") + 1] == f"{tiny_llama}+lora"


@pytest.mark.slow
def test_the_embedded_model_takes_an_adapter(here, user_cache):
    folder = local_folder(resolve("smollm2-135m-q4"))
    save_adapter(folder, here / "lora")
    (here / "text.txt").write_text("The model reads a long report. " * 40)
    asked = {"model": "smollm2-135m-q4", "adapter": "lora", "data": "text.txt", "lengths": 128, "pe": "none"}
    results = longeval.ppl(**asked, dtype="float32", quiet=True)
    tokens = load_tokenizer(resolve("smollm2-135m-q4"))((here / "text.txt").read_text())["input_ids"][:128]
    expected, base = (np.array(nll(model, tokens)) for model in (unmerged(folder, here / "lora"), plain(folder)))
    np.testing.assert_allclose(results.nll(results.frame.cell.iloc[0]).nll, expected, rtol=1e-4, atol=1e-4)
    assert np.abs(expected - base).max() > 0.1
