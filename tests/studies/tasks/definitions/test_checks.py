"""Metrics that fit an output type: the table against what lm-eval does, and the message before anything is computed."""

import math
import re

import pytest

from longeval.errors import LongEvalError
from longeval.studies.tasks.definitions.checks import SCORED, check_built, check_task_file
from longeval.studies.tasks.definitions.entries import TaskEntry
from longeval.studies.tasks.definitions.files import read_config
from longeval.studies.tasks.definitions.metadata import read_metadata

ANSWERS = {
    "multiple_choice": [(-1.0, True), (-2.0, False)],
    "loglikelihood": [(-1.0, True)],
    "loglikelihood_rolling": [-10.0],
    "generate_until": ["yes"],
}
DOC = {"text": "a b", "choices": ["yes", "no"], "gold": 0, "word": "yes"}


def scores_in_lm_eval(metric, output):
    """Whether lm-eval makes a finite number of a metric, as its evaluator does: each sample, then all together."""
    from lm_eval.api.registry import get_metric, get_metric_aggregation
    from lm_eval.api.task import ConfigurableTask

    task = ConfigurableTask.__new__(ConfigurableTask)
    task.OUTPUT_TYPE = output
    task._config = type("Config", (), {"process_results": None, "doc_to_choice": None})()
    task.multiple_input = task.multiple_target = 0
    task._metric_fn_list, task._metric_fn_kwargs = {metric: get_metric(metric)}, {metric: {}}
    task.doc_to_choice = lambda doc: doc["choices"]
    task.doc_to_target = lambda doc: doc["gold" if output == "multiple_choice" else "word"]
    task._aggregation_list, task._higher_is_better = {}, {}
    answers = ANSWERS[output] * (2 if metric == "acc_mutual_info" and output == "multiple_choice" else 1)
    try:
        values = [task.process_results({**DOC, "word": word}, answers)[metric] for word in ("yes", "no", "why")]
        return values[0] is not None and math.isfinite(float(get_metric_aggregation(metric)(values)))
    except Exception:
        return False


@pytest.mark.parametrize("output", ANSWERS)
@pytest.mark.filterwarnings("ignore")
def test_the_table_is_what_lm_eval_scores(output):
    from lm_eval.api import metrics  # noqa: F401  # fills the registry
    from lm_eval.api.registry import metric_registry

    found = {name for name in metric_registry if scores_in_lm_eval(name, output)}
    assert found == set(SCORED[output])


TASK = "task: own\ndataset_path: json\ntest_split: t\ndoc_to_text: x\ndoc_to_target: y\ndoc_to_choice: z\n"


def check(tmp_path, text):
    path = tmp_path / "own.yaml"
    path.write_text(TASK + text)
    (tmp_path / "code.py").write_text("def score(*a, **k): ...\ndef acc(*a): ...\n")
    check_task_file(str(path), read_config(str(path)))


@pytest.mark.parametrize(
    ("text", "line", "metric"),
    [
        ("output_type: generate_until\nmetric_list: [{metric: acc}]", 8, "acc"),
        ("metric_list: [{metric: exact_match}, {metric: acc_norm, aggregation: mean}]", 7, "acc_norm"),
        ("output_type: multiple_choice\nmetric_list: [{metric: !function code.score, aggregation: mean}]", 8, "score"),
        ("output_type: generate_until\nmetric_list: [{metric: bypass, aggregation: !function code.acc}]", 8, "bypass"),
        ("output_type: loglikelihood_rolling\nmetric_list: [{metric: perplexity}]", 8, "perplexity"),
    ],
)
def test_a_metric_that_does_not_fit_is_refused_with_its_line(tmp_path, text, line, metric):
    with pytest.raises(LongEvalError, match=rf"own.yaml, line {line}: metric_list metric \S*{metric} "):
        check(tmp_path, text)


@pytest.mark.parametrize(
    "text",
    [
        "output_type: multiple_choice\nmetric_list: [{metric: exact_match}, {metric: acc}]",
        "output_type: multiple_choice",
        "metric_list: [{metric: !function code.score, aggregation: mean}]",
        "metric_list: [{metric: acc, aggregation: !function code.score}]",
        "metric_list: [{metric: acc, aggregation: mean}]\nprocess_results: !function code.score",
    ],
)
def test_what_works_is_left_alone(tmp_path, text):
    check(tmp_path, text)


@pytest.mark.parametrize("flag", ["UNSAFE_CODE", "MULTIMODAL"])
def test_what_only_a_class_says_of_itself_is_refused_too(flag):
    built = type("Built", (), {flag: True})()
    with pytest.raises(LongEvalError, match="--tasks own: not run"):
        check_built(TaskEntry(name="own", kind="task", source="lm_eval", needs="nothing"), built)


@pytest.mark.parametrize(("key", "value"), [("chance", "high"), ("samples", 0), ("document", ["text"])])
def test_metadata_that_is_of_no_use_is_named_with_its_value(key, value):
    with pytest.raises(LongEvalError, match=rf"--tasks own: metadata\.{key} {re.escape(repr(value))}: "):
        read_metadata({"version": 1.0, key: value}, "--tasks own")
    assert read_metadata({"version": 1.0, "chance": "0.25"}, "--tasks own").version == "1.0"
    assert read_metadata(1.0, "--tasks own").chance is None
