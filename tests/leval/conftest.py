"""L-Eval's tasks as lm-eval loads them, over small files of the tests' own; no file of L-Eval is needed."""

import importlib.util
import json
from pathlib import Path

import pytest

TASKS = Path(__file__).parents[2] / "tasks" / "leval"


@pytest.fixture(scope="session")
def module_of():
    """The Python files beside the YAML files, which no package holds."""

    def load(name):
        spec = importlib.util.spec_from_file_location(f"leval_{name}", TASKS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a file of L-Eval's form into a folder that LONGEVAL_DATA names: [(document, [(question, answer)])]."""
    monkeypatch.setenv("LONGEVAL_DATA", str(tmp_path))
    (tmp_path / "leval").mkdir()

    def file(name, documents, evaluation="exam"):
        path = tmp_path / "leval" / f"{name}.jsonl"
        lines = [
            {
                "instructions": [question for question, _ in asked],
                "outputs": [answer for _, answer in asked],
                "input": text,
                "source": "made up",
                "evaluation": evaluation,
            }
            for text, asked in documents
        ]
        with path.open("a", encoding="utf-8") as out:
            out.writelines(json.dumps(line) + "\n" for line in lines)
        return path

    return file


@pytest.fixture
def load_task():
    """A task by name, as longeval loads it: with metadata that the task doesn't ask for."""

    def load(name, folder=TASKS):
        from lm_eval.tasks import TaskManager

        manager = TaskManager(include_path=str(folder), include_defaults=False, metadata={"setting": object()})
        return manager.load([name])["tasks"][name]

    return load


@pytest.fixture
def scores_of():
    """What a task makes of scripted answers: one dict a sample, by lm-eval's own steps from requests to scores."""

    def scores(task, answers):
        task.build_all_requests(limit=len(answers))
        assert len(task.instances) == len(answers)
        for instance, answer in zip(task.instances, answers, strict=True):
            instance.resps = [answer]
        task.apply_filters()
        return [task.process_results(i.doc, [i.filtered_resps["none"]]) for i in task.instances]

    return scores
