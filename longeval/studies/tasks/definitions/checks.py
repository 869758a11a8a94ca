"""What is wrong with a task, in words that help: mistakes in its file, metrics without a score, missing data.

lm-eval finds mistakes in a file late, at the first sample or not at all, and names neither file nor line. It takes any
registered metric for any output type: what doesn't fit is left out of the scores without a word, or fails when they are
averaged. Source of the table of metrics: `ConfigurableTask.process_results` of lm-eval 0.4.13 (api/task.py) and its
metrics (api/metrics.py); a test holds it against both.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import traceback
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from longeval.errors import LongEvalError, MissingDataError, did_you_mean
from longeval.studies.tasks.definitions.entries import LM_EVAL, TaskEntry
from longeval.studies.tasks.definitions.files import Config, FunctionName, NotRunError, place_of
from longeval.studies.tasks.definitions.needs import NO_TEXT, WRITES_CODE, hub_ids
from longeval.studies.tasks.definitions.templates import TemplateError

MOST_NEW_TOKENS = 1_000_000
"""More tokens than any model answers with."""

SCORED: Mapping[str, tuple[str, ...]] = {
    "multiple_choice": ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "f1", "mcc", "brier_score"),
    "loglikelihood": ("acc", "perplexity"),
    "loglikelihood_rolling": ("word_perplexity", "byte_perplexity", "bits_per_byte"),
    "generate_until": ("exact_match", "bleu", "chrf", "chrf++", "ter", "mcc"),
}
"""Output type → metrics that give a score without code of the task's own."""

NO_SCORE = "bypass"
"""lm-eval's metric for tasks that only collect answers."""

_STRUCTURE = frozenset({"tag", "group", "task_list", "include", "class"})
_MAPPINGS = ("dataset_kwargs", "generation_kwargs", "metadata", "fewshot_config")
_CLIENTS = frozenset({"aiohttp", "datasets", "fsspec", "httpx", "huggingface_hub", "requests", "urllib3", "urllib"})
"""Packages whose errors mean that data couldn't be fetched."""


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
    _check_metrics(path, config)
    _check_filters(path, config)


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
    check_generation(config.get("generation_kwargs") or {}, place_of(path, "generation_kwargs"))
    for key, least, hint in (("num_fewshot", 0, "0 is none."), ("repeats", 1, "1 is usual.")):
        count = config.get(key)
        if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < least):
            raise _wrong(path, key, f"{count!s:.60} must be a whole number of at least {least}", hint)


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
        return int(value) == _number(value) and 1 <= int(value) <= MOST_NEW_TOKENS
    except (TypeError, ValueError, OverflowError):
        return False


def _number(value: Any) -> float:
    """A number, or one in quotes; NaN for anything else."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _check_metrics(path: str, config: Config) -> None:
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
    if name not in list(registry):
        raise _wrong(path, key, f"{what} {name} is unknown", did_you_mean(name, registry))


def _wrong(path: str, key: str, what: str, remedy: str) -> LongEvalError:
    return LongEvalError(f"{place_of(path, key)}: {key} {what}", remedy)


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
    if output_type == "multiple_choice" and metric == "likelihood":  # a list for each sample
        return own_aggregation
    return metric in SCORED.get(output_type, ())


def remedy(metric: str, output_type: str) -> str:
    """What to write instead: metrics that fit, or another output type that the metric fits."""
    fitting = [name for name, metrics in SCORED.items() if metric in metrics]
    other = f", or output_type {' or '.join(fitting)}" if fitting else ""
    return f"For it: {', '.join(SCORED[output_type])}{other}; or a process_results of the task's own."


def explain(entry: TaskEntry, config: Config, error: Exception, unreachable: str | None) -> LongEvalError:
    """Turns an exception that building or rendering a task raised into one message.

    Args:
        entry: The task.
        config: Its keys.
        error: The exception.
        unreachable: Why its hub data set can't be asked for, if that was found before.
    """
    chain = _chain(error)
    for cause in chain:
        if isinstance(cause, LongEvalError):
            return cause
    said, text = f"--tasks {entry.name}", _short(error)
    if "Dataset scripts are no longer supported" in str(error):
        return LongEvalError(
            f"{said}: data set {config.get('dataset_path')} is a Python script, and nothing runs code from a data set",
            "Name a copy in plain files (parquet, JSON) as dataset_path, in a YAML file that includes this task.",
        )
    for cause in chain:
        explained = _explain_cause(entry, config, cause)
        if explained is not None:
            return explained
    if unreachable is not None or any(map(_from_client, chain)):
        return _missing_data(entry, config, unreachable or text)
    if isinstance(error, FileNotFoundError):
        return MissingDataError(
            f"{said}: {text}", "Paths in a task file are relative to the current folder.", reason=text
        )
    here = "Correct it, or leave the task out."
    where = _own_line(entry, error)
    if where is not None:
        return LongEvalError(f"{said}: {where}: {type(error).__name__}: {text}", here)
    own = f"`lm-eval run --tasks {entry.name}` fails alike." if entry.source == LM_EVAL else here
    return LongEvalError(f"{said} ({entry.path}): can't be built ({type(error).__name__}: {text})", own)


def _explain_cause(entry: TaskEntry, config: Config, error: BaseException) -> LongEvalError | None:
    """The message for an exception that says by itself what is wrong; None for others."""
    said = f"--tasks {entry.name}"
    if isinstance(error, TemplateError):
        guilty = next((key for key, value in config.items() if _holds(value, error.template)), "task")
        place = place_of(entry.path, guilty) if entry.path else said
        sample = "" if error.sample is None else f"sample {error.sample}: "
        return LongEvalError(f"{place}: {guilty}: {sample}{error}", "Correct the template, or leave the task out.")
    if isinstance(error, NotRunError):
        return LongEvalError(
            f"{said}: its samples need !function {error}, and a dry run runs no code of task files",
            "Leave --dry-run out, or the task.",
        )
    command = re.search(r"pip install (?!lm[_-]eval)([\w \-.]*\w)", str(error))
    if command is not None:
        return LongEvalError(f"{said}: a Python package is missing", f"pip install {command[1].strip()}")
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.split(".")[0]
        return LongEvalError(f"{said}: the Python package {package} is missing", f"pip install {package}")
    if isinstance(error, LookupError) and "punkt_tab" in str(error):
        reason = "punkt_tab of nltk is missing, and can't be downloaded"
        return MissingDataError(f"{said}: {reason}", "python -m nltk.downloader punkt_tab", reason=reason)
    return None


def _missing_data(entry: TaskEntry, config: Config, reason: str) -> MissingDataError:
    """Says which data is missing and how to get it, with and without network."""
    said, ids = f"--tasks {entry.name}", hub_ids(entry.needs)
    if not ids:
        data = f"needs {entry.needs}"
        return MissingDataError(f"{said}: {data}: {reason}", "Check the network.", data=data, reason=reason)
    data = f"hub data set {ids[0]}"
    arguments = ", ".join(repr(str(part)) for part in (ids[0], config.get("dataset_name")) if part)
    return MissingDataError(
        f"{said}: {data}: {reason}",
        'With the hub in reach it downloads on first use. Without: where the hub is in reach, run `python -c "from '
        f'datasets import load_dataset; load_dataset({arguments})"`, and bring that cache along (HF_HOME names its '
        f"folder); or run `hf download --repo-type dataset {ids[0]} --local-dir DIR` there, and name DIR as "
        "dataset_path in a YAML file of yours that includes this task.",
        data=data,
        reason=reason,
    )


def missing_together(errors: Mapping[str, MissingDataError]) -> MissingDataError:
    """One error for the data of several tasks; `errors`: task → why it can't be built."""
    first = next(iter(errors.values()))
    if len(errors) == 1:
        return first
    alike = "" if all(error.remedy == first.remedy for error in errors.values()) else " The others alike."
    return MissingDataError(
        f"--tasks {', '.join(errors)}: data is missing: {causes(errors)}", f"{first.remedy}{alike}".lstrip()
    )


def causes(errors: Mapping[str, MissingDataError]) -> str:
    """What is missing of several tasks: each reason once, with all data that it keeps away; at most three reasons."""
    data: dict[str, list[str]] = {}
    for error in errors.values():
        data.setdefault(error.reason, []).extend([] if error.data is None else [error.data])
    found = [f"{', '.join(dict.fromkeys(names))}: {reason}" if names else reason for reason, names in data.items()]
    return "; ".join(found[:3]) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")


def _holds(value: object, template: str) -> bool:
    """Whether a template is a key's value, or somewhere in it."""
    if isinstance(value, dict | list):
        return any(_holds(inner, template) for inner in (value.values() if isinstance(value, dict) else value))
    return value == template


def _from_client(error: BaseException) -> bool:
    """Whether an error comes from a client of the hub or the network."""
    return any(base.__module__.partition(".")[0] in _CLIENTS or base is ConnectionError for base in type(error).__mro__)


def _own_line(entry: TaskEntry, error: Exception) -> str | None:
    """`FILE, line N` of the innermost line in Python beside the task's file."""
    if entry.path is None:
        return None
    folder = os.path.dirname(os.path.realpath(entry.path))
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if os.path.dirname(os.path.realpath(frame.filename)) == folder:
            return f"{frame.filename}, line {frame.lineno}"
    return None


def _chain(error: BaseException) -> list[BaseException]:
    """An error and what it was raised from, nearest first."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return chain


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
