"""Files of a run folder that several processes write at once, on a local path, in memory and in S3."""

from __future__ import annotations

import errno
import multiprocessing
import os
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from longeval.errors import WriteError
from longeval.store.folder import Store


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
