"""`longeval export` as it is typed: what it says, what it leaves, and what it refuses."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from longeval.cli.app import run_app
from longeval.export.encoding import multiplied, stock_error
from longeval.models import load
from longeval.models.resolve import resolve
from longeval.models.scaling import model_rope
from longeval.rope.base import Geometry
from longeval.rope.build import build_table


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def export(model, *arguments):
    return run_app(["export", "--model", str(model), *arguments])


def test_the_message_says_what_was_written_how_exact_and_how_to_load_it(tiny_llama, here, capsys):
    assert export(tiny_llama, "--pe", "resonance_yarn", "--factor", "4", "--out", "out put") == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert re.fullmatch(r"out put: .*tiny, resonance_yarn, s = 4 \(64 to 256\); 6 files, 0\.\d+ MB", lines[0])
    assert lines[1] == 'transformers: AutoModelForCausalLM.from_pretrained("out put", dtype="auto")'
    assert lines[2] == "vllm: vllm serve 'out put' --max-model-len 256"
    assert len(lines) == 3
    assert "multiply positions in float32, without longeval's exact periods" in err
    said = re.search(r"off by up to (\S+) \(at position (\d+), feature (\d+)\) below 256", err)
    table = build_table("resonance_yarn", Geometry(head_dim=16, theta=10000.0, native_length=64, factor=4.0))
    error = stock_error(multiplied(table.inv_freq_F.astype(np.float32)), table.attention_factor, table, 256)
    assert float(said[1]) == pytest.approx(error.largest, rel=1)  # transformers' frequencies are rounded more often
    assert int(said[2]) > 128
    note = json.loads((here / "out put" / "longeval.json").read_text())
    assert note["command"]
    assert float(said[1]) == pytest.approx(note["engine"]["largest_error"], rel=0.05)


def test_quiet(tiny_llama, here, capsys):
    assert export(tiny_llama, "--pe", "pi", "--factor", "4", "--out", "out", "-q") == 0
    assert capsys.readouterr() == ("", "")
    assert (here / "out" / "model.safetensors").exists()


def test_settings_reach_the_table(tiny_llama, here):
    arguments = ["--factor", "2", "--native", "32", "--pe-arg", "yarn.beta_fast=4", "--pe-arg", "yarn.beta_slow=2"]
    assert export(tiny_llama, "--pe", "yarn", *arguments, "--out", "out", "-q") == 0
    rope = model_rope("m", load.load_config(resolve(str(here / "out"))))
    from longeval.rope.yarn import YarnParameters

    geometry = Geometry(head_dim=16, theta=10000.0, native_length=32, factor=2.0)
    wanted = build_table("yarn", geometry, YarnParameters(beta_fast=4.0, beta_slow=2.0))
    np.testing.assert_allclose(rope.shipped_table(64).inv_freq_F, wanted.inv_freq_F, rtol=1e-14)
    assert rope.geometry.native_length == 32
    assert not np.allclose(wanted.inv_freq_F, build_table("yarn", geometry).inv_freq_F, rtol=1e-3)


def test_perplexity_of_the_export_as_shipped_is_that_of_the_method(tiny_llama, documents, here, capsys):
    assert export(tiny_llama, "--pe", "resonance_yarn", "--factor", "4", "--out", "out", "-q") == 0
    values = {}
    stretched = ["--factor", "4"]
    for model, pe, factor in ((tiny_llama, "resonance_yarn", stretched), ("out", "none", []), (tiny_llama, "none", [])):
        command = [
            "ppl",
            "--model",
            str(model),
            "--pe",
            pe,
            *factor,
            "--lengths",
            "128",
            "--dtype",
            "float32",
        ]
        assert run_app([*command, "--data", str(documents), "--out", "run", "--json", "-", "-q"]) == 0
        values[str(model), pe] = {r["metric"]: r["value"] for r in json.loads(capsys.readouterr().out)}["perplexity"]
    assert values["out", "none"] == pytest.approx(values[str(tiny_llama), "resonance_yarn"], rel=1e-5)
    assert values["out", "none"] != pytest.approx(values[str(tiny_llama), "none"], rel=1e-3)


def test_a_model_that_comes_scaled_says_so(tiny_llama, here, capsys):
    assert export(tiny_llama, "--pe", "yarn", "--factor", "4", "--out", "once", "-q") == 0
    assert export("once", "--pe", "pi", "--factor", "2", "--scale-from", "shipped", "--out", "twice") == 0
    assert "once comes with longrope scaling from 64 to 256" in capsys.readouterr().err
    rope = model_rope("m", load.load_config(resolve(str(here / "twice"))))
    assert rope.shipped.reach == 512
    yarn = build_table("yarn", Geometry(head_dim=16, theta=10000.0, native_length=64, factor=4.0))
    np.testing.assert_allclose(rope.shipped_table(2).inv_freq_F * 2, yarn.inv_freq_F, rtol=1e-14)


YARN = ["--pe", "yarn", "--factor", "4"]

BAD = [
    (["--pe", "yarn", "--out", "out"], "--factor: missing, yarn needs it"),
    (["--pe", "none", "--out", "out"], "--pe none: nothing to export"),
    (["--pe", "dynamic_ntk", "--factor", "2", "--out", "out"], "--pe dynamic_ntk: its frequencies follow the length"),
    (["--pe", "yarm", "--out", "out"], "--pe yarm: unknown method"),
    (["--pe", "yarn,pi", "--factor", "2", "--out", "out"], "--pe yarn,pi"),
    (["--pe", "yarn", "--factor", "0.5", "--out", "out"], "--factor 0.5"),
    (["--pe", "yarn", "--factor", "x", "--out", "out"], "--factor x"),
    (["--pe", "yarn", "--factor", "1e308", "--out", "out"], "--factor 1e+308: a target of"),
    (["--pe", "yarn", "--factor", "262145", "--out", "out"], "--factor 262145: a target of 1.678e+07 tokens"),
    ([*YARN, "--native", "0", "--out", "out"], "--native 0"),
    ([*YARN, "--pe-arg", "ntk.base_rule=linear", "--out", "out"], "ntk is not among the methods asked for"),
    ([*YARN, "--pe-arg", "yarn.beta_fast=0.5", "--out", "out"], "yarn.beta_fast 0.5"),
    ([*YARN, "--scale-from", "ship", "--out", "out"], "--scale-from ship: unknown"),
    ([*YARN, "--scale-from", "shipped", "--out", "out"], "--scale-from shipped: would be ignored"),
    ([*YARN, "--layers", "local", "--out", "out"], "--layers local: unknown"),
    ([*YARN, "--layers", "all", "--out", "out"], "--layers all: would be ignored"),
    ([*YARN, "--revision", "v1", "--out", "out"], "--revision v1"),
    ([*YARN, "--out", "full"], "--out full: exists and isn't empty"),
    ([*YARN, "--out", "full/file"], "--out full/file: is a file"),
    ([*YARN, "--out", "no/out"], "--out no/out: there is no folder"),
    ([*YARN, "--out", ""], "--out '': an empty name"),
    ([*YARN, "--out", "out.gguf"], "convert_hf_to_gguf.py"),
    ([*YARN, "--out", "full/there.gguf"], "--out full/there.gguf: exists already"),
    ([*YARN], "--out"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input_is_one_line_and_leaves_nothing(tiny_llama, here, capsys, arguments, message):
    (here / "full").mkdir()
    for name in ("file", "there.gguf"):
        (here / "full" / name).touch()
    assert export(tiny_llama, *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("longeval: ")
    assert err.count("\n") == 1
    assert message in err
    assert sorted(path.name for path in here.rglob("*")) == ["file", "full", "there.gguf"]


def test_bad_models(here, capsys):
    (here / "gpt2").mkdir()
    for model, message in (("llama2-7", "Did you mean llama2-7b"), ("./gpt2", "this folder is no model")):
        assert export(model, *YARN, "--out", "out") == 2
        assert message in capsys.readouterr().err
