"""Tasks of one's own, and requests for them with a tiny model."""

from __future__ import annotations

import pytest
from own_tasks import ANSWER, CHOICE, write_data, write_task

from longeval.studies.tasks.request import TasksRequest


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    return folder


@pytest.fixture
def choice_task(files):
    return write_task(files, CHOICE, write_data(files), "which_word")


@pytest.fixture
def answer_task(files):
    return write_task(files, ANSWER, write_data(files), "what_word")


@pytest.fixture
def spec(tiny_llama):
    def make(*tasks, **changes):
        fields = {
            "model": (str(tiny_llama),),
            "pe": ("none",),
            "lengths": (64, 512),
            "tasks": tuple(map(str, tasks)),
            "dtype": "float32",
        }
        return TasksRequest(**fields | changes)

    return make


@pytest.fixture
def tokenizer(tiny_llama):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_llama)
