"""A tiny Llama that a test may damage, and a cache folder of the test's own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test sees or touches the user's cache."""
    monkeypatch.setenv("LONGEVAL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def llama(tiny_llama, tmp_path) -> Path:
    """A folder with a model (see `save_tiny_llama`) that the test may damage."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "llama"))
