"""The report of trainings, on made-up cells whose perplexities and changes are known in closed form."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from finetune_records import make_finetune_run, make_losses, make_training, measured_after, measured_before
from markdown_it import MarkdownIt
from records import csv_rows, make_nll, table_under, without_figures

from longeval.cli.run import _show_summaries
from longeval.report import build
from longeval.report.charts import Mark
from longeval.report.collect import collect
from longeval.report.tables import MISSING
from longeval.run.study import find_study
from longeval.store.losses import LOSSES
from longeval.store.nll import NLL
from longeval.studies.finetune.report import REPORT, sections, summary
from longeval.studies.finetune.report.changes import TokenValues, change
from longeval.studies.finetune.report.figures import length_figure, loss_figure
from longeval.studies.finetune.report.trainings import evaluations, training_sets
from longeval.studies.ppl.report import REPORT as PPL_REPORT

LENGTHS = (64, 128)
NONE = {64: 2.0, 128: 5.0}
BEFORE = {"yarn": {64: 2.25, 128: 2.75}, "resonance_yarn": {64: 2.25, 128: 2.5}}
AFTER = {"yarn": {64: 2.125, 128: 2.25}, "resonance_yarn": {64: 2.125, 128: 2.125}}
"""Mean NLLs by length, which float32 holds exactly."""


def flat(mean, length):
    """Ten documents, each token with this NLL: intervals have no width."""
    return make_nll([[mean] * (length - 1)] * 10)


def cell(records, nll):
    return records, nll


def base_cells(means=NONE, methods=BEFORE, **changes):
    found = [cell(measured_before("none", n, nll := flat(mean, n), **changes), nll) for n, mean in means.items()]
    for pe, by_length in methods.items():
        found += [cell(measured_before(pe, n, nll := flat(mean, n), **changes), nll) for n, mean in by_length.items()]
    return found


def trained_cells(pe, means, *, losses=(3.0, 2.0), shift=0.0, measured=LENGTHS, **changes):
    """A training and the cells that measured its model, each NLL higher by `shift`."""
    given = make_losses(losses)
    training = make_training(pe, given, **changes)
    found = [cell(training, given)]
    for n in measured:
        nll = flat(means[n] + shift, n)
        found.append(cell(measured_after(training[0], n, nll, folder=f"runs/{changes.get('model', 'toy')}"), nll))
    return found


def usual_cells():
    return base_cells() + [one for pe, means in AFTER.items() for one in trained_cells(pe, means)]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    without_figures(monkeypatch)


def written(tmp_path, cells, **options):
    run = make_finetune_run(tmp_path / "run", cells)
    build.write_report([run], studies=[REPORT, PPL_REPORT], **options)
    return (tmp_path / "run" / "report.md").read_text(encoding="utf-8"), tmp_path / "run" / "report_files"


def percent(difference):
    """How a report writes the change of perplexity for a difference of mean NLLs."""
    value = 100 * math.expm1(difference)
    text = f"{abs(value):.1f}" if abs(value) >= 10 else f"{abs(value):.2f}"
    return f"{'+' if value > 0 else '−'}{text}%"


def plain(text):
    return text.replace("\\", "").replace("**", "")


def test_perplexities_stand_by_method_before_and_after(tmp_path):
    text, _ = written(tmp_path, usual_cells())
    header, rows = table_under(text, "### Before and after on `texts`, prefix")
    assert [title.strip() for title in header] == ["model", "method", "s", "64", "128"]
    assert [row[:3] for row in rows] == [
        ["base", "`none`", "–"],
        ["before training", "`yarn`", "2"],
        ["trained", "`yarn`", "2"],
        ["before training", "`resonance_yarn`", "2"],
        ["trained", "`resonance_yarn`", "2"],
    ]
    expected = f"{math.exp(2.25):.3f} [{math.exp(2.25):.3f}, {math.exp(2.25):.3f}]"
    assert rows[2][4] == expected
    assert [row[4].startswith("**") for row in rows] == [False, False, False, False, True]  # the lowest of the length
    assert [row[3].startswith("**") for row in rows] == [True, False, False, False, False]


def test_changes_are_against_the_method_before_and_the_untouched_model(tmp_path):
    text, _ = written(tmp_path, usual_cells())
    _, rows = table_under(text, "What training changed:")
    assert [row[:2] for row in rows] == [
        ["`yarn`", "`yarn` before"],
        ["`yarn`", "base"],
        ["`resonance_yarn`", "`resonance_yarn` before"],
        ["`resonance_yarn`", "base"],
    ]
    expected = [2.25 - 2.75, 2.25 - 5.0, 2.125 - 2.5, 2.125 - 5.0]
    assert [row[4] for row in rows] == [f"**{(p := percent(one))}** [{p}, {p}]" for one in expected]


def test_resonance_is_compared_before_and_after_the_same_training(tmp_path):
    text, _ = written(tmp_path, usual_cells())
    _, rows = table_under(text, "### Resonance after the same training, on `texts`, prefix")
    assert [row[1] for row in rows] == ["before training", "trained"]
    assert [row[4] for row in rows] == [
        f"**{(p := percent(2.5 - 2.75))}** [{p}, {p}]",
        f"**{(p := percent(2.125 - 2.25))}** [{p}, {p}]",
    ]
    assert rows[1][3] == "0% [0%, 0%]"
    assert "One seed (0) of each" in text


def test_the_price_at_short_lengths_is_against_the_untouched_model(tmp_path):
    text, _ = written(tmp_path, usual_cells())
    price = text.split("### Short context on `texts`, prefix")[1].split("###")[0]
    p = percent(2.125 - 2.0)
    assert f"- `yarn`: {p} [{p}, {p}] at 64 (untrained: {percent(0.25)})." in plain(price)
    assert "128" not in price
    better = base_cells() + trained_cells("yarn", {64: 1.875, 128: 2.0})
    text, _ = written(tmp_path / "better", better)
    assert f"- `yarn`: {percent(-0.125)}" in plain(text)


def test_the_opening_says_what_was_trained_at_what_cost_and_what_came_of_it(tmp_path):
    text, _ = written(tmp_path, usual_cells())
    opening = text.split("## toy trained for 128 on texts\n\n")[1].split("\n\n###")[0]
    assert opening.startswith("2 trainings of `toy`, from its native 64 tokens to 128, on `texts`: `yarn`, ")
    assert "Each took 2 steps of 4 sequences of 128 tokens." in opening
    assert "Together they read 4,000 tokens in 8 s on cpu (test, 2 threads), with at most 3.00 GiB" in opening
    change = f"training took `yarn` from {math.exp(2.75):.2f} to {math.exp(2.25):.3f} ({percent(-0.5)} "
    assert change in plain(opening)
    assert f"the model as it was has {math.exp(5):.1f}." in opening


def seed_cells(shifts):
    """Two methods, whose seeds are shifted by (yarn, resonance_yarn)."""
    cells = base_cells()
    for seed, (of_base, of_resonance) in enumerate(shifts):
        cells += trained_cells("yarn", AFTER["yarn"], seed=seed, shift=of_base)
        cells += trained_cells("resonance_yarn", AFTER["yarn"], seed=seed, shift=of_resonance)
    return cells


def test_seeds_are_paired_and_their_range_stands_beside_the_interval(tmp_path):
    cells = seed_cells([(0.0, -0.25), (0.5, 0.375)])  # by seed −0.25 and −0.125
    text, _ = written(tmp_path, cells)
    _, rows = table_under(text, "### Resonance after the same training, on `texts`, prefix")
    assert rows[-1][1] == "trained, 2 seeds"
    p = percent(-0.1875)
    assert rows[-1][4] == f"**{p}** [{p}, {p}] (seeds {percent(-0.25)} to {percent(-0.125)})"
    _, rows = table_under(text, "### Before and after on `texts`, prefix")
    named = {row[0]: row for row in rows if row[1] == "`yarn`"}
    assert list(named) == ["before training", "trained, mean of 2 seeds", "trained, seed 0", "trained, seed 1"]
    mean = f"{math.exp(2.5):.2f}"
    expected = f"{mean} [{mean}, {mean}] (seeds {math.exp(2.25):.3f} to {math.exp(2.75):.2f})"
    assert named["trained, mean of 2 seeds"][4].replace("**", "") == expected
    assert "A difference that is smaller than the range between the seeds means nothing" in text


def test_a_difference_below_the_range_of_the_seeds_is_not_bold(tmp_path):
    text, _ = written(tmp_path, seed_cells([(0.0, -0.25), (0.0, 0.125)]))  # mean −0.0625, range 0.375
    _, rows = table_under(text, "### Resonance after the same training, on `texts`, prefix")
    p = percent(-0.0625)
    assert rows[-1][4].startswith(f"{p} [{p}, {p}] (seeds ")


def test_only_seeds_that_both_forms_have_are_paired(tmp_path):
    cells = seed_cells([(0.0, -0.25)]) + trained_cells("yarn", AFTER["yarn"], seed=1, shift=1.0)
    text, folder = written(tmp_path, cells)
    found = [row for row in csv_rows(folder / "trained_pairs.csv") if row["length"] == "128"]
    assert [row["seed"] for row in found] == ["0"]
    assert float(found[0]["ratio"]) == pytest.approx(math.expm1(-0.25))
    _, rows = table_under(text, "### Resonance after the same training, on `texts`, prefix")
    assert rows[-1][4].startswith(f"**{percent(-0.25)}**")


def test_forms_that_read_other_text_are_no_pair(tmp_path):
    other = trained_cells("resonance_yarn", AFTER["resonance_yarn"], params={"text_digest": "0" * 64})
    text, _ = written(tmp_path, base_cells() + trained_cells("yarn", AFTER["yarn"]) + other)
    assert "Resonance after the same training" not in text


def test_augmentations_are_rows_of_one_section_and_other_settings_another_section(tmp_path):
    cells = usual_cells() + trained_cells("yarn", {64: 2.0, 128: 2.0}, augment="pose", params={"window": 128})
    cells += trained_cells("yarn", {64: 2.0, 128: 2.0}, seed=7, params={"lr": 1e-4})
    collection = collect([make_finetune_run(tmp_path / "run", cells)])
    found = training_sets(collection.made_from(LOSSES))
    assert [one.differs for one in found] == ["lr 2e-05", "lr 0.0001"]
    names = [(variant.row.pe, variant.augment) for variant in found[0].variants]
    assert names == [("yarn", "no augmentation"), ("resonance_yarn", "no augmentation"), ("yarn", "PoSE")]


def test_models_are_found_by_their_weights_and_each_has_a_section(tmp_path):
    cells = usual_cells()
    other = {"model": "other", "params": {"weights": "1" * 64}}
    cells += base_cells(means={64: 3.0, 128: 3.0}, methods={}, **other)
    cells += trained_cells("yarn", {64: 2.5, 128: 2.5}, **other)
    collection = collect([make_finetune_run(tmp_path / "run", cells)])
    perplexities = [record for record in collection.made_from(NLL) if record.metric == "perplexity"]
    tokens = TokenValues(collection.nll)
    changes = {}
    for trained in training_sets(collection.made_from(LOSSES)):
        (evaluation,) = evaluations(trained, perplexities)
        changes[trained.model] = change(evaluation.untouched, evaluation.after[0], 128, tokens)
    assert changes["other"].ratio == pytest.approx(math.expm1(-0.5))
    assert changes["toy"].ratio == pytest.approx(math.expm1(2.25 - 5.0))


@pytest.mark.parametrize("params", [{"adapter": "sha256:1", "adapter_name": "lora"}, {"scale_from": "shipped"}])
def test_the_base_model_with_something_put_on_it_is_not_the_untouched_one(tmp_path, params):
    before, _ = written(tmp_path / "before", usual_cells())
    adapted = base_cells(means={64: 1.0, 128: 1.0}, methods={"yarn": {64: 1.0, 128: 1.0}}, params=params)
    after, _ = written(tmp_path / "after", usual_cells() + adapted)
    title = "### Before and after on `texts`, prefix"
    assert table_under(after, title) == table_under(before, title)


def test_a_change_without_stored_tokens_has_no_interval_and_is_not_clear(tmp_path):
    collection = collect([make_finetune_run(tmp_path / "run", usual_cells())])
    perplexities = [record for record in collection.made_from(NLL) if record.metric == "perplexity"]
    (trained,) = training_sets(collection.made_from(LOSSES))
    (evaluation,) = evaluations(trained, perplexities)
    found = change(evaluation.untouched, evaluation.after[0], 128, TokenValues(lambda cell: None))
    assert found.ratio == pytest.approx(math.expm1(-2.75))
    assert found.difference is None and not found.is_clear


def test_a_missing_measurement_is_named_and_leaves_the_others(tmp_path):
    cells = base_cells() + trained_cells("yarn", AFTER["yarn"])
    cells += trained_cells("resonance_yarn", AFTER["resonance_yarn"], measured=(64,))
    text, _ = written(tmp_path, cells)
    assert "> Not measured on `texts`, prefix: the model of `resonance_yarn` at 128." in text
    _, rows = table_under(text, "### Before and after on `texts`, prefix")
    assert rows[-1][3] != MISSING and rows[-1][4] == MISSING


def test_trainings_alone_have_a_report_that_says_how_to_measure(tmp_path):
    text, _ = written(tmp_path, trained_cells("yarn", AFTER["yarn"], measured=()))
    assert "> No trained model was measured. `longeval ppl --model RUN/models/yarn" in text
    _, rows = table_under(text, "### Loss")
    assert rows == [["`yarn`", "no augmentation", "0", "2", "3.000 → 2.000", "500", "`models/yarn`"]]
    _, rows = table_under(text, "### Cost")
    assert rows == [["`yarn`", "no augmentation", "0", "2,000", "4 s", "500", "3.00 GiB", "all 1,000,000"]]


def test_a_failed_training_says_why_and_is_not_missed_elsewhere(tmp_path):
    reason = "the loss was NaN at step 2 | of 2\n`oops`"
    cells = [*usual_cells(), cell(make_training("pi", error=reason), None)]
    text, _ = written(tmp_path, cells)
    assert "1 of them failed and left no model: the loss was NaN at step 2" in text
    assert "Not measured" not in text
    _, rows = table_under(text, "### Cost")
    assert rows[-1][0] == "`pi`" and rows[-1][3] == "failed"


def test_a_failed_measurement_says_why(tmp_path):
    cells = base_cells() + (trained := trained_cells("yarn", AFTER["yarn"], measured=(64,)))
    failed = measured_after(trained[0][0][0], 128, None, folder="runs/toy", status="failed", error="out of memory")
    text, _ = written(tmp_path, [*cells, cell(failed, None)])
    _, rows = table_under(text, "### Before and after on `texts`, prefix")
    assert [row[-1] for row in rows if row[0] == "trained"] == ["failed"]
    assert "- failed: trained yarn at 128: out of memory" in text


def test_measurements_of_other_documents_are_not_compared(tmp_path):
    cells = base_cells(params={"data_digest": "0" * 64}) + trained_cells("yarn", AFTER["yarn"])
    text, _ = written(tmp_path, cells)
    _, rows = table_under(text, "### Before and after on `texts`, prefix (data_digest dddddddd)".replace("_", "\\_"))
    assert [row[0] for row in rows] == ["trained"]
    assert "What training changed" not in text


def test_lora_and_weighted_losses_are_said(tmp_path):
    losses = make_losses((9.0, 8.0), plain=(3.0, 2.5))
    params = {"train": "lora", "lora_rank": 8, "lora_alpha": 16.0, "loss_name": "longce", "loss_args": {"context": 64}}
    text, folder = written(tmp_path, [cell(make_training("yarn", losses, params=params), losses)])
    assert "- Trained: a LoRA adapter, r 8, α 16." in text
    assert "10,000 of 1,000,000 (1%)" in text
    assert "3.000 → 2.500" in text
    assert "(LongCE, Fang et al. 2024); context 64." in text
    rows = csv_rows(folder / "losses.csv")
    assert [(row["step"], row["loss"], row["plain_loss"]) for row in rows] == [("1", "9.0", "3.0"), ("2", "8.0", "2.5")]


def test_data_files_hold_each_seed_and_the_mean(tmp_path):
    _, folder = written(tmp_path, seed_cells([(0.0, -0.25), (0.5, 0.375)]))
    rows = [row for row in csv_rows(folder / "before_after.csv") if row["length"] == "128" and row["pe"] == "yarn"]
    found = {(row["seed"], row["against"]): float(row["ratio"]) for row in rows}
    assert found == pytest.approx(
        {
            ("", "yarn"): math.expm1(2.5 - 2.75),
            ("", "none"): math.expm1(2.5 - 5),
            ("0", "yarn"): math.expm1(2.25 - 2.75),
            ("0", "none"): math.expm1(2.25 - 5),
            ("1", "yarn"): 0.0,
            ("1", "none"): math.expm1(2.75 - 5),
        },
        abs=1e-9,
    )


def test_the_other_studies_leave_trainings_out(tmp_path):
    collection = collect([make_finetune_run(tmp_path / "run", usual_cells())])
    assert len(sections(collection)) == 1
    titles = [section.title for section in PPL_REPORT.sections(collection)]
    assert titles == ["toy on texts, prefix", *(f"runs/toy/models/{pe} on texts, prefix" for pe in AFTER)]
    records = collection.records
    assert [len(REPORT.summary(records)), len(PPL_REPORT.summary(records))] == [2, 3]
    perplexities = [record for record in records if record.metric != "loss"]
    assert PPL_REPORT.summary(records) == PPL_REPORT.summary(perplexities)
    assert summary(perplexities) == []


def test_the_terminal_has_one_table_of_perplexities_unless_ppl_was_asked_for_too(tmp_path, capsys):
    records = collect([make_finetune_run(tmp_path / "run", usual_cells())]).records
    found = [("finetune" if record.metric == "loss" else "ppl", record) for record in records]
    studies = {name: find_study(name) for name in ("finetune", "ppl")}
    for asked, tables in ({"finetune"}, 1), ({"finetune", "ppl"}, 4):
        _show_summaries(studies, asked, found)
        shown = capsys.readouterr().out
        assert [shown.count("Trainings:"), shown.count("Perplexity")] == [1, tables]
        assert "models/yarn" in shown and "before training" in shown


def test_the_document_counts_trainings_and_names_those_that_are_missing(tmp_path):
    (asked,) = make_training("yarn", make_losses((1.0, 1.0)), augment="pose", seed=3)
    run = make_finetune_run(tmp_path / "run", usual_cells(), asked=[asked])
    build.write_report([run], studies=[REPORT])
    text = (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    assert "By kind: 2 trainings, 10 of perplexity." in text
    assert "Not finished: 1 of 13 cells has no record yet: yarn on texts, augmentation pose, seed 3." in plain(text)


HOSTILE = "<img src=x onerror=alert(1)>\n\n# heading\n```\nx|y`z` [l](javascript:1) $\\frac{$"


def test_text_from_outside_stays_text(tmp_path):
    names = {"model": HOSTILE, "data": HOSTILE}
    poison = dict.fromkeys(("packing", "schedule", "loss_name", "train", "text_digest", "saved_as"), HOSTILE)
    cells = base_cells(model=HOSTILE) + trained_cells("yarn", AFTER["yarn"], params=poison, **names)
    cells += [cell(make_training("yarn", augment=HOSTILE, error=HOSTILE, seed=1, params=poison, **names), None)]
    text, _ = written(tmp_path, cells)
    tokens = MarkdownIt("gfm-like", {"html": True, "linkify": False}).parse(text)
    inner = [child for token in tokens for child in token.children or ()]
    assert {token.type for token in (*tokens, *inner)} & {"html_inline", "html_block"} == set()
    links = [
        child.attrs.get("href") or child.attrs.get("src") for child in inner if child.type in ("link_open", "image")
    ]
    assert links and not any(link.startswith("javascript") for link in links)
    headings = [after.content for token, after in pairwise(tokens) if token.type == "heading_open"]
    assert "heading" not in headings and "Loss" in headings
    assert "onerror" in text
    tex = (tmp_path / "run" / "report.tex").read_text(encoding="utf-8")
    assert "\\frac" not in tex and "frac" in tex


# Figures.


def charts_of(tmp_path, cells):
    """The figure by length and the figure of losses of one set of trainings."""
    collection = collect([make_finetune_run(tmp_path / "run", cells)])
    (trained,) = training_sets(collection.made_from(LOSSES))
    perplexities = [record for record in collection.made_from(NLL) if record.metric == "perplexity"]
    (evaluation,) = evaluations(trained, perplexities)
    return length_figure(trained, evaluation, 64), loss_figure(
        trained, lambda cell: collection.stores[cell].losses(cell)
    )


def test_the_figure_shows_each_method_before_and_after(tmp_path):
    chart, _ = charts_of(tmp_path, usual_cells())
    (panel,) = chart.panels
    names = ["base", "yarn before", "resonance_yarn before", "yarn trained", "resonance_yarn trained"]
    lines = {line.label: line for line in panel.lines}
    assert list(lines) == names
    assert [lines[name].style.dash for name in names] == ["dashed"] * 3 + ["solid"] * 2
    means = [NONE, *BEFORE.values(), *AFTER.values()]
    for name, by_length in zip(names, means, strict=True):
        assert lines[name].y == pytest.approx([math.exp(by_length[n]) for n in LENGTHS])
        assert lines[name].interval == "hover" and lines[name].low == pytest.approx(lines[name].y)
    assert lines["base"].notes == ("10 documents, 630 tokens", "10 documents, 1,270 tokens")
    assert lines["yarn before"].style.width > lines["resonance_yarn before"].style.width
    assert panel.marks == (Mark(axis="x", at=64, label="native 64"),)
    highest, lowest = math.exp(2.75), math.exp(2.0)
    margin = 0.06 * (highest - lowest)
    assert panel.y.span == pytest.approx((lowest - margin, highest + margin)), "the base leaves the panel"


def test_over_seeds_a_line_is_the_mean_with_a_band(tmp_path):
    cells = base_cells() + trained_cells("yarn", AFTER["yarn"], losses=(3.0, 2.0), measured=(64, 128))
    cells += trained_cells("yarn", AFTER["yarn"], losses=(5.0, 1.0), seed=1, shift=0.25, measured=(64,))
    by_length, losses = charts_of(tmp_path, cells)
    line = next(line for line in by_length.panels[0].lines if line.label == "yarn trained")
    assert line.interval == "band"
    assert line.y == pytest.approx([math.exp(2.25), math.exp(2.25)]), "the geometric mean of both, and of one"
    assert line.low == pytest.approx([math.exp(2.125), math.exp(2.25)])
    assert line.high == pytest.approx([math.exp(2.375), math.exp(2.25)])
    assert line.notes == ("2 seeds", "1 seed")
    (line,) = losses.panels[0].lines
    assert (line.x, line.y, line.low, line.high) == ((1, 2), (4.0, 1.5), (3.0, 1.0), (5.0, 2.0))


def test_augmentations_have_panels_that_share_their_axes(tmp_path):
    cells = usual_cells() + trained_cells("yarn", {64: 2.0, 128: 2.0}, augment="pose", params={"window": 128})
    for chart in charts_of(tmp_path, cells):
        assert [panel.title for panel in chart.panels] == ["no augmentation", "PoSE"]
        assert (chart.columns, chart.share_x, chart.share_y) == (2, True, "all")
        assert chart.panel_width == pytest.approx(3.2)
        assert {line.style.colour for panel in chart.panels for line in panel.lines if "yarn" in line.label} == {
            "#D55E00"
        }


def test_losses_of_many_steps_are_smoothed(tmp_path):
    losses = [float(step % 2) for step in range(200)]
    _, chart = charts_of(tmp_path, base_cells() + trained_cells("yarn", AFTER["yarn"], losses=losses))
    (line,) = chart.panels[0].lines
    assert set(line.y) == {0.5} and len(line.y) == 197, "means of four neighbouring steps"
    assert (line.x[0], line.x[-1]) == (2.5, 198.5)
    assert (line.low, line.notes[0], chart.panels[0].x.is_whole) == ((), "1 seed", True)
