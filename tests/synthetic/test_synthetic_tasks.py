"""The YAML files: what lm-eval makes of them, what longeval reads in them, and samples that are made only once."""

import json
import logging

import pytest
from synthetic_settings import DEPTHS, FOLDER, HAYSTACK, TASKS, Counter, make_rows, make_setting, read_yaml, rows_of

SEVERAL = ("niah_multi_value", "niah_multi_query", "variable_tracking", "frequent_words")


@pytest.fixture(scope="module")
def manager():
    from lm_eval.tasks import TaskManager

    setting = make_setting(length=2048, num_samples=3)
    return TaskManager(include_path=str(FOLDER), include_defaults=False, metadata={"setting": setting})


def test_lm_eval_finds_the_tasks_and_groups(manager):
    assert set(manager.all_subtasks) == set(TASKS)
    assert set(manager.all_groups) == {"niah", "synthetic"}


@pytest.mark.parametrize("task", TASKS)
def test_lm_eval_loads_every_task_and_renders_its_prompts(manager, task, caplog):
    caplog.set_level(logging.ERROR)
    loaded = manager.load([task])["tasks"][task]
    rows = rows_of(task, 2048, 3)
    assert loaded.eval_docs.to_list() == rows
    prefix = read_yaml(f"{task}.yaml")["gen_prefix"]
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
        scores = loaded.process_results(row, [row["target"]])
        assert (
            list(scores) == list(loaded.aggregation()) == (["recall", "accuracy"] if task in SEVERAL else ["accuracy"])
        )
        assert set(scores.values()) == {1}
    assert all(loaded.higher_is_better().values())
    assert {name: rule([0, 1]) for name, rule in loaded.aggregation().items()} == dict.fromkeys(
        loaded.aggregation(), 0.5
    )


def test_groups_hold_all(manager):
    def names(group):
        return sorted(name for name in manager.load([group])["tasks"])

    assert names("niah") == sorted(HAYSTACK)
    assert names("synthetic") == sorted(TASKS)


@pytest.mark.parametrize("task", TASKS)
def test_metadata_that_longeval_reads(task):
    config = read_yaml(f"{task}.yaml")
    metadata = config["metadata"]
    assert metadata["synthetic"] is True
    assert metadata["samples"] == 100
    assert metadata["needs"] == "nothing"
    assert metadata["chance"] == 0
    assert metadata["primary"] == ("recall" if task in SEVERAL else "accuracy")
    assert metadata.get("depth") == ("depth" if task in DEPTHS else None)
    assert metadata.get("haystack", False) == (task in HAYSTACK)
    assert metadata["max_new_tokens"] == config["generation_kwargs"]["max_gen_toks"]
    assert config["generation_kwargs"]["until"] == []
    assert "{" not in config["gen_prefix"], "the token count is made before there is a sample"
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
    "change", [{"length": 1100}, {"num_samples": 3}, {"seed": 1}, {"digest": "other"}, {"haystack": "stdlib"}], ids=str
)
def test_whatever_decides_the_samples_is_in_the_key(change, tmp_path):
    make_rows("niah_single", make_setting(cache=str(tmp_path)))
    counter = Counter()
    rows = make_rows("niah_single", make_setting(counter, cache=str(tmp_path), **change))
    assert len(counter.calls) > 2
    assert rows == make_rows("niah_single", make_setting(**change))
    assert len(list((tmp_path / "synthetic").iterdir())) == 2


def test_a_changed_document_is_another_haystack(tmp_path):
    path = tmp_path / "tale.txt"
    made = []
    for word in ("before", "after"):
        path.write_text(f"It was {word} the war. " * 900, encoding="utf-8")
        made += make_rows("niah_single", make_setting(num_samples=1, haystack=str(path), cache=str(tmp_path / "c")))
    assert "after the war" in made[1]["input"]


def flip(text):
    return text.replace("The secret number of the", "The secret number of a", 1)


@pytest.mark.parametrize(
    "spoil", [lambda text: text[:-9], lambda text: "", flip, lambda text: "[1]", lambda text: "{}"]
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
