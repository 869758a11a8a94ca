"""The run folder: whole files or none, resume by cell, readable from anywhere fsspec reaches."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from records import make_provenance

from longeval.errors import LongEvalError, WriteError
from longeval.store.artefact import ARTEFACTS, Artefact
from longeval.store.folder import Store
from longeval.store.nll import TokenNll
from longeval.store.records import Record

PERPLEXITY = math.exp(4.75 / 3)
"""Of the token values of `nll`."""


@pytest.fixture
def folder(tmp_path):
    """The folder of `store`."""
    return tmp_path / "run"


def record(cell="abc", **changes):
    fields = {
        "cell": cell,
        "model": "m",
        "pe": "none",
        "factor": None,
        "length": 4,
        "data": "d",
        "task": None,
        "protocol": "prefix",
        "backend": "fake",
        "dtype": "float32",
        "metric": "perplexity",
        "value": 2.0,
        "status": "ok",
        "provenance": make_provenance(),
    }
    return Record(**(fields | changes))


def nll():
    return TokenNll(
        nll_S=np.array([1.5, 0.25, 3.0], dtype=np.float32),
        tokens_W=np.array([2, 1], dtype=np.int32),
        context_W=np.array([1, 3], dtype=np.int32),
        document_W=np.array([0, 0], dtype=np.int32),
        start_W=np.array([1, 3], dtype=np.int64),
        bytes_W=np.array([5, -1], dtype=np.int64),
        documents=("öne",),
    )


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("where", ["local", "memory"])
def test_cells_come_back_as_they_were(folder, where):
    store = Store(str(folder) if where == "local" else f"memory://run-{os.getpid()}")
    counts = {"n": 2, "tokens": 3, "nll_sum": 4.75, "documents": 1}
    records = [record(params={"ci": None, "θ": 1}, value=PERPLEXITY, **counts)]
    assert store.load("abc") is None
    store.save(records, nll())
    assert list(store.load("abc").records) == records
    assert store.finished("abc") == tuple(records) and store.finished("other") is None
    again = store.nll("abc")
    np.testing.assert_array_equal(again.nll_S, nll().nll_S)
    np.testing.assert_array_equal(again.bytes_W, [5, -1])
    assert again.documents == ("öne",)
    np.testing.assert_array_equal(again.positions_S(), [1, 2, 3])
    np.testing.assert_array_equal(again.window_sums_W, [1.75, 3.0])
    assert [cell.cell for cell in store.cells()] == ["abc"]


def test_a_cell_file_is_a_json_object_with_its_id_and_no_nan(store, folder):
    store.save([record(value=float("inf"), ci_low=float("nan"))])
    plain = json.loads((folder / "cells" / "abc.json").read_text())
    assert plain["cell"] == "abc"
    assert plain["records"][0]["value"] is None and plain["records"][0]["ci_low"] is None


def test_a_write_that_fails_leaves_nothing(store, folder, monkeypatch):
    def refuse(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(WriteError, match="disk full"):
        store.save([record()])
    assert contents(folder) == {}
    assert list(store.cells()) == []


def test_half_written_leftovers_are_not_cells(store, folder):
    store.save([record()])
    (folder / "cells" / ".def.json.1234").write_text('{"cell": "def"')
    assert [cell.cell for cell in store.cells()] == ["abc"]


def test_a_damaged_cell_is_named_and_counts_as_absent(store, folder, caplog):
    store.save([record()])
    (folder / "cells" / "abc.json").write_text("{}")
    assert store.load("abc") is None and list(store.cells()) == []
    assert caplog.text.count("abc.json") == 1
    assert set(store.damaged) == {"abc"}


def test_a_damaged_cell_that_is_asked_for_is_named_once_also_where_all_were_read_before(store, folder, caplog):
    store.save([record()])
    (folder / "cells" / "abc.json").write_text("{}")
    assert list(store.cells()) == [] and set(store.damaged) == {"abc"}
    assert store.load("abc") is None and store.load("abc") is None
    assert caplog.text.count("abc.json") == 1


def test_a_damaged_cell_that_is_stored_again_counts_as_stored(store, folder):
    store.save([record(value=PERPLEXITY)], nll())
    (folder / "cells" / "abc.json").write_text("{}")
    assert store.finished("abc") is None
    store.save([record(value=PERPLEXITY)], nll())
    assert store.damaged == {}
    assert store.finished("abc") is not None and [cell.cell for cell in store.cells()] == ["abc"]


def test_the_place_of_a_cell_that_is_taken_is_told_also_after_all_were_read(store, folder):
    (folder / "cells" / "abc.json").mkdir(parents=True)
    assert list(store.cells()) == []
    with pytest.raises(LongEvalError, match="is not a file"):
        store.load("abc")


def test_a_pickle_in_place_of_token_values_is_refused(store, folder):
    store.save([record()], nll())
    np.savez(folder / "nll" / "abc.npz", nll=np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(LongEvalError, match="--fresh"):
        store.nll("abc")


@pytest.mark.parametrize("name", ["empty", "nosuch://x"])
def test_what_is_no_run_folder_is_named(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(LongEvalError, match=name):
        Store(name, create=False)


def test_unwritable_places_are_found_before_and_nothing_is_left(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "cells").touch()
    for place in (tmp_path / "file" / "run", tmp_path / "dangling" / "run", tmp_path / "run", "/proc/longeval"):
        with pytest.raises(LongEvalError, match=f"--out {place}"):
            Store(str(place)).check_writable()
    Store(str(tmp_path / "new" / "run")).check_writable()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "file", "run"]


@pytest.mark.parametrize("name", ["/", "//", "/.", "file:///", "~nouser/x", "file://~nouser/x", "file://x", "file://"])
def test_a_folder_that_cannot_be_meant_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LongEvalError, match="--out"):
        Store(name).check_usable()
    assert list(tmp_path.iterdir()) == []


def test_the_users_home_and_file_addresses_are_folders(tmp_path, folder, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for number, name in enumerate(("~/run", f"file://{folder}")):
        Store(name).check_usable()
        Store(name).save([record(str(number))], nll())
    assert sorted(path.name for path in (folder / "cells").iterdir()) == ["0.json", "1.json"]


def test_a_run_folder_that_cannot_be_written_is_read_and_stays_as_it_is(store, tmp_path, monkeypatch):
    store.write_text("spec.yaml", "x")
    store.save([record()], nll())
    before = contents(tmp_path)
    monkeypatch.setattr("longeval.store.files.why_unwritable", lambda folder: "Read-only file system")
    store.check_usable()
    store.write_text("spec.yaml", "y")
    store.save([record("other")], nll())
    assert contents(tmp_path) == before
    with pytest.raises(LongEvalError, match=r"--out .*Read-only file system"):
        store.check_writable()
    with pytest.raises(LongEvalError, match=r"--out .*Read-only file system"):
        Store(str(tmp_path / "another")).check_usable()


def test_what_killed_writers_left_is_swept(store, folder):
    store.save([record(value=PERPLEXITY)], nll())
    code = f"""
import os, signal
from longeval.files import write_whole
os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
write_whole({str(folder / "nll" / "x.npz")!r}, b"1")
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    assert len(list((folder / "nll").iterdir())) == 2
    store.sweep()
    assert [path.name for path in (folder / "nll").iterdir()] == ["abc.npz"]
    assert store.load("abc") is not None


def test_a_kind_of_artefact_that_records_do_not_tell_is_written_with_the_cell(store, folder):
    text = Artefact(folder="texts", suffix="txt", encode=str.encode, decode=bytes.decode, check=lambda *_: None)
    ARTEFACTS.register("texts", text)
    try:
        store.save([record(metric="length", value=5.0)], "hello", text)
        assert (folder / "texts" / "abc.txt").read_text() == "hello"
        assert Store(store.path).artefact(text, "abc") == "hello"
        assert Store(store.path).finished("abc") is None, "nothing says how its value follows"
        text.values["length"] = lambda found, _: len(found)
        store.save([record(metric="length", value=5.0)], "hello", text)
        assert Store(store.path).finished("abc") is not None
    finally:
        del ARTEFACTS._things["texts"]
