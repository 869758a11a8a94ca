"""The studies, each held to the contract."""

from __future__ import annotations

import pytest
from contract_study import Made, StudyContract
from fake import FakeBackend
from known import log_position
from own_tasks import ANSWER, CHOICE, GROUP, write_data, write_task
from posgen_requests import tiny_request
from tiny import make_text

from longeval.studies.finetune.request import FinetuneRequest
from longeval.studies.tasks.request import TasksRequest


class TestPpl(StudyContract):
    @pytest.fixture
    def made(self, request_spec):
        return Made(request_spec(pe=("none", "yarn")), lambda model: FakeBackend(log_position))


class TestLongPpl(StudyContract):
    @pytest.fixture
    def made(self, request_spec, tiny_llama_bos):
        parameters = {"alpha": -1e9, "beta": -1e9, "context": 8, "step": 4}
        request = request_spec(
            pe=("none", "yarn"),
            lengths=(32, 60),
            metric=("perplexity", "long_ppl"),
            key_model=str(tiny_llama_bos),
            metric_args={"long_ppl": parameters},
        )
        return Made(request, lambda model: FakeBackend(log_position))


class TestTasks(StudyContract):
    @pytest.fixture
    def made(self, tiny_llama, tmp_path):
        files = tmp_path / "files"
        files.mkdir()
        data = write_data(files, words=(20, 60), questions=2)
        write_task(files, CHOICE, data, "which_word")
        write_task(files, ANSWER, data, "what_word")
        (files / "both.yaml").write_text(GROUP.format(name="both", members="which_word"))
        request = TasksRequest(
            model=(str(tiny_llama),),
            pe=("none", "yarn"),
            lengths=(256,),
            tasks=("both", "what_word"),
            include=(str(files),),
            dtype="float32",
        )
        answers = FakeBackend(log_position, choice=lambda *_: -1.0, answer=lambda *_: "report.")
        return Made(request, lambda model: answers)


class TestPosGen(StudyContract):
    @pytest.fixture
    def made(self):
        return Made(tiny_request(regimes=("trained", "swapped")))


class TestFinetune(StudyContract):
    @pytest.fixture
    def made(self, tiny_llama, tmp_path):
        (tmp_path / "text.txt").write_text(make_text(400))
        request = FinetuneRequest(
            model=(str(tiny_llama),),
            pe=("yarn", "resonance_yarn"),
            length=128,
            window=32,
            augment=("pose",),
            steps=2,
            batch_size=2,
            data=(str(tmp_path / "text.txt"),),
            evaluates=False,
            gradient_checkpointing=False,
            dtype="float32",
        )
        return Made(request)
