"""Names of tasks: precedence, groups, suggestions, needs, and the cache of lm-eval's names."""

import json
import os
import subprocess
import sys

import pytest
from task_files import small_lm_eval, task, write  # noqa: F401  # a fixture

from longeval.cache import cache_dir
from longeval.errors import LongEvalError
from longeval.studies.tasks.definitions import index
from longeval.studies.tasks.definitions.entries import GroupAverage
from longeval.studies.tasks.definitions.files import lm_eval_folder, task_folders
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
    assert index.entry("lm_eval:alpha").name == "alpha"  # its plain name means the same
    assert leaves(root, "lm_eval:alpha", "alpha") == ("alpha",)


def test_a_group_of_lm_eval_keeps_its_own_members(root):
    assert leaves(root, "pair") == ("alpha", "lm_eval:passkey")
    assert resolve(root, "pair")[0].averages[0].members == ("alpha", "lm_eval:passkey")


def test_users_folders_win_over_lm_eval_only(root, tmp_path):
    mine = write(tmp_path / "mine", alpha="task: alpha\n", more="group: more\ntask: [passkey, reading, alpha]\n")
    assert leaves(root, "more", include=[str(mine)]) == ("passkey", "reading", "alpha")
    assert leaves(root, "pair", include=[str(mine)]) == ("lm_eval:alpha", "lm_eval:passkey")
    assert Index([str(mine)], root=root).entry("alpha").source == str(mine / "alpha.yaml")
    later = write(tmp_path / "later", alpha="task: alpha\n")
    assert Index([str(mine), str(later)], root=root).entry("alpha").source == str(later / "alpha.yaml")
    ours = write(tmp_path / "same", passkey="task: passkey\n")
    with pytest.raises(LongEvalError, match=r"passkey.yaml: passkey is the name of a task of longeval"):
        Index([str(ours)], root=root)
    with pytest.raises(LongEvalError, match=r"--include .*absent: no such folder"):
        Index([str(tmp_path / "absent")], root=root)


def test_groups_become_leaves_in_order_each_once(root):
    assert leaves(root, "nest") == ("alpha", "lm_eval:passkey", "beta")
    assert leaves(root, "beta", "nest", "letters", "beta") == ("beta", "alpha", "lm_eval:passkey")
    assert leaves(root, "letters") == ("alpha", "beta")
    assert [item.name for item in resolve(root, "both", "both")] == ["both"]
    assert leaves(root, "both") == ("reading", "passkey")


def test_every_leaf_is_a_name(root):
    names = leaves(root, "nest", "changed", "both")
    assert [resolve(root, name)[0].leaves for name in names] == [(name,) for name in names]


def test_tasks_that_a_group_changes_have_names_of_their_own(root):
    assert leaves(root, "changed") == (
        *("changed::alpha", "beta", "changed::pair::alpha", "changed::pair::passkey"),
        *("changed::own", "alpha"),
    )


def test_averages_of_groups_and_of_groups_inside(root):
    averages = resolve(root, "nest")[0].averages
    assert [(a.group, a.metric, a.filters, a.weight_by_size) for a in averages] == [
        ("nest", "acc", None, True),
        ("nest", "f1", ("strict", "loose"), True),
        ("pair", "acc", ("none",), False),
        ("nest::inner", "f1", None, True),
    ]
    assert averages[0].members == ("alpha", "lm_eval:passkey", "beta")
    assert averages[3].members == ("alpha",)
    assert resolve(root, "letters")[0].averages == ()
    (own,) = resolve(root, "both")[0].averages
    assert (own.metric, own.weight_by_size, own.members) == (None, False, ("reading",))


def test_an_average_of_a_tasks_own_metric_has_the_name_of_its_function(root, tmp_path):
    group = "group: own\ntask: [reading]\naggregate_metric_list: [{metric: !function code.bleu_4}]\n"
    folder = write(tmp_path / "own", own=group)
    assert [average.metric for average in resolve(root, "own", include=[str(folder)])[0].averages] == ["bleu_4"]


def test_a_path_is_a_file(root, tmp_path, monkeypatch):
    write(
        tmp_path / "work",
        mine=task(tmp_path, "mine"),
        some="group: some\ntask: [alpha, {task: new, dataset_path: who/new}]\n",
    )
    monkeypatch.chdir(tmp_path / "work")
    one, group = resolve(root, "./mine.yaml", "some.yaml")
    assert (one.kind, one.leaves) == ("task", ("./mine.yaml",))
    assert (group.kind, group.leaves) == ("group", ("alpha", "some.yaml::new"))
    assert Index(root=root).entry("some.yaml::new").needs == "hub data set who/new"
    for path, message in (("./absent.yaml", "no such file"), ("nothing.yaml", "neither the key task")):
        write(tmp_path / "work", nothing="doc_to_text: x\n")
        with pytest.raises(LongEvalError, match=f"--tasks {path}: .*{message}"):
            resolve(root, path)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("passkye", r"--tasks passkye: unknown\. Did you mean passkey\? `longeval tasks --list` shows all\."),
        ("redaing", "Did you mean reading?"),
        ("alfha", r"Did you mean alpha\?"),
        ("lm_eval:reading", r"--tasks lm_eval:reading: unknown\."),
        ("zzz", r"--tasks zzz: unknown\. `longeval tasks --list` shows all\."),
    ],
)
def test_unknown_names_are_answered_with_near_ones(root, name, hint):
    with pytest.raises(LongEvalError, match=hint):
        resolve(root, name)


def test_our_names_need_no_index_of_lm_eval(root, monkeypatch):
    monkeypatch.setattr(index, "lm_eval_folder", lambda: pytest.fail("asked for lm-eval"))
    assert leaves(root, "both", "passkey") == ("reading", "passkey")


def test_mistakes_in_groups(root, tmp_path):
    cases = {
        "task: [absent]\n": r"bad.yaml, line 2: group bad: its member absent is unknown",
        "task: [reading]\nmetadata: {average_over: [alpha]}\n": "average_over names alpha, no task of bad",
        "task: [reading]\nmetadata: {average_over: 3}\n": "line 3: average_over must be a list",
        "task: [{name: x}]\n": "line 2: group bad: one of its members has neither",
        "task: [bad]\n": "group bad contains itself",
        "task: [{task: bad, num_fewshot: 2}]\n": "line 2: group bad: its member bad contains itself",
        "task: [reading]\naggregate_metric_list: [acc]\n": "line 3: each entry needs a metric",
    }
    for body, message in cases.items():
        folder = write(tmp_path / "bad", bad=f"group: bad\n{body}")
        with pytest.raises(LongEvalError, match=message):
            resolve(root, "bad", include=[str(folder)])
    folder = write(tmp_path / "twice", one="task: x\n", two="tag: y\ntask: x\n")
    with pytest.raises(LongEvalError, match=r"two.yaml, line 2: x is the name of .*one.yaml already"):
        Index([str(folder)], root=root)
    folder = write(tmp_path / "yaml", one="task: [x\n")
    with pytest.raises(LongEvalError, match=r"one.yaml, line 2: not valid YAML"):
        Index([str(folder)], root=root)


def test_listing(root, tmp_path):
    mine = write(tmp_path / "mine", zeta="task: zeta\n")
    entries = Index([str(mine)], root=root).listed()
    assert [entry.name for entry in entries] == [
        *("zeta", "both", "passkey", "reading"),
        *("alpha", "beta", "changed", "danger", "few", "letters", "lm_eval:passkey", "nest", "pair"),
    ]
    by_name = {entry.name: entry for entry in entries}
    assert (by_name["passkey"].needs, by_name["passkey"].description) == ("nothing", "Find a number")
    assert by_name["both"].needs == "a book"
    assert by_name["alpha"].needs == "hub data set who/alpha"
    assert by_name["letters"].kind == "group"
    assert by_name["pair"].needs == "hub data set who/alpha; hub data set who/passkey"
    assert by_name["danger"].needs == "not run: it executes code that the model writes"
    needs = [item.needs for item in resolve(root, "reading", "letters")]
    assert needs == ["LONGEVAL_DATA or hub data set who/reading", "hub data set who/alpha; hub data set who/beta"]


def test_needs_of_groups():
    assert group_needs({}) == "nothing"
    assert group_needs({"a": "nothing", "b": "nothing"}) == "nothing"
    assert group_needs({"a": "x", "b": "nothing", "c": "x"}) == "for 2 of 3 tasks: x"
    many = {f"t{n}": f"need {n}" for n in range(6)}
    assert group_needs(many) == "6 downloads, such as need 0"
    assert group_needs({f"t{n}": "y" if n else "x" for n in range(9)}) == "x; y"
    assert group_needs(many | {"t6": "nothing"}) == "for 6 of 7 tasks: 6 downloads, such as need 0"


def test_a_pattern_is_all_that_it_matches(root, tmp_path):
    (both,) = resolve(root, "*a*s*")
    assert both.kind == "group" and both.leaves == ("passkey", "lm_eval:passkey")
    (letters,) = resolve(root, "lette[rs]s")
    assert letters.leaves == ("alpha", "beta"), "a group that matches stands for its tasks"
    with pytest.raises(LongEvalError, match=r"--tasks dang\*: not run"):
        resolve(root, "dang*")
    with pytest.raises(LongEvalError, match=r"--tasks zz\*: no task or group has such a name"):
        resolve(root, "zz*")


def test_a_folder_is_sent_to_include(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "mine", zeta="task: zeta\n")
    for typed in ("mine", "./mine", f"{tmp_path}/mine"):
        with pytest.raises(LongEvalError) as caught:
            resolve(root, typed)
        assert f"--include {typed}" in caught.value.remedy


def test_what_a_path_names_is_shown_by_its_own_name(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "mine", zeta="task: zeta\n", two="group: two\ntask: [alpha, {task: inner, doc_to_text: x}]\n")
    index = Index(root=root)
    assert index.entry("mine/zeta.yaml").title == "zeta" and index.entry("alpha").title == "alpha"
    (two,) = index.resolve(["mine/two.yaml"])
    assert (two.name, two.title) == ("mine/two.yaml", "two")
    assert [index.entry(leaf).title for leaf in two.leaves] == ["alpha", "two::inner"]
    write(tmp_path / "same", other="task: passkey\n")
    with pytest.raises(LongEvalError, match=r"other\.yaml: passkey is the name of a task of longeval"):
        index.entry("same/other.yaml")


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
        "import sys; from longeval.studies.tasks.definitions import index, lm_eval_index\n"
        f"lm_eval_index.lm_eval_folder = lambda: {str(small_lm_eval)!r}\n"
        "index.Index().listed(); index.Index().resolve(['letters'])\n"
        "print([name for name in ('lm_eval', 'torch', 'transformers', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_folders(root, tmp_path):
    assert [os.path.basename(folder) for folder in task_folders(root)] == ["kind"]
    with pytest.raises(LongEvalError, match="the folder of the tasks is missing"):
        task_folders(str(tmp_path / "absent"))
    assert os.path.isdir(lm_eval_folder())
