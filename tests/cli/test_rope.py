"""`longeval rope` as a user calls it: the JSON contract, the tables, and every kind of bad input."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from command_lines import json_of

from longeval.cli.app import run_app
from longeval.rope.base import Geometry
from longeval.rope.build import build_table

LLAMA2 = ["--head-dim", "128", "--theta", "10000", "--native", "4k", "--factor", "8"]
TINY = ["--head-dim", "16", "--theta", "1e4", "--native", "64"]


def test_defaults_are_no_stretching_and_the_target_length(capsys):
    description = json_of(capsys, ["rope", "none", "--head-dim", "64", "--theta", "10000", "--native", "64"])
    assert (description["factor"], description["length"], description["pre_critical"]) == (1.0, 64, 9)
    assert description["feature_gaps"] == [0.0] * 32


def test_longrope_takes_its_factors_from_a_file(tmp_path, capsys):
    (tmp_path / "long.json").write_text(json.dumps([2.0] * 4))
    factors = ["--pe-arg", f"longrope.long_factor=@{tmp_path}/long.json", "--pe-arg", "longrope.short_factor=1,1,1,1"]
    geometry = ["--head-dim", "8", "--theta", "10000", "--native", "64", "--factor", "2"]
    assert json_of(capsys, ["rope", "longrope", *geometry, *factors])["inv_freq"][0] == 0.5


def test_list_names_every_method_its_parameters_and_source(capsys):
    assert run_app(["rope", "--list"]) == 0
    out = capsys.readouterr().out
    for text in ("dynamic_ntk", "beta_fast=32", "attention_factor=formula", "short_factor=required", "2309.00071"):
        assert text in out
    methods = {row["name"]: row for row in json_of(capsys, ["rope", "--list"])}
    assert methods["abf"]["parameters"] == {"base": 500000.0} and methods["dynamic_ntk"]["length_dependent"]


def test_all_shows_every_method_that_the_geometry_can_have(capsys):
    assert run_app(["rope", "all", *TINY, "--json", "-"]) == 0
    out, err = capsys.readouterr()
    names = [row["name"] for row in json.loads(out)]
    assert len(names) == 18 and not any("longrope" in name for name in names)
    assert "resonance_longrope" in err


def test_files_are_written_and_named_on_stderr(tmp_path, capsys):
    json_path, png, svg = tmp_path / "t.json", tmp_path / "t.png", tmp_path / "t.svg"
    assert run_app(["rope", "none,yarn", *LLAMA2, "--json", str(json_path), "--plot", str(png)]) == 0
    out, err = capsys.readouterr()
    assert out == "" and f"wrote {json_path}" in err and f"wrote {png}" in err
    assert [entry["name"] for entry in json.loads(json_path.read_text())] == ["none", "yarn"]
    assert png.read_bytes().startswith(b"\x89PNG")
    assert run_app(["rope", "none", *LLAMA2, "--plot", str(svg)]) == 0
    assert "46 of 64" in capsys.readouterr().out and svg.read_text().rstrip().endswith("</svg>")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.json", "t.png", "t.svg"]


def changed(flag, value):
    arguments = ["yarn", *LLAMA2]
    arguments[arguments.index(flag) + 1] = value
    return arguments


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (changed("--head-dim", "127"), "--head-dim 127"),
        (changed("--head-dim", "many"), "--head-dim 'many'"),
        (changed("--theta", "-10000"), "--theta -10000"),
        (changed("--theta", "nan"), "--theta nan"),
        (changed("--theta", "10k"), "--theta '10k'"),
        (changed("--native", "0"), "--native 0"),
        (changed("--factor", "nan"), "--factor nan"),
        (changed("--factor", "1e9"), "--factor 1e+09: a target length of"),
        (["yran", *LLAMA2], "NAME yran"),
        (["resonance_none", *LLAMA2], "Use resonance"),
        (["none,,yarn", *LLAMA2], "empty item"),
        (LLAMA2, "NAME"),
        (["yarn", "--theta", "10000"], "--head-dim, --native: missing"),
        (["longrope", *LLAMA2], "--pe-arg longrope.short_factor=@file.json"),
        (["yarn", *LLAMA2, "--length", "0"], "--length 0"),
        (["yarn", *LLAMA2, "--pe-arg", "yarn.beta_fast=0.5"], "yarn.beta_fast 0.5"),
        (["yarn", *LLAMA2, "--pe-arg", "ntk.base_rule=linear"], "not among the methods asked for"),
        (["yarn", *LLAMA2, "--plot", "table.jpg"], "--plot table.jpg"),
        (["yarn", *LLAMA2, "--plot", "no/such/folder/t.png"], "no/such/folder"),
        (["yarn", *LLAMA2, "--json", "no/such/folder/t.json"], "no/such/folder"),
        (["yarn", *LLAMA2, "--plot", "t.png", "--json", "."], "--json ."),
        (["--list", "yarn"], "--list: NAME would be ignored"),
        (["--list", "--plot", ""], "--list: --plot would be ignored"),
        (["--list", "--model", "m"], "--list: --model would be ignored"),
        (["yarn", *LLAMA2, "--trust-remote-code"], "without --model: --trust-remote-code would be ignored"),
        (["yarn", *LLAMA2, "--scale-from", "plain"], "without --model: --scale-from would be ignored"),
        (["yarn", "--model", "m", "--theta", "1e4"], "--model m: --theta would be ignored"),
        (["--model", "no-such-model"], "--model no-such-model"),
        (["--model", ""], "--model "),
        (["yran", "--model", "m"], "NAME yran"),
        (["--model", "m", "--scale-from", "here"], "--scale-from here"),
        (["--model", "m", "--native", "4q"], "--native '4q'"),
        (["--model", "m", "--plot", "t.jpg"], "--plot t.jpg"),
        (["--model", "m", "--pe-arg", "yarn.beta_fast=16"], "not among the methods asked for"),
    ],
)
def test_bad_input_is_one_message_and_nothing_written(arguments, said, refused):
    assert said in refused(["rope", *arguments])


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.fixture
def scaled_model(tiny_llama, tmp_path, monkeypatch):
    """Returns a function that makes a folder whose config ships a scaling; no tokenizer, and weights stay closed."""

    def refuse(*arguments, **settings):
        raise AssertionError("only the configuration may be read")

    for opened in ("longeval.models.load.load_model", "longeval.models.load.load_tokenizer", "safetensors.safe_open"):
        monkeypatch.setattr(opened, refuse)

    def make(rope_parameters, max_position_embeddings):
        folder = tmp_path / "scaled"
        folder.mkdir()
        shutil.copy(tiny_llama / "model.safetensors", folder)
        config = json.loads((tiny_llama / "config.json").read_text())
        config |= {"rope_parameters": rope_parameters, "max_position_embeddings": max_position_embeddings}
        (folder / "config.json").write_text(json.dumps(config))
        return str(folder)

    return make


def described(capsys, *arguments):
    """The JSON of a command line, and what it said on stderr."""
    assert run_app(["rope", *arguments, "--json", "-"]) == 0
    out, err = capsys.readouterr()
    return json.loads(out), err


def test_a_model_gives_its_geometry(tiny_llama, capsys):
    model = str(tiny_llama)
    by_model, err = described(capsys, "none,resonance_yarn", "--model", model, "--factor", "4")
    by_hand, _ = described(capsys, "none,resonance_yarn", *TINY, "--factor", "4")
    assert by_model == by_hand
    assert err == f"longeval: {model}: llama, d 16, base 10000, L 64, plain RoPE\n"
    alone, _ = described(capsys, "--model", model)
    assert (alone["name"], alone["factor"], alone["native_length"]) == ("none", 1.0, 64)


def test_native_wins_over_the_configuration_and_says_so(tiny_llama, capsys):
    description, err = described(capsys, "--model", str(tiny_llama), "--native", "32", "--factor", "3")
    assert (description["native_length"], description["length"]) == (32, 96)
    assert "L 32 (its configuration says 64)" in err


def test_none_is_as_shipped_and_other_methods_replace_it(scaled_model, capsys):
    import torch
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    model = scaled_model(LLAMA3, 512)
    (none, resonance, yarn), err = described(capsys, "none,resonance,yarn", "--model", model, "--factor", "4")
    theirs, _ = ROPE_INIT_FUNCTIONS["llama3"](AutoConfig.from_pretrained(model), torch.device("cpu"))
    np.testing.assert_allclose(none["inv_freq"], theirs.double().numpy(), rtol=1e-6)
    assert none["interpolation"][0] == 1.0 and none["interpolation"][-1] == pytest.approx(8.0)
    assert resonance["wavelengths"] == np.rint(none["wavelengths"]).tolist()
    expected = np.array(resonance["wavelengths"]) / none["wavelengths"] - 1
    assert resonance["rounding_errors"] == pytest.approx(expected.tolist(), abs=1e-15)
    plain = Geometry(head_dim=16, theta=10000.0, native_length=64, factor=4.0)
    assert yarn["inv_freq"] == build_table("yarn", plain).inv_freq_F.tolist()
    assert (none["native_length"], none["length"]) == (64, 256)
    assert "L 64, llama3 scaling from 64 to 512 (s = 8)" in err and "none keeps it" in err
    assert "--factor 8" not in err
    _, err = described(capsys, "--model", model)
    assert "--factor 8 shows it up to the 512" in err


def test_methods_can_build_on_the_shipped_scaling(scaled_model, capsys):
    model = scaled_model(LLAMA3, 512)
    (none, pi), err = described(capsys, "none,pi", "--model", model, "--scale-from", "shipped", "--factor", "2")
    assert (pi["native_length"], pi["length"]) == (512, 1024)
    np.testing.assert_allclose(np.array(none["inv_freq"]) / pi["inv_freq"], 2.0)
    assert none["interpolation"] == [1.0] * 8 and pi["interpolation"] == [2.0] * 8
    assert "L 512, llama3 scaling from 64 to 512 (s = 8)\n" in err and "other methods build on it, from 512" in err


def test_a_shipped_longrope_follows_the_length_and_lends_its_lists(scaled_model, capsys):
    short, long = [1.0] * 8, [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5]
    lists = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 64}
    model = scaled_model(lists | {"short_factor": short, "long_factor": long}, 256)
    within, _ = described(capsys, "--model", model)
    assert within["interpolation"] == pytest.approx(short)
    (beyond, named), _ = described(capsys, "none,longrope", "--model", model, "--factor", "4")
    assert beyond["interpolation"] == pytest.approx(long) and named["interpolation"] == pytest.approx(long)
    assert beyond["attention_factor"] == pytest.approx((1 + np.log(4) / np.log(64)) ** 0.5)
    back, _ = described(capsys, "--model", model, "--factor", "4", "--length", "64")
    assert back["interpolation"] == pytest.approx(short)


def test_a_model_that_was_made_with_resonance_shows_what_that_rounded(scaled_model, capsys):
    shipped = {"rope_type": "resonance_pi", "rope_theta": 10000.0, "factor": 2.0}
    model = scaled_model(shipped | {"original_max_position_embeddings": 64}, 128)
    none, err = described(capsys, "--model", model, "--factor", "2")
    by_hand, _ = described(capsys, "resonance_pi", *TINY, "--factor", "2")
    assert none == by_hand | {"name": "none"}
    assert "resonance_pi scaling from 64 to 128" in err


def test_a_model_without_rope_is_refused_by_name(tiny_llama, here, refused):
    shutil.copy(tiny_llama / "model.safetensors", here)
    (here / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    assert "gpt2" in refused(["rope", "--model", str(here)])


def test_nothing_is_said_of_a_model_when_a_later_setting_is_wrong(scaled_model, refused):
    model = scaled_model(LLAMA3, 512)
    wrong = ["--pe-arg", "yarn.beta_fast=0.5", "--plot", "t.png"]
    assert "yarn.beta_fast" in refused(["rope", "yarn", "--model", model, *wrong])


def test_help_imports_no_numbers_and_the_table_no_models():
    program = (
        "import sys, longeval.cli.rope as command;"
        "assert not {'numpy', 'matplotlib', 'torch', 'yaml'} & set(sys.modules), 'heavy import for --help';"
        "command.rope(None, 'yarn', head_dim='64', theta='10000', native='64', factor='2');"
        "assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules), 'heavy import for a table'"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "pre-critical" in done.stdout
