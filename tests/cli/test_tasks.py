"""`longeval tasks` as a user meets it: tiny real model, real task files, exit statuses, messages."""

from __future__ import annotations

import json
import re

import pytest
import typer
from command_lines import command_line, json_of
from own_tasks import CHOICE, write_data, write_task

import longeval.cli.console
from longeval.cli.app import app, run_app
from longeval.studies.tasks.request import TasksRequest


@pytest.fixture
def choice_task(here):
    return write_task(here, CHOICE, write_data(here), "which_word")


@pytest.fixture
def arguments(tiny_llama, choice_task, here):
    """A small request that works; `change` replaces, adds or (None) removes options."""
    small = {
        "model": str(tiny_llama),
        "pe": "none,resonance",
        "tasks": str(choice_task),
        "lengths": "64,512",
        "dtype": "float32",
        "out": "run",
    }
    return lambda **change: command_line("tasks", **small | change)


@pytest.fixture
def own_tasks_alone(monkeypatch):
    """lm-eval's tasks aren't listed, which takes a while."""
    monkeypatch.setattr("longeval.studies.tasks.definitions.index.lm_eval_entries", dict)


@pytest.fixture
def no_hub(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def leval(here, monkeypatch):
    """The folder of L-Eval's data, empty."""
    folder = here / "data" / "leval"
    folder.mkdir(parents=True)
    monkeypatch.setenv("LONGEVAL_DATA", str(here / "data"))
    return folder


def test_perplexity_and_tasks_share_a_folder_and_a_report(
    arguments, documents, tiny_llama, capsys, here, quick_pictures
):
    assert run_app([*arguments(pe="none", limit="3"), "-q"]) == 0
    ppl = {"model": str(tiny_llama), "pe": "none", "lengths": "64,128", "data": str(documents), "dtype": "float32"}
    assert run_app([*command_line("ppl", **ppl, out="run"), "-q"]) == 0
    assert run_app(["run", "run/spec.yaml"]) == 0
    shown = capsys.readouterr()
    assert shown.err.count("0 cells computed, 2 stored already") == 2
    assert "Perplexity" in shown.out and "which_word" in shown.out
    assert run_app(["report", "run", "--quiet"]) == 0
    text = (here / "run" / "report.md").read_text()
    assert "erplexity" in text and "which_word" in text


@pytest.mark.usefixtures("own_tasks_alone")
def test_the_list_as_json_is_the_contract(capsys):
    entries = {entry["name"]: entry for entry in json_of(capsys, ["tasks", "--list"])}
    assert all({"name", "kind", "source", "needs"} <= set(entry) for entry in entries.values())
    assert entries["leval"]["kind"] == "group" and "leval_codeu" in entries["leval"]["members"]
    assert entries["niah"]["kind"] == "group" and entries["passkey"]["kind"] == "task"
    assert entries["passkey"]["needs"] == "nothing" and entries["passkey"]["source"] == "longeval"
    assert "LONGEVAL_DATA" in entries["leval_coursera"]["needs"] and "L4NLP/LEval" in entries["leval_coursera"]["needs"]
    assert {"kv_retrieval", "variable_tracking", "frequent_words", "leval_topic_retrieval"} <= set(entries)


@pytest.mark.usefixtures("own_tasks_alone")
def test_the_list_can_be_narrowed(capsys, refused):
    assert run_app(["tasks", "--list", "--tasks", "nia*"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines[1:3]] == ["niah", "niah_single"]
    assert not any(line.startswith("passkey") for line in lines)
    assert "nothing_like_it" in refused(["tasks", "--list", "--tasks", "nothing_like_it*"])


def test_every_flag_that_the_list_would_ignore_is_refused(refused):
    command = typer.main.get_command(app).commands["tasks"]
    heeded = {"--list", "--tasks", "--include", "--json"}
    flags = {max(one.opts, key=len): one.is_flag for one in command.params}
    assert heeded < set(flags) and "--show" in flags
    for flag, is_switch in flags.items():
        if flag not in heeded:
            value = [] if is_switch else ["0"]
            assert f"--list: {flag} would be ignored" in refused(["tasks", "--list", flag, *value])
    assert "--seed" in refused(["tasks", "--list", "--seed", str(TasksRequest.default("seed"))])  # its default too


@pytest.mark.usefixtures("own_tasks_alone")
def test_the_list_is_readable_on_a_narrow_terminal(capsys, monkeypatch):
    plain = longeval.cli.console.PrintableConsole
    narrow = {"force_terminal": True, "width": 80, "no_color": True}
    monkeypatch.setattr("longeval.cli.console.PrintableConsole", lambda **given: plain(**given | narrow))
    assert run_app(["tasks", "--list"]) == 0
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out.partition("\nAnd ")[0]).splitlines()
    assert max(map(len, lines)) <= 80 and not any("…" in line for line in lines)
    assert lines[0].strip() == "longeval"
    (passkey,) = [line for line in lines if line.strip().startswith("passkey ")]
    assert "five-digit number" in passkey


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"limit": "0"}, ["--limit 0"]),
        ({"overlong": "cut"}, ["--overlong cut", "middle", "skip"]),
        ({"chat_template": "yes"}, ["--chat-template yes", "auto"]),
        ({"chat_template": "on"}, ["--chat-template on", "has none"]),
        ({"num_fewshot": "-1"}, ["--num-fewshot -1"]),
        ({"max_new_tokens": "0"}, ["--max-new-tokens 0"]),
        ({"max_new_tokens": "5"}, ["--max-new-tokens 5", "would be ignored"]),
        ({"haystack": "stdlib"}, ["--haystack stdlib", "would be ignored"]),
        ({"haystack": "nowhere.txt", "tasks": "niah_single"}, ["--haystack nowhere.txt"]),
        ({"same_samples": True}, ["--same-samples", "--overlong skip"]),
        ({"lengths": "8"}, ["--lengths 8", "too short", "--overlong skip"]),
        ({"overlong": "error", "lengths": "64"}, ["--overlong error", "8 samples", "--overlong middle"]),
        ({"overlong": "skip", "lengths": "16,32"}, ["--overlong skip", "nothing to compute", "--overlong middle"]),
        ({"tasks": "passkey", "lengths": "64"}, ["--lengths", "too short", "passkey"]),
        ({"tasks": "niah_singel"}, ["--tasks niah_singel", "niah_single", "--list"]),
        ({"tasks": "missing.yaml"}, ["--tasks missing.yaml", "no such file"]),
        ({"tasks": "kv_nothing*"}, ["--tasks kv_nothing*", "no task or group"]),
        ({"include": "nowhere"}, ["nowhere"]),
        ({"model": None}, ["--model", "such as --model"]),
        ({"tasks": None}, ["--tasks", "--list"]),
    ],
    ids=str,
)
@pytest.mark.usefixtures("own_tasks_alone")
def test_wrong_requests_get_one_message(arguments, refused, change, parts):
    message = refused(arguments(**change))
    for part in parts:
        assert part in message


def test_a_task_file_is_no_request(choice_task, refused):
    assert f"longeval tasks --tasks {choice_task}" in refused(["run", str(choice_task)])


def test_missing_data_names_both_ways_to_get_it(arguments, refused, no_hub, leval):
    message = refused(arguments(tasks="leval"))
    assert "LONGEVAL_DATA" in message and "L4NLP/LEval" in message
    message = refused(arguments(tasks="leval_coursera,which_word.yaml,leval_quality"))
    assert message.startswith("longeval: --tasks leval_coursera, leval_quality")
    for part in ("LONGEVAL_DATA", "L4NLP/LEval", "leval/coursera.jsonl", "leval/quality.jsonl"):
        assert part in message


def test_a_group_goes_on_without_the_task_whose_data_is_missing(arguments, capsys, here, no_hub, leval):
    line = {"input": "A quiet town.", "instructions": ["Which?\nA. x\nB. y"], "outputs": ["B"], "evaluation": "exam"}
    (leval / "quality.jsonl").write_text(json.dumps(line) + "\n")
    request = arguments(tasks="leval", lengths="1k", pe="none", max_new_tokens="4")
    assert run_app([*request, "--json", "records.json"]) == 0
    (note,) = [line for line in capsys.readouterr().err.splitlines() if "goes on without" in line]
    assert note.startswith("longeval: leval goes on without leval_coursera,") and "leval_codeu" in note
    assert "leval_quality" not in note and note.count("L4NLP/LEval") == 3 and "and 3 more" in note
    records = {record["task"]: record for record in json.loads((here / "records.json").read_text())}
    assert records["leval_quality"]["status"] == "ok"
    assert (records["leval"]["value"], records["leval"]["status"]) == (None, "skipped")
    assert "leval_codeu" in records["leval"]["error"]


WHOLE = "task: broken\ndataset_path: json\noutput_type: {}\ntest_split: t\ndoc_to_text: x\ndoc_to_target: y\n"


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("task: broken\noutput_type: [generate\n", 3, ""),
        (WHOLE.format("guess"), 3, "guess"),
        ("task: broken\ninclude: nothing_here\n", 2, "nothing_here"),
        (WHOLE.format("generate_until") + "metric_list: [{metric: acc}]\n", 7, "acc"),
    ],
)
def test_a_broken_task_file_is_named_with_its_line(arguments, refused, here, text, line, what):
    (here / "broken.yaml").write_text(text)
    message = refused(arguments(tasks="./broken.yaml"))
    assert "broken.yaml" in message and f"line {line}" in message and what in message


def test_ctrl_c_while_samples_are_made_leaves_nothing(arguments, here, monkeypatch):
    from longeval.cli.progress import RunProgress

    def interrupt(self, what, done=0, total=0):
        if done == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunProgress, "preparing", interrupt)
    before = sorted(here.iterdir())
    assert run_app(arguments(tasks="passkey", lengths="512", limit="1000000")) == 130
    assert sorted(here.iterdir()) == before
