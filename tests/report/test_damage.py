"""Damaged run folders: what is damaged counts as absent on resume, and reports leave it out by name."""

from __future__ import annotations

import json
import os
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
    write_report,
)

from longeval.errors import LongEvalError
from longeval.report.collect import collect
from longeval.store.folder import Store
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


def change(path, edit):
    plain = json.loads(path.read_text())
    edit(plain)
    path.write_text(json.dumps(plain))


def of_record(field, value):
    def edit(plain):
        plain["records"][0][field] = value

    return edit


def of_params(field, value):
    def edit(plain):
        plain["records"][0]["params"][field] = value

    return edit


def of_file(field, value):
    return lambda plain: plain.update({field: value})


def without(field):
    return lambda plain: plain["records"][0].pop(field)


@pytest.mark.parametrize(
    "edit",
    [
        of_file("schema_version", 2),
        of_file("schema_version", None),
        of_file("cell", "0" * 64),
        of_file("status", "failed"),
        of_file("artefact", []),
        of_file("artefact", "other"),
        of_file("records", []),
        of_file("records", {}),
        of_file("records", [3]),
        of_record("schema_version", 99),
        of_record("cell", "0" * 64),
        of_record("model", "other"),
        of_record("length", 128),
        of_record("length", -64),
        of_record("length", "64"),
        of_record("length", True),
        of_record("status", "finished"),
        of_record("value", None),
        of_record("value", "2.0"),
        of_record("value", 9.0),
        of_record("params", []),
        of_record("provenance", {}),
        of_record("provenance", None),
        of_record("n", 11),
        of_record("tokens", 383),
        of_record("nll_sum", 500.0),
        of_record("documents", 11),
        of_record("metric", "bits_per_byte"),
        of_record("metric", "accuracy"),
        of_record("protocol", "other"),
        of_record("protocol", None),
        lambda plain: plain["records"][0].update(ci_low=5.0, ci_high=1.0),
        lambda plain: plain["records"][0]["provenance"].pop("date"),
        lambda plain: plain["records"][0]["provenance"].update(versions={"torch": 2}),
        of_params("native_length", "64"),
        of_params("method", 3),
        of_params("ci", {"resamples": 10**12}),
        of_params("ci", {"method": {}}),
        without("pe"),
        without("value"),
    ],
)
def test_a_damaged_record_is_no_cell(run, edit):
    cell = cell_of(run)
    change(Path(run.path, "cells", f"{cell}.json"), edit)
    assert is_damaged(run, cell)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe{\x00}\x00",
        b"[" * 200_000,
        b'{"a":' * 5000,
        b"null",
        "{}".encode("utf-16"),
        b'{"cell": 1e999}',
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
        with pytest.raises(LongEvalError, match="is no file"):
            Store(run.path).load(cell)


def arrays(**changes):
    plain = {
        "nll": NLL.nll_S,
        "tokens": NLL.tokens_W,
        "context": NLL.context_W,
        "document": NLL.document_W,
        "start": NLL.start_W,
        "bytes": NLL.bytes_W,
        "documents": np.array(NLL.documents),
    }
    return plain | changes


def nlls(place, value):
    changed = NLL.nll_S.copy()
    changed[place] = value
    return changed


@pytest.mark.parametrize(
    "changes",
    [
        {"nll": nlls(3, np.nan)},
        {"nll": nlls(3, np.inf)},
        {"nll": nlls(3, -1.0)},
        {"nll": nlls(slice(0, 8), 1.25)[:-1]},
        {"nll": nlls(3, 1.75)},
        {"nll": NLL.nll_S.astype("f8")},
        {"nll": NLL.nll_S.reshape(2, -1)},
        {"tokens": NLL.tokens_W[:-1]},
        {"tokens": NLL.tokens_W.astype("i8")},
        {"document": NLL.document_W + 1},
        {"document": NLL.document_W - 1},
        {"document": NLL.document_W * 0},
        {"context": NLL.context_W + 64},
        {"start": NLL.start_W - 2},
        {"bytes": NLL.bytes_W[:-1]},
        {"documents": np.array(["one"])},
        {"documents": np.array([{}], dtype=object)},
    ],
)
def test_token_values_that_are_not_the_records_are_damaged(run, changes):
    cell = cell_of(run)
    np.savez_compressed(Path(run.path, "nll", f"{cell}.npz"), **arrays(**changes))
    assert f"nll/{cell}.npz" in is_damaged(run, cell)


def test_equal_arrays_in_another_file_are_whole(run):
    """As in folders of versions that stored no digest: nothing but the values counts."""
    cell = cell_of(run)
    np.savez(Path(run.path, "nll", f"{cell}.npz"), **arrays())
    change(Path(run.path, "cells", f"{cell}.json"), lambda plain: plain.pop("digest"))
    assert Store(run.path).finished(cell) is not None


def test_keys_that_a_later_version_adds_are_left_out(run):
    cell = cell_of(run)
    change(Path(run.path, "cells", f"{cell}.json"), of_record("energy_j", 3.5))
    assert Store(run.path).finished(cell) is not None


@pytest.mark.parametrize("cut", [0, 1, 200])
def test_a_truncated_file_of_token_values_is_damaged(run, cut):
    path = Path(run.path, "nll", f"{cell_of(run)}.npz")
    path.write_bytes(path.read_bytes()[:cut])
    assert is_damaged(run, path.stem)


@pytest.mark.parametrize(
    "edit",
    [
        lambda lines: lines[:-1],
        lambda lines: [*lines, lines[0]],
        lambda lines: [lines[0].replace('"accuracy": 1.0', '"accuracy": 0.0'), *lines[1:]],
        lambda lines: [lines[0].replace('"accuracy": 1.0', '"accuracy": NaN'), *lines[1:]],
        lambda lines: [lines[0].replace('"index": 0', '"index": "0"'), *lines[1:]],
        lambda lines: [lines[0][:-5], *lines[1:]],
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
    "edit",
    [
        lambda plain: plain["accuracy"].__setitem__(0, 0.1),
        lambda plain: plain["accuracy"].__setitem__(0, 1.5),
        lambda plain: plain["generated"].__setitem__(-1, None),
        lambda plain: plain["positions"].reverse(),
        lambda plain: [values.pop() for name, values in plain.items() if "valid" not in name and name != "epochs"],
        lambda plain: plain.pop("loss"),
    ],
)
def test_curves_that_are_not_the_records_are_damaged(run, edit):
    cell = cell_of(run, pe="yarn", backend="posgen")
    change(Path(run.path, "curves", f"{cell}.json"), edit)
    assert f"curves/{cell}.json" in is_damaged(run, cell)


def test_a_report_counts_and_names_damaged_cells_and_leaves_them_out(run, tmp_path):
    cell = cell_of(run)
    change(Path(run.path, "cells", f"{cell}.json"), of_record("value", "x"))
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


def test_a_damaged_spec_is_said_in_a_report_and_refused_before_a_run(run, tmp_path):
    from longeval.store.plan import stored_requests

    for content in (
        b"\xff\xfe",
        b"model: [" + b"[" * 5000,
        b"? [1]\n: 2\n",
        b"a: 2020-99-99\n",
        b"!!python/object:os.x {}",
    ):
        Path(run.path, "spec.yaml").write_bytes(content)
        assert any("can't be shown" in note for note in collect([run.path]).notes) is (content == b"\xff\xfe")
        with pytest.raises(LongEvalError, match=r"spec\.yaml"):
            stored_requests(Store(run.path))


def test_file_systems_that_cannot_be_had_or_written_are_refused():
    for address in ("nosuch://x", "zip://x", "github://x/y", "s3-without-package://b"):
        with pytest.raises(LongEvalError, match=r"no file system|can't write"):
            Store(address).check_writable()
    with pytest.raises(LongEvalError, match="can't write"):
        Store("http://127.0.0.1:9/run").check_writable()
    Store("memory://damage-check").check_writable()


@pytest.mark.parametrize(
    "file", sorted(Path(__file__).parents[2].glob("reports/*/report.json")), ids=lambda p: p.parent.name
)
def test_the_projects_own_records_read_as_they_are(file):
    for plain in json.loads(file.read_text()):
        assert record_from_json(plain).to_json() == plain
