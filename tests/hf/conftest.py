"""Fixtures of the tests of `longeval.hf`."""

from __future__ import annotations

import logging

import pytest


@pytest.fixture
def warned(monkeypatch):
    """What transformers warns about while a test runs."""
    told = []
    for name in ("warning", "warning_once"):
        monkeypatch.setattr(logging.Logger, name, lambda self, text, *a, **k: told.append(text), raising=False)
    return told
