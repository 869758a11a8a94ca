"""The YAML files: what lm-eval makes of them, what longeval reads in them, and samples that are made only once."""

import json
from pathlib import Path

import pytest
from synthetic_settings import (
    DEPTHS,
    FOLDER,
    HAYSTACK,
    POSGEN,
    TASKS,
    Counter,
    make_rows,
    make_setting,
    read_yaml,
    rows_of,
)

SEVERAL = ("niah_multi_value", "niah_multi_query", "variable_tracking", "frequent_words")


@pytest.fixture(scope="module")
def manager():
    from lm_eval.tasks import TaskManager

    setting = make_setting(length=2048, num_samples=3)
    return TaskManager(include_path=str(FOLDER), include_defaults=False, metadata={"setting": setting})


def test_lm_eval_finds_the_tasks_and_groups(manager):
    assert set(manager.all_subtasks) == set(TASKS)
    assert set(manager.all_groups) == {"niah", "synthetic"}
    assert set(manager.load(["niah"])["tasks"]) == set(HAYSTACK)
    assert set(manager.load(["synthetic"])["tasks"]) == set(TASKS)


@pytest.mark.parametrize("task", TASKS)
def test_lm_eval_loads_every_task_and_renders_its_prompts(manager, task):
    loaded = manager.load([task])["tasks"][task]
    rows = rows_of(task, 2048, 3)
    assert loaded.eval_docs.to_list() == rows
    prefix = read_yaml(FOLDER / f"{task}.yaml")["gen_prefix"]
    for row in rows:
        prompt = loaded.fewshot_context(row, 0, gen_prefix=loaded.doc_to_prefix(row))
        assert prompt == f"{row['input']} {prefix}"
        chat = loaded.fewshot_context(
            row, 0, gen_prefix=prefix, apply_chat_template=True, chat_template=lambda turns, **_: json.dumps(turns)
        )
        user, assistant = json.loads(chat)
        assert user == {"role": "user", "content": row["input"]}
        assert assistant == {"role": "assistant", "content": prefix}
        assert loaded.doc_to_target(row) == row["target"]
        expected = ["recall", "accuracy"] if task in SEVERAL else ["accuracy"]
        assert loaded.process_results(row, [row["target"]]) == dict.fromkeys(expected, 1)
        assert list(loaded.aggregation()) == expected
    assert all(loaded.higher_is_better().values())
    assert {rule([0, 1]) for rule in loaded.aggregation().values()} == {0.5}


@pytest.mark.parametrize("task", [*TASKS, "posgen_recursive", "posgen_cot", "posgen_semi_recursive"])
def test_metadata_that_longeval_reads(task):
    posgen = task.startswith("posgen_")
    folder = POSGEN if posgen else FOLDER
    config = (read_yaml(POSGEN / "_common_yaml") if posgen else {}) | read_yaml(folder / f"{task}.yaml")
    metadata = config["metadata"]
    assert config["task"] == task
    assert metadata["synthetic"] is True
    assert (metadata["samples"], metadata["needs"]) == (100, "nothing")
    assert metadata["chance"] == (0.1 if posgen else 0)
    assert metadata["primary"] == ("recall" if task in SEVERAL else "accuracy")
    assert metadata.get("depth") == ("depth" if task in DEPTHS else None)
    assert metadata.get("haystack", False) == (task in HAYSTACK)
    assert metadata["max_new_tokens"] == config["generation_kwargs"]["max_gen_toks"]
    assert config["generation_kwargs"]["until"] == []
    assert "{" not in config["gen_prefix"], "the token count is made before there is a sample"


@pytest.mark.parametrize("task", TASKS)
def test_rows_have_the_columns_that_the_metadata_name(task):
    row = rows_of(task)[0]
    assert ("depth" in row) == (task in DEPTHS)
    assert ("haystack_repeats" in row) == (task in HAYSTACK)


@pytest.mark.parametrize("task", TASKS)
def test_samples_are_made_once(task, tmp_path):
    first, second = Counter(), Counter()
    rows = make_rows(task, make_setting(first, cache=str(tmp_path)))
    assert len(list((tmp_path / "synthetic").iterdir())) == 1
    assert make_rows(task, make_setting(second, cache=str(tmp_path))) == rows
    assert second.calls == [rows[0]["input"]], "one prompt is counted again, and none is made"


@pytest.mark.parametrize(
    "change",
    [{"length": 1100}, {"num_samples": 3}, {"seed": 1}, {"digest": "other"}, {"haystack": "tale.txt"}],
    ids=str,
)
def test_whatever_decides_the_samples_is_in_the_key(change, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tale.txt").write_text("It was before the war. " * 900)
    make_rows("niah_single", make_setting(cache=str(tmp_path), haystack=change.get("haystack", "noise")))
    Path("tale.txt").write_text("It was after the war. " * 900)
    counter = Counter()
    rows = make_rows("niah_single", make_setting(counter, cache=str(tmp_path), **change))
    assert len(counter.calls) > 2
    assert rows == make_rows("niah_single", make_setting(**change))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[:-9],
        lambda text: "",
        lambda text: "[1]",
        lambda text: "{}",
        lambda text: text.replace("The secret number of the", "The secret number of a", 1),
    ],
    ids=["cut", "empty", "a list", "without rows", "changed"],
)
def test_what_is_not_whole_is_made_anew(spoil, tmp_path):
    rows = make_rows("niah_single", make_setting(cache=str(tmp_path)))
    (path,) = (tmp_path / "synthetic").iterdir()
    whole = path.read_text(encoding="utf-8")
    path.write_text(spoil(whole), encoding="utf-8")
    assert make_rows("niah_single", make_setting(cache=str(tmp_path))) == rows
    assert path.read_text(encoding="utf-8") == whole


def test_prompts_that_now_have_other_lengths_are_made_anew(tmp_path):
    make_rows("passkey", make_setting(cache=str(tmp_path)))
    chat = Counter(chat=True)
    rows = make_rows("passkey", make_setting(chat, cache=str(tmp_path)))
    assert all(row["tokens"] + 16 <= 1024 for row in rows)
    assert rows == make_rows("passkey", make_setting(Counter(chat=True)))


def test_without_a_cache_that_can_be_written_samples_are_made_all_the_same(tmp_path):
    (tmp_path / "synthetic").write_text("in the way", encoding="utf-8")
    assert make_rows("passkey", make_setting(cache=str(tmp_path))) == make_rows("passkey", make_setting())
