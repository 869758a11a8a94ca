"""What users write: lengths, factors, YAML requests, and their round trip."""

from __future__ import annotations

from itertools import pairwise

import pytest

from longeval.errors import LongEvalError
from longeval.request import requests_from_yaml, requests_to_yaml
from longeval.run.study import request_from_mapping
from longeval.studies.ppl.request import PplRequest
from longeval.values import format_length, parse_count, parse_factor, parse_length, parse_lengths, split_paths


@pytest.mark.parametrize(("text", "tokens"), [("4k", 4096), ("1m", 1048576), ("1536k", 1536 * 1024), ("1000", 1000)])
def test_lengths_are_binary_thousands_and_are_shown_so(text, tokens):
    assert parse_length(text) == parse_length(f" {text.upper()} ") == tokens
    assert format_length(tokens) == text


@pytest.mark.parametrize("text", ["0", "-4k", "1", "4q", "", "4.5k", "nan", "4 k", "1e4"])
def test_unreadable_lengths_name_flag_and_value(text):
    with pytest.raises(LongEvalError, match=r"^--lengths ") as caught:
        parse_length(text)
    assert text in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize("text", ["4,096", "4_096", "4.096", "4 096", "4'096"])
def test_a_length_with_separators_is_told_without_them(text):
    with pytest.raises(LongEvalError, match=r"^--length ") as caught:
        parse_length(text, flag="--length")
    assert "4096, without" in caught.value.remedy


@pytest.mark.parametrize(
    ("text", "lengths"),
    [
        ("8k,4k,8192", (4096, 8192)),
        ("64,128,256,512,768", (64, 128, 256, 512, 768)),
        ("512,1024", (512, 1024)),
        ("16,512", (16, 512)),
        ("100,500", (100, 500)),
        ("96,4", (4, 96)),
        ("768,32", (32, 768)),
    ],
)
def test_length_lists_are_sorted_without_repeats(text, lengths):
    assert parse_lengths(text) == lengths


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("4,096", "4096"),
        ("16,384", "16384"),
        ("131,072", "131072"),
        ("128,000", "128000"),
        ("1,048,576", "1048576"),
        ("2,500", "2500"),
        ("0,000", "0000"),
        ("8k,16,384", "16384"),
        ("4,096,8,192", "4096"),
    ],
)
def test_a_number_with_thousands_separators_is_no_list(text, whole):
    with pytest.raises(LongEvalError, match=f"--lengths {text}: one length or several") as caught:
        parse_lengths(text)
    assert f"write {whole}" in caught.value.remedy


def test_lengths_in_a_file_are_apart_already():
    asked = {"command": "ppl", "model": "m", "pe": "none"}
    assert request_from_mapping(asked | {"lengths": [16, 384]}, origin="f").lengths == (16, 384)
    with pytest.raises(LongEvalError, match="f: lengths 16,384: one length or several"):
        request_from_mapping(asked | {"lengths": "16,384"}, origin="f")


@pytest.fixture
def files_with_commas(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("a,b.txt", "c,d,e.txt", " f, g.txt", "one", "two.txt", "one,two.txt"):
        (tmp_path / "data" / name).touch()
    (tmp_path / "none,yarn").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("data/a,b.txt", ("data/a,b.txt",)),
        ("pg19, data/a,b.txt ,data/c,d,e.txt,data/one", ("pg19", "data/a,b.txt", "data/c,d,e.txt", "data/one")),
        ("data/ f, g.txt", ("data/ f, g.txt",)),
        ("data/x\\,y.txt,z", ("data/x,y.txt", "z")),
        ("data/x,y.txt", ("data/x", "y.txt")),
    ],
)
def test_a_comma_in_the_name_of_a_file_that_is_there_parts_nothing(files_with_commas, text, paths):
    assert split_paths(text, flag="--data") == paths
    request = {"model": "m", "pe": "none", "lengths": "4k", "data": text}
    assert request_from_mapping(request, origin="x").data == paths


def test_a_comma_that_may_part_names_or_not_is_asked_about(files_with_commas, monkeypatch):
    with pytest.raises(LongEvalError, match=r"^--data none,yarn: one path, or 2 names"):
        split_paths("none,yarn", flag="--data")
    monkeypatch.chdir(files_with_commas / "data")
    with pytest.raises(LongEvalError, match=r"^--data one,two.txt: one path, or 2 names"):
        split_paths("one,two.txt", flag="--data")
    assert split_paths("one\\,two.txt", flag="--data") == ("one,two.txt",)
    assert split_paths("two.txt,one", flag="--data") == ("two.txt", "one")


@pytest.mark.parametrize("empty", ["", ",", "a,,b", "a,"])
def test_empty_items_of_lists_are_refused(empty):
    with pytest.raises(LongEvalError, match="--data"):
        split_paths(empty, flag="--data")
    with pytest.raises(LongEvalError, match="--lengths"):
        parse_lengths(empty.replace("a", "4k").replace("b", "8k"))


@pytest.mark.parametrize("text", ["0", "0.5", "nan", "inf", "-2", "x", ""])
def test_bad_factors(text):
    with pytest.raises(LongEvalError, match="--factor"):
        parse_factor(text)
    assert parse_factor("1.5") == 1.5


@pytest.mark.parametrize("text", ["0", "-1", "2.5", "x"])
def test_bad_counts(text):
    with pytest.raises(LongEvalError, match="--docs"):
        parse_count(text, flag="--docs")
    assert parse_count("7", flag="--docs") == 7


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
def test_requests_validate_themselves_and_so_do_copies(changes, message):
    with pytest.raises(LongEvalError, match=message):
        spec(**changes)
    with pytest.raises(LongEvalError, match=message):
        spec().replaced(**changes)
    assert spec().replaced(stride="1k", docs=3) == spec(stride=1024, docs=3)


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


def test_python_and_yaml_values_are_read_as_flags_are():
    expected = PplRequest(model=("a", "b"), pe=("none", "yarn"), lengths=(4096, 8192), min_tokens=1024, factor=2.0)
    given = {"model": "a,b", "pe": ["none", "yarn"], "lengths": [8192, "4k"], "min-tokens": "1k", "factor": 2}
    assert PplRequest.read(given) == expected
    text = "model: a,b\npe: [none, yarn]\nlengths: 4k,8k\nmin-tokens: 1k\nfactor: 2\n"
    (plain,) = requests_from_yaml(text, origin="f")
    assert request_from_mapping(plain, origin="f") == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": True}, "--lengths"),
        ({"lengths": [4096, None]}, "--lengths"),
        ({"lengths": 4096.0}, "--lengths"),
        ({"docs": True}, "--docs 'True'"),
        ({"docs": 16**5000}, "--docs"),
        ({"pe": []}, "--pe"),
        ({"factor": "each "}, "--factor"),
        ({"bos": "yes"}, "--bos yes"),
        ({"layers": "some"}, "--layers some"),
        ({"pe_args": {"yarn": {1: 2}}}, "--pe-arg"),
        ({"vllm_args": {1: 2}}, "--vllm-arg"),
        ({"strid": 3}, "strid.*stride"),
    ],
)
def test_python_values_are_refused_as_flags_are(changes, message):
    with pytest.raises(LongEvalError, match=message) as caught:
        PplRequest.read({"model": "m", "pe": "none", "lengths": "4k"} | changes)
    assert caught.value.remedy


def test_a_missing_setting_is_named_with_an_example():
    with pytest.raises(LongEvalError, match="--lengths") as caught:
        PplRequest.read({"model": "m", "pe": "none"})
    assert "--lengths 4k,8k" in caught.value.remedy


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ("", "f: lengths"),
        ("lengths: 4q", "f: lengths '4q'"),
        ("lengths: [a", "f, line 4"),
        ("lengths: 4k\nfactor: .nan", "f: factor nan"),
        ("lengths: 4k\nbos: 1", "f: bos 1"),
        ("lengths: 4k\npe_args: {yarn: 3}", "f: pe_args"),
        ("lengths: 4k\ndata: {a: 1}", "f: data"),
        ("lengths: 4k\nprotocol: 3", "f: protocol 3"),
        ("lengths: 4k\nstrid: 3", "strid.*stride"),
        ("lengths: 4k\nlengths: 8k", "f, line 4: .*lengths is there twice"),
        ("lengths: 4k\npe_args: {yarn: {beta_fast: 1, beta_fast: 2}}", "f, line 4: .*beta_fast"),
        ("lengths: 4k\npe_args: {yarn: {beta_fast: .nan}}", "f: pe_args yarn beta_fast nan"),
        ("lengths: 4k\npe_args: {yarn: {beta_fast: 2026-01-01}}", "f: pe_args yarn beta_fast 2026-01-01"),
        ("lengths: 4k\npe_args: {yarn: {beta_fast: !!set {a, b}}}", "f: pe_args yarn beta_fast"),
        ("lengths: 4k\nvllm_args: {x: [1, !!binary aGVsbG8=]}", "f: vllm_args x"),
        ("lengths: 4k\nvllm_args: {x: {2026-01-01: 1}}", "f: vllm_args x 2026-01-01"),
    ],
)
def test_bad_yaml_names_file_and_key(rest, message):
    with pytest.raises(LongEvalError, match=message):
        for plain in requests_from_yaml(f"model: a\npe: none\n{rest}\n", origin="f"):
            request_from_mapping(plain, origin="f")


@pytest.mark.parametrize("text", ["- a\n", ""])
def test_yaml_without_a_request_is_refused(text):
    with pytest.raises(LongEvalError, match="no request"):
        requests_from_yaml(text, origin="f")


def nine_times(level):
    """A document whose every line has the one before it nine times."""
    lines = [f"{name}: &{name} {level.format(', '.join([f'*{before}'] * 9))}" for before, name in pairwise("abcdefghi")]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [
        "a: " + "[" * 20_000,
        "a: &a [x, y]\n" + nine_times("[{}]"),
        "a: &a {x: 1, y: 2}\n" + nine_times("{{<<: [{}]}}"),
        "a: &a [*a]",
        "model: !!bool x",
        "model: !!int ''",
        "model: !!timestamp x",
        "model: 2020-99-99",
        "model: " + "9" * 5000,
        "a: " + "x" * (5 << 20),
        "model: !!python/object/apply:os.system ['true']\n",
    ],
)
def test_yaml_that_nests_or_grows_without_end_or_builds_objects_is_refused(text):
    with pytest.raises(LongEvalError, match=r"f.*: not YAML"):
        requests_from_yaml(text, origin="f")


def test_yaml_may_name_a_value_once_and_use_it_twice():
    (plain,) = requests_from_yaml("pe_args: {yarn: &b {beta_fast: 16}, ntk_by_parts: *b}\n", origin="f")
    assert plain["pe_args"]["ntk_by_parts"] == {"beta_fast": 16}
