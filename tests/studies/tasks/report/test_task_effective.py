"""Effective lengths by tasks in a report: base scores, RULER's bar, averages, guessing, failed cells."""

import pytest
from records import (
    make_failed_task,
    make_group,
    make_samples,
    make_task_records,
    make_task_run,
    without_figures,
    write_report,
)

from longeval.report.collect import collect
from longeval.report.document import without_style
from longeval.studies.tasks.report.effective import effective_scores, opening
from longeval.studies.tasks.report.tables import build_task_sets


def cell(pe, length, share, *, task="topics", num=40, **changes):
    """A cell in which the first samples are right, up to `share` of them."""
    samples = make_samples([float(index < share * num) for index in range(num)], **changes)
    return make_task_records(pe, length, task, samples), samples


def scores_of(tmp_path, cells):
    collection = collect([make_task_run(tmp_path / "run", cells)])
    (tasks,) = build_task_sets(collection.current)
    return {(score.table.task, score.row.pe): score for score in effective_scores(tasks, collection)}


def curve(pe, shares, lengths=(512, 1024, 2048, 4096), **changes):
    return [cell(pe, length, share, **changes) for length, share in zip(lengths, shares, strict=True)]


def test_85_percent_of_the_best_score_up_to_1k(tmp_path):
    score = scores_of(tmp_path, curve("none", [0.975, 1.0, 0.85, 0.3]))["topics", "none"]
    assert (score.base, score.base_lengths, score.kept.length) == (1.0, (512, 1024), 2048)
    assert score.kept.ends.low <= 2048 == score.kept.ends.high
    assert (score.bar, score.samples, score.why) == (None, 40, "")


def test_without_short_lengths_the_shortest_is_the_base(tmp_path):
    score = scores_of(tmp_path, curve("none", [0.5, 0.9, 0.9], lengths=(4096, 8192, 16384)))["topics", "none"]
    assert (score.base, score.base_lengths, score.kept.length) == (0.5, (4096,), 16384)


def test_even_the_shortest_fails(tmp_path):
    score = scores_of(tmp_path, curve("none", [0.5, 1.0, 1.0, 1.0]))["topics", "none"]
    assert (score.base, score.kept.length) == (1.0, None)
    assert score.kept.ends.high is None


def test_rulers_bar_is_for_its_tasks_and_their_average(tmp_path):
    lengths = (1024, 2048, 4096)
    cells = curve("none", [1.0, 0.9, 0.8], lengths, task="ruler_vt")
    cells += curve("none", [1.0, 0.85, 0.2], lengths, task="ruler_cwe")
    cells += curve("none", [1.0, 1.0, 1.0], lengths)
    members = ["ruler_vt", "ruler_cwe"]
    cells += [(make_group("none", n, "ruler", members, v), None) for n, v in zip(lengths, (1, 0.875, 0.5), strict=True)]
    found = scores_of(tmp_path, cells)
    bars = {task: None if score.bar is None else score.bar.length for (task, _), score in found.items()}
    assert bars == {"ruler_vt": 2048, "ruler_cwe": 1024, "topics": None, "ruler": 2048}
    average = found["ruler", "none"]
    assert (average.kept.length, average.bar.ends.units, average.samples) == (2048, 80, 40)


def test_an_average_by_numbers_of_samples_has_no_interval(tmp_path):
    cells = curve("none", [1.0, 0.5], (1024, 2048))
    for length, value in ((1024, 1.0), (2048, 0.5)):
        (record,) = make_group("none", length, "suite", ["topics"], value)
        record.params["weight_by_size"] = True
        cells.append(([record], None))
    score = scores_of(tmp_path, cells)["suite", "none"]
    assert (score.kept.length, score.kept.ends) == (1024, None)


def test_a_base_score_of_guessing_says_nothing(tmp_path):
    guess = curve("none", [0.25, 0.25], (1024, 2048), task="quality")  # a choice of four
    score = scores_of(tmp_path, [*guess, *curve("none", [0.0, 0.0], (1024, 2048))])
    assert score["quality", "none"].kept is None
    assert score["topics", "none"].kept is None
    assert score["quality", "none"].why


@pytest.mark.parametrize(
    ("failing", "length", "judged"), [(4096, 2048, (1024, 2048)), (1024, None, None), (2048, None, None)]
)
def test_a_failed_cell_ends_what_is_judged(tmp_path, failing, length, judged):
    cells = [
        (make_failed_task("none", n, "topics"), None) if n == failing else cell("none", n, 0.9)
        for n in (1024, 2048, 4096)
    ]
    score = scores_of(tmp_path, cells)["topics", "none"]
    assert score.why
    if judged is None:
        assert score.kept is None
    else:
        assert (score.kept.length, score.kept.lengths) == (length, judged)


def test_lengths_are_compared_on_samples_that_all_have(tmp_path):
    """Windows of 1k can't hold the hard second half of the samples."""
    short = make_samples([1.0] * 20)
    long = make_samples([1.0] * 20 + [0.0] * 20)
    cells = [(make_task_records("none", 1024, "topics", short), short)]
    cells.append((make_task_records("none", 2048, "topics", long), long))
    score = scores_of(tmp_path, cells)["topics", "none"]
    assert (score.kept.length, score.samples) == (2048, 20)


def test_the_report_opens_with_effective_lengths(tmp_path, monkeypatch):
    without_figures(monkeypatch)
    run = make_task_run(tmp_path / "run", curve("none", [1.0, 1.0, 0.3], (1024, 2048, 4096), num=100))
    write_report([run], out=str(tmp_path / "report.md"))
    text = (tmp_path / "report.md").read_text()
    assert text.index("## Effective length") < text.index("### topics: accuracy")
    assert "2k [2k, 2k]" in text


def test_models_share_a_table(tmp_path):
    cells = []
    for model, shares in {"first": (1.0, 0.2), "second": (1.0, 1.0)}.items():
        for length, share in zip((1024, 2048), shares, strict=True):
            samples = make_samples([float(index < share * 40) for index in range(40)])
            cells.append((make_task_records("none", length, "topics", samples, model=model), samples))
    (section,) = opening(collect([make_task_run(tmp_path / "run", cells)]))
    shown = [[without_style(one.text) for one in row.cells] for row in section.paper[0].rows]
    assert [(row[0], row[1], row[-1]) for row in shown] == [("first", "topics", "1k"), ("second", "topics", "≥ 2k")]
    assert [row["model"] for row in section.data[0].rows] == ["first", "second"]
