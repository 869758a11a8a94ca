"""PosGen as a task for pretrained models: the prompts, their lengths, what is right, and what lm-eval makes of it."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from posgen_reference import wrong_tokens
from synthetic_settings import POSGEN, Counter, check_filled, load, make_setting, rows_by

from longeval.cli.app import run_app
from longeval.errors import LongEvalError

RULES = ("recursive", "cot", "semi_recursive")
MAX_NEW_TOKENS = 24
ASKED = re.compile(r"Sequence: ([0-9 ]+)\nWhich four digits come next\?(?: The next four digits are ([0-9 ]+)\.)?")


TARGETS = {
    "recursive": ["9 2 6 8", "8 9 7 6"],
    "cot": ["3 7 2 4", "6 4 9 3"],
    "semi_recursive": ["2 9 3 0", "9 8 6 0"],
}
"""What seed 0 asks for."""


posgen, scoring = load(POSGEN / "posgen.py"), load(POSGEN / "scoring.py")


def make_rows(rule, setting):
    return rows_by(getattr(posgen, rule), setting, MAX_NEW_TOKENS)


def digits_of(text):
    return [int(digit) for digit in text.split()]


def parts_of(row):
    """Instruction, short sequences with their answers, the long sequence: all digits as ints."""
    instruction, rest = row["input"].split("\n\n", 1)
    found = [(digits_of(asked), digits_of(answer)) for asked, answer in ASKED.findall(rest)]
    assert "\n\n".join(match.group() for match in ASKED.finditer(rest)) == rest, "nothing else is in the prompt"
    assert [len(answer) for _, answer in found] == [4] * (len(found) - 1) + [0]
    return instruction, [asked + answer for asked, answer in found[:-1]], found[-1][0]


@pytest.mark.parametrize("rule", RULES)
def test_every_digit_of_a_prompt_and_its_answer_follows_from_the_rule(rule):
    for row in make_rows(rule, make_setting(length=2048, num_samples=6)):
        _, shots, long = parts_of(row)
        answers = digits_of(row["target"])
        assert [len(shot) for shot in shots] == [16, 24, 32]
        assert row["answers"] == [str(digit) for digit in answers]
        assert len(answers) == 4
        for digits in (*shots, long + answers):
            assert set(digits) <= set(range(10))
            assert wrong_tokens(digits, rule, modulus=10, j=1, k=3) == []


def test_the_instructions_say_the_rules():
    said = {rule: parts_of(make_rows(rule, make_setting(num_samples=1))[0])[0] for rule in RULES}
    assert len(set(said.values())) == 3
    assert said["recursive"].endswith("the last digit of the sum of the four digits right before it.")
    assert "the first digit of the sequence, and the three digits right before it" in said["cot"]
    ordinals = {"first": 1, "second": 2, "third": 3}
    taken = re.findall(r"the (\w+) (?:digit of the sequence )?for the (\d+)th and the (\d+)th", said["semi_recursive"])
    assert len(taken) == 3
    for far, *new in taken:
        # Counted from 1 in the text, from 0 in the formula ⌊(l − 4) / 2⌋.
        assert [(int(count) - 1 - 4) // 2 + 1 for count in new] == [ordinals[far]] * 2


@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
@pytest.mark.parametrize("tokenizer", ["bytes", "bpe", "words"])
@pytest.mark.parametrize("rule", RULES)
def test_prompts_fill_windows_of_any_tokenizer(rule, tokenizer, chat):
    for length in (1283, 4096):
        counter = Counter(tokenizer, chat=chat)
        rows = make_rows(rule, make_setting(counter, length=length, num_samples=3))
        assert len(rows) == 3
        assert len(counter.calls) <= 8, "all samples take the same number of digits"
        check_filled(rows, counter, length=length, num_new=MAX_NEW_TOKENS)


@given(length=st.integers(600, 3000), seed=st.integers(0, 2**40), rule=st.sampled_from(RULES))
@settings(max_examples=10, deadline=None)
def test_any_length_and_seed_is_met(length, seed, rule):
    (row,) = make_rows(rule, make_setting(length=length, num_samples=1, seed=seed))
    check_filled([row], Counter(), length=length, num_new=MAX_NEW_TOKENS)
    assert wrong_tokens(parts_of(row)[2] + digits_of(row["target"]), rule, modulus=10, j=1, k=3) == []


def test_a_window_too_short_and_too_many_samples_are_refused_with_what_there_can_be():
    with pytest.raises(LongEvalError, match=r"^--lengths 50: .*posgen_cot.* need \d+ tokens") as caught:
        make_rows("cot", make_setting(length=50))
    needed = int(str(caught.value).split(" need ")[1].split()[0])
    (row,) = make_rows("cot", make_setting(length=needed, num_samples=1))
    assert row["tokens"] + MAX_NEW_TOKENS <= needed
    assert len(parts_of(row)[2]) == 16
    with pytest.raises(LongEvalError, match=r"--limit 9998: posgen_cot") as caught:
        make_rows("cot", make_setting(num_samples=9998))
    assert "9997" in caught.value.remedy


def test_no_two_sequences_start_alike_and_shots_are_shared():
    rows = make_rows("cot", make_setting(length=1024, num_samples=60))
    shots = {row["input"].rpartition("\n\n")[0] for row in rows}
    assert len(shots) == 1, "they are the beginning of every prompt, whose cache samples share"
    starts = [tuple(digits[:4]) for digits in parts_of(rows[0])[1]] + [tuple(parts_of(row)[2][:4]) for row in rows]
    assert len(set(starts)) == 63


@pytest.mark.parametrize("rule", RULES)
def test_samples_depend_on_seed_and_index_alone(rule):
    rows = make_rows(rule, make_setting(length=700, num_samples=4))
    assert make_rows(rule, make_setting(length=700, num_samples=2)) == rows[:2]
    others = make_rows(rule, make_setting(length=700, num_samples=4, seed=1))
    assert all(parts_of(row)[2][:4] != parts_of(other)[2][:4] for row, other in zip(rows, others, strict=True))
    for short, long in zip(rows, make_rows(rule, make_setting(length=1400, num_samples=4)), strict=True):
        before, after = parts_of(short)[2] + digits_of(short["target"]), parts_of(long)[2]
        assert after[: len(before)] == before


def test_a_seed_means_the_same_samples_on_every_machine():
    """Written down: a change here makes these tasks others, and needs a new VERSION."""
    starts = {rule: make_rows(rule, make_setting(Counter("words"), length=512, num_samples=2)) for rule in RULES}
    assert parts_of(starts["cot"][0])[2][:8] == [2, 9, 3, 6, 0, 1, 9, 2]
    assert {rule: [row["target"] for row in rows] for rule, rows in starts.items()} == TARGETS


@pytest.mark.parametrize(
    ("answer", "accuracy", "exact_match"),
    [
        (" 0 6 3 3", 1, 1),
        ("0 6 3 3.\n\nSequence: 1 2", 1, 1),
        ("0, 6, 3, 3", 1, 1),
        ("0633", 1, 1),
        ("**0 6 3 3** and then 9", 1, 1),
        ("0 6 3 4", 1, 0),
        ("0", 1, 0),
        ("6 0 3 3", 0, 0),
        ("6 3 3 0 6 3 3", 0, 0),
        ("0 63 3", 1, 0),
        ("06 33", 0, 0),
        ("06331", 0, 0),
        ("10 6 3 3", 0, 0),
        ("zero", 0, 0),
        ("", 0, 0),
    ],
)
def test_which_answers_are_right(answer, accuracy, exact_match):
    doc = {"answers": ["0", "6", "3", "3"]}
    assert scoring.score(doc, [answer]) == {"accuracy": accuracy, "exact_match": exact_match}


def test_lm_eval_loads_the_tasks_and_renders_their_prompts():
    from lm_eval.tasks import TaskManager

    setting = make_setting(length=700, num_samples=3)
    manager = TaskManager(include_path=str(POSGEN), include_defaults=False, metadata={"setting": setting})
    assert set(manager.all_groups) == {"posgen"}
    tasks = manager.load(["posgen"])["tasks"]
    assert sorted(tasks) == sorted(f"posgen_{rule}" for rule in RULES)
    for rule in RULES:
        task = tasks[f"posgen_{rule}"]
        rows = make_rows(rule, setting)
        assert task.eval_docs.to_list() == rows
        for row in rows:
            prompt = task.fewshot_context(row, 0, gen_prefix=task.doc_to_prefix(row))
            assert prompt == f"{row['input']} The next four digits are"
            shown = prompt.rpartition("\n\n")[0].rpartition("\n")[2]
            asked = "Which four digits come next? The next four digits are "
            assert shown.startswith(asked), "as it is asked, so shown"
            assert task.doc_to_target(row) == row["target"]
            assert task.process_results(row, [f" {row['target']}."]) == {"accuracy": 1, "exact_match": 1}
        assert list(task.aggregation()) == ["accuracy", "exact_match"]
        assert all(task.higher_is_better().values())


def test_samples_are_made_once(tmp_path):
    first, second = Counter(), Counter()
    rows = make_rows("cot", make_setting(first, cache=str(tmp_path)))
    (kept,) = (tmp_path / "synthetic").iterdir()
    assert json.loads(kept.read_text())["rows"] == rows
    assert make_rows("cot", make_setting(second, cache=str(tmp_path))) == rows
    assert second.calls == [rows[0]["input"]], "one prompt is counted again, and none is made"
    assert make_rows("recursive", make_setting(cache=str(tmp_path))) != rows
    assert make_rows("cot", make_setting(cache=str(tmp_path), seed=1)) != rows


def test_a_model_is_asked_and_scored(tiny_llama, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    request = ["tasks", "--model", str(tiny_llama), "--pe", "none", "--tasks", "posgen", "--lengths", "1200"]
    assert run_app([*request, "--limit", "2", "--dtype", "float32", "--out", "run", "--json", "-", "-q"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert {(record["task"], record["metric"]) for record in records} == {
        (f"posgen_{rule}", metric) for rule in RULES for metric in ("accuracy", "exact_match")
    }
    assert all(record["status"] == "ok" and record["n"] == 2 and record["truncated"] == 0 for record in records)
