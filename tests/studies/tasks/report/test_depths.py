import pytest
from records import make_failed_task, make_samples, make_task_records

from longeval.report.charts import Mark
from longeval.studies.tasks.report.figures import depth_figure, depth_table, score_figure
from longeval.studies.tasks.report.tables import build_task_sets

NATIVE = Mark(axis="x", at=64, label="native 64")


def depths_of(cells, task="passkey"):
    """Depth table from {(pe, length): (values, depths)}."""
    samples, records = {}, []
    for (pe, length), (values, depths) in cells.items():
        made = make_samples(values, depths=depths)
        records += make_task_records(pe, length, task, made)
        samples[records[-1].cell] = made
    (tasks,) = build_task_sets(records)
    return depth_table(tasks.tasks[0], samples.get), tasks


def test_scores_by_depth_and_length():
    values = {("none", 64): ([1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1 / 3]), ("yarn", 128): ([0.5], [1 / 3])}
    found, _ = depths_of(values)
    assert (found.levels, found.binned, found.lengths) == ((0.0, 0.33, 1.0), False, (64, 128))
    assert {key: (cell.value, cell.n) for key, cell in found.cells.items()} == {
        ("none", 64, 0.0): (0.5, 2),
        ("none", 64, 0.33): (1.0, 1),
        ("none", 64, 1.0): (1.0, 1),
        ("yarn", 128, 0.33): (0.5, 1),
    }
    assert [found.label(level) for level in found.levels] == ["0%", "33%", "100%"]


def test_many_depths_are_binned():
    found, _ = depths_of({("none", 64): ([float(k >= 50) for k in range(101)], [k / 100 for k in range(101)])})
    assert found.binned
    assert found.levels == tuple(k / 10 for k in range(10))
    assert found.cells["none", 64, 0.9].n == 11, "1 is in the last bin"
    assert (found.cells["none", 64, 0.4].value, found.cells["none", 64, 0.5].value) == (0.0, 1.0)
    assert found.label(0.9) == "90–100%"


def test_nothing_is_drawn_where_nothing_varies():
    table, tasks = depths_of({("none", 64): ([1.0], [None])})
    assert table is None, "no depths"
    assert score_figure(tasks) is None, "one length makes no curve"


def test_the_heat_map_says_every_number():
    values = {
        ("none", 64): ([1.0, 0.0], [0.0, 1.0]),
        ("none", 128): ([0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0]),
        ("resonance", 64): ([0.25], [0.0]),
    }
    chart = depth_figure(depths_of(values)[0], "toy (bfloat16)")
    assert chart.title == "toy (bfloat16): passkey by depth and length"
    assert [panel.title for panel in chart.panels] == ["none", "resonance"]
    first, second = (panel.heat_map for panel in chart.panels)
    assert (first.columns, first.rows) == (("64", "128"), ("0%", "100%"))
    assert first.values == ((1.0, pytest.approx(1 / 3)), (0.0, 1.0))
    assert first.texts == (("1.00", "0.33"), ("0.00", "1.00"))
    assert first.notes == (("n 1", "n 3"), ("n 1", "n 1"))
    assert (first.low, first.high, first.quantity) == (0.0, 1.0, "Mean accuracy")
    assert second.values == ((0.25, None), (None, None)), "what was not asked stays empty"
    assert second.texts == (("0.25", ""), ("", ""))


@pytest.mark.parametrize(("rows", "levels", "columns"), [(1, 10, 1), (6, 1, 3)])
def test_heat_maps_stand_where_they_are_largest_on_a_page(rows, levels, columns):
    names = ["none", "resonance", "pi", "resonance_pi", "yarn", "resonance_yarn"][:rows]
    found, _ = depths_of({(pe, 64): ([1.0] * levels, [k / 10 for k in range(levels)]) for pe in names})
    chart = depth_figure(found, "toy")
    assert [panel.title for panel in chart.panels] == names
    assert chart.columns == columns


def tasks_of(right):
    """Tasks of 20 questions from {(pe, length): number of right answers}."""
    return depths_of({place: ([1.0] * n + [0.0] * (20 - n), [None] * 20) for place, n in right.items()})[1]


def test_scores_by_length_have_intervals():
    right = {("none", 64): 18, ("none", 128): 2, ("resonance", 64): 17, ("resonance", 128): 0}
    tasks = tasks_of(right)
    chart = score_figure(tasks)
    (panel,) = chart.panels
    assert (panel.title, panel.y.span, panel.marks) == ("passkey: accuracy", (-0.03, 1.03), (NATIVE,))
    assert [(line.label, line.style.dash, line.interval) for line in panel.lines] == [
        ("none", "solid", "bars"),
        ("resonance", "dashed", "bars"),
    ]
    base, resonance = panel.lines
    assert base.y == pytest.approx([0.9, 0.1])
    records = [tasks.tasks[0].rows[0].cells[length] for length in (64, 128)]
    assert base.low == tuple(record.ci_low for record in records)
    assert base.high == tuple(record.ci_high for record in records)
    assert (base.places, base.notes) == (("64", "128"), ("n 20", "n 20"))
    asides = [right - left for left, right in zip(base.x, resonance.x, strict=True)]
    assert asides == pytest.approx([0.012 * 64] * 2), "bars don't hide one another"
    assert panel.x.span[0] < base.x[0] and resonance.x[1] < panel.x.span[1]


def test_what_guessing_scores_is_marked():
    values = {("none", n): ([1.0] * 10 + [0.0] * 10, [None] * 20) for n in (64, 128)}
    (panel,) = score_figure(depths_of(values, task="quality")[1]).panels
    assert panel.marks == (Mark(axis="y", at=0.25, label="guess"), NATIVE)


def test_a_method_without_scores_has_no_line():
    tasks = tasks_of({("none", 64): 18, ("none", 128): 2})
    failed = make_failed_task("yarn", 64, "passkey")
    (with_failed,) = build_task_sets([*tasks.records, *failed])
    (panel,) = score_figure(with_failed).panels
    assert [line.label for line in panel.lines] == ["none"]


@pytest.mark.parametrize(("number", "columns", "width"), [(1, 1, 6.4), (2, 2, 3.2), (7, 3, 7.6 / 3)])
def test_many_tasks_stand_in_more_columns(number, columns, width):
    samples = make_samples([1.0, 0.0])
    names = [f"task_{place}" for place in range(number)]
    (tasks,) = build_task_sets([r for n in (64, 128) for t in names for r in make_task_records("none", n, t, samples)])
    chart = score_figure(tasks)
    assert (len(chart.panels), chart.columns, chart.panel_width) == (number, columns, pytest.approx(width))
