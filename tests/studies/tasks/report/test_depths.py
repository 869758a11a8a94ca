import pytest
from matplotlib.figure import Figure
from records import make_samples, make_task_records

from longeval.report import plots
from longeval.studies.tasks.report.figures import depth_figure, depth_table, score_figure
from longeval.studies.tasks.report.tables import build_task_sets


def depths_of(cells):
    """Depth table from {(pe, length): (values, depths)}."""
    samples, records = {}, []
    for (pe, length), (values, depths) in cells.items():
        made = make_samples(values, depths=depths)
        records += make_task_records(pe, length, "passkey", made)
        samples[records[-1].cell] = made
    (tasks,) = build_task_sets(records)
    return depth_table(tasks.tasks[0], samples.get), tasks


@pytest.fixture
def drawn(monkeypatch):
    """Figures as they are saved."""
    figures: list[Figure] = []
    render = plots.render
    monkeypatch.setattr(plots, "render", lambda figure: figures.append(figure) or render(figure))
    return figures


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


def test_the_heat_map_says_every_number(drawn):
    values = {
        ("none", 64): ([1.0, 0.0], [0.0, 1.0]),
        ("none", 128): ([0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0]),
        ("resonance", 64): ([0.25], [0.0]),
    }
    assert depth_figure(depths_of(values)[0], "toy (bfloat16)").png.startswith(b"\x89PNG")
    assert drawn[0].get_suptitle() == "toy (bfloat16): passkey by depth and length"
    first, second, bar = drawn[0].axes
    assert [axes.get_title(loc="left") for axes in (first, second)] == ["none", "resonance"]
    texts = {}
    for text in first.texts:
        texts.setdefault(tuple(map(round, text.get_position())), []).append(text.get_text())
    assert texts == {(0, 0): ["1.00", "n 1"], (1, 0): ["0.33", "n 3"], (0, 1): ["0.00", "n 1"], (1, 1): ["1.00", "n 1"]}
    (image,) = first.images
    assert image.get_array().tolist() == [[1.0, pytest.approx(1 / 3)], [0.0, 1.0]]
    assert image.get_clim() == (0.0, 1.0)
    assert len(second.texts) == 2, "what was not asked stays empty"
    assert bar.get_ylabel() == "Mean accuracy"


@pytest.mark.parametrize(("rows", "levels"), [(1, 10), (6, 1)])
def test_all_shapes_are_drawn(drawn, rows, levels):
    names = ["none", "resonance", "pi", "resonance_pi", "yarn", "resonance_yarn"][:rows]
    found, _ = depths_of({(pe, 64): ([1.0] * levels, [k / 10 for k in range(levels)]) for pe in names})
    depth_figure(found, "toy")
    titles = [axes.get_title(loc="left") for axes in drawn[0].axes if axes.get_visible()]
    assert [title for title in titles if title] == names


def test_scores_by_length_have_error_bars(drawn):
    right = {("none", 64): 18, ("none", 128): 2, ("resonance", 64): 17, ("resonance", 128): 0}
    _, tasks = depths_of({place: ([1.0] * n + [0.0] * (20 - n), [None] * 20) for place, n in right.items()})
    assert score_figure(tasks).svg
    (axes,) = drawn[0].axes
    lines = [line for line in axes.get_lines() if not line.get_label().startswith("_")]
    assert [(line.get_label(), line.get_linestyle()) for line in lines] == [("none", "-"), ("resonance", "--")]
    assert lines[0].get_ydata().tolist() == pytest.approx([0.9, 0.1])
    record = tasks.tasks[0].rows[0].cells[64]
    assert axes.collections[0].get_segments()[0][:, 1].tolist() == [record.ci_low, record.ci_high]
