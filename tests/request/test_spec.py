"""What users write: lengths, factors, YAML requests, and their round trip."""

from __future__ import annotations

from itertools import pairwise

import pytest

from longeval.errors import LongEvalError
from longeval.request import requests_from_yaml, requests_to_yaml
from longeval.run.study import request_from_mapping
from longeval.studies.ppl.request import PplRequest
from longeval.values import format_length, parse_count, parse_factor, parse_length, parse_lengths, split_paths


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("4k", 4096), ("128k", 131072), ("1m", 1048576), ("1000", 1000), (" 16K ", 16384), ("2M", 2097152)],
)
def test_lengths_are_binary_thousands(text, tokens):
    assert parse_length(text) == tokens


@pytest.mark.parametrize(("tokens", "text"), [(4096, "4k"), (1048576, "1m"), (1536 * 1024, "1536k"), (1000, "1000")])
def test_lengths_are_shown_as_they_are_written(tokens, text):
    assert format_length(tokens) == text
    assert parse_length(text) == tokens


def test_a_comma_in_a_path(tmp_path, monkeypatch):
    def split(text):
        return split_paths(text, flag="--data")

    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("a,b.txt", "c,d,e.txt", " f, g.txt", "one", "two.txt", "one,two.txt"):
        (tmp_path / "data" / name).touch()
    (tmp_path / "none,yarn").touch()
    assert split("data/a,b.txt") == ("data/a,b.txt",)
    assert split("stdlib, data/a,b.txt ,data/c,d,e.txt,data/one") == (
        "stdlib",
        "data/a,b.txt",
        "data/c,d,e.txt",
        "data/one",
    )
    assert split(f"{tmp_path}/data/a,b.txt,pg19") == (f"{tmp_path}/data/a,b.txt", "pg19")
    assert split("data/ f, g.txt") == ("data/ f, g.txt",)
    assert split("data/x\\,y.txt,z") == ("data/x,y.txt", "z")
    assert split("data/x,y.txt") == ("data/x", "y.txt")
    assert request_from_mapping(
        {"model": "m", "pe": "none", "lengths": "4k", "data": "data/a,b.txt"}, origin="x"
    ).data == ("data/a,b.txt",)
    monkeypatch.chdir(tmp_path / "data")
    for text, names in (("one,two.txt", ("one", "two.txt")), ("two.txt,one", ("two.txt", "one"))):
        if text == "one,two.txt":
            with pytest.raises(LongEvalError, match=r"^--data one,two.txt: one path, or 2 names\?"):
                split(text)
            assert split("one\\,two.txt") == ("one,two.txt",)
        else:
            assert split(text) == names
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LongEvalError, match="one path, or 2 names"):
        split("none,yarn")
    for empty in ("", ",", "a,,b", "a,"):
        with pytest.raises(LongEvalError, match="an empty item"):
            split(empty)


@pytest.mark.parametrize("text", ["0", "-4k", "1", "4q", "", "4.5k", "k", "nan", "4 k", "1e4"])
def test_unreadable_lengths_name_flag_and_value(text):
    with pytest.raises(LongEvalError, match=r"^--lengths ") as caught:
        parse_length(text)
    assert text in str(caught.value)
    assert caught.value.remedy


def test_length_lists_are_sorted_without_repeats():
    assert parse_lengths("8k,4k,8192") == (4096, 8192)
    with pytest.raises(LongEvalError, match="an empty item"):
        parse_lengths("4k,,8k")


@pytest.mark.parametrize(
    "text",
    ["4,096", "8,192", "16,384", "32,768", "65,536", "131,072", "128,000", "1,048,576", "40,960", "262,144", "2,500",
     "12,500", "0,000", "8k,16,384", "4,096,8,192"],
)  # fmt: skip
def test_a_number_with_thousands_separators_is_no_list(text):
    with pytest.raises(LongEvalError, match=f"--lengths {text}: one length or several") as caught:
        parse_lengths(text)
    whole = {"8k,16,384": "16384", "4,096,8,192": "4096"}.get(text, text.replace(",", ""))
    assert f"write {whole}" in caught.value.remedy


@pytest.mark.parametrize(
    "text",
    ["128,256,512", "64,128,256,512,768", "512,1024", "16,512", "32,128", "64,512", "100,200,300", "100,500", "96,4",
     "256,384", "200,400,800", "4k,8k", "768,32"],
)  # fmt: skip
def test_lists_of_three_digits_are_lists(text):
    assert parse_lengths(text) == tuple(sorted({parse_length(part) for part in text.split(",")}))


def test_lengths_in_a_file_are_apart_already():
    asked = {"command": "ppl", "model": "m", "pe": "none"}
    assert request_from_mapping(asked | {"lengths": [16, 384]}, origin="f").lengths == (16, 384)
    with pytest.raises(LongEvalError, match="f: lengths 16,384: one length or several"):
        request_from_mapping(asked | {"lengths": "16,384"}, origin="f")


@pytest.mark.parametrize("text", ["4,096", "4_096", "4.096", "4 096", "4'096"])
def test_a_length_with_separators_is_told_without_them(text):
    with pytest.raises(LongEvalError, match=r"--length .*not a length") as caught:
        parse_length(text, flag="--length")
    assert "4096, without" in caught.value.remedy


@pytest.mark.parametrize("text", ["0", "0.5", "nan", "inf", "-2", "x", ""])
def test_bad_factors(text):
    with pytest.raises(LongEvalError, match="--factor"):
        parse_factor(text)
    assert parse_factor("1.5") == 1.5


def test_counts():
    assert parse_count("7", flag="--docs") == 7
    for text in ("0", "-1", "2.5", "x"):
        with pytest.raises(LongEvalError, match="--docs"):
            parse_count(text, flag="--docs")


def spec(**changes):
    return PplRequest(**({"model": ("m",), "pe": ("yarn", "none"), "lengths": (4096, 5000)} | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stride": 0}, "--stride 0"),
        ({"docs": 0}, "--docs 0"),
        ({"min_tokens": 1}, "--min-tokens 1"),
        ({"native": 1}, "--native 1"),
        ({"lengths": ()}, "--lengths"),
        ({"device": "cpu", "device_map": "auto"}, "would be ignored"),
    ],
)
def test_specs_validate_themselves(changes, message):
    with pytest.raises(LongEvalError, match=message):
        spec(**changes)


def test_requests_survive_yaml():
    requests = [
        spec(factor="each", pe_args={"yarn": {"beta_fast": 16}}, docs="all", bos=False, native=2048),
        spec(factor=2.5, docs=3, protocol="sliding", stride=128, parse_special=True),
        spec(),
    ]
    text = requests_to_yaml([request.to_mapping() for request in requests])
    assert "lengths: [4k, 5000]" in text
    again = [request_from_mapping(plain, origin="f") for plain in requests_from_yaml(text, origin="f")]
    assert again == requests
    assert len({request.digest() for request in requests}) == 3


def test_python_values_are_read_as_flags_are():
    given = {"model": "a,b", "pe": ["none", "yarn"], "lengths": [8192, "4k"], "text-field": "body", "factor": 2}
    assert PplRequest.read(given) == PplRequest(
        model=("a", "b"), pe=("none", "yarn"), lengths=(4096, 8192), text_field="body", factor=2.0
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": True}, "--lengths"),
        ({"lengths": [4096, None]}, "--lengths"),
        ({"lengths": 4096.0}, "--lengths"),
        ({"docs": True}, "--docs 'True'"),
        ({"docs": 16**5000}, "--docs 'a number of too many digits'"),
        ({"pe": []}, "--pe: nothing named"),
        ({"factor": "each "}, "--factor"),
        ({"bos": "yes"}, "--bos yes"),
        ({"layers": "some"}, "--layers some"),
        ({"pe_args": {"yarn": {1: 2}}}, "--pe-arg"),
        ({"vllm_args": {1: 2}}, "--vllm-arg"),
        ({"strid": 3}, "unknown key strid.*stride"),
    ],
)
def test_python_values_are_refused_as_flags_are(changes, message):
    with pytest.raises(LongEvalError, match=message) as caught:
        PplRequest.read({"model": "m", "pe": "none", "lengths": "4k"} | changes)
    assert caught.value.remedy


def test_a_missing_setting_is_named_with_an_example():
    with pytest.raises(LongEvalError, match="--lengths: missing") as caught:
        PplRequest.read({"model": "m", "pe": "none"})
    assert "--lengths 4k,8k" in caught.value.remedy


def test_a_copy_is_checked_again():
    assert spec().replaced(stride="1k", docs=3) == spec(stride=1024, docs=3)
    with pytest.raises(LongEvalError, match="--stride 0"):
        spec().replaced(stride=0)


def test_yaml_understands_what_flags_do():
    text = "model: a,b\npe: [none, yarn]\nlengths: 4k,8k\nmin-tokens: 1k\ndocs: all\nfactor: 4\n"
    (plain,) = requests_from_yaml(text, origin="f")
    assert request_from_mapping(plain, origin="f") == PplRequest(
        model=("a", "b"), pe=("none", "yarn"), lengths=(4096, 8192), min_tokens=1024, docs="all", factor=4.0
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [a", "f, line 1"),
        ("- a\n", "holds no request"),
        ("", "holds no request"),
        ("model: a\npe: none\n", "lengths is missing"),
        ("model: a\npe: none\nlengths: 4k\nstrid: 3\n", "unknown key strid.*stride"),
        ("model: a\npe: none\nlengths: 4q\n", "f: lengths '4q'"),
        ("model: a\npe: none\nlengths: 4k\nfactor: .nan\n", "f: factor nan"),
        ("model: a\npe: none\nlengths: 4k\nbos: 1\n", "f: bos 1"),
        ("model: a\npe: none\nlengths: 4k\nparse_special: 'yes'\n", "f: parse_special yes"),
        ("model: a\npe: none\nlengths: 4k\npe_args: {yarn: 3}\n", "f: pe_args"),
        ("model: {a: 1}\npe: none\nlengths: 4k\n", "f: model"),
        ("model: a\npe: none\nlengths: 4k\nprotocol: 3\n", "f: protocol 3"),
    ],
)
def test_bad_yaml_names_file_and_key(text, message):
    with pytest.raises(LongEvalError, match=message):
        for plain in requests_from_yaml(text, origin="f"):
            request_from_mapping(plain, origin="f")


def nine_times(level):
    """A document whose every line has the one before it nine times."""
    lines = [f"{name}: &{name} {level.format(', '.join([f'*{before}'] * 9))}" for before, name in pairwise("abcdefghi")]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [
        "a: " + "[" * 20_000,
        "a: " + "{b: " * 20_000,
        "a: &a [x, y]\n" + nine_times("[{}]"),
        "a: &a {x: 1, y: 2}\n" + nine_times("{{<<: [{}]}}"),
        "a: &a [*a]",
        "model: !!bool x",
        "model: !!int ''",
        "model: !!timestamp x",
        "model: 2020-99-99",
        "model: " + "9" * 5000,
        "a: " + "x" * (5 << 20),
    ],
)  # fmt: skip
def test_yaml_that_nests_or_grows_without_end_is_refused_at_once(text):
    with pytest.raises(LongEvalError, match=r"f.*: not YAML"):
        requests_from_yaml(text, origin="f")


def test_yaml_may_name_a_value_once_and_use_it_twice():
    (plain,) = requests_from_yaml("pe_args: {yarn: &b {beta_fast: 16}, ntk_by_parts: *b}\n", origin="f")
    assert plain["pe_args"]["ntk_by_parts"] == {"beta_fast": 16}


def test_yaml_builds_no_objects():
    with pytest.raises(LongEvalError, match="not YAML"):
        requests_from_yaml("model: !!python/object/apply:os.system ['true']\n", origin="f")
