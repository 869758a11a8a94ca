"""What comes with models and task files doesn't run, unless the command line says so; then it is said what runs."""

from __future__ import annotations

import json

import pytest
from own_tasks import CHOICE, write_data, write_task
from tiny import save_tiny_llama

from longeval.cli.app import run_app

PLANTED = "import pathlib\npathlib.Path({marker!r}).touch()\n"


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "it_ran"


@pytest.fixture
def files(tmp_path, monkeypatch):
    folder = tmp_path / "files"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("LONGEVAL_DATA", raising=False)
    return folder


@pytest.fixture
def change(files, marker):
    """A task file with some of its text replaced, and Python beside it that leaves a mark when it is imported."""
    (files / "mine.py").write_text(
        PLANTED.format(marker=str(marker))
        + "def text(doc):\n    return doc['document']\n\n\ndef score(doc, results):\n    return {'acc': 1.0}\n"
    )

    def make(old="", new="", name="which_word"):
        path = write_task(files, CHOICE, write_data(files), name)
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


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
@pytest.mark.parametrize("change_", [TEXT, SCORE])
def test_functions_of_a_users_file_need_the_flag(change, tiny_llama, marker, files, capsys, change_, more):
    path = change(*change_)
    assert run_app(line(tiny_llama, path, *more)) == 2
    said = capsys.readouterr().err
    function = change_[1].rpartition(" ")[2]
    assert function in said and str(path) in said and "--trust-remote-code" in said
    assert not marker.exists() and not (files / "run").exists()


@pytest.mark.parametrize("change_", [TEXT, SCORE])
def test_with_the_flag_it_is_said_what_runs(change, tiny_llama, marker, capsys, change_):
    path = change(*change_)
    assert run_app([*line(tiny_llama, path, "--trust-remote-code"), "-q"]) == 0
    said = capsys.readouterr().err
    assert marker.exists()
    assert f"which_word runs Python that its file names: !function {change_[1].rpartition(' ')[2]} ({path})" in said


def test_a_dry_run_runs_none_and_shows_what_it_can(change, tiny_llama, marker, capsys):
    scored = line(tiny_llama, change(*SCORE), "--trust-remote-code")
    assert run_app([*scored, "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert "0 of 1" in out and "which_word would run (not in a dry run) Python" in err
    assert not marker.exists()
    assert run_app([*line(tiny_llama, change(*TEXT), "--trust-remote-code"), "--dry-run"]) == 2
    assert "a dry run runs no code of task files" in capsys.readouterr().err
    assert not marker.exists()
    assert run_app([*scored[:4], str(change(*SCORE)), *scored[5:]]) == 0
    assert marker.exists()
    assert run_app([*scored, "--dry-run"]) == 0
    assert "1 of 1" in capsys.readouterr().out  # its cells are the same


def test_functions_in_included_files_and_groups_count_too(change, tiny_llama, marker, files, capsys):
    change(*SCORE)
    (files / "outer.yaml").write_text("include: which_word.yaml\ntask: outer\n")
    (files / "group.yaml").write_text("group: all\ntask:\n  - {task: new, include: which_word.yaml, num_fewshot: 1}\n")
    group = "group: other\ntask:\n  - {task: arc_easy, doc_to_text: !function mine.text}\n"
    (files / "changed.yaml").write_text(group)
    for name in ("outer.yaml", "changed.yaml"):
        assert run_app(line(tiny_llama, name)) == 2
        assert "mine." in capsys.readouterr().err
    assert not marker.exists()


def test_functions_of_longevals_own_tasks_need_no_flag(tiny_llama, files):
    assert run_app([*line(tiny_llama, "passkey"), "--dry-run", "-q"]) == 0


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("test_split: test", 'test_split: test\ndescription: "{{ nothing }}"', "description"),
        ("test_split: test", 'test_split: test\ngen_prefix: "{{ document.__class__ }}"', "gen_prefix"),
        ('"{{document}} {{question}}"', '"{{ 1 / (question|length - 13) }}"', "doc_to_text"),  # not of the first sample
    ],
)
def test_templates_that_fail_when_prompts_are_made(change, tiny_llama, files, capsys, old, new, key):
    path = change(old, new)
    assert run_app(line(tiny_llama, path, "--limit", "8")) == 2
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert f"{path}, line" in last and f": {key}: sample " in last
    assert not (files / "run").exists()


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
def test_chat_templates_have_the_same_bounds(change, files, capsys, monkeypatch, template):
    from longeval.studies.tasks.definitions import templates

    monkeypatch.setattr(templates, "SECONDS", 0.2)
    model = save_tiny_llama(files / "chat")
    (model / "chat_template.jinja").write_text(template)
    assert run_app(line(model, change())) == 2
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert "the chat template of its tokenizer can't be rendered" in last and "--chat-template off" in last
    assert run_app([*line(model, change()), "--chat-template", "off", "-q"]) == 0


@pytest.fixture
def homemade(files, marker):
    """A model whose config names Python of its own."""
    folder = save_tiny_llama(files / "homemade")
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


def test_code_of_a_model_is_named_before_it_runs_and_never_in_a_dry_run(homemade, documents, marker, capsys):
    ppl = ["ppl", "--model", str(homemade), "--pe", "none", "--lengths", "32", "--data", str(documents)]
    for more in ([], ["--dry-run"], ["--dry-run", "--trust-remote-code"]):
        assert run_app([*ppl, *more]) == 2
        said = capsys.readouterr().err
        assert "configuration_homemade.HomemadeConfig" in said
        assert ("add --trust-remote-code" in said, "leave --dry-run out" in said) == (len(more) < 2, len(more) == 2)
        assert not marker.exists()
    assert run_app([*ppl, "--trust-remote-code"]) == 0
    assert marker.exists()
    assert 'runs Python that its config.json names: {"AutoConfig": "configuration_homemade' in capsys.readouterr().err


def test_a_request_file_alone_allows_nothing(homemade, documents, marker, files, capsys):
    request = files / "request.yaml"
    fields = {"model": str(homemade), "pe": "none", "lengths": "32", "data": str(documents)}
    request.write_text(json.dumps(fields | {"trust_remote_code": True}))
    for more in ([], ["--dry-run"], ["--dry-run", "--trust-remote-code"]):
        assert run_app(["run", str(request), *more]) == 2
        assert ("leave --dry-run out" if len(more) == 2 else "--trust-remote-code") in capsys.readouterr().err
        assert not marker.exists()
    request.write_text(json.dumps(fields))
    assert run_app(["run", str(request)]) == 2
    assert not marker.exists()
    assert run_app(["run", str(request), "--trust-remote-code"]) == 0  # the flag speaks for a file that says nothing
    assert marker.exists()


def test_a_run_folders_own_request_needs_the_flag_again(change, tiny_llama, capsys):
    assert run_app([*line(tiny_llama, change(*SCORE), "--trust-remote-code"), "-q"]) == 0
    assert run_app(["run", "run/spec.yaml"]) == 2
    assert "longeval run run/spec.yaml --trust-remote-code" in capsys.readouterr().err
    assert run_app(["run", "run/spec.yaml", "--trust-remote-code"]) == 0
    assert "1 stored already" in capsys.readouterr().err


def test_the_flag_says_nothing_to_posgen(files, capsys):
    (files / "posgen.yaml").write_text("command: posgen\npreset: smoke\n")
    assert run_app(["run", "posgen.yaml", "--trust-remote-code", "--dry-run"]) == 2
    assert "--trust-remote-code: would be ignored" in capsys.readouterr().err
