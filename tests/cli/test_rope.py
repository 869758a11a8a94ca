"""`longeval rope` as a user calls it: the JSON contract, the tables, and every kind of bad input."""

import json
import subprocess
import sys

import pytest

from longeval.cli.app import run_app

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
    assert len(rows) == 64 and rows[0] == ["0", "1.0472", "6", "682.7", "0"]
    assert rows[63][2] == "54410" and rows[63][4] == "1.986"


def test_several_methods_fit_side_by_side(capsys):
    assert run_app(["rope", "none,resonance,resonance_dynamic_yarn", *LLAMA2]) == 0
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line.split()}
    assert rows["none"] == ["46", "0.02573", "–", "1", "54410.1"]
    assert rows["resonance"] == ["46", "0", "7.058e51", "1", "54410"]
    assert rows["resonance_dynamic_yarn"][:2] == ["39", "0"]


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
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input_is_one_line_on_stderr(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_app(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("longeval: ")
    assert message in err
    assert list(tmp_path.iterdir()) == []


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
