"""What the terminal shows: every number of the description, whole, with an explanation below."""

import dataclasses

import pytest

from longeval.rope.analysis.description import describe
from longeval.rope.base import Geometry
from longeval.rope.text import short_integer, show

LLAMA2 = Geometry(head_dim=128, theta=10000.0, native_length=4096, factor=8.0)
SMALL = Geometry(head_dim=8, theta=10000.0, native_length=100, factor=3.0)


@pytest.mark.parametrize(
    ("digits", "shown"),
    [
        ("1", "1"),
        ("1234567", "1234567"),
        ("7057974406910048702415100928873416964126012399455200", "7.058e51"),
        ("12345678", "1.235e7"),
        ("99999999", "1.000e8"),
        ("1" + "0" * 5000, "1.000e5000"),
    ],
)
def test_long_integers_are_shortened_by_their_digits(digits, shown):
    assert short_integer(digits) == shown


def shown(capsys, *descriptions):
    show(descriptions)
    return capsys.readouterr().out.splitlines()


def cells(lines, first):
    """The words of the first line that begins with `first`."""
    return next(line.split() for line in lines if line.split()[:1] == [first])


def rest(lines, label):
    return next(line.removeprefix(label).strip() for line in lines if line.startswith(label))


def test_one_method_feature_by_feature(capsys):
    lines = shown(capsys, describe("resonance_yarn", LLAMA2))
    assert lines[0] == "resonance_yarn: d 128, base 10000, L 4k, target 32k (s 8)"
    assert lines[1].split() == ["j", "θ", "λ", "turns", "in", "L", "stretch", "rounding", "gap"]
    rows = [line.split() for line in lines if line.split()[:1] and line.split()[0].isdigit()]
    assert [row[0] for row in rows] == [str(j) for j in range(64)]
    # 6/2π − 1 = −4.5%; 2·sin(28672·θ_63/2) = 0.4109.
    assert rows[0] == ["0", "1.0472", "6", "682.7", "0.9549", "-4.5%", "0"]
    assert rows[63] == ["63", "1.44348e-05", "435281", "0.00941", "8", "-3.3e-05%", "0.4109"]


def test_one_method_in_sum(capsys):
    lines = shown(capsys, describe("resonance_yarn", LLAMA2))
    assert rest(lines, "pre-critical") == "39 of 64 features: λ ≤ L before rounding"
    assert rest(lines, "feature gap") == "0, the largest of these"
    assert rest(lines, "unique positions") == "1.267e38 are told apart by the pre-critical features"
    assert rest(lines, "attention factor") == "1.20794, logits times 1.459"
    lines = shown(capsys, describe("resonance", SMALL))
    assert rest(lines, "collisions") == (
        "0 of 300 positions in float32, 0 in bfloat16, 174 by the pre-critical features alone"
    )
    assert rest(lines, "mean cos").startswith("0.874 at 1, 0.366 at 16, ")
    assert rest(lines, "mean cos").endswith(" at 299 tokens apart")
    lines = shown(capsys, describe("none", SMALL))
    assert rest(lines, "unique positions") == "– (wavelengths aren't whole tokens)"
    assert rest(lines, "collisions") == "0 of 300 positions in float32, 0 in bfloat16"
    assert rest(lines, "attention factor") == "1"
    assert cells(lines, "0") == ["0", "1", "6.283", "15.92", "1", "–", cells(lines, "0")[-1]]


def test_one_method_with_its_floating_point_errors(capsys):
    lines = shown(capsys, describe("none", LLAMA2))
    table = lines[lines.index("Largest error of cos and sin just below a position") :]
    assert table[1].split() == ["angle", "128k", "1m"]
    assert cells(table, "float32")[1:3] == ["0.0077", "0.062"]
    assert cells(table, "bfloat16")[1:3] == ["2", "2"]
    assert cells(table, "longeval")[1:3] == ["3e-08", "3e-08"]


def test_several_methods_side_by_side(capsys):
    names = ("none", "resonance", "yarn", "resonance_yarn")
    lines = shown(capsys, *(describe(name, LLAMA2) for name in names))
    assert lines[0] == "RoPE methods: d 128, base 10000, L 4k, target 32k (s 8)"
    rows = {name: cells(lines, name) for name in names}
    assert rows["none"] == ["none", "46", "0.0257", "–", "0", "1", "54410"]
    assert rows["resonance"] == ["resonance", "46", "0", "7.058e51", "0", "1", "54410"]
    assert rows["resonance_yarn"] == ["resonance_yarn", "39", "0", "1.267e38", "0", "1.2079", "435281"]
    table = lines[lines.index("Largest error of cos and sin just below a position") :]
    assert cells(table, "none") == ["none", "0.0077", "0.062", "2", "2", "3e-08", "3e-08"]
    assert cells(table, "resonance") == ["resonance", "0.012", "0.093", "2", "2", "3e-08", "3e-08"]


def test_collisions_side_by_side_are_those_in_bfloat16(capsys):
    none = describe("none", Geometry(head_dim=2, theta=1e4, native_length=512, factor=4.0))
    assert none["collisions"]["bfloat16"] > 1000 and none["collisions"]["float32"] == 0
    assert cells(shown(capsys, none, none), "none")[4] == str(none["collisions"]["bfloat16"])


def test_every_column_is_explained(capsys):
    lines = shown(capsys, describe("none", SMALL), describe("resonance_pi", SMALL))
    for column in ("λ ≤ L", "gap", "unique", "collisions", "attention", "longest λ", "float32", "bfloat16", "longeval"):
        assert any(line.startswith(f"{column} ") and len(line.split()) > 5 for line in lines), column
    lines = shown(capsys, describe("none", SMALL))
    for column in ("θ", "λ", "turns in L", "stretch", "rounding", "gap"):
        assert any(line.startswith(f"{column} ") and len(line.split()) > 5 for line in lines), column


def test_without_a_longer_target_the_zeros_are_explained(capsys):
    geometry = dataclasses.replace(SMALL, factor=1.0)
    lines = shown(capsys, describe("none", geometry))
    assert rest(lines, "feature gap") == "0: no position lies beyond L (--factor sets a longer target)"
    lines = shown(capsys, describe("none", geometry), describe("resonance", geometry))
    assert "All gaps are 0: no position lies beyond L (--factor sets a longer target)." in lines
    assert not any("All gaps" in line for line in shown(capsys, describe("none", SMALL), describe("pi", SMALL)))


def test_what_could_not_be_counted_is_a_dash(capsys, monkeypatch):
    monkeypatch.setattr("longeval.rope.analysis.collisions._MOST_VALUES", 10)
    none, rounded = describe("none", SMALL), describe("resonance", SMALL)
    assert rest(shown(capsys, none), "collisions") == "– (300 positions are too many to compare)"
    assert cells(shown(capsys, none, rounded), "none")[4] == "–"


def test_a_base_is_shown_in_digits(capsys):
    assert shown(capsys, describe("none", dataclasses.replace(SMALL, theta=1e6)))[0].startswith(
        "none: d 8, base 1000000, L 100, "
    )


def test_the_sequence_length_is_named_where_it_is_not_the_target(capsys):
    assert shown(capsys, describe("dynamic_ntk", SMALL, seq_len=200))[0].endswith("target 300 (s 3), n 200")


@pytest.mark.parametrize("columns", ["40", "80", "120"])
def test_no_digit_is_cut_off_and_80_columns_suffice_for_the_tables(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    names = ("none", "resonance_ntk_by_parts", "resonance_dynamic_yarn")
    several = shown(capsys, *(describe(name, LLAMA2) for name in names))
    one = shown(capsys, describe("resonance_dynamic_yarn", LLAMA2))
    assert not any("…" in line for line in several + one)
    rows = [line for line in several if line.split()[:1] and line.split()[0] in names]
    assert len(rows) == 6 and max(map(len, rows)) <= 80
    rows = [line for line in one if line.split()[:1] and line.split()[0].isdigit()]
    assert len(rows) == 64 and max(map(len, rows)) <= 80
    assert max(map(len, several + one)) <= 100
