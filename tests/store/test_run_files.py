"""Files of a run folder that several processes write at once, on a local path, in memory and in S3."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import multiprocessing
import os
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import s3fs
from test_store import PERPLEXITY, nll, record

from longeval.errors import LongEvalError, WriteError
from longeval.store import folder
from longeval.store.folder import Store
from longeval.store.nll import NLL


@pytest.fixture(params=["local", "memory", "s3"])
def place(request, tmp_path):
    """The address of a run folder that doesn't exist yet."""
    if request.param == "local":
        return str(tmp_path / "run")
    if request.param == "memory":
        return f"memory://run-{uuid.uuid4().hex}"
    return f"{request.getfixturevalue('s3_bucket')}/run"


def content(number):
    return f"a long line of writer {number}\n" * 2000


def race(address, number, together):
    together.wait()
    return [number for name in "abcde" if Store(address).create_text(f"leases/{name}", content(number))]


def _race(address, number, together, won):
    won.put(race(address, number, together))


def without_links(monkeypatch, error=errno.EPERM):
    def refuse(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "link", refuse)


def test_of_several_writers_the_first_makes_a_file(place):
    one, two = Store(place), Store(place)
    assert one.create_text("leases/a", "one\n") is True
    assert two.create_text("leases/a", "two\n") is False
    assert two.read_text("leases/a") == "one\n"
    two.remove("leases/a")
    assert two.create_text("leases/a", "two\n") is True and one.read_text("leases/a") == "two\n"


def test_names_are_those_that_are_there_now(place):
    one, two = Store(place), Store(place)
    assert one.names("leases") == []
    for name in ("b", "a", ".hidden"):
        two.write_text(f"leases/{name}", "x")
        two.write_text(f"leases/inside/{name}", "x")
        two.write_text(f"leases-not/other-{name}", "x")
    assert one.names("leases") == ["a", "b"]
    two.remove("leases/a")
    assert one.names("leases") == ["b"]
    two.create_text("leases/c", "x")
    assert one.names("leases") == ["b", "c"] and one.names("") == []


def test_a_file_that_is_not_there_needs_no_removing(place):
    store = Store(place)
    store.remove("leases/a")
    store.write_text("leases/b", "x")
    store.remove("leases/a")
    assert store.names("leases") == ["b"]


def test_folders_are_removed_when_they_are_empty_and_never_with_content(place, tmp_path):
    store = Store(place)
    store.write_text("leases/a", "x")
    store.remove_empty("leases", "cells")
    assert store.names("leases") == ["a"]
    store.write_text("spec.yaml", "x")
    store.remove("leases/a")
    store.remove_empty("leases")
    assert store.read_text("spec.yaml") == "x" and not (tmp_path / "run" / "leases").exists()
    store.remove("spec.yaml")
    store.remove_empty("leases")
    assert not (tmp_path / "run").exists()
    assert store.create_text("leases/a", "x")


def test_a_read_only_folder_stays_as_it_is(place):
    Store(place).write_text("leases/a", "x")
    store = Store(place, read_only=True)
    assert store.create_text("leases/b", "x") is False
    store.remove("leases/a")
    store.remove_empty("leases")
    assert store.names("leases") == ["a"]


@pytest.mark.parametrize("links", [True, False])
def test_one_of_eight_processes_makes_a_local_file(tmp_path, monkeypatch, links):
    if not links:
        without_links(monkeypatch)
    processes = multiprocessing.get_context("fork")
    together, won = processes.Barrier(8), processes.Queue()
    racers = [
        processes.Process(target=_race, args=(str(tmp_path / "run"), number, together, won)) for number in range(8)
    ]
    for racer in racers:
        racer.start()
    wins = [number for _ in racers for number in won.get(timeout=60)]
    for racer in racers:
        racer.join()
    assert len(wins) == 5
    store = Store(str(tmp_path / "run"))
    assert sorted(os.listdir(tmp_path / "run" / "leases")) == store.names("leases") == [*"abcde"]
    assert {store.read_text(f"leases/{name}") for name in "abcde"} == {content(number) for number in wins}


def test_one_of_eight_threads_makes_an_object_of_s3(s3_bucket):
    together, address = threading.Barrier(8), f"{s3_bucket}/run"
    with ThreadPoolExecutor(8) as threads:
        wins = [
            number for won in threads.map(lambda number: race(address, number, together), range(8)) for number in won
        ]
    assert len(wins) == 5
    store = Store(address)
    assert {store.read_text(f"leases/{name}") for name in "abcde"} == {content(number) for number in wins}


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_cannot_be_made_leaves_nothing(store, tmp_path, monkeypatch, links):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    if not links:
        without_links(monkeypatch)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match="No space left"):
        store.create_text("leases/a", "x")
    assert os.listdir(tmp_path / "run" / "leases") == []


def test_an_error_of_linking_that_says_nothing_of_links_is_told(store, tmp_path, monkeypatch):
    without_links(monkeypatch, errno.EDQUOT)
    with pytest.raises(WriteError):
        store.create_text("leases/a", "x")
    assert os.listdir(tmp_path / "run" / "leases") == []


def test_a_link_whose_answer_was_lost_counts_as_made(store, monkeypatch):
    made = os.link

    def twice(*names):
        made(*names)
        made(*names)

    monkeypatch.setattr(os, "link", twice)
    assert store.create_text("leases/a", "x") is True
    assert store.create_text("leases/a", "y") is False and store.read_text("leases/a") == "x"


@pytest.fixture
def few_at_once(monkeypatch):
    monkeypatch.setattr(folder, "_AT_ONCE", 4)


def cells_of(store, number=10):
    names = [f"{place:04}" for place in range(number)]
    for name in names:
        store.save([record(name, value=PERPLEXITY)], nll())
    return names


def test_many_cells_are_read_as_one_by_one(place, few_at_once, caplog):
    store = Store(place)
    names = cells_of(store)
    store.save([record("failed", value=None, status="failed", error="why")])
    store.save([record("bare", value=PERPLEXITY)])
    asked = [*names, "bare", "failed", "absent"]
    found = Store(place).finished_among(asked)
    assert [*found] == names and found["0007"] == Store(place).finished("0007")
    assert [cell.cell for cell in Store(place).cells()] == sorted([*names, "bare", "failed"])
    assert not caplog.text


@pytest.mark.parametrize("part", ["cells/0005.json", "nll/0005.npz"])
@pytest.mark.parametrize("content", ["", "{}"])
def test_of_many_cells_a_damaged_one_counts_as_absent(place, few_at_once, caplog, part, content):
    store = Store(place)
    names = cells_of(store)
    store.write_text(part, content)
    again = Store(place)
    assert [*again.finished_among(names)] == [name for name in names if name != "0005"]
    assert [*again.damaged] == ["0005"] and caplog.text.count("0005.json") == 1
    assert "0005" not in {cell.cell for cell in Store(place).cells()}


def test_a_cell_that_cannot_be_reached_is_not_taken_for_damaged(s3_bucket, monkeypatch):
    store = Store(f"{s3_bucket}/run")
    names = cells_of(store, 3)
    read = type(store._fs)._cat_file

    async def refused(self, path, **kwargs):
        if "0001" in path:
            raise PermissionError("Access Denied")
        return await read(self, path, **kwargs)

    monkeypatch.setattr(type(store._fs), "_cat_file", refused)
    with pytest.raises(LongEvalError, match="Access Denied"):
        store.finished_among(names)
    assert not store.damaged


def test_cells_of_s3_are_asked_for_together(s3_bucket, monkeypatch):
    names = cells_of(Store(f"{s3_bucket}/run"), 20)
    store = Store(f"{s3_bucket}/run")
    read = type(store._fs)._cat_file
    under_way = most = 0

    async def slow(self, path, **kwargs):
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.02)
        content = await read(self, path, **kwargs)
        under_way -= 1
        return content

    monkeypatch.setattr(type(store._fs), "_cat_file", slow)
    assert len(store.finished_among(names)) == 20
    assert most >= 10


def test_what_another_process_puts_into_s3_is_seen(s3_bucket):
    store = Store(f"{s3_bucket}/run")
    store.write_text("leases/a", "x")
    assert store.names("leases") == ["a"] and not store.has("leases/b")
    other = s3fs.S3FileSystem(skip_instance_cache=True)  # the client of another process has a cache of its own
    other.pipe_file(f"{s3_bucket}/run/leases/b", b"y")
    assert store.names("leases") == ["a", "b"] and store.has("leases/b")


def test_a_report_asks_s3_for_each_artefact_once(s3_bucket, monkeypatch):
    (name, *others) = cells_of(Store(f"{s3_bucket}/run"), 3)
    store = Store(f"{s3_bucket}/run")
    read, asked = type(store._fs)._cat_file, []

    async def counted(self, path, **kwargs):
        asked.append(path)
        return await read(self, path, **kwargs)

    monkeypatch.setattr(type(store._fs), "_cat_file", counted)
    monkeypatch.setattr(folder, "_MOST_KEPT", 2 * len(NLL.encode(nll())))
    assert len([*store.cells(keep_artefacts=True)]) == 3 and len(asked) == 6
    for cell in (name, *others):
        np.testing.assert_array_equal(store.nll(cell).nll_S, nll().nll_S)
    assert [path.rsplit("/", 1)[-1] for path in asked[6:]] == [f"{others[-1]}.npz"]
    changed = dataclasses.replace(nll(), nll_S=nll().nll_S[::-1])
    store.save([record(name, value=PERPLEXITY)], changed)
    np.testing.assert_array_equal(store.nll(name).nll_S, changed.nll_S)
