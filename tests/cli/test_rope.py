"""`longeval rope` as a user calls it: the JSON contract, the tables, and every kind of bad input."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from longeval.cli.app import run_app
from longeval.rope.base import Geometry
from longeval.rope.build import build_table

LLAMA2 = ["--head-dim", "128", "--theta", "10000", "--native", "4k", "--factor", "8"]
KEYS = {
    "name",
    "head_dim",
    "theta",
    "native_length",
    "factor",
    "length",
    "inv_freq",
    "wavelengths",
    "attention_factor",
    "pre_critical",
    "unique_positions",
    "feature_gap",
    "feature_gaps",
    "rotations",
    "rounding_errors",
    "interpolation",
    "decay",
    "collisions",
    "precision",
}


def test_one_name_is_one_object_and_nothing_else_is_on_stdout(capsys):
    assert run_app(["rope", "resonance_yarn", *LLAMA2, "--json", "-"]) == 0
    out, err = capsys.readouterr()
    description = json.loads(out)
    assert set(description) == KEYS and err == ""
    assert (description["name"], description["head_dim"], description["native_length"]) == ("resonance_yarn", 128, 4096)
    assert (description["theta"], description["factor"], description["length"]) == (10000.0, 8.0, 32768)
    assert description["feature_gap"] == 0 and len(description["feature_gaps"]) == 64
    assert description["wavelengths"][:4] == [6.0, 7.0, 8.0, 10.0]


def test_several_names_are_an_array_in_their_order(capsys):
    assert run_app(["rope", "resonance,none,resonance", *LLAMA2, "--json", "-"]) == 0
    resonance, none = json.loads(capsys.readouterr().out)
    assert (resonance["name"], none["name"]) == ("resonance", "none")
    assert resonance["unique_positions"].startswith("7057974406910048") and len(resonance["unique_positions"]) == 52
    assert none["unique_positions"] is None and none["inv_freq"][0] == 1.0
    assert none["feature_gap"] == pytest.approx(0.0257, abs=5e-5)


def test_defaults_are_no_stretching_and_the_target_length(capsys):
    geometry = ["--head-dim", "64", "--theta", "10000", "--native", "64"]
    assert run_app(["rope", "none", *geometry, "--json", "-"]) == 0
    description = json.loads(capsys.readouterr().out)
    assert (description["factor"], description["length"], description["pre_critical"]) == (1.0, 64, 9)
    assert description["feature_gaps"] == [0.0] * 32


def test_length_and_parameters_reach_the_table(capsys):
    args = ["rope", "dynamic_yarn,yarn,ntk", *LLAMA2, "--length", "16k", "--json", "-"]
    assert run_app([*args, "--pe-arg", "ntk.base_rule=linear", "--pe-arg", "yarn.attention_factor=1.5"]) == 0
    dynamic, yarn, ntk = json.loads(capsys.readouterr().out)
    assert dynamic["length"] == yarn["length"] == 16384
    assert dynamic["inv_freq"][-1] / yarn["inv_freq"][-1] == pytest.approx(2.0)
    assert dynamic["attention_factor"] == pytest.approx(1.1386294361119891) and yarn["attention_factor"] == 1.5
    assert ntk["inv_freq"][1] == pytest.approx(80000 ** (-2 / 128), rel=1e-12)


def test_longrope_takes_its_factors_from_a_file(tmp_path, capsys):
    (tmp_path / "long.json").write_text(json.dumps([2.0] * 4))
    factors = ["--pe-arg", f"longrope.long_factor=@{tmp_path}/long.json", "--pe-arg", "longrope.short_factor=1,1,1,1"]
    args = ["--head-dim", "8", "--theta", "10000", "--native", "64", "--factor", "2", "--json", "-"]
    assert run_app(["rope", "longrope", *args, *factors]) == 0
    assert json.loads(capsys.readouterr().out)["inv_freq"][0] == 0.5


def test_the_table_shows_what_the_paper_counts(capsys):
    assert run_app(["rope", "resonance", *LLAMA2]) == 0
    out = capsys.readouterr().out
    assert "7.058e51" in out and "46 of 64" in out
    rows = [line.split() for line in out.splitlines() if line.split() and line.split()[0].isdigit()]
    assert len(rows) == 64 and rows[0] == ["0", "1.0472", "6", "682.7", "0.9549", "-4.5%", "0"]
    assert rows[63][2] == "54410" and rows[63][6] == "1.986"


def test_several_methods_fit_side_by_side(capsys):
    assert run_app(["rope", "none,resonance,resonance_dynamic_yarn", *LLAMA2]) == 0
    features, _, errors = capsys.readouterr().out.partition("Largest error")
    rows = {line.split()[0]: line.split()[1:] for line in features.splitlines() if line.split()}
    assert rows["none"] == ["46", "0.0257", "–", "0", "1", "54410"]
    assert rows["resonance"] == ["46", "0", "7.058e51", "0", "1", "54410"]
    assert rows["resonance_dynamic_yarn"][:2] == ["39", "0"]
    assert errors.count("0.093") == 2 and errors.count("resonance") == 2


def test_list_names_every_method_its_parameters_and_source(capsys):
    assert run_app(["rope", "--list"]) == 0
    out = capsys.readouterr().out
    for text in ("dynamic_ntk", "beta_fast=32", "attention_factor=formula", "short_factor=required", "2309.00071"):
        assert text in out
    assert run_app(["rope", "--list", "--json", "-"]) == 0
    methods = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert methods["abf"]["parameters"] == {"base": 500000.0} and methods["dynamic_ntk"]["length_dependent"]


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
    arguments = ["rope", "yarn", *LLAMA2]
    arguments[arguments.index(flag) + 1] = value
    return arguments


BAD = [
    (changed("--head-dim", "127"), "--head-dim 127: must be a positive even number"),
    (changed("--head-dim", "0"), "--head-dim 0"),
    (changed("--head-dim", "-2"), "--head-dim -2"),
    (changed("--head-dim", "many"), "--head-dim 'many': not a whole number"),
    (changed("--theta", "0"), "--theta 0"),
    (changed("--theta", "-10000"), "--theta -10000"),
    (changed("--theta", "nan"), "--theta nan"),
    (changed("--theta", "inf"), "--theta inf"),
    (changed("--theta", "10k"), "--theta '10k': not a number"),
    (changed("--native", "0"), "--native 0"),
    (changed("--native", "4q"), "--native '4q': not a length"),
    (changed("--factor", "0"), "--factor 0: must be a finite number of at least 1"),
    (changed("--factor", "nan"), "--factor nan"),
    (changed("--factor", "x"), "--factor x"),
    (changed("--factor", "1e9"), "--factor 1e+09: a target length of"),
    (["rope", "yran", *LLAMA2], "NAME yran: unknown method. Did you mean"),
    (["rope", "resonance_none", *LLAMA2], "Use resonance"),
    (["rope", "none,,yarn", *LLAMA2], "empty item"),
    (["rope", *LLAMA2], "NAME: no method given"),
    (["rope", "yarn", "--theta", "10000"], "--head-dim, --native: missing"),
    (["rope", "longrope", *LLAMA2], "--pe-arg longrope.short_factor=@file.json"),
    (["rope", "yarn", *LLAMA2, "--length", "0"], "--length 0"),
    (["rope", "yarn", *LLAMA2, "--pe-arg", "yarn.beta_fast=0.5"], "yarn.beta_fast 0.5: must be greater than beta_slow"),
    (["rope", "yarn", *LLAMA2, "--pe-arg", "ntk.base_rule=linear"], "not among the methods asked for"),
    (["rope", "yarn", *LLAMA2, "--plot", "table.pdf"], "--plot table.pdf: neither .png nor .svg"),
    (["rope", "yarn", *LLAMA2, "--plot", "no/such/folder/t.png"], "there is no folder no/such/folder"),
    (["rope", "yarn", *LLAMA2, "--json", "no/such/folder/t.json"], "there is no folder no/such/folder"),
    (["rope", "yarn", *LLAMA2, "--json", "."], "--json .: is a folder"),
    (["rope", "--list", "yarn"], "--list: NAME would be ignored"),
    (["rope", "--list", "--factor", "2"], "--list: --factor would be ignored"),
    (["rope", "--list", "--plot", ""], "--list: --plot would be ignored"),
    (["rope", "--list", "--model", "m"], "--list: --model would be ignored"),
    (["rope", "--list", "--scale-from", "plain"], "--list: --scale-from would be ignored"),
    (["rope", "yarn", *LLAMA2, "--revision", "main"], "without --model: --revision would be ignored"),
    (["rope", "yarn", *LLAMA2, "--trust-remote-code"], "without --model: --trust-remote-code would be ignored"),
    (["rope", "yarn", *LLAMA2, "--scale-from", "plain"], "without --model: --scale-from would be ignored"),
    (["rope", "yarn", "--model", "m", "--head-dim", "64"], "--model m: --head-dim would be ignored"),
    (["rope", "yarn", "--model", "m", "--theta", "1e4"], "--model m: --theta would be ignored"),
    (["rope", "--model", "no-such-model"], "--model no-such-model: unknown"),
    (["rope", "--model", ""], "--model : unknown"),
    (["rope", "", "--model", "m"], "NAME '': an empty item"),
    (["rope", "yran", "--model", "m"], "NAME yran: unknown method. Did you mean"),
    (["rope", "--model", "m", "--scale-from", "here"], "--scale-from here: unknown. Use plain or shipped."),
    (["rope", "--model", "m", "--native", "4q"], "--native '4q': not a length"),
    (["rope", "--model", "m", "--factor", "0"], "--factor 0: must be a finite number of at least 1"),
    (["rope", "--model", "m", "--plot", "t.pdf"], "--plot t.pdf: neither .png nor .svg"),
    (["rope", "--model", "m", "--pe-arg", "yarn.beta_fast=16"], "not among the methods asked for"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input_is_one_line_on_stderr(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_app(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("longeval: ")
    assert message in err
    assert list(tmp_path.iterdir()) == []


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

    monkeypatch.setattr("longeval.models.load.load_model", refuse)
    monkeypatch.setattr("longeval.models.load.load_tokenizer", refuse)
    monkeypatch.setattr("safetensors.safe_open", refuse)

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
    by_hand, _ = described(
        capsys, "none,resonance_yarn", "--head-dim", "16", "--theta", "1e4", "--native", "64", "--factor", "4"
    )
    assert by_model == by_hand
    assert err == f"longeval: {model}: llama, d 16, base 10000, L 64, plain RoPE\n"
    alone, _ = described(capsys, "--model", model)
    assert (alone["name"], alone["factor"], alone["native_length"]) == ("none", 1.0, 64)
    assert run_app(["rope", "--model", model]) == 0
    assert "none: d 16, base 10000, L 64, target 64" in capsys.readouterr().out


def test_native_wins_over_the_configuration_and_says_so(tiny_llama, capsys):
    description, err = described(capsys, "--model", str(tiny_llama), "--native", "32", "--factor", "3")
    assert (description["native_length"], description["length"]) == (32, 96)
    assert "L 32 (its configuration says 64), plain RoPE" in err


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
    assert "L 64, llama3 scaling from 64 to 512 (s = 8)" in err and "none means as shipped" in err
    assert "--factor 8" not in err


def test_methods_can_build_on_the_shipped_scaling(scaled_model, capsys):
    model = scaled_model(LLAMA3, 512)
    (none, pi), err = described(capsys, "none,pi", "--model", model, "--scale-from", "shipped", "--factor", "2")
    assert (pi["native_length"], pi["length"]) == (512, 1024)
    np.testing.assert_allclose(np.array(none["inv_freq"]) / pi["inv_freq"], 2.0)
    assert none["interpolation"] == [1.0] * 8 and pi["interpolation"] == [2.0] * 8
    assert "L 512, llama3 scaling from 64 to 512 (s = 8)\n" in err and "other methods build on it, from 512" in err


def test_without_a_factor_the_length_a_model_was_stretched_to_is_named(scaled_model, capsys):
    _, err = described(capsys, "--model", scaled_model(LLAMA3, 512))
    assert "shown up to 64; --factor 8 shows it up to the 512 that it was stretched to" in err


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
    by_hand, _ = described(
        capsys, "resonance_pi", "--head-dim", "16", "--theta", "1e4", "--native", "64", "--factor", "2"
    )
    assert none == by_hand | {"name": "none"}
    assert "resonance_pi scaling from 64 to 128" in err


def test_a_model_without_rope_is_refused_by_name(tiny_llama, tmp_path, capsys):
    shutil.copy(tiny_llama / "model.safetensors", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    assert run_app(["rope", "--model", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert "gpt2" in err and "no rotary position embedding" in err and err.count("\n") == 1


def test_nothing_is_said_or_written_when_a_later_setting_is_wrong(scaled_model, tmp_path, capsys):
    model = scaled_model(LLAMA3, 512)
    plot = tmp_path / "t.png"
    assert run_app(["rope", "yarn", "--model", model, "--pe-arg", "yarn.beta_fast=0.5", "--plot", str(plot)]) == 2
    err = capsys.readouterr().err
    assert "must be greater than beta_slow" in err and err.count("\n") == 1 and not plot.exists()


def test_the_picture_is_not_drawn_when_the_json_cannot_be_written(tmp_path, capsys):
    plot = tmp_path / "t.png"
    assert run_app(["rope", "yarn", *LLAMA2, "--plot", str(plot), "--json", str(tmp_path)]) == 2
    assert "is a folder" in capsys.readouterr().err and not plot.exists()


def test_help_imports_no_numbers_and_the_table_no_models():
    program = (
        "import sys, longeval.cli.rope as command;"
        "assert not {'numpy', 'matplotlib', 'torch', 'yaml'} & set(sys.modules), 'heavy import for --help';"
        "command.rope('yarn', head_dim='64', theta='10000', native='64', factor='2');"
        "assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules), 'heavy import for a table'"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "pre-critical" in done.stdout
