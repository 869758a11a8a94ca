"""The Python interface: requests as functions, results as data frames."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import longeval
from longeval.errors import LongEvalError

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
EXAMPLE = re.search(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def measured(tiny_llama, tmp_path_factory):
    """A run of two methods at two lengths on two data sets, one of which has no document of the longer length."""
    folder = tmp_path_factory.mktemp("results")
    for name, words in (("a.txt", 100), ("b.txt", 400)):
        (folder / name).write_text(" ".join(f"w{number % 90}" for number in range(words)))
    return longeval.ppl(
        model=str(tiny_llama),
        pe=["none", "yarn"],
        lengths=["64", 1024],
        data=[str(folder / "a.txt"), str(folder / "b.txt")],
        dtype="float32",
        out=str(folder / "run"),
        quiet=True,
    )


def test_a_frame_has_a_row_for_each_record(measured):
    frame = measured.frame
    assert list(frame.pe.unique()) == ["none", "yarn"] and set(frame.length) == {64, 1024}
    assert set(frame[frame.status == "ok"].metric) == {"perplexity", "bits_per_byte"}
    skipped = frame.query("status == 'skipped'")
    assert list(skipped.length) == [64, 1024] * 2 and skipped.data.str.endswith("a.txt").all()
    assert frame["params.method.beta_fast"].dropna().unique().tolist() == [32]
    assert len(frame) == len(measured.records) and list(frame.cell) == [record.cell for record in measured.records]


def test_the_perplexity_is_the_exponential_of_the_mean_token_value(measured):
    row = measured.frame.query("status == 'ok' and length == 1024 and metric == 'perplexity' and pe == 'yarn'").iloc[0]
    nll = measured.nll(row.cell)
    assert list(nll.columns) == ["document", "window", "position", "nll"] and len(nll) == row.tokens
    assert np.exp(nll.nll.astype("float64").mean()) == pytest.approx(row.value, rel=1e-6)
    assert list(nll.position) == list(range(1024 - len(nll), 1024)) and set(nll.document) == {"b.txt"}


def test_what_has_no_token_values_is_named(measured):
    skipped = measured.frame.query("status == 'skipped'").cell.iloc[0]
    for values in (measured.nll, measured.samples):
        with pytest.raises(LongEvalError, match=skipped):
            values(skipped)


def test_a_folder_is_loaded_as_it_was_made(measured):
    pd.testing.assert_frame_equal(longeval.load(measured.path).frame, measured.frame)


def test_results_of_a_request_are_its_own_cells_alone(measured):
    frame = measured.frame
    model, data = frame.model.iloc[0], frame.data.iloc[-1]
    other = longeval.ppl(
        model=model, pe="pi", lengths=64, factor=2, data=data, dtype="float32", out=measured.path, quiet=True
    )
    assert set(other.frame.pe) == {"pi"} and set(other.frame.factor) == {2}
    assert set(longeval.load(measured.path).frame.pe) == {"none", "yarn", "pi"}
    assert set(measured.frame.pe) == {"none", "yarn"}


def test_a_report_is_written_where_it_is_asked_for(measured, tmp_path):
    path = measured.report(str(tmp_path / "out.md"))
    assert path == str(tmp_path / "out.md") and "yarn" in Path(path).read_text()
    assert {".csv", ".json", ".tex", ".md"} <= {os.path.splitext(name)[1] for name in os.listdir(tmp_path)}


def test_a_notebook_shows_a_table_and_a_figure(measured):
    shown = measured._repr_html_()
    assert shown.count("<table") == 1 and "<img" in shown
    row = measured.frame.query("status == 'ok' and length == 64 and metric == 'perplexity' and pe == 'none'").iloc[0]
    assert f"{row.value:.4g}" in shown and "<th>yarn</th>" in shown
    assert repr(measured) == f"Results({measured.path!r}: 8 cells, 0 failed)"


def test_a_notebook_never_averages_cells_that_differ(tiny_llama, measured):
    data = measured.frame.data.iloc[-1]
    folder = f"{measured.path}-both"
    for protocol, stride in (("prefix", None), ("sliding", 32), ("sliding", 48)):
        settings = {"protocol": protocol, "stride": stride, "out": folder, "quiet": True}
        longeval.ppl(model=str(tiny_llama), pe="none", lengths=64, data=data, **settings)
    results = longeval.load(folder)
    values = results.frame.query("metric == 'perplexity'").value
    shown = results._repr_html_()
    assert len(values) == values.nunique() == 3
    assert all(f"{value:.4g}" in shown for value in values)
    assert "sliding" in shown and "params.stride" in shown


def test_tasks_have_samples_and_posgen_a_report_of_its_own(tmp_path, monkeypatch):
    golden = Path(__file__).parent / "golden"
    monkeypatch.chdir(golden)  # the task's data lie there
    answers = longeval.tasks(
        model=str(golden / "model"),
        pe="none",
        tasks=str(golden / "tasks" / "answer.yaml"),
        lengths=96,
        limit=3,
        dtype="float32",
        out=str(tmp_path / "tasks"),
        quiet=True,
    )
    row = answers.frame.iloc[0]
    samples = answers.samples(row.cell)
    assert (row.metric, len(samples)) == ("exact_match", 3)
    assert samples["scores.exact_match"].mean() == row.value
    small = {"num_train": 8, "num_valid": 4, "num_test": 4, "length": 16, "test_length": 24, "batch_size": 4}
    model = {"layers": 1, "d_model": 16, "d_ff": 16, "heads": 1, "head_dim": 16}
    trained = longeval.posgen(
        task="cot", pe="none", seeds=2, epochs=1, **small, **model, out=str(tmp_path / "posgen"), quiet=True
    )
    assert set(trained.frame["params.seed"]) == {0, 1}
    shown = trained._repr_html_()
    assert "params.seed" in shown and "<img" in shown
    assert Path(trained.report()) == tmp_path / "posgen" / "posgen.md"


@pytest.mark.parametrize(("change", "named"), [({"pe": "yearn"}, "--pe yearn"), ({"widths": 3}, "widths")])
def test_a_wrong_request_computes_and_writes_nothing(tiny_llama, tmp_path, change, named):
    request = {"model": str(tiny_llama), "pe": "yarn", "lengths": "64", "out": str(tmp_path / "run"), "quiet": True}
    with pytest.raises(LongEvalError, match=named):
        longeval.ppl(**request | change)
    with pytest.raises(LongEvalError, match=request["out"]):
        longeval.load(request["out"])
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_example_of_the_readme_runs(user_cache, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert EXAMPLE is not None
    names: dict[str, object] = {}
    exec(EXAMPLE[1], names)  # the project's own page
    results = names["results"]
    assert isinstance(results, longeval.Results)
    assert len(results.frame) == 8 and set(results.frame.status) == {"ok"}
    assert "perplexity" in capsys.readouterr().out and (tmp_path / "report.md").exists()
