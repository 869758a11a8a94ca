"""The task files that ship, and the long-text groups of the real lm-eval."""

import pytest

from longeval.studies.tasks.definitions.checks import check_task_file
from longeval.studies.tasks.definitions.entries import scan
from longeval.studies.tasks.definitions.files import task_folders, yaml_files
from longeval.studies.tasks.definitions.index import LONG_CONTEXT, Index
from longeval.studies.tasks.definitions.load import task_config


def test_our_files_are_sound_and_pass_the_checks_for_users_files():
    files = [path for folder in task_folders() for path in yaml_files(folder)]
    entries = scan(files, source="longeval", outer=lambda name: None)
    assert {"leval", "leval_coursera", "leval_topic_retrieval", "passkey", "niah", "kv_retrieval"} <= set(entries)
    index = Index()
    for entry in entries.values():
        assert entry.description, entry.name
        assert "what its Python code loads" not in entry.needs, entry.name
        if entry.kind == "task":
            assert entry.refusal is None
            check_task_file(entry.path, task_config(entry.name, index))


def test_the_published_average_of_leval():
    (leval,) = Index().resolve(["leval"])
    assert len(leval.leaves) == 7
    (average,) = leval.averages
    assert (average.metric, average.weight_by_size) == (None, False)
    assert set(leval.leaves) - set(average.members) == {"leval_topic_retrieval"}


@pytest.mark.slow
def test_long_context_groups_resolve():
    resolved = {item.name: item for item in Index().resolve(LONG_CONTEXT)}
    sizes = {name: len(item.leaves) for name, item in resolved.items()}
    longest = {"ruler": 13, "longbench": 21, "longbench2": 20}
    assert sizes == longest | {"infinitebench": 11, "babilong": 20, "scrolls": 7}
    assert resolved["longbench"].needs.startswith("hub data set Xnhyacinth/LongBench")
    assert resolved["ruler"].needs.startswith("for 7 of 13 tasks: hub data set baber/paul_graham_essays")
    assert "not run" in resolved["scrolls"].needs
