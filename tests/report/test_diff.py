"""`longeval diff`: settings that differ, the same cells side by side, and what only one run has."""

import dataclasses
import json
import math
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from records import make_nll, make_records, make_run, make_samples, make_task_records, make_task_run
from tiny import make_text, save_tiny_llama

from longeval.cli.app import run_app
from longeval.report.diff import counts_text, diff_runs
from longeval.stats.significance import sign_flip
from longeval.store.folder import Store

NUM_DOCUMENTS, TOKENS = 12, 20


def make_tokens(value, digests=0, seed=0):
    noise_WS = np.random.default_rng(seed).random((NUM_DOCUMENTS, TOKENS)).astype(np.float32)
    nll = make_nll(list(noise_WS + np.float32(value)))
    return dataclasses.replace(nll, windows_W=np.arange(digests, digests + NUM_DOCUMENTS, dtype=np.uint64))


def ppl_cell(pe, nll, length=64, **changes):
    return make_records(pe, length, nll, **changes), nll


def settings_of(diff):
    return {change.name: (change.group, change.a, change.b, change.cells) for change in diff.settings}


def test_settings_that_differ_are_grouped_and_counted(tmp_path):
    nll = make_tokens(2.0)
    a = make_run(tmp_path / "a", [ppl_cell("none", nll), ppl_cell("yarn", nll, params={"method": {"beta_fast": 32.0}})])
    versions = {"versions": {"longeval": "0.1.0", "torch": "2.14.0"}, "device": "a GPU", "command": "longeval other"}
    changes = {"dtype": "bfloat16", "provenance": versions}
    method = {"params": {"method": {"beta_fast": 16.0}}, "factor": 4.0}
    b = make_run(tmp_path / "b", [ppl_cell("none", nll, **changes), ppl_cell("yarn", nll, **changes, **method)])
    diff = diff_runs(a, b)
    assert settings_of(diff) == {
        "factor": ("method", 2.0, 4.0, 1),
        "yarn.beta_fast": ("method", 32.0, 16.0, 1),
        "dtype": ("computation", "float32", "bfloat16", 2),
        "device": ("program and machine", "cpu (test, 2 threads)", "a GPU", 2),
        "torch": ("program and machine", "2.13.0", "2.14.0", 2),
    }
    assert [change.compared.is_identical for change in diff.cells] == [True, True]
    assert [change.name for change in diff.settings][:2] == ["factor", "yarn.beta_fast"], "in the order of the groups"


def test_tokens_are_compared_and_cells_of_one_run_counted(tmp_path):
    low, high = make_tokens(2.0), make_tokens(2.1, seed=1)
    a = make_run(tmp_path / "a", [ppl_cell("none", low), ppl_cell("yarn", low), ppl_cell("pi", low)])
    b = make_run(tmp_path / "b", [ppl_cell("none", high), ppl_cell("yarn", low), ppl_cell("none", low, 32)])
    diff = diff_runs(a, b)
    by_method = {change.a.pe: change.compared for change in diff.cells}
    assert set(by_method) == {"none", "yarn"}
    difference_S = high.nll_S.astype("f8") - low.nll_S.astype("f8")
    none = by_method["none"]
    assert none.difference == pytest.approx(math.expm1(difference_S.mean()), rel=1e-9)
    assert none.largest == pytest.approx(np.abs(difference_S).max(), rel=1e-9)
    assert none.p == none.p_holm == sign_flip(difference_S.reshape(NUM_DOCUMENTS, TOKENS).sum(axis=1))
    assert none.low < none.difference < none.high
    assert (by_method["yarn"].is_identical, by_method["yarn"].p, none.is_identical) == (True, None, False)
    assert [record.pe for record in diff.only_a] == ["pi"]
    assert [(record.pe, record.length) for record in diff.only_b] == [("none", 32)]
    assert counts_text(diff).startswith("2 cells in both (1 ")


@pytest.mark.parametrize(("digests", "shared"), [(3, NUM_DOCUMENTS - 3), (100, 0)])
def test_other_documents_are_compared_as_far_as_both_have_them(digests, shared, tmp_path):
    a = make_run(tmp_path / "a", [ppl_cell("none", make_tokens(2.0))])
    b = make_run(tmp_path / "b", [ppl_cell("none", make_tokens(2.0, digests), params={"data_digest": "b" * 64})])
    (change,) = diff_runs(a, b).cells
    assert change.compared.shared == shared * TOKENS
    assert bool(change.compared.why_not) is (shared == 0)
    assert change.compared.only_a == (3 * TOKENS if shared else 0)
    assert (change.a.value, change.b.value) != (None, None)


def test_what_earlier_versions_stored_is_compared_where_the_text_is_the_same(tmp_path):
    nll = dataclasses.replace(make_tokens(2.0), windows_W=None)
    a = make_run(tmp_path / "a", [ppl_cell("none", nll)])
    same = make_run(tmp_path / "same", [ppl_cell("none", nll, dtype="bfloat16")])
    other = make_run(tmp_path / "other", [ppl_cell("none", nll, params={"data_digest": "b" * 64})])
    assert diff_runs(a, same).cells[0].compared.is_identical
    assert diff_runs(a, other).cells[0].compared.why_not


def test_of_several_cells_those_with_the_same_settings_belong_together(tmp_path):
    cells = [ppl_cell("yarn", make_tokens(2.0, seed=seed), params={"stride": seed}) for seed in (1, 2, 3)]
    a = make_run(tmp_path / "a", cells)
    b = make_run(tmp_path / "b", [*cells[1:], ppl_cell("yarn", make_tokens(3.0), params={"stride": 9}, model="new")])
    diff = diff_runs(a, b)
    strides = [(change.a.params["stride"], change.b.params["stride"]) for change in diff.cells]
    assert sorted(strides) == [(1, 9), (2, 2), (3, 3)]
    assert sorted(change.tells for change in diff.cells) == ["stride=1", "stride=2", "stride=3"]


def test_scores_are_compared_on_the_same_samples(tmp_path):
    def run(name, values, **params):
        samples = make_samples(values)
        return make_task_run(tmp_path / name, [(make_task_records("none", 64, "passkey", samples, **params), samples)])

    a, b = run("a", [1.0] * 4 + [0.0] * 16), run("b", [1.0] * 10 + [0.0] * 14, params={"task_version": "2"})
    diff = diff_runs(a, b)
    (change,) = diff.cells
    assert change.compared.difference == pytest.approx(6 / 20)
    assert change.compared.p == pytest.approx(2 / 2**6)
    assert (change.compared.shared, change.compared.only_a, change.compared.only_b) == (20, 0, 4)
    assert change.compared.num_different == 6
    assert settings_of(diff)["task_version"] == ("what was asked", "1", "2", 1)


def test_json_and_markdown_of_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_run("a", [ppl_cell("none", make_tokens(2.0)), ppl_cell("yarn", make_tokens(2.5))])
    make_run("b", [ppl_cell("none", make_tokens(2.1, seed=1), dtype="bfloat16")])
    assert run_app(["diff", "a", "b", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"runs", "settings", "cells", "only_a", "only_b"}
    assert found["runs"] == ["a", "b"] and len(found["only_a"]) == 1 and found["only_b"] == []
    expected = {"group": "computation", "name": "dtype", "a": "float32", "b": "bfloat16", "cells": 1}
    assert found["settings"] == [expected]
    assert list(found["cells"][0]) == CELL_KEYS
    assert run_app(["diff", "a", "b", "--out", "d.md"]) == 0
    shown = capsys.readouterr().out
    assert "bfloat16" in shown and "1 cell in both; 1 only in A" in shown
    text = Path("d.md").read_text()
    assert "| dtype" in text and "`longeval diff a b --out d.md`" in text
    assert run_app(["diff", "a", "a"]) == 0
    assert "No setting differs" in capsys.readouterr().out


CELL_KEYS = [
    "pe", "length", "data", "task", "protocol", "metric", "cell_a", "cell_b", "status_a", "status_b", "value_a",
    "value_b", "kind", "difference", "low", "high", "stderr", "p", "p_holm", "shared", "only_a", "only_b",
    "num_different", "largest", "why_not", "identical",
]  # fmt: skip


def test_everything_is_shown_in_80_columns(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    make_run("a", [ppl_cell("resonance_yarn", make_tokens(2.0), 4096), ppl_cell("none", make_tokens(2.0))])
    other = make_tokens(2.1, seed=1)
    make_run("b", [ppl_cell("resonance_yarn", other, 4096), ppl_cell("none", make_tokens(2.0))])
    assert run_app(["diff", "a", "b"]) == 0
    shown = capsys.readouterr().out
    (change, _) = diff_runs("a", "b").cells
    text, ends = change.compared.shown()
    table = [line for line in shown.splitlines() if line.startswith("│")]
    assert max(map(len, table)) <= 80 and "Left out" not in shown
    for part in ("resonance_yarn", "4k", text, ", ".join(ends), *change.compared.p_text().split(", "), "identical"):
        assert any(part in line for line in table), part


@pytest.mark.parametrize("flags", [[], ["--out", "d.txt"], ["--json", "no/such.json"]])
def test_what_cant_be_compared_is_refused(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_run("a", [ppl_cell("none", make_tokens(2.0))])
    make_run("b", [ppl_cell("yarn", make_tokens(2.0))])
    assert run_app(["diff", "a", "b" if not flags else "a", *flags]) == 2
    out, err = capsys.readouterr()
    assert out == "" and (flags or ("a has none" in err and "b has yarn" in err))
    assert run_app(["diff", "a", "missing"]) == 2
    assert "missing: not a run folder" in capsys.readouterr().err
    assert not Path("missing").exists() and not Path("d.txt").exists()


def test_runs_in_object_storage(s3_bucket, tmp_path, capsys):
    nll = make_tokens(2.0)
    store = Store(f"{s3_bucket}/run")
    store.write_text("spec.yaml", "model: toy\n")
    store.save(*ppl_cell("none", nll))
    local = make_run(tmp_path / "a", [ppl_cell("none", nll)])
    assert run_app(["diff", local, f"{s3_bucket}/run", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["cells"][0]["identical"] is True


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    save_tiny_llama(folder / "tiny", max_position_embeddings=128)
    (folder / "text.txt").write_text(make_text(900))
    return folder


def test_two_dtypes_of_a_real_model(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    for dtype in ("float32", "bfloat16"):
        words = "ppl --model tiny --pe none,yarn --factor 2 --lengths 64,128 --data text.txt -q"
        assert run_app(shlex.split(f"{words} --dtype {dtype} --out {dtype}")) == 0
    capsys.readouterr()
    diff = diff_runs("float32", "bfloat16")
    assert settings_of(diff)["dtype"] == ("computation", "float32", "bfloat16", 4)
    assert "weights" not in settings_of(diff) and "tokenizer" not in settings_of(diff)
    assert len(diff.cells) == 4
    for change in diff.cells:
        nll_a, nll_b = Store("float32").nll(change.a.cell), Store("bfloat16").nll(change.b.cell)
        assert change.compared.largest == np.abs(nll_a.nll_S.astype("f8") - nll_b.nll_S).max()
        assert 1e-4 < change.compared.largest < 1.0
        assert change.compared.difference == pytest.approx(change.b.value / change.a.value - 1, abs=1e-6)


def test_two_seeds_of_a_task(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    for seed in (0, 1):
        words = "tasks --model tiny --tasks passkey --lengths 640 --limit 2 --max-new-tokens 2 --dtype float32 -q"
        assert run_app(shlex.split(f"{words} --seed {seed} --out seed{seed}")) == 0
    capsys.readouterr()
    diff = diff_runs("seed0", "seed1")
    (change,) = diff.cells
    assert settings_of(diff)["seed"] == ("what was asked", 0, 1, 1)
    assert change.compared.why_not == "no sample had the same prompt in both"
    (same,) = diff_runs("seed0", "seed0").cells
    assert (same.compared.shared, same.compared.num_different, same.compared.difference) == (2, 0, 0.0)


def test_it_imports_no_engine(tmp_path):
    run = make_run(tmp_path / "a", [ppl_cell("none", make_tokens(2.0))])
    code = (
        "import sys; from longeval.cli.app import run_app\n"
        "assert run_app(['diff', sys.argv[1], sys.argv[1]]) == 0\n"
        "print(*{'torch', 'transformers', 'matplotlib', 'scipy', 'pandas'} & {*sys.modules})"
    )
    answer = subprocess.run([sys.executable, "-c", code, run], capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines()[-1] == ""
