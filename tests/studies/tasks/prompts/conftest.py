"""The tiny model with its tokenizer, and one way to a window and a model of lm-eval's over it."""

from __future__ import annotations

import pytest
from local_tasks import CHAT_TEMPLATE
from plain_backend import KnownBackend

from longeval.data.special import prefix_ids
from longeval.studies.tasks.answers import answer
from longeval.studies.tasks.prompts.build import prepare
from longeval.studies.tasks.prompts.requests import PromptWindow


def tokenizer_of(folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = tokenizer.bos_token
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_llama):
    return tokenizer_of(tiny_llama)


@pytest.fixture(scope="session")
def tiny_tokenizer_bos(tiny_llama_bos):
    return tokenizer_of(tiny_llama_bos)


@pytest.fixture(scope="session")
def tiny_model(tiny_llama):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_llama).eval()


@pytest.fixture
def window(tiny_tokenizer):
    def make(**changes):
        bos = changes.pop("bos", False)
        fields = {"tokenizer": tiny_tokenizer, "length": 512, "chat": False, "overlong": "middle"} | changes
        return PromptWindow(**fields, prefix=prefix_ids(fields["tokenizer"]) if bos else ())

    return make


@pytest.fixture
def lm():
    """A backend under one table, for a window."""
    from longeval.studies.tasks.answers import TaskLM

    def make(backend, window, table=lambda length: None, static=True):
        return TaskLM(backend, tokenizer=window.tokenizer, length=window.length, table=table, static=static)

    return make


@pytest.fixture
def answered(window, lm):
    """A task's answers, of a backend whose scores or texts are known, in the default window."""

    def make(task, backend=None, limit=None, done=None):
        return answer(task, prepare(task, window(), limit=limit), lm(backend or KnownBackend(), window()), done)

    return make
