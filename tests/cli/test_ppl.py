"""`longeval ppl` and `longeval run` as a user meets them: tiny real model, real files, exit statuses, messages."""

from __future__ import annotations

import csv
import errno
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import make_text

from longeval.cli.app import run_app


@pytest.fixture
def arguments(tiny_llama, documents, tmp_path, monkeypatch):
    """A small request that works; `change` replaces, adds or (None) removes options."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LONGEVAL_DATA", raising=False)

    def make(**change):
        options = {
            "model": str(tiny_llama),
            "pe": "none,yarn,resonance_yarn",
            "lengths": "64,128",
            "data": str(documents),
            "dtype": "float32",
            "out": "run",
        }
        options |= change
        flags = {f"--{key.replace('_', '-')}": value for key, value in options.items() if value is not None}
        return [
            "ppl",
            *(part for flag, value in flags.items() for part in ((flag,) if value is True else (flag, value))),
        ]

    return make


def test_a_run_shows_a_table_and_leaves_a_repeatable_folder(arguments, capsys, tmp_path):
    assert run_app(arguments()) == 0
    shown = capsys.readouterr()
    assert "resonance_yarn" in shown.out and "128" in shown.out
    assert "1 of fewer than 128 tokens skipped" in shown.err
    assert "6 cells computed; records in run" in shown.err
    assert len(list((tmp_path / "run" / "cells").iterdir())) == 6
    assert len(list((tmp_path / "run" / "nll").iterdir())) == 6
    assert run_app(["run", "run/spec.yaml"]) == 0
    assert "0 cells computed, 6 stored already" in capsys.readouterr().err


def test_json_is_all_that_stdout_gets(arguments, capsys):
    assert run_app([*arguments(), "--json", "-"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert [(r["pe"], r["length"], r["metric"]) for r in records] == [
        (pe, length, metric)
        for pe in ("none", "yarn", "resonance_yarn")
        for length in (64, 128)
        for metric in ("perplexity", "bits_per_byte")
    ]
    first = records[0]
    assert first["status"] == "ok" and first["value"] > 1 and first["ci_low"] < first["value"] < first["ci_high"]
    assert first["backend"] == "hf" and first["dtype"] == "float32" and len(first["rope_digest"]) == 64
    assert first["provenance"]["versions"]["transformers"]


def test_quiet_says_nothing_and_json_goes_to_a_file(arguments, capsys, tmp_path):
    assert run_app([*arguments(pe="none"), "-q", "--json", "records.json"]) == 0
    assert capsys.readouterr() == ("", "")
    assert len(json.loads((tmp_path / "records.json").read_text())) == 4


def test_a_dry_run_computes_and_writes_nothing(arguments, capsys, tmp_path):
    assert run_app([*arguments(), "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert "nothing is computed" in shown.out and "resonance_yarn" in shown.out
    assert not (tmp_path / "run").exists() and not (tmp_path / "runs").exists()


def test_run_repeats_one_method_of_a_request_elsewhere_with_the_same_numbers(arguments, capsys):
    assert run_app([*arguments(), "--json", "first.json"]) == 0
    assert run_app(["run", "run/spec.yaml", "--pe", "yarn", "--out", "again", "--json", "second.json"]) == 0
    first, second = (json.loads(Path(name).read_text()) for name in ("first.json", "second.json"))
    expected = {(r["cell"], r["metric"]): r["value"] for r in first if r["pe"] == "yarn"}
    assert {(r["cell"], r["metric"]): r["value"] for r in second} == expected
    assert run_app(["run", "run/spec.yaml", "--pe", "pi"]) == 2
    assert "--pe pi: not in run/spec.yaml" in capsys.readouterr().err


def test_the_default_folder_is_found_again_by_the_same_request(arguments, capsys, tmp_path):
    assert run_app(arguments(out=None)) == 0
    assert run_app(arguments(out=None)) == 0
    assert "6 stored already" in capsys.readouterr().err
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_overlapping_requests_of_one_folder_give_each_record_once(arguments, capsys):
    assert run_app(arguments(pe="none")) == 0
    assert run_app(arguments(pe="none,yarn")) == 0
    capsys.readouterr()
    assert run_app(["run", "run/spec.yaml", "--json", "-"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert len(records) == 8 == len({(r["cell"], r["metric"]) for r in records})


def test_names_with_brackets_and_commas(arguments, capsys, documents, tmp_path):
    for name in ("a, [b].jsonl", "y[red].jsonl"):
        (tmp_path / name).write_bytes(documents.read_bytes())
    request = f"model: {arguments()[2]}\npe: none\nlengths: 64\ndata: ['a, [b].jsonl', 'y[red].jsonl']\n"
    (tmp_path / "request.yaml").write_text(request)
    assert run_app(["run", "request.yaml", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "a, [b].jsonl" in out and "y[red].jsonl" in out
    assert run_app(["run", "request.yaml", "--out", "run"]) == 0
    assert "y[red].jsonl" in capsys.readouterr().out


def test_the_same_documents_in_any_form_have_the_same_perplexity(arguments, capsys, documents, tmp_path):
    texts = [json.loads(line)["text"] for line in documents.read_text().splitlines()]
    for folder in ("books", "clone/data"):
        (tmp_path / folder).mkdir(parents=True)
    for number, text in enumerate(texts):
        (tmp_path / "books" / f"{number}.txt").write_text(text)
    (tmp_path / "clone" / "README.md").write_text(make_text(400, 3))
    for name, delimiter in (("a,b.csv", ","), ("clone/data/train.tsv", "\t")):
        with (tmp_path / name).open("w", newline="") as file:
            csv.writer(file, delimiter=delimiter).writerows([["id", "text"], *enumerate(texts)])
    (tmp_path / "a.ndjson.gz").write_bytes(gzip.compress(documents.read_bytes()))
    request = {"pe": "none", "lengths": "128", "data": "books,a,b.csv,clone,a.ndjson.gz"}
    assert run_app([*arguments(**request), "--json", "-"]) == 0
    shown = capsys.readouterr()
    records = [record for record in json.loads(shown.out) if record["metric"] == "perplexity"]
    assert [record["data"] for record in records] == ["books", "a,b.csv", "clone", "a.ndjson.gz"]
    assert len({(record["value"], record["documents"], record["nll_sum"]) for record in records}) == 1
    assert "--data clone: 1 file is read (1 .tsv); not read: README.md" in shown.err


def test_twelve_lengths_are_legible_in_a_pipe(arguments, capsys):
    lengths = [str(64 + 5 * step) for step in range(12)]
    assert run_app(arguments(lengths=",".join(lengths), pe="none")) == 0
    out = capsys.readouterr().out
    assert all(length in out for length in lengths) and "…" not in out


def test_a_pipe_stays_a_pipe(arguments, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(["cat", "pipe"], cwd=tmp_path, stdout=subprocess.PIPE)
    assert run_app([*arguments(pe="none"), "-q", "--json", "pipe"]) == 0
    assert len(json.loads(reader.communicate(timeout=60)[0])) == 4
    assert (tmp_path / "pipe").is_fifo()


def test_a_folder_that_cannot_be_written_gives_what_is_stored(arguments, capsys, monkeypatch, tmp_path):
    assert run_app([*arguments(), "--json", "first.json"]) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    monkeypatch.setattr("longeval.store.folder.why_unwritable", lambda folder: "Read-only file system")
    monkeypatch.setattr("longeval.backends.hf.backend.load_backend", lambda model: pytest.fail("loaded"))
    capsys.readouterr()
    assert run_app([*arguments(), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "first.json").read_text())
    assert run_app([*arguments(pe="yarn"), "--json", "-"]) == 0  # a request that spec.yaml doesn't hold
    assert {record["pe"] for record in json.loads(capsys.readouterr().out)} == {"yarn"}
    for change in ({"pe": "none,pi"}, {"fresh": True}):
        assert run_app(arguments(**change)) == 2
        shown = capsys.readouterr()
        assert "--out run: can't write there (Read-only file system)" in shown.err and not shown.out
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_failed_cells_end_with_3_and_say_why(arguments, capsys, monkeypatch):
    from longeval.backends.base import OutOfMemoryError
    from longeval.backends.hf.backend import HFBackend

    honest = HFBackend.score

    def score(self, tokens_T, first_scored):
        if len(tokens_T) > 100:
            raise OutOfMemoryError("tried to allocate 9 GiB")
        return honest(self, tokens_T, first_scored)

    monkeypatch.setattr(HFBackend, "score", score)
    assert run_app([*arguments(pe="none"), "--json", "records.json"]) == 3
    shown = capsys.readouterr()
    assert "1 cell failed" in shown.err and "failed" in shown.out
    status = {r["length"]: r["status"] for r in json.loads(Path("records.json").read_text())}
    assert status == {64: "ok", 128: "failed"}


BAD = {
    "unknown method": ({"pe": "yarm"}, "--pe yarm", "yarn"),
    "resonance_none": ({"pe": "resonance_none"}, "--pe resonance_none", "resonance"),
    "unknown model": ({"model": "smollm2-135m-q5"}, "smollm2-135m-q5", "smollm2-135m-q4"),
    "unknown data": ({"data": "gov_reprt"}, "gov_reprt", "gov_report"),
    "unknown protocol": ({"protocol": "slide"}, "--protocol slide", "sliding"),
    "unknown dtype": ({"dtype": "bfloat61"}, "bfloat61", "bfloat16"),
    "unknown backend": ({"backend": "hg"}, "--backend hg", "hf"),
    "unknown device": ({"device": "gpu"}, "gpu", "cuda"),
    "unknown attention": ({"attn": "spda"}, "spda", "sdpa"),
    "zero length": ({"lengths": "0"}, "--lengths 0: must be at least 2", "Write more, as 4096"),
    "negative length": ({"lengths": "-4k"}, "--lengths '-4k'", "4096"),
    "unreadable length": ({"lengths": "4k,8q"}, "--lengths '8q'", "4096"),
    "too long": ({"lengths": "64,8k"}, "--lengths 8k", "shorter lengths"),
    "factor 0": ({"factor": "0"}, "--factor 0", "target length"),
    "factor nan": ({"factor": "nan"}, "--factor nan", "target length"),
    "factor infinite": ({"factor": "1e400"}, "--factor 1e400", "target length"),
    "stride 0": ({"stride": "0"}, "--stride 0", "at least 1"),
    "stride too long": ({"stride": "100", "protocol": "sliding"}, "--stride 100", "--stride 64 or less"),
    "stride under prefix": ({"stride": "32"}, "--stride 32", "sliding"),
    "docs 0": ({"docs": "0"}, "--docs 0", "at least 1"),
    "seed": ({"seed": "x"}, "--seed 'x'", "number"),
    "pe-arg of another": ({"pe_arg": "llama3.low_freq_factor=2"}, "llama3", "--pe"),
    "pe-arg unknown": ({"pe_arg": "yarn.beta=2"}, "yarn.beta", "beta_fast"),
    "pe-arg unreadable": ({"pe_arg": "yarn.beta_fast=x"}, "yarn.beta_fast", ""),
    "longrope alone": ({"pe": "longrope"}, "longrope", "short_factor"),
    "out is a file": ({"out": "documents.jsonl"}, "--out documents.jsonl", "another folder"),
    "json unwritable": ({"json": "/proc/records.json"}, "--json /proc/records.json", "write"),
    "length of many digits": ({"lengths": "9" * 5000}, "--lengths", "4096"),
    "no folder's name": ({"out": ""}, "--out", "Name"),
    "json nowhere": ({"json": "nowhere/records.json"}, "--json nowhere/records.json", "folder"),
    "missing data file": ({"data": "missing.jsonl"}, "missing.jsonl", ""),
    "field-less": ({"text_field": "body"}, "body", "text"),
    "native": ({"native": "0"}, "--native 0", ""),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_message_that_names_value_and_remedy(case, arguments, capsys, tmp_path):
    change, value, remedy = BAD[case]
    before = sorted(tmp_path.rglob("*"))
    assert run_app(arguments(**change)) == 2
    shown = capsys.readouterr()
    messages = [line for line in shown.err.splitlines() if "reading model configuration" not in line]
    assert len(messages) == 1, shown.err
    assert messages[0].startswith("longeval: ") and value in messages[0] and remedy in messages[0]
    assert shown.out == ""
    assert [path for path in sorted(tmp_path.rglob("*")) if path not in before] == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.txt", b""),
        ("binary.txt", b"\x00\x01\x02" * 50),
        ("latin.txt", b"caf\xe9 " * 50),
        ("broken.jsonl", b'{"text": "a"}\n{"text": \n'),
        ("list.jsonl", b"[1, 2]\n"),
        ("number.jsonl", b'{"text": 3}\n'),
        ("broken.parquet", b"PAR1 no"),
        ("weights.pkl", b"\x80\x04."),
    ],
)
def test_unusable_files_are_named(name, content, arguments, capsys, tmp_path):
    (tmp_path / name).write_bytes(content)
    assert run_app(arguments(data=name)) == 2
    shown = capsys.readouterr()
    assert name in shown.err and "Traceback" not in shown.err and shown.out == ""
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_no_model_and_one_that_is_no_run(arguments, capsys, tmp_path):
    (tmp_path / "nomodel").mkdir()
    assert run_app(arguments(model="./nomodel")) == 2
    assert "nomodel" in capsys.readouterr().err
    assert run_app(["report", "nomodel"]) == 2
    assert "nomodel: not a run folder" in capsys.readouterr().err
    assert run_app(["run", "nomodel"]) == 2
    assert run_app(["run", "missing.yaml"]) == 2
    assert "missing.yaml: can't be read" in capsys.readouterr().err


def _start(arguments, cwd):
    return subprocess.Popen(
        [sys.executable, "-m", "longeval", *arguments],
        cwd=cwd,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        # A shell that starts the tests in the background makes them, and so the child, deaf to Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def _wait_for_cells(folder, count, process):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        found = [path for path in folder.glob("*.json") if not path.name.startswith(".")] if folder.exists() else []
        if len(found) >= count:
            return
        time.sleep(0.01)
    raise AssertionError(f"no {count} cells: {process.communicate()}")


@pytest.mark.slow
@pytest.mark.parametrize(("how", "status"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_run_that_is_stopped_loses_no_finished_cell(how, status, arguments, tmp_path):
    (tmp_path / "long.txt").write_text(make_text(4000))
    methods = "none,pi,ntk,yarn,resonance,resonance_pi,resonance_ntk,resonance_yarn"
    command = arguments(data="long.txt", lengths="1k", protocol="sliding", stride="128", pe=methods)
    process = _start(command, tmp_path)
    try:
        _wait_for_cells(tmp_path / "run" / "cells", 2, process)
        process.send_signal(how)
        process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == status
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run" / "cells").glob("[!.]*.json")}
    assert 2 <= len(kept) < 8
    for name in kept:
        json.loads((tmp_path / "run" / "cells" / name).read_text())
    assert run_app(command) == 0
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run" / "cells").glob("[!.]*.json")}
    assert len(after) == 8 and kept.items() <= after.items()


def test_an_address_of_fsspec_is_a_run_folder(arguments, capsys):
    address = f"memory://runs-{os.getpid()}/one"
    assert run_app(arguments(out=address, pe="none")) == 0
    assert run_app(arguments(out=address, pe="none")) == 0
    assert "0 cells computed, 2 stored already" in capsys.readouterr().err


def test_a_disk_that_fills_up_ends_the_run_with_one_message_and_keeps_finished_cells(
    arguments, capsys, tmp_path, monkeypatch
):
    replace, done = os.replace, []

    def fill_up(source, target):
        if "/cells/" in str(target):
            if len(done) == 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            done.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", fill_up)
    assert run_app(arguments()) == 1
    err = capsys.readouterr().err
    assert err.splitlines()[-1].startswith("longeval: run folder") and os.strerror(errno.ENOSPC) in err
    assert len(list((tmp_path / "run" / "cells").iterdir())) == 2
    monkeypatch.setattr(os, "replace", replace)
    assert run_app(arguments()) == 0
    assert "4 cells computed, 2 stored already" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["out", "json"])
def test_a_name_that_is_too_long_is_refused_before_anything_is_computed(arguments, option, capsys, tmp_path):
    before = sorted(tmp_path.iterdir())
    assert run_app(arguments(**{option: "n" * 300})) == 2
    assert f"--{option} nnn" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before
