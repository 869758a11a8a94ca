import numpy as np
import pytest
from records import make_nll, make_records

from longeval.looks import LOOKS, shade
from longeval.report.charts import Mark
from longeval.report.tables import build_grids
from longeval.stats.bootstrap import by_position, position_edges
from longeval.studies.ppl.curves import length_curve, position_curve


def grid_of(means, **changes):
    """Grid from {(pe, length): mean NLL or None for a failed cell}."""
    records = []
    for (pe, length), mean in means.items():
        nll = None if mean is None else make_nll([[mean] * 4] * 10)
        failed = {"status": "failed", "error": "x"} if mean is None else {}
        records += make_records(pe, length, nll, params={"native_length": 4096}, **failed, **changes)
    return build_grids(records)[0]


def panel_of(means, **changes):
    (panel,) = length_curve(grid_of(means, **changes)).panels
    return panel


def lines_of(panel):
    return {line.label: line for line in panel.lines}


def test_length_curve_shows_values_intervals_native_length_and_pairs():
    means = {("none", 2048): 2.0, ("none", 8192): 2.5, ("resonance", 2048): 2.0, ("resonance", 8192): 2.4}
    panel = panel_of(means)
    lines = lines_of(panel)
    assert list(lines) == ["none", "resonance"]
    base, resonance = lines.values()
    assert (base.x, base.y) == ((2048, 8192), pytest.approx(np.exp([2.0, 2.5]), rel=1e-6))
    assert base.interval == "hover"
    record = grid_of(means).rows[0].cells[8192]
    assert (base.low[1], base.high[1]) == (record.ci_low, record.ci_high)
    assert base.low[1] == pytest.approx(np.exp(2.5), rel=1e-6), "all tokens are equally likely"
    assert base.notes == ("10 documents, 40 tokens",) * 2
    assert base.style.colour == resonance.style.colour
    assert (base.style.dash, resonance.style.dash) == ("solid", "dashed")
    assert (base.style.is_hollow, resonance.style.is_hollow) == (False, True)
    assert base.style.width > resonance.style.width
    assert resonance.style.is_above and not base.style.is_above
    assert panel.x.ticks == ((2048, "2k"), (8192, "8k"))
    assert panel.marks == (Mark(axis="x", at=4096, label="native 4k"),)
    assert (panel.x.scale, panel.y.scale) == ("linear", "linear")


@pytest.mark.parametrize(("lengths", "is_marked"), [((2048, 3990), False), ((2048, 4020), True), ((8192, 9000), False)])
def test_the_native_length_is_marked_where_the_axis_shows_it(lengths, is_marked):
    panel = panel_of({("none", length): 2.0 for length in lengths})
    margin = 0.05 * (lengths[1] - lengths[0])
    assert panel.x.span == pytest.approx((lengths[0] - margin, lengths[1] + margin))
    assert bool(panel.marks) == is_marked


def test_wide_ranges_are_logarithmic():
    panel = panel_of({("none", 1024): 2.0, ("none", 8192): 7.0})
    assert (panel.x.scale, panel.y.scale) == ("log", "log")
    assert panel.x.span == pytest.approx((1024 / 8**0.05, 8192 * 8**0.05))
    low, high = np.exp([2.0, 7.0])
    assert [(at, label) for at, label in panel.y.ticks if low < at < high] == [
        *((10, "10"), (20, "20"), (50, "50"), (100, "100"), (200, "200"), (500, "500"), (1000, "1000"))
    ]


def test_an_axis_of_very_many_decades_has_few_labels():
    panel = panel_of({("none", 1024): 2.0, ("none", 8192): 600.0})
    ticks = [at for at, _ in panel.y.ticks]
    assert 5 < len(ticks) < 16 and ticks[0] <= np.exp(2.0) and ticks[-1] > np.exp(540.0)


def test_a_failed_cell_breaks_the_line():
    (line,) = panel_of({("none", 2048): 2.0, ("none", 4096): None, ("none", 8192): 2.5}).lines
    assert line.x == (2048, 4096, 8192)
    assert [value is None for value in line.y] == [False, True, False]


def test_one_length_makes_no_curve():
    assert length_curve(grid_of({("none", 2048): 2.0, ("none", 4096): None})) is None


def test_every_known_method_has_its_own_look():
    colors, markers = zip(*LOOKS.values(), strict=True)
    assert len(set(colors)) == len(set(markers)) == len(LOOKS)


def records_of_factors(pe, factors, mean=2.0):
    nll = make_nll([[mean] * 4] * 10)
    return [r for factor in factors for length in (64, 128) for r in make_records(pe, length, nll, factor=factor)]


def looks_of(line):
    return line.style.colour, line.style.marker


def test_factors_of_a_method_differ_and_pairs_are_alike():
    records = [*records_of_factors("yarn", (2.0, 4.0, 8.0)), *records_of_factors("resonance_yarn", (2.0, 4.0, 8.0))]
    (panel,) = length_curve(build_grids([*records, *records_of_factors("pi", (2.0,))])[0]).panels
    lines = lines_of(panel)
    assert list(lines) == [*(f"{pe} s={s}" for s in (2, 4, 8) for pe in ("yarn", "resonance_yarn")), "pi"]
    for kind in (0, 1):
        assert len({looks_of(lines[f"yarn s={s}"])[kind] for s in (2, 4, 8)}) == 3
    for s in (2, 4, 8):
        base, rounded = lines[f"yarn s={s}"], lines[f"resonance_yarn s={s}"]
        assert looks_of(base) == looks_of(rounded)
        assert (base.style.dash, rounded.style.dash, base.style.opacity) == ("solid", "dashed", 0.4)
    assert looks_of(lines["yarn s=4"])[0] == LOOKS["yarn"].colour, "the middle one"
    assert looks_of(lines["pi"]) == LOOKS["pi"]


def test_parameters_of_a_method_differ():
    nll = make_nll([[2.0] * 4] * 10)
    settings = [{"method": {"beta_fast": float(beta)}} for beta in (16, 32)]
    records = [r for method in settings for n in (64, 128) for r in make_records("yarn", n, nll, params=method)]
    (panel,) = length_curve(build_grids(records)[0]).panels
    first, second = map(looks_of, panel.lines)
    assert first[0] != second[0] and first[1] != second[1]


@pytest.mark.parametrize("pe", LOOKS)
def test_shades_go_from_light_to_dark(pe):
    for number in (1, 2, 3, 5):
        shades = [shade(LOOKS[pe].colour, place, number) for place in range(number)]
        levels = [sum(int(colour[start : start + 2], 16) for start in (1, 3, 5)) for colour in shades]
        assert levels == sorted(levels, reverse=True)
        if pe != "none":  # nothing is darker than black
            assert len(set(shades)) == number


@pytest.mark.parametrize(("low", "high"), [(7.3891, 7.3893), (7.0, 7.0), (1.0e6, 1.001e6)])
def test_nearly_flat_curves_look_flat(low, high):
    bottom, top = panel_of({("none", 2048): np.log(low), ("none", 8192): np.log(high)}).y.span
    assert bottom < low <= high < top and top - bottom == pytest.approx(0.012 * high)


def test_position_curve():
    grid = grid_of({("none", 8192): 2.0})
    nll = make_nll([np.where(np.arange(1, 7168) < 4096, 1.0, 3.0)])
    curve = by_position(nll, position_edges(8192, bins=8, spacing="linear"))
    (panel,) = position_curve(grid, 8192, [(grid.rows[0], curve)]).panels
    (line,) = panel.lines
    assert line.x == pytest.approx([512 + 1024 * place for place in range(7)], abs=1), "the last bin holds no token"
    assert line.y == pytest.approx([np.e] * 4 + [np.exp(3)] * 3)
    assert [int(note.removesuffix(" tokens").replace(",", "")) for note in line.notes] == curve.tokens_K[:7].tolist()
    assert (line.style.marker, panel.x.span) == ("", (0, 8192))
    assert panel.x.ticks[:2] == ((0, "0"), (1024, "1k"))
    assert panel.marks == (Mark(axis="x", at=4096, label="native 4k"),)
