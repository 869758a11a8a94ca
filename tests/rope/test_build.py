"""Names and settings as users write them."""

import json

import numpy as np
import pytest

from longeval.errors import LongEvalError
from longeval.rope.abf import AbfParameters
from longeval.rope.base import METHODS, Geometry
from longeval.rope.build import (
    MethodName,
    build_table,
    make_parameters,
    method_names,
    parse_method_name,
    parse_pe_args,
    read_arguments,
    usable,
)
from longeval.rope.resonance import ResonanceParameters
from longeval.rope.yarn import YarnParameters

GEOMETRY = Geometry(head_dim=64, theta=1e4, native_length=4096, factor=4.0)


def test_names_are_canonical_and_come_in_pairs():
    assert parse_method_name("none") == MethodName(base="none", resonance=False)
    assert parse_method_name("resonance") == MethodName(base="none", resonance=True)
    assert parse_method_name("resonance_dynamic_yarn") == MethodName(base="dynamic_yarn", resonance=True)
    names = method_names()
    assert len(names) == 2 * len(METHODS) == 20 and "resonance_none" not in names
    assert [parse_method_name(name).canonical for name in names] == list(names)
    assert parse_method_name("resonance_pi").method is METHODS["pi"]


def test_all_is_every_method_that_can_be_built_and_says_which_cannot():
    def build(name):
        build_table(name.canonical, GEOMETRY, make_parameters(name.base, {}))

    found, note = usable(["yarn", "all", "none"], (), build)
    names = [name.canonical for name in found]
    assert names[:3] == ["yarn", "none", "resonance"]  # in place of `all`, and nothing twice
    assert sorted(names) == sorted(set(method_names()) - {"longrope", "resonance_longrope"})
    assert note.startswith("'all' leaves out longrope, resonance_longrope (needs short_factor")
    for asked, given in ((["all", "resonance_longrope"], ()), (["all"], {"longrope"})):
        with pytest.raises(LongEvalError, match="needs short_factor"):
            usable(asked, given, build)

    def fail(name):
        raise LongEvalError(f"--pe {name.canonical}: no")

    with pytest.raises(LongEvalError, match="--pe none: no"):
        usable(["all"], (), fail)


def test_parameters_may_be_given_for_any_of_all():
    assert parse_pe_args(["abf.base=5"], ["all"]) == {"abf": {"base": 5.0}}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resonance_none", "Use resonance"),
        ("resonance_yran", "resonance_yarn"),
        ("resonance_resonance_yarn", "--pe resonance_resonance_yarn: "),
        ("", "--pe : "),
    ],
)
def test_unknown_names_are_answered_with_the_known_ones(name, words):
    with pytest.raises(LongEvalError, match=words):
        parse_method_name(name)


def test_settings_are_read_in_the_type_of_the_parameter(tmp_path):
    (tmp_path / "long.json").write_text(json.dumps([1, 2.5]))
    items = [
        "yarn.beta_fast=16",
        "yarn.attention_factor=none",
        "ntk.base_rule=linear",
        "longrope.short_factor=1, 1.5",
        f"longrope.long_factor=@{tmp_path / 'long.json'}",
        "yarn.beta_fast=16.0",
    ]
    values = parse_pe_args(items, ["resonance_yarn", "yarn", "ntk", "longrope"])
    assert values == {
        "yarn": {"beta_fast": 16.0, "attention_factor": None},
        "ntk": {"base_rule": "linear"},
        "longrope": {"short_factor": (1.0, 1.5), "long_factor": (1.0, 2.5)},
    }
    assert isinstance(values["yarn"]["beta_fast"], float)
    assert make_parameters("yarn", values["yarn"]) == YarnParameters(beta_fast=16.0)


def test_a_setting_goes_to_the_resonance_form_too():
    parameters = make_parameters("yarn", parse_pe_args(["yarn.beta_fast=2"], ["resonance_yarn"])["yarn"])
    assert not build_table("resonance_yarn", GEOMETRY, parameters).same_as(build_table("resonance_yarn", GEOMETRY))


@pytest.mark.parametrize(("text", "value"), [("16", 16), ("4k", 4096), ("native", "native"), ("rounded", "rounded")])
def test_a_setting_of_resonance_goes_to_every_resonance_form_and_to_no_other(text, value):
    names = ["none", "resonance", "yarn", "resonance_yarn"]
    given = parse_pe_args([f"resonance.max_period={text}", "yarn.beta_fast=16"], names)
    assert given == {"resonance": {"max_period": value}, "yarn": {"beta_fast": 16.0}}
    for name in map(parse_method_name, names):
        method, resonance = parameters = read_arguments(name, name.arguments(given))
        assert resonance == ResonanceParameters(max_period=value if name.resonance else "rounded")
        assert (getattr(method, "beta_fast", None) == 16.0) == (name.base == "yarn")
        # Records and ids have it only where it is not the default, so that earlier ones stay.
        assert ("max_period" in parameters.to_mapping()) == (name.resonance and value != "rounded")
    assert read_arguments(parse_method_name("resonance"), {"max_period": value}).resonance.max_period == value


@pytest.mark.parametrize(
    ("items", "names", "words"),
    [
        (["resonance.max_period=2.5"], ["resonance"], r"max_period=2.5: .*whole number.*, or rounded or native"),
        (["resonance.max_period=nativ"], ["resonance"], "max_period=nativ: .* rounded or native"),
        (["resonance.max_period=16"], ["none", "yarn"], "resonance.max_period=16: none of the methods"),
        (["resonance_yarn.max_period=16"], ["resonance_yarn"], "--pe-arg resonance"),
        (["yarn.max_period=16"], ["resonance_yarn"], "yarn.max_period: unknown"),
        (["resonance.max_period=16", "resonance.max_period=32"], ["resonance"], "given twice"),
    ],
)
def test_bad_settings_of_resonance_name_themselves(items, names, words):
    with pytest.raises(LongEvalError, match=words):
        parse_pe_args(items, names)


def test_what_a_model_has_may_be_missing():
    given = parse_pe_args(["longrope.long_factor=1,2"], ["longrope"])
    assert given == {"longrope": {"long_factor": (1.0, 2.0)}}


def test_a_period_of_no_tokens_is_refused():
    with pytest.raises(LongEvalError, match=r"--pe-arg resonance\.max_period 0: "):
        parse_pe_args(["resonance.max_period=0"], ["resonance"])
    with pytest.raises(LongEvalError, match=r"--pe-arg resonance\.max_period 0: "):
        read_arguments(parse_method_name("resonance"), {"max_period": 0})


def test_typed_values_as_from_yaml():
    yarn = make_parameters("yarn", {"beta_fast": 8, "attention_factor": 1})
    assert yarn == YarnParameters(beta_fast=8.0, attention_factor=1.0)
    assert make_parameters("abf", {}) == AbfParameters(base=500000.0)
    factors = make_parameters("longrope", {"short_factor": [1, 2], "long_factor": (3.0, 4.0)})
    assert factors.short_factor == (1.0, 2.0) and factors.long_factor == (3.0, 4.0)


@pytest.mark.parametrize(
    ("items", "words"),
    [
        (["beta_fast=16"], "METHOD.PARAMETER=VALUE"),
        (["yarn.beta_fast="], "METHOD.PARAMETER=VALUE"),
        (["yran.beta_fast=16"], "yran.* yarn"),
        (["resonance_yarn.beta_fast=16"], "Write --pe-arg yarn"),
        (["resonance.beta=16"], "--pe-arg resonance.beta=16: "),
        (["ntk.base_rule=power"], "--pe-arg ntk.base_rule=power: .* --pe "),
        (["yarn.beta_fst=16"], "--pe-arg yarn.beta_fst: .* beta_fast"),
        (["none.beta=1"], "--pe-arg none.beta: "),
        (["yarn.beta_fast=nan"], "--pe-arg yarn.beta_fast=nan: not a finite number"),
        (["yarn.beta_fast=@/no/such.json"], "can't read /no/such.json"),
        (["longrope.long_factor=1,x"], "long_factor=1,x: x is not a finite number"),
        (["yarn.beta_fast=16", "yarn.beta_fast=8"], "yarn.beta_fast is given twice"),
        (["yarn.beta_fast=-1"], "--pe-arg yarn.beta_fast -1"),
        (["longrope.long_factor=1,-2", "longrope.short_factor=1,2"], "--pe-arg longrope.long_factor"),
    ],
)
def test_bad_settings_name_themselves(items, words):
    with pytest.raises(LongEvalError, match=words):
        parse_pe_args(items, ["yarn", "none", "longrope"])


@pytest.mark.parametrize("content", ["{broken", '{"a": 1}', "[true]", '["nan"]', "[[1]]", ""])
def test_factor_files_that_hold_something_else(tmp_path, content):
    path = tmp_path / "f.json"
    path.write_text(content)
    with pytest.raises(LongEvalError, match=r"--pe-arg longrope\.long_factor=@") as error:
        parse_pe_args([f"longrope.long_factor=@{path}"], ["longrope"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("base", "values", "words"),
    [
        ("yarn", {"beta_fast": 1, "beta_slow": 1}, "--pe-arg yarn.beta_fast 1: .* beta_slow"),
        ("dynamic_yarn", {"beta_slow": 0}, "--pe-arg dynamic_yarn.beta_slow 0: "),
        ("ntk_by_parts", {"beta_fast": -3}, "--pe-arg ntk_by_parts.beta_fast -3: "),
        ("yarn", {"attention_factor": 0}, "--pe-arg yarn.attention_factor 0: "),
        ("yarn", {"beta_fast": True}, "beta_fast=True: "),
        ("yarn", {"beta_fast": None}, "beta_fast=None: "),
        ("yarn", {"beta_fast": [1]}, "beta_fast=.1.: "),
        ("ntk", {"base_rule": "cubic"}, "base_rule=cubic: .* linear, power"),
        ("llama3", {"high_freq_factor": 1}, "--pe-arg llama3.high_freq_factor 1: .* low_freq_factor"),
        ("abf", {"base": 0}, "--pe-arg abf.base 0: "),
        ("longrope", {}, "short_factor.* --pe-arg longrope.short_factor=@file.json"),
        ("longrope", {"short_factor": [1]}, "needs long_factor"),
        ("longrope", {"short_factor": 1, "long_factor": [1]}, "short_factor=1: "),
        ("longrope", {"short_factor": [1, 0], "long_factor": [1, 1]}, r"short_factor\[1\] 0: "),
    ],
)
def test_impossible_parameters(base, values, words):
    with pytest.raises(LongEvalError, match=words):
        make_parameters(base, values)


def test_longrope_without_its_factors_is_refused_when_the_table_is_built():
    with pytest.raises(LongEvalError, match="short_factor"):
        build_table("resonance_longrope", GEOMETRY)


@pytest.mark.parametrize(
    ("name", "parameter"),
    [
        ("yarn", "beta_fast"),
        ("yarn", "beta_slow"),
        ("yarn", "attention_factor"),
        ("dynamic_yarn", "attention_factor"),
        ("ntk_by_parts", "beta_fast"),
        ("ntk_by_parts", "beta_slow"),
        ("llama3", "low_freq_factor"),
        ("llama3", "high_freq_factor"),
        ("abf", "base"),
        ("longrope", "long_factor"),
    ],
)
@pytest.mark.parametrize("value", [1e308, 1e300, 1e154, 1e20, 1e-20, 1e-300, 1e-308, 5e-324])
def test_extreme_parameters_give_a_table_that_can_be_served_or_are_refused_by_name(name, parameter, value):
    values = {parameter: value}
    if name == "longrope":
        values = dict.fromkeys(("short_factor", "long_factor"), [value] * 32)
    try:
        table = build_table(name, GEOMETRY, make_parameters(name, values))
    except LongEvalError as error:
        assert f"--pe-arg {name}." in str(error)
        return
    held = table.cos_sin(np.arange(0, 16384, 1000))
    assert np.isfinite(held.cos_TF).all() and np.isfinite(held.sin_TF).all() and held.cos_TF[0].all()
    assert (table.inv_freq_F > 0).all() and np.isfinite(table.wavelengths_F).all()


@pytest.mark.parametrize("changes", [{"factor": 1e308}, {"theta": 5e-324}, {"theta": 1e308}, {"native_length": 10**20}])
def test_geometries_of_no_model_are_refused(changes):
    with pytest.raises(LongEvalError, match=r"--theta|--factor"):
        Geometry(**({"head_dim": 64, "theta": 1e4, "native_length": 4096, "factor": 4.0} | changes))
