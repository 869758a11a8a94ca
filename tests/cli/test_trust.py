"""What comes with models and task files doesn't run, unless the command line says so; then it is said what runs."""

from __future__ import annotations

import json

import pytest
from own_tasks import CHOICE, write_data, write_task
from tiny import save_tiny_llama

from longeval.cli.app import run_app

PLANTED = "import pathlib\npathlib.Path({marker!r}).touch()\n"
FLAG = "--trust-remote-code"


@pytest.fixture
def marker(tmp_path):
    """There once planted code has run."""
    return tmp_path / "it_ran"


@pytest.fixture
def change(here, marker):
    """A task file with some of its text replaced, and Python beside it that leaves a mark when it is imported."""
    (here / "mine.py").write_text(
        PLANTED.format(marker=str(marker))
        + "def text(doc):\n    return doc['document']\n\n\ndef score(doc, results):\n    return {'acc': 1.0}\n"
    )

    def make(old="", new=""):
        path = write_task(here, CHOICE, write_data(here), "which_word")
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))
        return path

    return make


TEXT = ('doc_to_text: "{{document}} {{question}}"', "doc_to_text: !function mine.text")
SCORE = ("test_split: test", "test_split: test\nprocess_results: !function mine.score")


def line(model, task, *more):
    flags = ["--pe", "none", "--lengths", "512", "--dtype", "float32", "--out", "run", "--limit", "2"]
    return ["tasks", "--model", str(model), "--tasks", str(task), *flags, *more]


@pytest.mark.parametrize(("change_", "function"), [(TEXT, "mine.text"), (SCORE, "mine.score")])
def test_functions_of_a_users_file_need_the_flag(change, tiny_llama, marker, capsys, change_, function, refused):
    path = change(*change_)
    for more in ([], ["--dry-run"]):
        message = refused(line(tiny_llama, path, *more))
        assert function in message and str(path) in message and FLAG in message
        assert not marker.exists()
    assert run_app([*line(tiny_llama, path, FLAG), "-q"]) == 0
    assert marker.exists()
    assert f"!function {function} ({path})" in capsys.readouterr().err


def test_a_dry_run_runs_none_and_shows_what_it_can(change, tiny_llama, marker, capsys, refused):
    scored = line(tiny_llama, change(*SCORE), FLAG)
    assert run_app([*scored, "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert "0 of 1" in out and "which_word would run (not in a dry run) Python" in err
    assert not marker.exists()
    change(*TEXT)
    assert "dry run" in refused([*scored, "--dry-run"])
    assert not marker.exists()
    change(*SCORE)
    assert run_app(scored) == 0
    assert marker.exists()
    capsys.readouterr()
    assert run_app([*scored, "--dry-run"]) == 0
    assert "1 of 1" in capsys.readouterr().out  # its cells are the same


@pytest.mark.parametrize(
    "outer",
    [
        "include: which_word.yaml\ntask: outer\n",
        "group: other\ntask:\n  - {task: passkey, doc_to_text: !function mine.text}\n",
    ],
)
def test_functions_in_included_files_and_groups_count_too(change, tiny_llama, marker, here, refused, outer):
    change(*SCORE)
    (here / "outer.yaml").write_text(outer)
    assert "mine." in refused(line(tiny_llama, "outer.yaml"))
    assert not marker.exists()


def test_functions_of_longevals_own_tasks_need_no_flag(tiny_llama, here):
    assert run_app([*line(tiny_llama, "passkey"), "--dry-run", "-q"]) == 0


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("test_split: test", 'test_split: test\ndescription: "{{ nothing }}"', "description"),
        ("test_split: test", 'test_split: test\ngen_prefix: "{{ document.__class__ }}"', "gen_prefix"),
        ('"{{document}} {{question}}"', '"{{ 1 / (question|length - 13) }}"', "doc_to_text"),  # not of the first sample
    ],
)
def test_templates_that_fail_when_prompts_are_made(change, tiny_llama, refused, old, new, key):
    path = change(old, new)
    message = refused(line(tiny_llama, path, "--limit", "8"))
    assert f"{path}, line" in message and f": {key}: sample " in message


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'a' * 3000000000 }}",
        "{{ 1 / 0 }}",
        "{{ messages.__class__.__mro__ }}",
        "{{ raise_exception('no') }}",
        "{{ messages",
    ],
)
def test_chat_templates_have_the_same_bounds(change, here, refused, monkeypatch, template):
    from longeval.studies.tasks.definitions import templates

    monkeypatch.setattr(templates, "SECONDS", 0.2)
    task, model = change(), save_tiny_llama(here / "chat")
    (model / "chat_template.jinja").write_text(template)
    message = refused(line(model, task))
    assert "chat template" in message and "--chat-template off" in message
    assert run_app([*line(model, task), "--chat-template", "off", "-q"]) == 0


@pytest.fixture
def homemade(here, marker):
    """A model whose config names Python of its own."""
    folder = save_tiny_llama(here / "homemade")
    config = json.loads((folder / "config.json").read_text())
    names = {
        "AutoConfig": "configuration_homemade.HomemadeConfig",
        "AutoModelForCausalLM": "modeling_homemade.Homemade",
    }
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "homemade", "auto_map": names}))
    (folder / "configuration_homemade.py").write_text(
        PLANTED.format(marker=str(marker))
        + "from transformers import LlamaConfig\nclass HomemadeConfig(LlamaConfig):\n    model_type = 'homemade'\n"
    )
    (folder / "modeling_homemade.py").write_text(
        "from transformers import LlamaForCausalLM\nfrom .configuration_homemade import HomemadeConfig\n"
        "class Homemade(LlamaForCausalLM):\n    config_class = HomemadeConfig\n"
    )
    return folder


REFUSALS = [([], FLAG), (["--dry-run"], FLAG), (["--dry-run", FLAG], "leave --dry-run out")]


def test_code_of_a_model_is_named_before_it_runs_and_never_in_a_dry_run(homemade, documents, marker, capsys, refused):
    ppl = ["ppl", "--model", str(homemade), "--pe", "none", "--lengths", "32", "--data", str(documents)]
    for more, remedy in REFUSALS:
        message = refused([*ppl, *more])
        assert "configuration_homemade.HomemadeConfig" in message and remedy in message
        assert not marker.exists()
    assert run_app([*ppl, FLAG]) == 0
    assert marker.exists()
    assert '{"AutoConfig": "configuration_homemade' in capsys.readouterr().err


def test_a_request_file_alone_allows_nothing(homemade, documents, marker, here, refused):
    request = here / "request.yaml"
    fields = {"model": str(homemade), "pe": "none", "lengths": "32", "data": str(documents)}
    request.write_text(json.dumps(fields | {"trust_remote_code": True}))
    for more, remedy in REFUSALS:
        assert remedy in refused(["run", str(request), *more])
        assert not marker.exists()
    request.write_text(json.dumps(fields))
    assert FLAG in refused(["run", str(request)])
    assert not marker.exists()
    assert run_app(["run", str(request), FLAG]) == 0  # the flag speaks for a file that says nothing
    assert marker.exists()


def test_a_run_folders_own_request_needs_the_flag_again(change, tiny_llama, capsys, refused):
    assert run_app([*line(tiny_llama, change(*SCORE), FLAG), "-q"]) == 0
    capsys.readouterr()
    assert f"longeval run run/spec.yaml {FLAG}" in refused(["run", "run/spec.yaml"])
    assert run_app(["run", "run/spec.yaml", FLAG]) == 0
    assert "1 stored already" in capsys.readouterr().err


def test_the_flag_says_nothing_to_posgen(here, refused):
    (here / "posgen.yaml").write_text("command: posgen\npreset: smoke-test\n")
    assert f"{FLAG}: would be ignored" in refused(["run", "posgen.yaml", FLAG, "--dry-run"])
