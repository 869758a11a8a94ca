"""`longeval ppl` and `longeval run` as a user meets them: tiny real model, real files, exit statuses, messages."""

from __future__ import annotations

import csv
import errno
import gzip
import json
import os
import signal
import subprocess
import time

import pytest
from command_lines import command_line, json_of, start_program
from tiny import make_text
from transformers import AutoConfig

from longeval.cli.app import run_app
from longeval.models.scaling import model_rope
from longeval.request import requests_from_yaml
from longeval.rope.build import build_table, method_names
from longeval.rope.resonance import ResonanceParameters


@pytest.fixture
def arguments(tiny_llama, documents, here):
    """A small request that works; `change` replaces, adds or (None) removes options."""
    small = {
        "model": str(tiny_llama),
        "pe": "none,yarn,resonance_yarn",
        "lengths": "64,128",
        "data": str(documents),
        "dtype": "float32",
        "out": "run",
    }
    return lambda **change: command_line("ppl", **small | change)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_quiet_says_nothing_and_json_goes_to_a_file(arguments, capsys, here):
    assert run_app([*arguments(pe="none"), "-q", "--json", "records.json"]) == 0
    assert capsys.readouterr() == ("", "")
    assert len(json.loads((here / "records.json").read_text())) == 4


def test_run_repeats_one_method_of_a_request_elsewhere_with_the_same_numbers(arguments, capsys, refused):
    first = json_of(capsys, arguments())
    second = json_of(capsys, ["run", "run/spec.yaml", "--pe", "yarn", "--out", "again"])
    expected = {(r["cell"], r["metric"]): r["value"] for r in first if r["pe"] == "yarn"}
    assert {(r["cell"], r["metric"]): r["value"] for r in second} == expected
    assert "--pe pi" in refused(["run", "run/spec.yaml", "--pe", "pi"])


def test_forms_of_resonance_stand_side_by_side_in_one_run(arguments, capsys, here):
    """Requests with several longest periods into one run folder: other cells and tables, one report that pairs all."""
    asked = {"pe": "none,resonance", "lengths": "256", "factor": None}
    records = {}
    for period in ("rounded", "32", "native"):
        given = json_of(capsys, arguments(**asked, pe_arg=f"resonance.max_period={period}"))
        records[period] = {r["pe"]: r for r in given if r["metric"] == "perplexity"}
    usual = {r["pe"]: r for r in json_of(capsys, arguments(**asked)) if r["metric"] == "perplexity"}
    assert {pe: r["cell"] for pe, r in usual.items()} == {pe: r["cell"] for pe, r in records["rounded"].items()}
    assert len({found["none"]["cell"] for found in records.values()}) == 1
    for name in ("cell", "rope_digest", "value"):
        assert len({found["resonance"][name] for found in records.values()}) == 3, name
    assert [found["resonance"]["params"]["method"] for found in records.values()] == [
        {},
        {"max_period": 32},
        {"max_period": "native"},
    ]
    model = model_rope("tiny", AutoConfig.from_pretrained(arguments()[arguments().index("--model") + 1]))
    geometry = model.geometry
    for period in (32, "native"):
        table = build_table("resonance", geometry, resonance=ResonanceParameters(max_period=period))
        assert records[str(period)]["resonance"]["rope_digest"] == table.digest(256)
    # A repeated run of one of them keeps its parameter.
    again = json_of(capsys, ["run", "run/spec.yaml", "--pe", "resonance", "--out", "again"])
    assert {r["cell"] for r in again} == {found["resonance"]["cell"] for found in records.values()}
    assert run_app(["report", "run"]) == 0
    text = (here / "run" / "report.md").read_text()
    for label in ("rounded", "32", "native"):
        assert f"`resonance (max_period={label})` vs `none`" in text


def test_all_methods_are_written_down_by_name(arguments, capsys, here):
    assert run_app(arguments(pe="all", lengths="64")) == 0
    assert "'all' leaves out longrope, resonance_longrope (" in capsys.readouterr().err
    expected = sorted(set(method_names()) - {"longrope", "resonance_longrope"})
    (request,) = requests_from_yaml((here / "run" / "spec.yaml").read_text(), origin="f")
    assert sorted(request["pe"]) == expected
    records = json_of(capsys, ["run", "run"])
    assert sorted({record["pe"] for record in records}) == expected
    (here / "request.yaml").write_text((here / "run" / "spec.yaml").read_text().replace("pe: [", "pe: [all, "))
    records = json_of(capsys, ["run", "request.yaml", "--pe", "abf,yarn", "--out", "run"])
    assert {record["pe"] for record in records} == {"abf", "yarn"}


def test_the_default_folder_is_found_again_by_the_same_request(arguments, capsys, here):
    for _ in range(2):
        assert run_app(arguments(out=None)) == 0
    assert "6 stored already" in capsys.readouterr().err
    assert len(list((here / "runs").iterdir())) == 1


def test_overlapping_requests_of_one_folder_give_each_record_once(arguments, capsys):
    assert run_app(arguments(pe="none")) == 0
    assert run_app(arguments(pe="none,yarn")) == 0
    capsys.readouterr()
    records = json_of(capsys, ["run", "run/spec.yaml"])
    assert len(records) == 8 == len({(r["cell"], r["metric"]) for r in records})


def test_names_with_brackets_and_commas(arguments, capsys, documents, here):
    for name in ("a, [b].jsonl", "y[red].jsonl"):
        (here / name).write_bytes(documents.read_bytes())
    request = f"model: {arguments()[2]}\npe: none\nlengths: 64\ndata: ['a, [b].jsonl', 'y[red].jsonl']\n"
    (here / "request.yaml").write_text(request)
    for more in (["--dry-run"], ["--out", "run"]):
        assert run_app(["run", "request.yaml", *more]) == 0
        out = " ".join(capsys.readouterr().out.split())  # a long title may go over several lines
        assert "a, [b].jsonl" in out and "y[red].jsonl" in out


def test_the_same_documents_in_any_form_have_the_same_perplexity(arguments, capsys, documents, here):
    texts = [json.loads(line)["text"] for line in documents.read_text().splitlines()]
    for folder in ("books", "clone/data"):
        (here / folder).mkdir(parents=True)
    for number, text in enumerate(texts):
        (here / "books" / f"{number}.txt").write_text(text)
    (here / "clone" / "README.md").write_text(make_text(400, 3))
    for name, delimiter in (("a,b.csv", ","), ("clone/data/train.tsv", "\t")):
        with (here / name).open("w", newline="") as file:
            csv.writer(file, delimiter=delimiter).writerows([["id", "text"], *enumerate(texts)])
    (here / "a.ndjson.gz").write_bytes(gzip.compress(documents.read_bytes()))
    request = {"pe": "none", "lengths": "128", "data": "books,a,b.csv,clone,a.ndjson.gz"}
    assert run_app([*arguments(**request), "--json", "-"]) == 0
    shown = capsys.readouterr()
    records = [record for record in json.loads(shown.out) if record["metric"] == "perplexity"]
    assert [record["data"] for record in records] == ["books", "a,b.csv", "clone", "a.ndjson.gz"]
    assert len({(record["value"], record["documents"], record["nll_sum"]) for record in records}) == 1
    assert "not read: README.md" in shown.err


def test_records_without_text_are_counted_and_change_no_number(arguments, capsys, documents, here):
    with_nulls = ['{"text": null}', *documents.read_text().splitlines(), '{"id": 3}']
    (here / "nulls.jsonl").write_text("\n".join(with_nulls))
    assert run_app([*arguments(pe="none", data="nulls.jsonl,documents.jsonl"), "--json", "-"]) == 0
    shown = capsys.readouterr()
    assert "2 of them without text" in shown.err
    records = [record for record in json.loads(shown.out) if record["metric"] == "perplexity"]
    nulls, whole = ([r for r in records if r["data"] == f"{name}.jsonl"] for name in ("nulls", "documents"))
    for mine, other in zip(nulls, whole, strict=True):
        assert (mine["value"], mine["documents"]) == (other["value"], other["documents"])
        assert (mine["skipped"], mine["params"]["without_text"]) == (other["skipped"] + 2, 2)
        assert "without_text" not in other["params"]
    assert run_app(["report", "run", "-q"]) == 0
    report = (here / "run" / "report.md").read_text()
    assert report.count("Records without text (null or missing), counted as skipped: 2.") == 1


def test_a_pattern_is_one_data_set_and_a_comma_list_several(arguments, capsys, documents, here):
    (here / "books").mkdir()
    for number, line in enumerate(documents.read_text().splitlines()):
        (here / "books" / f"{number}.txt").write_text(json.loads(line)["text"])
    records = json_of(capsys, arguments(pe="none", lengths="64", data="books/*.txt,documents.jsonl,books/0.txt"))
    values = {r["data"]: r["value"] for r in records if r["metric"] == "perplexity"}
    assert list(values) == ["books/*.txt", "documents.jsonl", "books/0.txt"]
    assert values["books/*.txt"] == values["documents.jsonl"] != values["books/0.txt"]


def test_a_pattern_that_the_shell_has_replaced_is_explained(arguments, refused):
    assert "'docs/*.txt'" in refused([*arguments(data="a.txt"), "b.txt"])


def test_a_pipe_stays_a_pipe(arguments, here):
    os.mkfifo(here / "pipe")
    reader = subprocess.Popen(["cat", "pipe"], cwd=here, stdout=subprocess.PIPE)
    assert run_app([*arguments(pe="none"), "-q", "--json", "pipe"]) == 0
    assert len(json.loads(reader.communicate(timeout=60)[0])) == 4
    assert (here / "pipe").is_fifo()


def test_a_folder_that_cannot_be_written_gives_what_is_stored(arguments, capsys, monkeypatch, here, refused):
    first = json_of(capsys, arguments())
    before = contents(here)
    monkeypatch.setattr("longeval.store.files.why_unwritable", lambda folder: "Read-only file system")
    monkeypatch.setattr("longeval.backends.hf.backend.load_backend", lambda model: pytest.fail("loaded"))
    assert json_of(capsys, arguments()) == first
    # A request that spec.yaml doesn't hold.
    assert {record["pe"] for record in json_of(capsys, arguments(pe="yarn"))} == {"yarn"}
    for change in ({"pe": "none,pi"}, {"fresh": True}):
        message = refused(arguments(**change))
        assert "--out run" in message and "Read-only file system" in message
    assert contents(here) == before


@pytest.mark.parametrize(
    ("change", "value", "remedy"),
    [
        ({"pe": "yarm"}, "--pe yarm", "yarn"),
        ({"model": "smollm2-135m-q5"}, "smollm2-135m-q5", "smollm2-135m-q4"),
        ({"model": "."}, "--model .", ""),
        ({"data": "gov_reprt"}, "gov_reprt", "gov_report"),
        ({"data": "missing.jsonl"}, "missing.jsonl", ""),
        ({"data": "docs/*.txt"}, "--data docs/*.txt", "quotes"),
        ({"text_field": "body"}, "body", "text"),
        ({"protocol": "slide"}, "--protocol slide", "sliding"),
        ({"dtype": "bfloat61"}, "bfloat61", "bfloat16"),
        ({"backend": "hg"}, "--backend hg", "hf"),
        ({"device": "gpu"}, "gpu", "cuda"),
        ({"lengths": "4k,8q"}, "--lengths '8q'", "4096"),
        ({"lengths": "9" * 5000}, "--lengths", "4096"),
        ({"lengths": "64,8k"}, "--lengths 8k", "shorter lengths"),
        ({"factor": "1e400"}, "--factor 1e400", "target length"),
        ({"stride": "100", "protocol": "sliding"}, "--stride 100", "--stride 64 or less"),
        ({"stride": "32"}, "--stride 32", "sliding"),
        ({"seed": "x"}, "--seed 'x'", "number"),
        ({"pe_arg": "llama3.low_freq_factor=2"}, "llama3", "--pe"),
        ({"pe": "longrope"}, "longrope", "short_factor"),
        ({"out": "documents.jsonl"}, "--out documents.jsonl", "another folder"),
        ({"out": ""}, "--out", "Name"),
        ({"out": "n" * 300}, "--out nnn", ""),
        ({"json": "n" * 300}, "--json nnn", ""),
        ({"json": "/proc/records.json"}, "--json /proc/records.json", "write"),
        ({"json": "nowhere/records.json"}, "--json nowhere/records.json", "folder"),
    ],
    ids=str,
)
def test_bad_input_is_one_message_that_names_value_and_remedy(change, value, remedy, arguments, refused):
    message = refused(arguments(**change))
    assert value in message and remedy in message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("binary.txt", b"\x00\x01\x02" * 50),
        ("broken.jsonl", b'{"text": "a"}\n{"text": \n'),
        ("weights.pkl", b"\x80\x04."),
    ],
)
def test_unusable_files_are_named(name, content, arguments, here, refused):
    (here / name).write_bytes(content)
    assert name in refused(arguments(data=name))


@pytest.mark.parametrize("arguments", [["report", "folder"], ["run", "folder"], ["run", "missing.yaml"]])
def test_what_is_no_run_is_refused(arguments, here, refused):
    (here / "folder").mkdir()
    assert arguments[1] in refused(arguments)


def wait_for_cells(folder, count, process):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if len(list(folder.glob("[!.]*.json"))) >= count:
            return
        time.sleep(0.01)
    raise AssertionError(f"no {count} cells: {process.communicate()}")


@pytest.mark.slow
@pytest.mark.parametrize(("how", "status"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_run_that_is_stopped_loses_no_finished_cell(how, status, arguments, here):
    (here / "long.txt").write_text(make_text(4000))
    methods = "none,pi,ntk,yarn,resonance,resonance_pi,resonance_ntk,resonance_yarn"
    command = arguments(data="long.txt", lengths="1k", protocol="sliding", stride="128", pe=methods)
    cells = here / "run" / "cells"
    process = start_program(command, cwd=here)
    try:
        wait_for_cells(cells, 2, process)
        process.send_signal(how)
        process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == status
    kept = {path.name: path.stat().st_mtime_ns for path in cells.glob("[!.]*.json")}
    assert 2 <= len(kept) < 8
    for name in kept:
        json.loads((cells / name).read_text())
    assert run_app(command) == 0
    after = {path.name: path.stat().st_mtime_ns for path in cells.glob("[!.]*.json")}
    assert len(after) == 8 and kept.items() <= after.items()


def test_an_address_of_fsspec_is_a_run_folder(arguments, capsys):
    address = f"memory://runs-{os.getpid()}/one"
    for _ in range(2):
        assert run_app(arguments(out=address, pe="none")) == 0
    assert "0 cells computed, 2 stored already" in capsys.readouterr().err


def test_a_disk_that_fills_up_ends_the_run_with_one_message_and_keeps_finished_cells(
    arguments, capsys, here, monkeypatch
):
    replace, done = os.replace, []

    def fill_up(source, target):
        if "/cells/" in str(target):
            if len(done) == 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            done.append(target)
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fill_up)
        assert run_app(arguments()) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("longeval: ") and os.strerror(errno.ENOSPC) in last
    assert len(list((here / "run" / "cells").iterdir())) == 2
    assert run_app(arguments()) == 0
    assert "4 cells computed, 2 stored already" in capsys.readouterr().err
