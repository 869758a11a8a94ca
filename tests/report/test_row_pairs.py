"""`longeval report --pairs`: which rows are compared, the numbers, and the correction."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from records import (
    csv_rows,
    make_nll,
    make_records,
    make_run,
    make_samples,
    make_task_records,
    make_task_run,
    table_under,
    without_figures,
    write_report,
)

from longeval.errors import LongEvalError
from longeval.report import plots
from longeval.report.charts import Mark
from longeval.report.compare import compare, corrected
from longeval.stats.significance import sign_flip

NUM_DOCUMENTS, TOKENS = 24, 40


def make_tokens(seed, shift=0.0, digests=0, **options):
    """NLLs of documents of equal length; `digests`: the number of the first window's digest."""
    common_WS = 2.0 + np.random.default_rng(0).random((NUM_DOCUMENTS, TOKENS))
    own_WS = np.random.default_rng(seed).normal(shift, 0.1, size=(NUM_DOCUMENTS, TOKENS))
    nll = make_nll(list(common_WS + own_WS), **options)
    return dataclasses.replace(nll, windows_W=np.arange(digests, digests + NUM_DOCUMENTS, dtype=np.uint64))


def ppl_cell(pe, nll, length=64, **changes):
    return make_records(pe, length, nll, **changes), nll


def report(cells, pairs, tmp_path, monkeypatch, make=make_run):
    """Rows of the joint tables and of compared.csv."""
    without_figures(monkeypatch)
    run = make(tmp_path / "run", cells)
    write_report([run], out=str(tmp_path / "r.md"), pairs=pairs.split(","))
    text = Path(tmp_path, "r.md").read_text()
    return text, csv_rows(tmp_path / "r_files" / "compared.csv")


def bootstrap_ends(a_WS, b_WS, resamples, seed):
    """The interval of the relative difference by its definition: documents drawn with replacement."""
    random = np.random.default_rng(seed)
    draws = random.integers(len(a_WS), size=(resamples, len(a_WS)))
    ratios = [math.exp(b_WS[draw].mean() - a_WS[draw].mean()) - 1 for draw in draws]
    return np.quantile(ratios, [0.025, 0.975])


def test_numbers_of_a_pair_are_those_of_a_direct_computation(tmp_path, monkeypatch):
    a, b = make_tokens(1), make_tokens(2, 0.02)
    _, (row,) = report([ppl_cell("none", a), ppl_cell("yarn", b)], "none:yarn", tmp_path, monkeypatch)
    a_WS, b_WS = (nll.nll_S.astype(np.float64).reshape(NUM_DOCUMENTS, TOKENS) for nll in (a, b))
    assert float(row["difference"]) == pytest.approx(math.expm1(b_WS.mean() - a_WS.mean()), rel=1e-9)
    low, high = bootstrap_ends(a_WS, b_WS, 200, 0)  # made-up records say 200 resamples with seed 0
    assert [float(row["low"]), float(row["high"])] == pytest.approx([low, high], rel=1e-6)
    assert float(row["p"]) == sign_flip((b_WS - a_WS).sum(axis=1))
    assert row["p_holm"] == row["p"]
    assert float(row["largest"]) == pytest.approx(np.abs(b_WS - a_WS).max(), rel=1e-9)
    assert (row["shared"], row["only_a"], row["unit"]) == (str(a_WS.size), "0", "token")


def test_bold_is_what_holds_after_the_correction(tmp_path, monkeypatch):
    clear = make_tokens(2, 0.3)
    cells = [ppl_cell("none", make_tokens(1)), ppl_cell("yarn", clear), ppl_cell("pi", clear)]
    cells += [ppl_cell("ntk", make_tokens(6, 0.006)), ppl_cell("abf", make_tokens(7, -0.009))]
    text, rows = report(cells, "none:yarn,none:ntk,none:abf,yarn:pi", tmp_path, monkeypatch)
    p = {(row["a"], row["b"]): (row["p"], row["p_holm"]) for row in rows}
    weak = [float(p["none", method][0]) for method in ("ntk", "abf")]
    assert all(0.025 < one < 0.05 for one in weak), "each would be clear if it stood alone"
    assert float(p["none", "yarn"][1]) == pytest.approx(3 / 10_000)
    assert [float(p["none", method][1]) for method in ("ntk", "abf")] == pytest.approx([2 * min(weak)] * 2)
    assert p["yarn", "pi"] == ("", ""), "what is identical is not tested"
    assert "all 3 comparisons" in text
    _, shown = table_under(text, "## Pairs of rows compared")
    assert [name for name, *_ in shown] == ["`yarn` vs `none`", "`ntk` vs `none`", "`abf` vs `none`", "`pi` vs `yarn`"]
    assert "identical" in shown[3][1]
    assert [cell.startswith("**") for _, cell in shown] == [True, False, False, False]
    assert "Resonance against its base" not in text


def test_a_correction_takes_what_chance_explains():
    found = []
    for seed in range(40):
        a, b = make_tokens(100 + seed), make_tokens(500 + seed)
        records = [make_records(pe, 64, nll)[0] for pe, nll in (("none", a), ("yarn", b))]
        found.append(compare(*records, a, b))
    assert any(one.p < 0.05 for one in found) and not any(one.is_clear for one in corrected(found))


def test_two_models_with_the_same_tokens_are_paired_and_others_are_not(tmp_path, monkeypatch):
    cells = [ppl_cell("yarn", make_tokens(1), model="org/small"), ppl_cell("none", make_tokens(5), model="org/small")]
    renamed = make_tokens(2, 0.1, names=tuple(f"elsewhere/{number}" for number in range(NUM_DOCUMENTS)))
    cells.append(ppl_cell("yarn", renamed, model="org/x:large@v2", params={"weights": "a" * 64}))
    cells.append(ppl_cell("yarn", make_tokens(3, digests=900), model="other", params={"tokenizer": "a" * 64}))
    pairs = "org/small/yarn:org/x:large@v2/yarn,small/yarn:other/yarn,small/none:yarn"
    text, rows = report(cells, pairs, tmp_path, monkeypatch)
    assert [(row["a"], row["b"]) for row in rows] == [
        ("org/small/yarn", "org/x:large@v2/yarn"),
        ("org/small/yarn", "other/yarn"),
        ("org/small/none", "org/small/yarn"),
    ]
    assert float(rows[0]["difference"]) == pytest.approx(math.expm1(0.1), abs=0.02)
    assert rows[1]["difference"] == "" and "tokenizer" in rows[1]["why_not"]
    assert "† not paired, no window has the same tokens" in text


def test_parts_that_both_have_are_compared(tmp_path, monkeypatch):
    a = make_tokens(1)
    cells = [ppl_cell("yarn", a, model="a"), ppl_cell("yarn", make_tokens(2, digests=4), model="b")]
    _, (row,) = report(cells, "a/yarn:b/yarn", tmp_path, monkeypatch)
    shared = (NUM_DOCUMENTS - 4) * TOKENS
    assert (row["shared"], row["only_a"], row["only_b"]) == (str(shared), str(4 * TOKENS), str(4 * TOKENS))
    of_a = a.nll_S.reshape(NUM_DOCUMENTS, TOKENS)[4:].astype(np.float64)
    of_b = make_tokens(2).nll_S.reshape(NUM_DOCUMENTS, TOKENS)[:-4].astype(np.float64)
    assert float(row["difference"]) == pytest.approx(math.expm1(of_b.mean() - of_a.mean()), rel=1e-9)


def test_backends_and_dtypes_stand_behind_an_at(tmp_path, monkeypatch):
    cells = [ppl_cell("none", make_tokens(1)), ppl_cell("none", make_tokens(2), dtype="bfloat16")]
    cells.append(ppl_cell("none", make_tokens(3), backend="vllm"))
    _, rows = report(cells, "none@float32:none@bfloat16,none@hf:none@vllm", tmp_path, monkeypatch)
    assert {(row["a"], row["b"]) for row in rows} == {
        ("none@float32", "none@bfloat16"),
        ("none@hf", "none@vllm"),
    }


def test_rows_of_several_factors_are_named_as_tables_name_them(tmp_path, monkeypatch):
    cells = [ppl_cell("none", make_tokens(1))]
    for factor in (2.0, 4.0):
        cells += [ppl_cell(pe, make_tokens(int(factor)), factor=factor) for pe in ("yarn", "ntk")]
    _, rows = report(cells, "none:yarn,yarn:ntk,yarn s=2:ntk s=4", tmp_path, monkeypatch)
    assert [(row["a"], row["b"]) for row in rows] == [
        ("none", "yarn s=2"),
        ("none", "yarn s=4"),
        ("yarn s=2", "ntk s=2"),
        ("yarn s=4", "ntk s=4"),
        ("yarn s=2", "ntk s=4"),
    ]


def test_tasks_are_compared_on_the_same_samples(tmp_path, monkeypatch):
    values = {"none": [1.0] * 2 + [0.0] * 18, "yarn": [1.0] * 14 + [0.0] * 6}
    graded = {"none": np.linspace(0, 0.5, 20), "yarn": np.linspace(0, 0.5, 20) + 0.1 * np.arange(20) % 0.3}
    cells = []
    for pe in values:
        for task, found in (("passkey", values[pe]), ("grades", graded[pe])):
            samples = make_samples(list(found))
            cells.append((make_task_records(pe, 64, task, samples), samples))
    _, rows = report(cells, "none:yarn", tmp_path, monkeypatch, make=make_task_run)
    right, grades = rows
    assert float(right["difference"]) == pytest.approx(0.6) and right["num_different"] == "12"
    assert float(right["p"]) == pytest.approx(2 / 2**12)
    difference_N = graded["yarn"] - graded["none"]
    assert float(grades["difference"]) == pytest.approx(difference_N.mean())
    assert float(grades["p"]) == pytest.approx(sign_flip(difference_N), abs=1e-3)
    assert [float(row["p_holm"]) for row in rows] == pytest.approx(
        [2 * float(right["p"]), max(2 * float(right["p"]), float(grades["p"]))], abs=1e-4
    ) or float(right["p"]) > float(grades["p"])


def charts_of(cells, pairs, tmp_path, monkeypatch, make=make_run):
    """The charts of the joint tables, and the rows of compared.csv."""
    charts = []
    _, rows = report(cells, pairs, tmp_path, monkeypatch, make=make)
    monkeypatch.setattr(plots, "draw", lambda chart: charts.append(chart) or plots.Picture(png=b"", svg=b"", pdf=b""))
    written = write_report([str(tmp_path / "run")], out=str(tmp_path / "r.md"), pairs=pairs.split(","))
    assert sum("/compared-" in path and path.endswith(".png") for path in written.files)
    return [chart for chart in charts if any(mark.label == "" for mark in chart.panels[0].marks)], rows


def test_the_figure_shows_the_numbers_of_the_table_by_length(tmp_path, monkeypatch):
    cells = [ppl_cell("none", make_tokens(1), n) for n in (64, 128)]
    cells += [ppl_cell(pe, make_tokens(2, 0.02 * n / 64), n) for pe in ("yarn", "resonance_yarn") for n in (64, 128)]
    cells.append(ppl_cell("pi", make_tokens(3), 128))
    (chart,), rows = charts_of(cells, "none:yarn,none:resonance_yarn,none:pi", tmp_path, monkeypatch)
    (panel,) = chart.panels
    assert [line.label for line in panel.lines] == ["yarn vs none", "resonance_yarn vs none", "pi vs none"]
    numbers = {(f"{row['b']} vs {row['a']}", row["length"]): row for row in rows}
    for line in panel.lines:
        lengths = ["64", "128"][-len(line.x) :]
        for end, name in ((line.y, "difference"), (line.low, "low"), (line.high, "high")):
            assert end == pytest.approx([100 * float(numbers[line.label, n][name]) for n in lengths])
        assert [round(x / 64) * 64 for x in line.x] == list(map(int, lengths))
    first, second, _ = panel.lines
    assert first.x[0] < second.x[0], "bars don't hide one another"
    assert first.style.colour != second.style.colour and second.style.dash == "dashed"
    assert first.places == ("64", "128") and first.notes[0].startswith("960 tokens, p ")
    assert panel.marks == (Mark(axis="y", at=0, label=""),)
    assert panel.y.span[0] < 0 < max(first.high) < panel.y.span[1]


def test_changes_of_several_decades_are_ratios_on_a_logarithmic_axis(tmp_path, monkeypatch):
    shifts = {("yarn", 64): 1.0, ("yarn", 128): 4.0}
    cells = [ppl_cell("none", make_tokens(1), n) for n in (64, 128)]
    cells += [ppl_cell(pe, make_tokens(2, shift), n) for (pe, n), shift in shifts.items()]
    (chart,), rows = charts_of(cells, "none:yarn", tmp_path, monkeypatch)
    (panel,) = chart.panels
    assert (panel.y.scale, panel.marks) == ("log", (Mark(axis="y", at=1, label=""),))
    assert panel.lines[0].y == pytest.approx([1 + float(row["difference"]) for row in rows])
    assert (1, "× 1") in panel.y.ticks and panel.y.span[0] < 1, "where nothing changes is shown too"


def test_scores_of_one_length_are_drawn_beside_one_another_and_what_is_not_compared_is_not(tmp_path, monkeypatch):
    values = {"none": [0.0] * 20, "yarn": [1.0] * 14 + [0.0] * 6, "pi": [1.0] * 4 + [0.0] * 16, "ntk": None}
    cells = []
    for pe, found in values.items():
        samples = make_samples(found or [1.0] * 20, **({} if found else {"prompt_digest": "other"}))
        cells.append((make_task_records(pe, 64, "passkey", samples), samples))
    (chart,), _ = charts_of(cells, "none:yarn,none:pi,none:ntk", tmp_path, monkeypatch, make=make_task_run)
    (panel,) = chart.panels
    assert [(line.label, line.y) for line in panel.lines] == [
        ("yarn vs none", (pytest.approx(0.7),)),
        ("pi vs none", (pytest.approx(0.2),)),
    ]
    (left,), (right,) = (line.x for line in panel.lines)
    assert panel.x.span[0] < left < right < panel.x.span[1]


@pytest.mark.parametrize("pairs", ["none:ntk", "none", "none:", "none:none", "other/none:toy/yarn", "none@vllm:yarn"])
def test_a_pair_that_isnt_there_is_refused(pairs, tmp_path, monkeypatch):
    cells = [ppl_cell("none", make_tokens(1)), ppl_cell("yarn", make_tokens(2))]
    with pytest.raises(LongEvalError, match="none, yarn") as refused:
        report(cells, pairs, tmp_path, monkeypatch)
    assert pairs in str(refused.value) and not (tmp_path / "r.md").exists()
