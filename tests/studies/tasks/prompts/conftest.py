"""The tiny model with its tokenizer, and one way to a window and a model of lm-eval's over it."""

from __future__ import annotations

import pytest
from local_tasks import CHAT_TEMPLATE

from longeval.studies.tasks.prompts.build import Window


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_llama):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.eos_token = tokenizer.bos_token
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@pytest.fixture(scope="session")
def tiny_tokenizer_bos(tiny_llama_bos):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_bos)
    tokenizer.eos_token = tokenizer.bos_token
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@pytest.fixture(scope="session")
def tiny_model(tiny_llama):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_llama).eval()


@pytest.fixture
def window(tiny_tokenizer):
    def make(**changes):
        fields = {"tokenizer": tiny_tokenizer, "bos": False, "length": 512, "chat": False, "overlong": "middle"}
        return Window(**(fields | changes))

    return make


@pytest.fixture
def lm():
    """A language model of lm-eval's over a backend, for a window."""
    from longeval.studies.tasks.lm import TaskLM

    def make(backend, window, table=lambda length: None, static=True):
        return TaskLM(
            backend, tokenizer=window.tokenizer, bos=window.bos, length=window.length, table=table, static=static
        )

    return make
