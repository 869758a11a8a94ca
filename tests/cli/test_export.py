"""`longeval export` as it is typed: what it says, what it leaves, and what it refuses."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from command_lines import command_line, json_of

from longeval.cli.app import run_app
from longeval.export.encoding import multiplied, stock_error
from longeval.models import load
from longeval.models.resolve import resolve
from longeval.models.scaling import model_rope
from longeval.rope.base import Geometry
from longeval.rope.build import build_table
from longeval.rope.yarn import YarnParameters


def export(model, *arguments):
    return run_app(["export", "--model", str(model), *arguments])


def rope_of(folder):
    return model_rope("m", load.load_config(resolve(str(folder))))


def test_the_message_says_what_was_written_how_exact_and_how_to_load_it(tiny_llama, here, capsys):
    assert export(tiny_llama, "--pe", "resonance_yarn", "--factor", "4", "--out", "out put") == 0
    out, err = capsys.readouterr()
    first, *commands = out.splitlines()
    assert re.fullmatch(r"out put: .*tiny, resonance_yarn, s = 4 \(64 to 256\); 6 files, 0\.\d+ MB", first)
    assert commands == [
        'transformers: AutoModelForCausalLM.from_pretrained("out put", dtype="auto")',
        "vllm: vllm serve 'out put' --max-model-len 256",
    ]
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
    rope = rope_of(here / "out")
    geometry = Geometry(head_dim=16, theta=10000.0, native_length=32, factor=2.0)
    wanted = build_table("yarn", geometry, YarnParameters(beta_fast=4.0, beta_slow=2.0))
    np.testing.assert_allclose(rope.shipped_table(64).inv_freq_F, wanted.inv_freq_F, rtol=1e-14)
    assert rope.geometry.native_length == 32
    assert not np.allclose(wanted.inv_freq_F, build_table("yarn", geometry).inv_freq_F, rtol=1e-3)


def test_perplexity_of_the_export_as_shipped_is_that_of_the_method(tiny_llama, documents, here, capsys):
    assert export(tiny_llama, "--pe", "resonance_yarn", "--factor", "4", "--out", "out", "-q") == 0

    def perplexity(model, pe, factor=None):
        settings = {"lengths": "128", "dtype": "float32", "data": str(documents), "out": "run", "quiet": True}
        records = json_of(capsys, command_line("ppl", model=str(model), pe=pe, factor=factor, **settings))
        return {record["metric"]: record["value"] for record in records}["perplexity"]

    shipped = perplexity("out", "none")
    assert shipped == pytest.approx(perplexity(tiny_llama, "resonance_yarn", factor="4"), rel=1e-5)
    assert shipped != pytest.approx(perplexity(tiny_llama, "none"), rel=1e-3)


def test_a_model_that_comes_scaled_says_so(tiny_llama, here, capsys):
    assert export(tiny_llama, "--pe", "yarn", "--factor", "4", "--out", "once", "-q") == 0
    assert export("once", "--pe", "pi", "--factor", "2", "--scale-from", "shipped", "--out", "twice") == 0
    assert "once comes with longrope scaling from 64 to 256" in capsys.readouterr().err
    rope = rope_of(here / "twice")
    assert rope.shipped.reach == 512
    yarn = build_table("yarn", Geometry(head_dim=16, theta=10000.0, native_length=64, factor=4.0))
    np.testing.assert_allclose(rope.shipped_table(2).inv_freq_F * 2, yarn.inv_freq_F, rtol=1e-14)


YARN = {"pe": "yarn", "factor": "4", "out": "out"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"factor": None}, "--factor: missing"),
        ({"pe": "none"}, "--pe none: nothing to export"),
        ({"pe": "dynamic_ntk"}, "--pe dynamic_ntk"),
        ({"pe": "yarm"}, "--pe yarm"),
        ({"pe": "yarn,pi"}, "--pe yarn,pi"),
        ({"factor": "0.5"}, "--factor 0.5"),
        ({"factor": "1e308"}, "--factor 1e+308: a target of"),
        ({"factor": "262145"}, "--factor 262145: a target of 1.678e+07 tokens"),
        ({"native": "0"}, "--native 0"),
        ({"pe_arg": "ntk.base_rule=linear"}, "ntk is not among the methods asked for"),
        ({"pe_arg": "yarn.beta_fast=0.5"}, "yarn.beta_fast 0.5"),
        ({"scale_from": "ship"}, "--scale-from ship: unknown"),
        ({"scale_from": "shipped"}, "--scale-from shipped: would be ignored"),
        ({"layers": "local"}, "--layers local: unknown"),
        ({"layers": "all"}, "--layers all: would be ignored"),
        ({"revision": "v1"}, "--revision v1"),
        ({"out": "full"}, "--out full: exists"),
        ({"out": "full/file"}, "--out full/file: is a file"),
        ({"out": "full/file/out"}, "--out full/file/out"),
        ({"out": ""}, "--out ''"),
        ({"out": "out.gguf"}, "convert_hf_to_gguf.py"),
        ({"out": "full/there.gguf"}, "--out full/there.gguf: exists"),
        ({"model": "llama2-7"}, "Did you mean llama2-7b"),
        ({"model": "./full"}, "this folder is not a model"),
    ],
    ids=str,
)
def test_bad_input_is_one_message_and_leaves_nothing(tiny_llama, here, refused, change, said):
    (here / "full").mkdir()
    for name in ("file", "there.gguf"):
        (here / "full" / name).touch()
    assert said in refused(command_line("export", **{"model": str(tiny_llama)} | YARN | change))
