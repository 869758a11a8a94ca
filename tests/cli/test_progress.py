"""What is told while a request is planned: nothing where it is quick, else what is being done."""

from __future__ import annotations

import sys
import time

import pytest

from longeval.cli import progress
from longeval.cli.progress import RunProgress


def wait_for(happened):
    deadline = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(progress, "QUICK_S", 0.05)


def test_what_takes_long_is_told_once_in_plain_lines(impatient, monkeypatch, capsys):
    told = []
    monkeypatch.setattr(RunProgress, "say", lambda self, text: told.append(text))
    with RunProgress() as shown:
        shown.preparing("reading a")
        shown.preparing("opening m")
        wait_for(lambda: told)
        for done in range(3):
            shown.preparing("tokenising a", done)
        wait_for(lambda: len(told) == 2)
        time.sleep(0.2)
        shown.begin([])
        shown.preparing("too late")
        time.sleep(0.2)
    assert told == ["  opening m …", "  tokenising a …"]


def test_what_is_quick_or_quiet_is_not_told(impatient, monkeypatch, capsys):
    with RunProgress(quiet=True) as shown:
        shown.preparing("opening m")
        time.sleep(0.2)
    monkeypatch.setattr(progress, "QUICK_S", 20.0)
    before = time.monotonic()
    with RunProgress() as shown:
        shown.preparing("opening m")
    assert time.monotonic() - before < 10  # it doesn't wait for the moment when it would be told
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_it_is_told_in_the_live_line(impatient, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with RunProgress() as shown:
        shown.preparing("opening m")
        assert shown._live.tasks == []
        wait_for(lambda: shown._live.tasks)
        assert shown._live.tasks[0].description == "opening m"
        shown.preparing("making samples", 3, 10)
        (task,) = shown._live.tasks
        assert (task.description, task.completed, task.total) == ("making samples", 3, 10)
        shown.preparing("tokenising a", 7)
        (task,) = shown._live.tasks
        assert (task.description, task.fields["rate"], task.total) == ("tokenising a", "7", None)
        shown.begin([1.0])
        assert [task.description for task in shown._live.tasks] == ["loading the model"]


def test_preparing_is_told_now_and_then(capsys, monkeypatch):
    clock = iter([0.0, 100.0, 110.0, 140.5, 141.0, 150.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.RunProgress() as shown:
        for done in (1, 2, 1000):
            shown.preparing("passkey at 4k: making samples", done, 2000)
    assert capsys.readouterr().err == "  passkey at 4k: making samples: 1,000 of 2,000\n"


def test_passes_that_are_repeated_do_not_go_beyond_the_end(capsys, monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_EVERY_S", -1.0)
    with progress.RunProgress() as shown:
        shown.begin([1.0, 1.0])
        for _ in range(3):
            shown.advance(64, 1.0, "window")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" · ")[0].strip() for line in lines] == ["50%", "100%", "100%"]
    assert [line.split(" · ")[1] for line in lines] == ["window 1/2", "window 2/2", "window 3/3"]
    assert "-" not in lines[-1] and " 0 s left" in lines[-1]


def test_a_pass_of_a_worker_is_told_with_its_own_noun_and_without_a_time_that_nobody_measured(capsys):
    with RunProgress(verbose=True) as shown:
        shown.begin([1.0, 1.0])
        worker = shown.of_worker("worker-1")
        worker.stage("passkey", 2, "sample")
        worker.advance(64, 1.0, "answered")
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["worker-1: passkey (2 samples)", "  worker-1: sample of 64 tokens, answered"]
