"""A folder to work in, and refusals: status 2, one message, nothing written."""

from __future__ import annotations

import pytest

from longeval.cli.app import run_app

NOTES = (" …", " needs ", " tokens skipped", " would run ")
"""What may be said before a request turns out to be wrong."""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder; no data are known elsewhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LONGEVAL_DATA", raising=False)
    return tmp_path


@pytest.fixture
def refused(here, capsys):
    """Runs a command line that must be refused, and returns the message."""

    def run(arguments):
        capsys.readouterr()
        before = sorted(here.rglob("*"))
        assert run_app(arguments) == 2
        out, err = capsys.readouterr()
        assert out == ""
        *notes, message = err.splitlines()
        assert all(any(kind in note for kind in NOTES) for note in notes), err
        assert message.startswith("longeval: ")
        assert sorted(here.rglob("*")) == before
        return message

    return run


@pytest.fixture
def quick_pictures(monkeypatch):
    """Figures are not drawn."""
    from longeval.report import plots

    monkeypatch.setattr(plots, "draw", lambda chart: plots.Picture(png=b"png", svg=b"svg", pdf=b"pdf"))
