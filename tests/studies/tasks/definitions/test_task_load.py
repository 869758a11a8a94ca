"""Tasks from files to lm-eval's objects: what is built, and what a mistake or missing data is answered with."""

import random
import sys
from types import ModuleType

import datasets
import numpy as np
import pytest
from task_files import small_lm_eval, task, write  # noqa: F401  # a fixture

from longeval.data.hub import HubUnavailableError
from longeval.errors import LongEvalError, MissingDataError
from longeval.studies.tasks.definitions import guards
from longeval.studies.tasks.definitions.index import Index
from longeval.studies.tasks.definitions.load import load_task, task_config

pytestmark = pytest.mark.usefixtures("small_lm_eval", "no_hub")


@pytest.fixture
def no_hub(monkeypatch):
    """A hub out of reach: asked once for each data set, and then left alone."""
    asked = []

    def resolve_revision(hub):
        asked.append(hub.id)
        raise HubUnavailableError("the hub can't be reached (no route)", "Check the network.")

    guards.why_unreachable.cache_clear()
    monkeypatch.setattr(guards, "resolve_revision", resolve_revision)
    yield asked
    guards.why_unreachable.cache_clear()


def build(folder, name="mine", metadata=None):
    return load_task(name, metadata=metadata or {}, include=[str(folder)], code="run")


def refused(folder, name="mine"):
    with pytest.raises(LongEvalError) as caught:
        build(folder, name)
    return caught.value


def test_a_task_is_built_with_its_data(tmp_path):
    built = build(write(tmp_path / "tasks", mine=task(tmp_path, "mine")))
    assert (built.config.task, len(built.eval_docs)) == ("mine", 4)
    assert built.doc_to_text(built.eval_docs[2]) == "Say 2."
    assert built.VERSION == 1
    by_path = load_task(str(tmp_path / "tasks" / "mine.yaml"), metadata={})
    assert by_path.eval_docs[3] == built.eval_docs[3]


GENERATED = """\
    task: mine
    custom_dataset: !function made.rows
    test_split: test
    doc_to_text: "{{text}}"
    doc_to_target: "{{answer}}"
    generation_kwargs: {until: []}
    metadata: {version: 2, kind: even}
    """
MADE = """\
    import random

    import datasets
    import numpy as np

    def rows(setting, kind, **rest):
        print("noise on stdout")
        names = {"text": [f"{setting} {kind} {random.random()} {np.random.random()}"], "answer": ["x"]}
        return {"test": datasets.Dataset.from_dict(names)}
    """


def test_metadata_reaches_the_generator_with_a_fixed_seed_and_nothing_is_printed(tmp_path, capsys):
    folder = write(tmp_path / "tasks", mine=GENERATED, made_py=MADE)
    before = random.getstate(), np.random.get_state()[1].tolist()
    texts = [build(folder, metadata={"setting": "S"}).eval_docs[0]["text"] for _ in range(2)]
    assert texts[0] == texts[1]
    assert texts[0] == f"S even {random.Random(0).random()} {np.random.RandomState(1234).random_sample()}"
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    assert capsys.readouterr() == ("", "")


def test_tasks_that_a_group_changes(tmp_path, small_lm_eval):  # noqa: F811
    rows = tmp_path / "rows.jsonl"
    group = f"""\
        group: some
        task:
          - {{task: mine, num_fewshot: 3}}
          - {{task: new, dataset_path: json, dataset_kwargs: {{data_files: {{test: {rows}}}}}, test_split: test,
             doc_to_text: "{{{{text}}}}", doc_to_target: !function made.target, generation_kwargs: {{until: []}}}}
        """
    made = "def target(doc):\n    return 'T' + doc['answer']\n"
    folder = write(tmp_path / "tasks", mine=task(tmp_path, "mine"), some=group, made_py=made)
    index = Index([str(folder)])
    changed = load_task("some::mine", metadata={}, index=index, code="run")
    assert (changed.config.num_fewshot, build(folder).config.num_fewshot) == (3, None)
    assert task_config("some::mine", index)["num_fewshot"] == 3
    assert task_config("some::mine", index)["doc_to_text"] == "{{text}}"
    new = load_task("some::new", metadata={"a": 1}, index=index, code="run")
    assert new.doc_to_target(new.eval_docs[1]) == "T1"
    assert new.config.metadata["a"] == 1
    with pytest.raises(LongEvalError, match=r"--tasks some: is a group. Its members: some::mine, some::new"):
        load_task("some", metadata={}, index=index)


# ruff: noqa: E501  # one mistake a line
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('doc_to_text: "{{text}}"\n', "", r"mine.yaml, line 1: doc_to_text"),
        ("doc_to_text:", "doc_to_txt:", r"mine.yaml, line 6: doc_to_txt .*Did you mean doc_to_text\?"),
        ("generate_until", "generate", r"mine.yaml, line 4: output_type generate .*loglikelihood"),
        ("dataset_path: json\n", "", r"mine.yaml, line 1: dataset_path"),
        ("exact_match", "exact_mach", r"mine.yaml, line 9: metric_list metric exact_mach .*Did you mean exact_match"),
        ("aggregation: mean", "aggregation: men", r"mine.yaml, line 9: metric_list aggregation men"),
        ("- {metric: exact", "- {metrik: exact", r"mine.yaml, line 9: metric_list"),
        ("max_gen_toks: 4", "max_gen_toks: x", r"mine.yaml, line 8: generation_kwargs.max_gen_toks 'x'"),
        ("max_gen_toks: 4", "max_gen_toks: 0", r"generation_kwargs.max_gen_toks 0"),
        ("max_gen_toks: 4", "max_gen_toks: 1e9", r"generation_kwargs.max_gen_toks '1e9'"),
        ("until: []", "until: [a, 3]", r"generation_kwargs.until \['a', 3\]"),
        ("do_sample: false", "temperature: hot", r"generation_kwargs.temperature 'hot'"),
        ("do_sample: false", "do_sample: 'no'", r"generation_kwargs.do_sample 'no'"),
        ("{version: 1}", "1.0", r"mine.yaml, line 11: metadata"),
        ("metadata:", "num_fewshot: two\nmetadata:", r"mine.yaml, line 11: num_fewshot two"),
        ("metadata:", "process_results: !function made.absent\nmetadata:", r"line 11: !function made.absent: .*no attribute 'absent'"),
        ("metadata:", "process_results: !function gone.x\nmetadata:", r"line 11: !function gone.x: there is no .*gone.py"),
        ("metadata:", "process_results: !function x\nmetadata:", r"line 11: !function x: has no module"),
        ("metadata:", "process_results: !function bad.x\nmetadata:", r"bad.py, line 2: not valid Python"),
        ("metadata:", "filter_list: [{name: a, filter: [{function: tak}]}]\nmetadata:", "line 11: filter_list function tak"),
        ("metadata:", "filter_list: [{filter: []}]\nmetadata:", "line 11: filter_list"),
        ("task: mine", "task: mine\nunsafe_code: true", "--tasks mine: not run: it executes code"),
        ("dataset_path: json", "dataset_path: pandas", "--tasks mine: not run: its data are pickles"),
        ("task: mine", "task: mine\ndoc_to_image: x", "--tasks mine: not run: it shows images or plays sound"),
        ("aggregation: mean,", "aggregation: mean, hf_evaluate: true,", "not run: its metric exact_match is a script"),
    ],
)  # fmt: skip
def test_mistakes_are_named_with_file_and_line(tmp_path, old, new, message):
    text = task(tmp_path, "mine")
    assert old in text
    folder = write(tmp_path / "tasks", mine=text.replace(old, new), made_py="x = 1\n", bad_py="\ndef x(:\n")
    with pytest.raises(LongEvalError, match=message):
        build(folder)


def test_code_that_a_model_writes_stays_refused_in_files_that_include_such_tasks(tmp_path):
    write(tmp_path / "tasks", theirs=task(tmp_path, "theirs") + "unsafe_code: true\n")
    folder = write(tmp_path / "tasks", mine="include: theirs.yaml\ntask: mine\nunsafe_code: false\n")
    assert "not run: it executes code" in refused(folder).problem
    with pytest.raises(LongEvalError, match="--tasks danger: not run: it executes code"):
        load_task("danger", metadata={})


def test_functions_of_users_files_are_refused_unless_they_may_run(tmp_path):
    made = f"open({str(tmp_path / 'marker')!r}, 'w')\ndef rows(**rest):\n    return {{}}\n"
    folder = write(tmp_path / "tasks", mine=GENERATED, made_py=made)
    with pytest.raises(LongEvalError, match=r"!function made.rows \(.*mine.yaml\)") as caught:
        load_task("mine", metadata={}, include=[str(folder)])
    assert "--trust-remote-code" in caught.value.remedy
    with pytest.raises(LongEvalError, match="a dry run runs no code"):
        load_task("mine", metadata={}, include=[str(folder)], code="named")
    installed = GENERATED.replace("made.rows", "subprocess.run")
    with pytest.raises(LongEvalError, match=r"!function subprocess\.run"):
        load_task("mine", metadata={}, include=[str(write(tmp_path / "other", mine=installed))])
    assert not (tmp_path / "marker").exists()


OWN_ERROR = "from longeval.errors import LongEvalError\ndef rows(**r):\n    raise LongEvalError('--x: y', 'Do z.')\n"
WRAPPED = """\
    from longeval.errors import LongEvalError
    def rows(**r):
        try:
            raise LongEvalError('--x: y', 'Do z.')
        except LongEvalError as error:
            raise OSError from error
    """


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ("def rows(**r):\n    raise ZeroDivisionError('oh no')\n", "made.py, line 2: ZeroDivisionError: oh no"),
        ("import no_such_package\n", "no_such_package is missing. pip install no_such_package"),
        ("def rows(**r):\n    raise ImportError('pip install jieba rouge')\n", "pip install jieba rouge"),
        (OWN_ERROR, "--x: y. Do z."),
        (WRAPPED, "--x: y. Do z."),
    ],
)
def test_errors_in_a_tasks_own_python(tmp_path, made, message):
    assert message in str(refused(write(tmp_path / "tasks", mine=GENERATED, made_py=made)))


HUB = """\
    task: {name}
    dataset_path: {path}
    dataset_name: main
    test_split: test
    doc_to_text: "{{{{text}}}}"
    doc_to_target: "{{{{answer}}}}"
    generation_kwargs: {{until: []}}
    """


def test_missing_data_names_both_ways(tmp_path, no_hub):
    texts = {name: HUB.format(name=name, path="who/what") for name in ("mine", "two")}
    folder = write(tmp_path / "tasks", **texts)
    for name in texts:
        error = refused(folder, name)
        assert isinstance(error, MissingDataError)
        assert error.problem.startswith(f"--tasks {name}: hub data set who/what: ")
        for way in ("load_dataset('who/what', 'main')", "hf download --repo-type dataset who/what --local-dir DIR"):
            assert way in error.remedy
    assert no_hub == ["who/what"]  # once: half a minute for each of LongBench's 21 tasks would be ten


def test_a_local_folder_needs_no_hub(tmp_path, no_hub, monkeypatch):
    task(tmp_path / "who" / "what", "x")
    (tmp_path / "who" / "what" / "rows.jsonl").rename(tmp_path / "who" / "what" / "test.jsonl")
    monkeypatch.chdir(tmp_path)
    text = HUB.format(name="mine", path="who/what").replace("    dataset_name: main\n", "")
    folder = write(tmp_path / "tasks", mine=text)
    assert Index([str(folder)]).entry("mine").needs == "folder who/what"
    assert len(build(folder).eval_docs) == 4
    assert no_hub == []


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (datasets.exceptions.DatasetNotFoundError("it is gated"), MissingDataError, "data set who/what: it is gated"),
        (RuntimeError("Dataset scripts are no longer supported, but found what.py"), LongEvalError, "runs code"),
        (FileNotFoundError("no rows.json"), MissingDataError, "no rows.json"),
        (ValueError("odd"), LongEvalError, "ValueError: odd"),
    ],
)
def test_what_reading_a_data_set_may_raise(tmp_path, monkeypatch, error, kind, message):
    def load_dataset(*args, **kwargs):
        raise error

    monkeypatch.setattr(guards, "resolve_revision", lambda hub: "c0ffee")
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    raised = refused(write(tmp_path / "tasks", mine=HUB.format(name="mine", path="who/what")))
    assert type(raised) is kind and message in raised.problem


def test_metric_scripts_of_the_hub_are_never_run(tmp_path):
    made = "from evaluate import load\n\ndef target(doc):\n    return load('rouge')\n"
    text = task(tmp_path, "mine").replace('"{{answer}}"', "!function made.target")
    assert "metric rouge" in refused(write(tmp_path / "tasks", mine=text, made_py=made)).problem


@pytest.mark.parametrize("imported", [False, True])
def test_the_refusal_reaches_evaluate_whenever_it_is_imported(imported, monkeypatch):
    package = ModuleType("evaluate")
    package.load = str
    monkeypatch.delitem(sys.modules, "evaluate", raising=False)
    if imported:
        monkeypatch.setitem(sys.modules, "evaluate", package)
    guards.forbid_metric_scripts()
    import evaluate

    assert (evaluate is package) == imported
    with pytest.raises(LongEvalError, match="metric bleu"):
        evaluate.load("bleu")
