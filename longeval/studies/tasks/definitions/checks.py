"""What is wrong with a task, before anything is computed: keys and values of its file, and metrics without a score.

lm-eval finds such mistakes late, at the first sample or not at all, and names neither file nor line. It takes any
registered metric for any output type: what doesn't fit is left out of the scores without a word, or fails when they are
averaged. Source of the table of metrics: `ConfigurableTask.process_results` of lm-eval 0.4.13 (api/task.py) and its
metrics (api/metrics.py); a test holds it against both.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from longeval.errors import LongEvalError
from longeval.studies.tasks.definitions.entries import TaskEntry
from longeval.studies.tasks.definitions.files import Config, FunctionName, place_of
from longeval.studies.tasks.definitions.needs import NO_TEXT, WRITES_CODE

MOST_NEW_TOKENS = 1_000_000
"""More tokens than any model answers with."""

SCORED: Mapping[str, tuple[str, ...]] = {
    "multiple_choice": ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "f1", "mcc", "brier_score"),
    "loglikelihood": ("acc", "perplexity"),
    "loglikelihood_rolling": ("word_perplexity", "byte_perplexity", "bits_per_byte"),
    "generate_until": ("exact_match", "bleu", "chrf", "chrf++", "ter", "mcc"),
}
"""Output type → metrics that give a score without code of the task's own."""

_RAW = {"multiple_choice": ("likelihood",)}
"""Metrics whose values only an aggregation of the task's own can make a number of."""

NO_SCORE = "bypass"
"""lm-eval's metric for tasks that only collect answers."""

_STRUCTURE = frozenset({"tag", "group", "task_list", "include", "class"})
_MAPPINGS = ("dataset_kwargs", "generation_kwargs", "metadata", "fewshot_config")


def check_task_file(path: str, config: Config) -> None:
    """Checks keys and values of one of our own or of a user's files.

    Args:
        path: The task's file.
        config: Its keys, includes merged.

    Raises:
        LongEvalError: At the first mistake; names file, line, key and remedy.
    """
    if "class" in config:
        return
    _check_keys(path, config)
    _check_values(path, config)
    _check_metric_list(path, config)
    _check_filters(path, config)


def check_built(entry: TaskEntry, task: Any) -> None:
    """Checks a task as lm-eval built it.

    Raises:
        LongEvalError: If it isn't run here, which a class may say that its file doesn't; or if none of its metrics
            comes to a number.
    """
    from lm_eval.api.registry import aggregation_registry, metric_registry
    from lm_eval.api.task import ConfigurableTask

    for flag, reason in (("UNSAFE_CODE", WRITES_CODE), ("MULTIMODAL", NO_TEXT)):
        if getattr(task, flag, False):
            raise LongEvalError(f"--tasks {entry.name}: not run: {reason}", "Leave it out.")
    functions = getattr(task, "_metric_fn_list", {})
    if getattr(task.config, "process_results", None) is not None:
        return
    for name, function in functions.items():
        if function is None:
            raise LongEvalError(
                f"--tasks {entry.name}: lm-eval has no metric {name}, and scripts of the hub aren't run",
                f"Leave out the task, or correct {entry.path}.",
            )
    if not functions or type(task).process_results is not ConfigurableTask.process_results:
        return
    known = [aggregation_registry.get(name) for name in aggregation_registry]
    output = str(task.OUTPUT_TYPE)
    for name in functions:
        own_aggregation = task.aggregation().get(name) not in known
        if is_scored(name, output, own_metric=name not in metric_registry, own_aggregation=own_aggregation):
            return
    first = next(iter(functions))
    raise LongEvalError(
        f"--tasks {entry.name} ({entry.path}): metric {first} gives no score for output_type {output}",
        remedy(first, output),
    )


def is_scored(metric: str, output_type: str, *, own_metric: bool, own_aggregation: bool) -> bool:
    """Whether a metric of a task without `process_results` comes to a number.

    Args:
        metric: Its name, or that of the task's own function.
        output_type: The task's.
        own_metric: Whether it is a function of the task's own. Generated answers go through it; elsewhere lm-eval never
            calls it, and looks at its name alone.
        own_aggregation: Whether a function of the task's own makes the samples' values one; it may take any values.
    """
    if output_type == "generate_until" and (own_metric or (own_aggregation and metric != NO_SCORE)):
        return True
    raw = _RAW.get(output_type, ()) if own_aggregation else ()
    return metric in (*SCORED.get(output_type, ()), *raw)


def remedy(metric: str, output_type: str) -> str:
    """What to write instead: metrics that fit, or another output type that the metric fits."""
    fitting = [name for name, metrics in SCORED.items() if metric in metrics]
    other = f", or output_type {' or '.join(fitting)}" if fitting else ""
    return f"For it: {', '.join(SCORED[output_type])}{other}; or a process_results of the task's own."


def check_generation(settings: Mapping[str, Any], place: str) -> None:
    """Raises LongEvalError for a task's `generation_kwargs` that can't be heeded; `place` is where they stand."""
    greedy = "Answers are generated greedily here: leave it out."

    def wrong(key: str, rule: str, remedy: str) -> LongEvalError:
        return LongEvalError(f"{place}: generation_kwargs.{key} {settings[key]!r:.60}: must be {rule}", remedy)

    for key in ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"):
        if settings.get(key) is not None and not _is_count(settings[key]):
            raise wrong(key, "a whole number of tokens", f"Write one from 1 to {MOST_NEW_TOKENS:,}.")
    until = settings.get("until")
    if not all(text is None or isinstance(text, str) for text in (until if isinstance(until, list) else [until])):
        raise wrong("until", "a text or a list of texts", "Put what ends an answer in quotes.")
    if not isinstance(settings.get("do_sample"), bool | None):
        raise wrong("do_sample", "true or false", greedy)
    if "temperature" in settings and not 0 <= _number(settings["temperature"]) < math.inf:
        raise wrong("temperature", "a number of at least 0", greedy)


def _is_count(value: Any) -> bool:
    """Whether a value says how many tokens to generate; lm-eval takes numbers in quotes too."""
    try:
        return not isinstance(value, bool) and int(value) == float(value) and 1 <= int(value) <= MOST_NEW_TOKENS
    except (TypeError, ValueError, OverflowError):
        return False


def _number(value: Any) -> float:
    """A number, or one in quotes; NaN for anything else."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _check_keys(path: str, config: Config) -> None:
    from lm_eval.config.task import TaskConfig

    known = {field.name for field in fields(TaskConfig)} | _STRUCTURE
    for key in config:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"Did you mean {near[0]}?" if near else "lm-eval has no such key."
            raise _wrong(path, str(key), "is unknown", hint)
    texts = "It says how a row of the data becomes the prompt and the answer."
    needed: dict[tuple[str, ...], str] = {
        ("doc_to_text",): texts,
        ("doc_to_target",): texts,
        ("test_split", "validation_split"): "Name the split to evaluate on: test_split or validation_split.",
        ("dataset_path", "custom_dataset"): "Name a data set, json with dataset_kwargs.data_files, or custom_dataset.",
    }
    if config.get("output_type") == "multiple_choice":
        needed["doc_to_choice",] = "output_type multiple_choice needs the choices."
    for keys, hint in needed.items():
        if all(config.get(key) is None for key in keys):
            raise _wrong(path, keys[0], "is missing", hint)


def _check_values(path: str, config: Config) -> None:
    from lm_eval.api.task import ALL_OUTPUT_TYPES

    output = config.get("output_type", "generate_until")
    if output not in ALL_OUTPUT_TYPES:
        raise _wrong(path, "output_type", f"{output} is unknown", f"Known: {', '.join(ALL_OUTPUT_TYPES)}.")
    for key in _MAPPINGS:
        if config.get(key) is not None and not isinstance(config[key], dict):
            raise _wrong(path, key, "must be a mapping", "Write key: value lines below it.")
    if config.get("generation_kwargs") is not None:
        check_generation(config["generation_kwargs"], place_of(path, "generation_kwargs"))
    for key, least, hint in (("num_fewshot", 0, "0 is none."), ("repeats", 1, "1 is usual.")):
        count = config.get(key)
        if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < least):
            raise _wrong(path, key, f"{count!s:.60} must be a whole number of at least {least}", hint)


def _check_metric_list(path: str, config: Config) -> None:
    """Each metric must be known and fit the output type; one that collects answers only can't stand alone."""
    from lm_eval.api import metrics  # noqa: F401  # fills the registries
    from lm_eval.api.registry import aggregation_registry, metric_registry

    items = _items(path, config, "metric_list")
    output = str(config.get("output_type", "generate_until"))
    processed = config.get("process_results") is not None
    for item in items:
        metric, aggregation = item.get("metric"), item.get("aggregation")
        if metric is None:
            raise _wrong(path, "metric_list", "has an entry without the key metric", "Write metric: NAME.")
        own = isinstance(metric, FunctionName)
        name = metric.name if isinstance(metric, FunctionName) else str(metric)
        if not processed and not own:
            _check_name(path, "metric_list", "metric", name, metric_registry)
        if isinstance(aggregation, str):
            _check_name(path, "metric_list", "aggregation", aggregation, aggregation_registry)
        elif aggregation is None and (processed or own):
            raise _wrong(path, "metric_list", f"metric {name} has no aggregation", "Write aggregation: mean.")
        own_aggregation = isinstance(aggregation, FunctionName)
        scored = processed or is_scored(name, output, own_metric=own, own_aggregation=own_aggregation)
        if not scored and not (name == NO_SCORE and len(items) > 1):
            what = f"metric {name} gives no score for output_type {output}"
            raise _wrong(path, "metric_list", what, remedy(name, output))


def _check_filters(path: str, config: Config) -> None:
    from lm_eval import filters  # noqa: F401  # fills the registry
    from lm_eval.api.registry import filter_registry

    for item in _items(path, config, "filter_list"):
        if not isinstance(item.get("name"), str) or not isinstance(item.get("filter"), list):
            raise _wrong(path, "filter_list", "has an entry without name and filter", "Write both, filter as a list.")
        for step in item["filter"]:
            name = step.get("function") if isinstance(step, dict) else step
            if isinstance(name, str):
                _check_name(path, "filter_list", "function", name, filter_registry)
            elif not isinstance(name, FunctionName):
                raise _wrong(path, "filter_list", "has a step without function", "Write function: NAME.")


def _items(path: str, config: Config, key: str) -> list[dict[str, Any]]:
    value = config.get(key)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise _wrong(path, key, "must be a list of mappings", "Each entry begins with a dash.")
    return value


def _check_name(path: str, key: str, what: str, name: str, registry: Any) -> None:
    known = list(registry)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"Did you mean {' or '.join(near)}? " if near else ""
        raise _wrong(path, key, f"{what} {name} is unknown", f"{hint}Known: {', '.join(sorted(known))}.")


def _wrong(path: str, key: str, what: str, remedy: str) -> LongEvalError:
    return LongEvalError(f"{place_of(path, key)}: {key} {what}", remedy)
