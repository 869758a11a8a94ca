"""Names of tasks: precedence, groups, suggestions, needs, and the cache of lm-eval's names."""

import json
import os
import re
import subprocess
import sys

import pytest
from task_files import small_lm_eval, task, write  # noqa: F401  # a fixture

from longeval.cache import cache_dir
from longeval.errors import LongEvalError
from longeval.studies.tasks.definitions import index
from longeval.studies.tasks.definitions.entries import GroupAverage
from longeval.studies.tasks.definitions.index import Index, all_leaves
from longeval.studies.tasks.definitions.needs import group_needs

pytestmark = pytest.mark.usefixtures("small_lm_eval")


@pytest.fixture
def root(tmp_path):
    """Stands in for our own tasks/."""
    folder = tmp_path / "ours"
    write(
        folder / "kind",
        passkey="task: passkey\nmetadata: {description: Find a number, needs: nothing}\n",
        reading="task: reading\nmetadata: {needs: LONGEVAL_DATA or hub data set who/reading}\n",
        both="group: both\ntask: [reading, passkey]\nmetadata: {average_over: [reading], needs: a book}\n",
    )
    write(folder / "perplexity", corpus="not: a task\n")
    return str(folder)


def resolve(root, *names, include=()):
    return Index(include, root=root).resolve(names)


def leaves(root, *names, include=()):
    return all_leaves(resolve(root, *names, include=include))


def test_ours_win_and_lm_evals_can_be_named(root):
    ours, theirs = resolve(root, "passkey", "lm_eval:passkey")
    assert (ours.source, ours.leaves) == ("longeval", ("passkey",))
    assert (theirs.source, theirs.leaves) == ("lm_eval", ("lm_eval:passkey",))
    index = Index(root=root)
    assert index.entry("passkey").path.endswith("kind/passkey.yaml")
    assert index.entry("lm_eval:passkey").path.endswith("lm_eval/tasks/passkey.yaml")
    assert leaves(root, "lm_eval:alpha", "alpha") == ("alpha",), "its plain name means the same"


def test_users_folders_win_over_lm_eval_only(root, tmp_path):
    mine = write(tmp_path / "mine", alpha="task: alpha\n", more="group: more\ntask: [passkey, reading, alpha]\n")
    assert leaves(root, "more", include=[str(mine)]) == ("passkey", "reading", "alpha")
    assert leaves(root, "pair", include=[str(mine)]) == ("lm_eval:alpha", "lm_eval:passkey")
    assert Index([str(mine)], root=root).entry("alpha").source == str(mine / "alpha.yaml")
    later = write(tmp_path / "later", alpha="task: alpha\n")
    assert Index([str(mine), str(later)], root=root).entry("alpha").source == str(later / "alpha.yaml")


def test_groups_become_leaves_in_order_each_once(root):
    assert leaves(root, "nest") == ("alpha", "lm_eval:passkey", "beta")
    assert leaves(root, "beta", "nest", "letters", "beta") == ("beta", "alpha", "lm_eval:passkey")
    assert leaves(root, "letters") == ("alpha", "beta")
    assert [item.name for item in resolve(root, "both", "both")] == ["both"]
    assert leaves(root, "both") == ("reading", "passkey")


def test_tasks_that_a_group_changes_have_names_of_their_own(root):
    names = leaves(root, "changed")
    assert names[:4] == ("changed::alpha", "beta", "changed::pair::alpha", "changed::pair::passkey")
    assert names[4:] == ("changed::own", "alpha")
    assert [resolve(root, name)[0].leaves for name in names] == [(name,) for name in names]


def test_averages_of_groups_and_of_groups_inside(root, tmp_path):
    (nest,) = resolve(root, "nest")
    assert [(a.group, a.metric, a.filters, a.weight_by_size, a.members) for a in nest.averages] == [
        ("nest", "acc", None, True, ("alpha", "lm_eval:passkey", "beta")),
        ("nest", "f1", ("strict", "loose"), True, ("alpha", "lm_eval:passkey", "beta")),
        ("pair", "acc", ("none",), False, ("alpha", "lm_eval:passkey")),
        ("nest::inner", "f1", None, True, ("alpha",)),
    ]
    group = "group: own\ntask: [reading]\naggregate_metric_list: [{metric: !function code.bleu_4}]\n"
    folder = write(tmp_path / "own", own=group)
    letters, both, own = resolve(root, "letters", "both", "own", include=[str(folder)])
    assert letters.averages == ()
    found = [(item.averages[0].metric, item.averages[0].members) for item in (both, own)]
    assert found == [(None, ("reading",)), ("bleu_4", ("reading",))]


def test_a_path_is_a_file_and_shown_by_the_name_in_it(root, tmp_path, monkeypatch):
    group = "group: some\ntask: [alpha, {task: new, dataset_path: who/new}]\n"
    write(tmp_path / "work", file=task(tmp_path, "mine"), some=group)
    write(tmp_path / "same", other="task: passkey\n")
    monkeypatch.chdir(tmp_path / "work")
    index = Index(root=root)
    one, some = index.resolve(["./file.yaml", "some.yaml"])
    assert (one.kind, one.leaves, index.entry("./file.yaml").title) == ("task", ("./file.yaml",), "mine")
    assert (some.kind, some.leaves, some.title) == ("group", ("alpha", "some.yaml::new"), "some")
    new = index.entry("some.yaml::new")
    assert (new.needs, new.title) == ("hub data set who/new", "some::new")
    with pytest.raises(LongEvalError, match=r"other\.yaml: passkey is the name"):
        index.entry("../same/other.yaml")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("passkye", r"unknown\. Did you mean passkey\?"),
        ("alfha", r"unknown\. Did you mean alpha\?"),
        ("lm_eval:reading", r"unknown\. Did you mean reading\?"),
        ("zz*", "no task or group"),
        ("dang*", "not run"),
        ("./absent.yaml", "no such file"),
        ("nothing.yaml", "task"),
        ("mine", "--include mine"),
        ("./mine", r"--include \./mine"),
    ],
)
def test_names_that_cannot_be_meant_are_answered_with_near_ones(root, name, hint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, nothing="doc_to_text: x\n")
    write(tmp_path / "mine", zeta="task: zeta\n")
    with pytest.raises(LongEvalError, match=rf"--tasks {re.escape(name)}: .*{hint}"):
        resolve(root, name)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("task: [absent]\n", "bad.yaml, line 2: group bad: its member absent"),
        ("task: [reading]\nmetadata: {average_over: [alpha]}\n", "average_over names alpha"),
        ("task: [reading]\nmetadata: {average_over: 3}\n", "line 3: average_over"),
        ("task: [{name: x}]\n", "line 2: group bad"),
        ("task: [bad]\n", "group bad contains itself"),
        ("task: [{task: bad, num_fewshot: 2}]\n", "line 2: group bad: its member bad contains itself"),
        ("task: [reading]\naggregate_metric_list: [acc]\n", "line 3: each entry needs a metric"),
    ],
)
def test_mistakes_in_groups_are_named_with_their_line(root, tmp_path, body, message):
    folder = write(tmp_path / "bad", bad=f"group: bad\n{body}")
    with pytest.raises(LongEvalError, match=message):
        resolve(root, "bad", include=[str(folder)])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"one": "task: x\n", "two": "tag: y\ntask: x\n"}, "two.yaml, line 2: x is the name of .*one.yaml"),
        ({"one": "task: [x\n"}, "one.yaml, line 2: not valid YAML"),
        ({"one": "task: passkey\n"}, "one.yaml.*: passkey is the name of a task of longeval"),
        ({}, "--include .*files: no such folder"),
    ],
)
def test_folders_that_cannot_be_included(root, tmp_path, files, message):
    if files:
        write(tmp_path / "files", **files)
    with pytest.raises(LongEvalError, match=message):
        Index([str(tmp_path / "files")], root=root)


def test_listing(root, tmp_path):
    mine = write(tmp_path / "mine", zeta="task: zeta\n")
    entries = {entry.name: entry for entry in Index([str(mine)], root=root).listed()}
    names = "zeta both passkey reading alpha beta changed danger few letters lm_eval:passkey nest pair"
    assert list(entries) == names.split()
    assert (entries["passkey"].description, entries["letters"].kind) == ("Find a number", "group")
    needs = {"passkey": "nothing", "both": "a book", "pair": "hub data set who/alpha; hub data set who/passkey"}
    needs |= {"reading": "LONGEVAL_DATA or hub data set who/reading", "alpha": "hub data set who/alpha"}
    assert {name: entries[name].needs for name in needs} == needs
    assert entries["danger"].needs.startswith("not run")
    (letters,) = resolve(root, "letters")
    assert letters.needs == "hub data set who/alpha; hub data set who/beta"


def test_needs_of_groups():
    assert group_needs({"a": "nothing", "b": "nothing"}) == "nothing"
    assert group_needs({"a": "x", "b": "nothing", "c": "x"}) == "for 2 of 3 tasks: x"
    assert group_needs({f"t{n}": "y" if n else "x" for n in range(9)}) == "x; y"
    many = {f"t{n}": f"need {n}" for n in range(6)}
    assert group_needs(many | {"t6": "nothing"}) == "for 6 of 7 tasks: 6 downloads, such as need 0"


def test_a_pattern_is_all_that_it_matches(root):
    (both,) = resolve(root, "*a*s*")
    assert both.kind == "group" and both.leaves == ("passkey", "lm_eval:passkey")
    (letters,) = resolve(root, "lette[rs]s")
    assert letters.leaves == ("alpha", "beta"), "a group that matches stands for its tasks"


def test_the_cache_is_read_and_follows_changes(small_lm_eval, monkeypatch):  # noqa: F811
    def entries():
        index._entries.cache_clear()
        return index.lm_eval_entries()

    first = entries()
    assert first["nest"].averages[1] == GroupAverage(
        group="nest", metric="f1", filters=("strict", "loose"), weight_by_size=True, members=()
    )
    with monkeypatch.context() as patch:
        patch.setattr(index, "read_index", lambda folder: pytest.fail("read again"))
        assert entries() == first
    (small_lm_eval / "gamma.yaml").write_text("task: gamma\n")
    assert set(entries()) - set(first) == {"gamma"}
    (small_lm_eval / "gamma.yaml").write_text("task: delta\n")
    assert set(entries()) - set(first) == {"delta"}
    folder = os.path.join(cache_dir(), "tasks")
    newest = max((os.path.join(folder, name) for name in os.listdir(folder)), key=os.path.getmtime)
    for content in ("{", "[1]", '[{"name": 3}]', json.dumps({"a": 1})):
        with open(newest, "w") as file:
            file.write(content)
        assert "delta" in entries()


def test_our_names_and_the_cached_ones_need_no_import_of_lm_eval(small_lm_eval):  # noqa: F811
    index.lm_eval_entries()  # is in the cache now
    program = (
        "import sys; from longeval.studies.tasks.definitions import index\n"
        f"index.lm_eval_folder = lambda: {str(small_lm_eval)!r}\n"
        "index.Index().listed(); index.Index().resolve(['letters'])\n"
        "print([name for name in ('lm_eval', 'torch', 'transformers', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", done.stderr
