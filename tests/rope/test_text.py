"""What the terminal shows: every number of the description, whole, with an explanation below."""

import dataclasses
import functools
import re

import pytest

from longeval.rope.analysis import description
from longeval.rope.base import Geometry
from longeval.rope.resonance import ResonanceParameters
from longeval.rope.text import short_integer, show

LLAMA2 = Geometry(head_dim=128, theta=10000.0, native_length=4096, factor=8.0)
SMALL = Geometry(head_dim=8, theta=10000.0, native_length=100, factor=3.0)
ERRORS = "Largest error of cos and sin just below a position"

describe = functools.cache(description.describe)


@pytest.mark.parametrize(
    ("digits", "shown"),
    [
        ("1234567", "1234567"),
        ("12345678", "1.235e7"),
        ("99999999", "1.000e8"),
        ("1" + "0" * 5000, "1.000e5000"),
    ],
)
def test_long_integers_are_shortened_by_their_digits(digits, shown):
    assert short_integer(digits) == shown


@pytest.fixture
def lines_of(capsys):
    """Returns a function that shows descriptions and returns the lines."""

    def lines(*descriptions):
        show(descriptions)
        return capsys.readouterr().out.splitlines()

    return lines


def cells(lines, first):
    """The words of the first line that begins with `first`."""
    return next(line.split() for line in lines if line.split()[:1] == [first])


def rest(lines, label):
    return next(line.removeprefix(label).strip() for line in lines if line.startswith(label))


def feature_rows(lines):
    return [line for line in lines if line.split()[:1] and line.split()[0].isdigit()]


def test_one_method_feature_by_feature(lines_of):
    lines = lines_of(describe("resonance_yarn", LLAMA2))
    assert lines[0] == "resonance_yarn: d 128, base 10000, L 4k, target 32k (s 8)"
    assert lines[1].split() == ["turns"]
    assert lines[2].split() == ["j", "θ", "λ", "in", "L", "stretch", "rounding", "gap", "p", "q", "L/p"]
    rows = [line.split() for line in feature_rows(lines)]
    assert [row[0] for row in rows] == [str(j) for j in range(64)]
    # 6/2π − 1 = −4.5%; 2·sin(28672·θ_63/2) = 0.4109.
    assert rows[0] == ["0", "1.0472", "6", "682.7", "0.9549", "-4.5%", "0", "6", "1", "683"]
    assert rows[63] == ["63", "1.4435e-05", "435281", "0.00941", "8", "-3e-05%", "0.411", "435281", "1", "0.00941"]
    plain = cells(lines_of(describe("none", SMALL)), "0")
    assert plain[:-1] == ["0", "1", "6.283", "15.92", "1", "–"]


def test_one_method_in_sum(lines_of):
    lines = lines_of(describe("resonance_yarn", LLAMA2))
    assert rest(lines, "pre-critical").startswith("39 of 64 features")
    assert rest(lines, "feature gap").startswith("0, ")
    assert rest(lines, "unique positions").startswith("1.267e38 ")
    assert rest(lines, "attention factor") == "1.20794, logits times 1.459"
    lines = lines_of(describe("resonance", SMALL))
    assert re.findall(r"\d+", rest(lines, "collisions")) == ["0", "300", "32", "0", "16", "174"]
    assert rest(lines, "mean cos").startswith("0.874 at 1, 0.366 at 16, ")
    lines = lines_of(describe("none", SMALL))
    assert rest(lines, "unique positions").startswith("–")
    assert rest(lines, "attention factor") == "1"


def test_floating_point_errors(lines_of):
    none = describe("none", LLAMA2)
    lines = lines_of(none)
    table = lines[lines.index(ERRORS) :]
    assert table[1].split() == ["angle", "128k", "1m"]
    found = [cells(table, way)[1:3] for way in ("float32", "bfloat16", "longeval")]
    assert found == [["0.0077", "0.062"], ["2", "2"], ["3e-08", "3e-08"]]
    lines = lines_of(none, none)
    assert cells(lines[lines.index(ERRORS) :], "none") == ["none", *found[0], *found[1], *found[2]]


def test_several_methods_side_by_side(lines_of):
    lines = lines_of(*(describe(name, LLAMA2) for name in ("none", "resonance_yarn")))
    assert lines[0] == "RoPE methods: d 128, base 10000, L 4k, target 32k (s 8)"
    assert cells(lines, "none") == ["none", "46", "0.0257", "–", "0", "1", "54410"]
    assert cells(lines, "resonance_yarn") == ["resonance_yarn", "39", "0", "1.267e38", "0", "1.2079", "435281"]
    repeated = describe("none", Geometry(head_dim=2, theta=1e4, native_length=512, factor=4.0))
    assert repeated["collisions"]["bfloat16"] > 1000 and repeated["collisions"]["float32"] == 0
    assert cells(lines_of(repeated, repeated), "none")[4] == str(repeated["collisions"]["bfloat16"])


def test_without_a_longer_target_the_zeros_are_explained(lines_of):
    none, resonance = (describe(name, dataclasses.replace(SMALL, factor=1.0)) for name in ("none", "resonance"))
    assert "--factor" in rest(lines_of(none), "feature gap")
    assert any(line.startswith("All gaps are 0") and "--factor" in line for line in lines_of(none, resonance))
    assert not any("All gaps" in line for line in lines_of(describe("none", SMALL), describe("resonance", SMALL)))


def test_what_could_not_be_counted_is_a_dash(lines_of):
    none = describe("none", SMALL) | {"collisions": dict.fromkeys(("pre_critical", "float32", "bfloat16"))}
    assert rest(lines_of(none), "collisions").startswith("– (300 positions")
    assert cells(lines_of(none, none), "none")[4] == "–"


def test_the_title_has_a_base_in_digits_and_a_length_that_is_not_the_target(lines_of):
    title = lines_of(describe("none", dataclasses.replace(SMALL, theta=1e6)))[0]
    assert title.startswith("none: d 8, base 1000000, L 100, ")
    assert lines_of(describe("dynamic_ntk", SMALL, seq_len=200))[0].endswith("target 300 (s 3), n 200")


@pytest.mark.parametrize("columns", ["40", "120"])
@pytest.mark.parametrize("resonance", [None, ResonanceParameters(max_period="native")])
def test_no_digit_is_cut_off_and_80_columns_suffice_for_the_tables(lines_of, monkeypatch, columns, resonance):
    monkeypatch.setenv("COLUMNS", columns)
    names = ("none", "resonance_ntk_by_parts", "resonance_dynamic_yarn")
    several = lines_of(*(describe(name, LLAMA2) for name in names))
    one = lines_of(describe("resonance_dynamic_yarn", LLAMA2, resonance=resonance))
    assert not any("…" in line for line in several + one)
    rows = [line for line in several if line.split()[:1] and line.split()[0] in names]
    assert len(rows) == 6 and len(feature_rows(one)) == 64
    assert max(map(len, rows + feature_rows(one))) <= 80
    assert max(map(len, several + one)) <= 100
