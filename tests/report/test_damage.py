"""Damaged run folders: what is damaged counts as absent on resume, and reports leave it out by name."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from records import (
    make_cell,
    make_curves,
    make_nll,
    make_records,
    make_run,
    make_samples,
    make_task_records,
    without_figures,
    write_report,
)

from longeval.errors import LongEvalError
from longeval.report.collect import collect
from longeval.store.folder import Store
from longeval.store.plan import stored_requests
from longeval.store.records import record_from_json
from longeval.studies.posgen.request import PosGenRequest

NLL = make_nll([[2.0, 1.0, 0.5, 1.5] * 8] * 12)
SAMPLES = make_samples([1, 0, 1, 1, 0, 1, 1, 1])
SPEC = PosGenRequest()


@pytest.fixture
def run(tmp_path):
    """A run folder of two perplexity cells, a task's and PosGen's."""
    folder = make_run(tmp_path / "run", [(make_records("none", 64, NLL), NLL), (make_records("yarn", 64, NLL), NLL)])
    store = Store(folder)
    store.save(make_task_records("none", 64, "passkey", SAMPLES), SAMPLES)
    values = (0.75, 0.5, 0.25)
    store.save(make_cell(SPEC, "yarn", 0, values), make_curves(SPEC, values))
    return store


def cell_of(store, pe="none", task=None, backend="hf"):
    (found,) = (
        cell.cell
        for cell in Store(store.path).cells()
        if (cell.records[0].pe, cell.records[0].task, cell.records[0].backend) == (pe, task, backend)
    )
    return found


def is_damaged(store, cell):
    """A cell is absent on resume, named once, and left out of what a report reads; the others stay."""
    fresh = Store(store.path)
    assert fresh.finished(cell) is None and list(fresh.damaged) == [cell]
    others = [found.cell for found in Store(store.path).cells()]
    assert cell not in others and len(others) == 3
    return fresh.damaged[cell]


GONE = object()


def change(path, *changes):
    """Sets values in a JSON file: `changes` are (place, value), a place is keys with dots between them."""
    plain = json.loads(path.read_text())
    for place, value in changes:
        *parents, last = [int(key) if key.isdigit() else key for key in place.split(".")]
        inner = plain
        for key in parents:
            inner = inner[key]
        if value is GONE:
            del inner[last]
        else:
            inner[last] = value
    path.write_text(json.dumps(plain))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("schema_version", 2),
        ("cell", "0" * 64),
        ("status", "failed"),
        ("artefact", []),
        ("artefact", "other"),
        ("records", []),
        ("records", [3]),
        ("records.0.schema_version", 99),
        ("records.0.cell", "0" * 64),
        ("records.0.length", 128),
        ("records.0.length", -64),
        ("records.0.length", "64"),
        ("records.0.status", "finished"),
        ("records.0.value", None),
        ("records.0.value", 9.0),
        ("records.0.value", GONE),
        ("records.0.ci_low", 5000.0),
        ("records.0.n", 11),
        ("records.0.nll_sum", 500.0),
        ("records.0.documents", 11),
        ("records.0.metric", "bits_per_byte"),
        ("records.0.protocol", None),
        ("records.0.pe", GONE),
        ("records.0.params", []),
        ("records.0.params.native_length", "64"),
        ("records.0.params.method", 3),
        ("records.0.params.ci", {"resamples": 10**12}),
        ("records.0.params.ci", {"method": {}}),
        ("records.0.provenance.date", GONE),
        ("records.0.provenance.versions", {"torch": 2}),
    ],
)
def test_a_damaged_record_is_no_cell(run, place, value):
    cell = cell_of(run)
    change(Path(run.path, "cells", f"{cell}.json"), (place, value))
    assert is_damaged(run, cell)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe{\x00}\x00",
        b"[" * 200_000,
        b"null",
        b'{"cell": NaN}',
        b'{"cell": 1, "cell": 1}',
        b'{"cell": "\\ud800"}',
        b'{"cell": ' + b"9" * 5000 + b"}",
    ],
)
def test_what_is_no_json_of_ours_is_no_cell(run, content):
    cell = cell_of(run)
    Path(run.path, "cells", f"{cell}.json").write_bytes(content)
    assert is_damaged(run, cell)


@pytest.mark.parametrize("kind", ["folder", "pipe", "link"])
def test_what_is_no_file_is_no_cell_and_said_before_it_would_be_written(run, kind):
    cell = cell_of(run)
    path = Path(run.path, "cells", f"{cell}.json")
    path.unlink()
    {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "link": lambda: path.symlink_to("nowhere")}[kind]()
    assert len(list(Store(run.path).cells())) == 3
    if kind == "link":
        assert Store(run.path).load(cell) is None, "a file can take its place"
    else:
        with pytest.raises(LongEvalError, match="is not a file"):
            Store(run.path).load(cell)


def arrays(**changes):
    plain = {name: getattr(NLL, f"{name}_W") for name in ("tokens", "context", "document", "start", "bytes")}
    return plain | {"nll": NLL.nll_S, "documents": np.array(NLL.documents)} | changes


def nlls(place, value):
    changed = NLL.nll_S.copy()
    changed[place] = value
    return changed


@pytest.mark.parametrize(
    "changes",
    [
        {"nll": nlls(3, np.nan)},
        {"nll": nlls(3, -1.0)},
        {"nll": nlls(3, 1.75)},
        {"nll": NLL.nll_S.astype("f8")},
        {"nll": NLL.nll_S.reshape(2, -1)},
        {"tokens": NLL.tokens_W[:-1]},
        {"tokens": NLL.tokens_W.astype("i8")},
        {"document": NLL.document_W + 1},
        {"document": NLL.document_W * 0},
        {"context": NLL.context_W + 64},
        {"start": NLL.start_W - 2},
        {"documents": np.array(["one"])},
        {"documents": np.array([{}], dtype=object)},
        {"documents": np.array([0x7FFFFFFF], dtype="<u4").view("<U1")},  # a code point that there is not
    ],
)
def test_token_values_that_are_not_the_records_are_damaged(run, changes):
    cell = cell_of(run)
    np.savez_compressed(Path(run.path, "nll", f"{cell}.npz"), **arrays(**changes))
    assert f"nll/{cell}.npz" in is_damaged(run, cell)


def test_files_of_other_versions_are_whole(run):
    """Without a digest nothing but the values counts, and keys that a later version adds are left out."""
    cell = cell_of(run)
    np.savez(Path(run.path, "nll", f"{cell}.npz"), **arrays())
    change(Path(run.path, "cells", f"{cell}.json"), ("digest", GONE), ("records.0.energy_j", 3.5))
    assert Store(run.path).finished(cell) is not None


def test_a_truncated_file_of_token_values_is_damaged(run):
    path = Path(run.path, "nll", f"{cell_of(run)}.npz")
    path.write_bytes(path.read_bytes()[:200])
    assert is_damaged(run, path.stem)


@pytest.mark.parametrize(
    "header", ["{'descr': (", "{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,)}"]
)
def test_an_array_whose_header_is_torn_or_claims_the_memory_is_damaged(run, header):
    path = Path(run.path, "nll", f"{cell_of(run)}.npz")
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    parts["nll.npy"] = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
    with zipfile.ZipFile(path, "w") as file:
        for name, content in parts.items():
            file.writestr(name, content)
    assert is_damaged(run, path.stem)


@pytest.mark.parametrize(
    "edit",
    [
        lambda lines: lines[:-1],
        lambda lines: [*lines, lines[0]],
        lambda lines: [lines[0].replace('"accuracy": 1.0', '"accuracy": 0.0'), *lines[1:]],
        lambda lines: [lines[0].replace('"index": 0', '"index": "0"'), *lines[1:]],
        lambda lines: ["[" * 100_000],
        lambda lines: [],
    ],
)
def test_samples_that_are_not_the_records_are_damaged(run, edit):
    cell = cell_of(run, task="passkey")
    path = Path(run.path, "samples", f"{cell}.jsonl")
    path.write_text("".join(f"{line}\n" for line in edit(path.read_text().splitlines())))
    assert f"samples/{cell}.jsonl" in is_damaged(run, cell)


@pytest.mark.parametrize(
    ("place", "value"),
    [("accuracy.0", 0.1), ("accuracy.0", 1.5), ("generated.0", None), ("positions.0", 10**6), ("loss", GONE)],
)
def test_curves_that_are_not_the_records_are_damaged(run, place, value):
    cell = cell_of(run, pe="yarn", backend="posgen")
    change(Path(run.path, "curves", f"{cell}.json"), (place, value))
    assert f"curves/{cell}.json" in is_damaged(run, cell)


def test_a_report_counts_and_names_damaged_cells_and_leaves_them_out(run, tmp_path, monkeypatch):
    without_figures(monkeypatch)
    cell = cell_of(run)
    change(Path(run.path, "cells", f"{cell}.json"), ("records.0.value", "x"))
    collection = collect([run.path])
    assert cell not in collection.stores and len(collection.cells) == 2
    (note,) = (note for note in collection.notes if "damaged" in note)
    assert note.startswith("1 cell is damaged and left out") and cell[:40] in note
    write_report([run.path], out=str(tmp_path / "report.md"))
    assert "1 cell is damaged and left out" in (tmp_path / "report.md").read_text()


def test_many_damaged_cells_are_few_lines(tmp_path, caplog):
    store = Store(str(tmp_path))
    (tmp_path / "cells").mkdir()
    for number in range(40):
        (tmp_path / "cells" / f"{number}.json").write_text("{}")
        assert store.load(str(number)) is None
    assert len(caplog.records) == 6 and len(store.damaged) == 40


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe", b"model: [" + b"[" * 5000, b"? [1]\n: 2\n", b"a: 2020-99-99\n", b"!!python/object:os.x {}"],
    ids=["encoding", "depth", "key", "date", "object"],
)
def test_a_damaged_spec_is_said_in_a_report_and_refused_before_a_run(run, content):
    Path(run.path, "spec.yaml").write_bytes(content)
    assert any("can't be shown" in note for note in collect([run.path]).notes) is (content == b"\xff\xfe")
    with pytest.raises(LongEvalError, match=r"spec\.yaml"):
        stored_requests(Store(run.path))


@pytest.mark.parametrize("address", ["nosuch://x", "zip://x", "s3-without-package://b", "http://127.0.0.1:9/run"])
def test_file_systems_that_cannot_be_had_or_written_are_refused(address):
    with pytest.raises(LongEvalError, match=r"no file system|can't write"):
        Store(address).check_writable()


@pytest.mark.parametrize(
    "file", sorted(Path(__file__).parents[2].glob("reports/*/report.json")), ids=lambda p: p.parent.name
)
def test_the_projects_own_records_read_as_they_are(file):
    for plain in json.loads(file.read_text()):
        assert record_from_json(plain).to_json() == plain
