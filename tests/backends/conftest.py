"""Fixtures of the backends' tests: a completions server whose numbers are known, and models with its tokenizer."""

from __future__ import annotations

import pytest
from completions_server import SHUFFLED, CompletionsServer
from words_model import save_words_model


@pytest.fixture
def server():
    server = CompletionsServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def words_model(tmp_path_factory):
    return save_words_model(tmp_path_factory.mktemp("models") / "words")


@pytest.fixture(scope="session")
def shuffled_model(tmp_path_factory):
    """Its tokenizer has the server's words at other ids."""
    return save_words_model(tmp_path_factory.mktemp("models") / "shuffled", words=SHUFFLED)
