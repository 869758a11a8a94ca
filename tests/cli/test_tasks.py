"""`longeval tasks` as a user meets it: tiny real model, real task files, exit statuses, messages."""

from __future__ import annotations

import json
import re

import pytest
from own_tasks import ANSWER, CHOICE, write_data, write_task

import longeval.cli.console
from longeval.cli.app import run_app


@pytest.fixture
def choice_task(tmp_path):
    return write_task(tmp_path, CHOICE, write_data(tmp_path), "which_word")


@pytest.fixture
def arguments(tiny_llama, choice_task, tmp_path, monkeypatch):
    """A small request that works; `change` replaces, adds or (None) removes options."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LONGEVAL_DATA", raising=False)

    def make(**change):
        options = {
            "model": str(tiny_llama),
            "pe": "none,resonance",
            "tasks": str(choice_task),
            "lengths": "64,512",
            "dtype": "float32",
            "out": "run",
        }
        options |= change
        flags = {f"--{key.replace('_', '-')}": value for key, value in options.items() if value is not None}
        return [
            "tasks",
            *(part for flag, value in flags.items() for part in ((flag,) if value is True else (flag, value))),
        ]

    return make


def complaint(capsys, tmp_path, arguments):
    """The one message of a wrong request; nothing else may be left of it."""
    before = sorted(tmp_path.iterdir())
    assert run_app(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert sorted(tmp_path.iterdir()) == before
    lines = shown.err.strip().splitlines()
    assert [line for line in lines[:-1] if "reading model configuration" not in line and " needs " not in line] == []
    return lines[-1]


def test_a_run_shows_a_table_and_leaves_a_repeatable_folder(arguments, capsys, tmp_path):
    assert run_app(arguments(limit="6")) == 0
    shown = capsys.readouterr()
    assert "resonance" in shown.out and "which_word" in shown.out and "accuracy" in shown.out
    assert "4 cells computed; records in run" in shown.err
    assert len(list((tmp_path / "run" / "samples").iterdir())) == 4
    assert run_app(["run", "run/spec.yaml", "--json", "-"]) == 0
    shown = capsys.readouterr()
    assert "0 cells computed, 4 stored already" in shown.err
    records = json.loads(shown.out)
    assert [(r["pe"], r["length"], r["metric"], r["n"]) for r in records] == [
        (pe, length, "accuracy", 6) for pe in ("none", "resonance") for length in (64, 512)
    ]
    assert run_app(["report", "run", "--quiet"]) == 0
    assert "which_word" in (tmp_path / "run" / "report.md").read_text()


def test_perplexity_and_tasks_share_a_folder_and_a_report(arguments, documents, tiny_llama, capsys, tmp_path):
    assert run_app([*arguments(pe="none", limit="3"), "-q"]) == 0
    ppl = ["ppl", "--model", str(tiny_llama), "--pe", "none", "--lengths", "64,128", "--data", str(documents)]
    assert run_app([*ppl, "--dtype", "float32", "--out", "run", "-q"]) == 0
    assert run_app(["run", "run/spec.yaml"]) == 0
    shown = capsys.readouterr()
    assert shown.err.count("0 cells computed, 2 stored already") == 2
    assert "Perplexity" in shown.out and "which_word" in shown.out
    assert run_app(["report", "run", "--quiet"]) == 0
    text = (tmp_path / "run" / "report.md").read_text()
    assert "erplexity" in text and "which_word" in text


def test_a_dry_run_computes_and_writes_nothing(arguments, capsys, tmp_path):
    before = sorted(tmp_path.iterdir())
    assert run_app([*arguments(), "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert "nothing is computed" in shown.out and "which_word" in shown.out and "0 of 2" in shown.out
    assert "4 cells to compute, 48 samples" in shown.out and "GiB" in shown.out
    assert sorted(tmp_path.iterdir()) == before


def test_the_list_as_json_is_the_contract(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("longeval.studies.tasks.definitions.index.lm_eval_entries", dict)
    assert run_app(["tasks", "--list", "--json", "-"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    entries = {entry["name"]: entry for entry in json.loads(shown.out)}
    assert all({"name", "kind", "source", "needs"} <= set(entry) for entry in entries.values())
    assert entries["leval"]["kind"] == "group" and "leval_codeu" in entries["leval"]["members"]
    assert entries["niah"]["kind"] == "group" and entries["passkey"]["kind"] == "task"
    assert entries["passkey"]["needs"] == "nothing" and entries["passkey"]["source"] == "longeval"
    assert "LONGEVAL_DATA" in entries["leval_coursera"]["needs"] and "L4NLP/LEval" in entries["leval_coursera"]["needs"]
    assert {"kv_retrieval", "variable_tracking", "frequent_words", "leval_topic_retrieval"} <= set(entries)


def test_the_list_can_be_narrowed(capsys, monkeypatch):
    monkeypatch.setattr("longeval.studies.tasks.definitions.index.lm_eval_entries", dict)
    assert run_app(["tasks", "--list", "--tasks", "nia*"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines[1:3]] == ["niah", "niah_single"]
    assert not any(line.startswith("passkey") for line in lines)
    assert run_app(["tasks", "--list", "--tasks", "nothing_like_it*"]) == 2
    assert "nothing_like_it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"limit": "0"}, ["--limit 0", "at least 1"]),
        ({"limit": "x"}, ["--limit 'x'"]),
        ({"overlong": "cut"}, ["--overlong cut", "middle", "skip"]),
        ({"chat_template": "yes"}, ["--chat-template yes", "auto"]),
        ({"chat_template": "on"}, ["--chat-template on", "has none"]),
        ({"num_fewshot": "-1"}, ["--num-fewshot -1"]),
        ({"max_new_tokens": "0"}, ["--max-new-tokens 0"]),
        ({"haystack": "stdlib"}, ["--haystack stdlib", "would be ignored"]),
        ({"haystack": "nowhere.txt", "tasks": "niah_single"}, ["--haystack nowhere.txt"]),
        ({"same_samples": True}, ["--same-samples", "--overlong skip"]),
        ({"max_new_tokens": "5"}, ["--max-new-tokens 5", "would be ignored"]),
        ({"lengths": "8"}, ["--lengths 8", "too short", "--overlong skip"]),
        ({"overlong": "error", "lengths": "64"}, ["--overlong error", "8 samples", "--overlong middle"]),
        ({"tasks": "niah_singel"}, ["--tasks niah_singel", "niah_single", "--list"]),
        ({"tasks": "passkey", "lengths": "64"}, ["--lengths", "too short", "passkey"]),
        ({"tasks": "missing.yaml"}, ["--tasks missing.yaml", "no such file"]),
        ({"overlong": "skip", "lengths": "16,32"}, ["--overlong skip", "nothing to compute", "--overlong middle"]),
        ({"tasks": "kv_nothing*"}, ["--tasks kv_nothing*", "no task or group"]),
        ({"include": "nowhere"}, ["nowhere"]),
        ({"backend": "fast"}, ["--backend fast"]),
        ({"model": None}, ["--model", "--list"]),
        ({"tasks": None}, ["--tasks", "--list"]),
        ({"pe_arg": "yarn.beta_fast=3"}, ["yarn", "--pe"]),
    ],
)
def test_wrong_requests_get_one_message(arguments, capsys, tmp_path, monkeypatch, change, parts):
    monkeypatch.setattr("longeval.studies.tasks.definitions.index.lm_eval_entries", dict)
    message = complaint(capsys, tmp_path, arguments(**change))
    assert message.startswith("longeval: ")
    for part in parts:
        assert part in message


def test_missing_data_names_both_ways_to_get_it(arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = complaint(capsys, tmp_path, arguments(tasks="leval_coursera"))
    assert "LONGEVAL_DATA" in message and "L4NLP/LEval" in message and "leval/coursera.jsonl" in message
    folder = tmp_path / "data" / "leval"
    folder.mkdir(parents=True)
    monkeypatch.setenv("LONGEVAL_DATA", str(tmp_path / "data"))
    message = complaint(capsys, tmp_path, arguments(tasks="leval"))
    assert "LONGEVAL_DATA" in message and "L4NLP/LEval" in message
    message = complaint(capsys, tmp_path, arguments(tasks="leval_coursera,which_word.yaml,leval_quality"))
    assert message.startswith("longeval: --tasks leval_coursera, leval_quality: data is missing")
    assert "leval/coursera.jsonl" in message and "leval/quality.jsonl" in message


def test_a_group_goes_on_without_the_task_whose_data_is_missing(arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder = tmp_path / "data" / "leval"
    folder.mkdir(parents=True)
    line = {"input": "A quiet town.", "instructions": ["Which?\nA. x\nB. y"], "outputs": ["B"], "evaluation": "exam"}
    (folder / "quality.jsonl").write_text(json.dumps(line) + "\n")
    monkeypatch.setenv("LONGEVAL_DATA", str(tmp_path / "data"))
    request = arguments(tasks="leval", lengths="1k", pe="none", max_new_tokens="4")
    assert run_app([*request, "--json", "records.json"]) == 0
    shown = capsys.readouterr()
    (note,) = [line for line in shown.err.splitlines() if "goes on without" in line]
    assert note.startswith("longeval: leval goes on without leval_coursera,") and "leval_codeu" in note
    assert "leval_quality" not in note and note.count("L4NLP/LEval") == 3 and "; and 3 more" in note
    records = {record["task"]: record for record in json.loads((tmp_path / "records.json").read_text())}
    assert records["leval_quality"]["status"] == "ok"
    assert (records["leval"]["value"], records["leval"]["status"]) == (None, "skipped")
    assert "leval_codeu" in records["leval"]["error"]


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("task: broken\noutput_type: [generate\n", 3, ""),
        (
            "task: broken\ndataset_path: json\noutput_type: guess\ntest_split: t\ndoc_to_text: x\ndoc_to_target: y\n",
            3,
            "guess",
        ),
        ("task: broken\ninclude: nothing_here\n", 2, "nothing_here"),
        (
            "task: broken\ndataset_path: json\ntest_split: t\ndoc_to_text: x\ndoc_to_target: y\n"
            "output_type: generate_until\nmetric_list: [{metric: acc}]\n",
            7,
            "metric acc gives no score for output_type generate_until",
        ),
    ],
)
def test_a_broken_task_file_is_named_with_its_line(arguments, capsys, tmp_path, text, line, what):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    message = complaint(capsys, tmp_path, arguments(tasks="./broken.yaml"))
    assert "broken.yaml" in message and f"line {line}" in message and what in message


def test_a_generated_task_writes_its_answers(arguments, tmp_path, capsys):
    task = write_task(tmp_path, ANSWER, tmp_path / "questions.jsonl", "what_word")
    assert run_app([*arguments(tasks=str(task), pe="none", lengths="512", limit="2"), "-q"]) == 0
    (path,) = (tmp_path / "run" / "samples").iterdir()
    samples = [json.loads(line) for line in path.read_text().splitlines()]
    assert [sample["index"] for sample in samples] == [0, 1]
    assert all(
        isinstance(sample["output"], str) and sample["finish"] in ("stop", "eos", "length") for sample in samples
    )
    assert all(len(sample["prompt_digest"]) == 16 for sample in samples)


def test_a_task_file_is_no_request(choice_task, capsys):
    assert run_app(["run", str(choice_task)]) == 2
    assert f"longeval tasks --tasks {choice_task}" in capsys.readouterr().err


def test_ctrl_c_while_samples_are_made_leaves_nothing(arguments, capsys, tmp_path, monkeypatch):
    from longeval.cli.progress import RunProgress

    def interrupt(self, what, done, total):
        if done == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunProgress, "preparing", interrupt)
    before = sorted(tmp_path.iterdir())
    assert run_app(arguments(tasks="passkey", lengths="512", limit="1000000")) == 130
    assert "interrupted" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_a_cell_without_samples_is_not_counted_as_computed(arguments, capsys):
    assert run_app([*arguments(overlong="skip", lengths="16,512", pe="none"), "--json", "records.json"]) == 0
    said = capsys.readouterr().err
    assert "1 cell computed, 1 skipped; records in run" in said and "nothing to compute at 16" in said


def test_preparing_is_told_now_and_then(capsys, monkeypatch):
    from longeval.cli import progress

    clock = iter([0.0, 100.0, 110.0, 140.5, 141.0, 150.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.RunProgress() as shown:
        for done in (1, 2, 1000):
            shown.preparing("passkey at 4k: making samples", done, 2000)
    assert capsys.readouterr().err == "  passkey at 4k: making samples: 1,000 of 2,000\n"


def test_the_list_is_readable_on_a_narrow_terminal(capsys, monkeypatch):

    monkeypatch.setattr("longeval.studies.tasks.definitions.index.lm_eval_entries", dict)
    plain = longeval.cli.console.PrintableConsole
    narrow = {"force_terminal": True, "width": 80, "no_color": True}
    monkeypatch.setattr("longeval.cli.console.PrintableConsole", lambda **given: plain(**given | narrow))
    assert run_app(["tasks", "--list"]) == 0
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out.partition("\nAnd ")[0]).splitlines()
    assert max(map(len, lines)) <= 80 and not any("…" in line for line in lines)
    assert lines[0].strip() == "longeval"
    (passkey,) = [line for line in lines if line.strip().startswith("passkey ")]
    assert "five-digit number" in passkey
