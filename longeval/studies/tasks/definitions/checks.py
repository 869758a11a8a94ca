"""What is wrong with a task file, with file and line, before lm-eval builds the task.

lm-eval finds such mistakes late, at the first sample or not at all, and names neither file nor line. Only our own and
users' files are checked. Python beside a file is parsed here, not run.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import math
import os
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any

from longeval.errors import LongEvalError
from longeval.studies.tasks.definitions.configs import Config, FunctionName, functions_in, place_of, place_of_function
from longeval.studies.tasks.definitions.scored import NO_SCORE, is_scored, remedy

_STRUCTURE = frozenset({"tag", "group", "task_list", "include", "class"})
_MAPPINGS = ("dataset_kwargs", "generation_kwargs", "metadata", "fewshot_config")


def check_task_file(path: str, config: Config) -> None:
    """Checks a task's keys, values and functions.

    Args:
        path: The task's file.
        config: Its keys, includes merged.

    Raises:
        LongEvalError: At the first mistake; names file, line, key and remedy.
    """
    for function in functions_in(config):
        _check_function(function)
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
            raise _wrong(
                path, str(key), "is unknown", f"Did you mean {near[0]}?" if near else "lm-eval has no such key."
            )
    for key in ("doc_to_text", "doc_to_target"):
        if config.get(key) is None:
            raise _wrong(path, key, "is missing", "It says how a row of the data becomes the prompt and the answer.")
    if config.get("output_type") == "multiple_choice" and config.get("doc_to_choice") is None:
        raise _wrong(path, "doc_to_choice", "is missing", "output_type multiple_choice needs the choices.")
    if config.get("test_split") is None and config.get("validation_split") is None:
        raise _wrong(path, "test_split", "is missing", "Name the split to evaluate on: test_split or validation_split.")
    if config.get("dataset_path") is None and config.get("custom_dataset") is None:
        raise _wrong(
            path,
            "dataset_path",
            "is missing",
            "Name a data set, json with dataset_kwargs.data_files, or custom_dataset.",
        )


def _check_values(path: str, config: Config) -> None:
    from lm_eval.api.task import ALL_OUTPUT_TYPES

    output = config.get("output_type", "generate_until")
    if output not in ALL_OUTPUT_TYPES:
        raise _wrong(path, "output_type", f"{output} is unknown", f"Known: {', '.join(ALL_OUTPUT_TYPES)}.")
    for key in _MAPPINGS:
        if config.get(key) is not None and not isinstance(config[key], dict):
            raise _wrong(path, key, "must be a mapping", "Write key: value lines below it.")
    if config.get("generation_kwargs") is not None:
        check_generation(config["generation_kwargs"], str(place_of(path, "generation_kwargs")))
    for key, least, hint in (("num_fewshot", 0, "0 is none."), ("repeats", 1, "1 is usual.")):
        count = config.get(key)
        if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < least):
            raise _wrong(path, key, f"{count!s:.60} must be a whole number of at least {least}", hint)


def check_generation(settings: Mapping[str, Any], place: str) -> None:
    """Raises LongEvalError for a task's `generation_kwargs` that can't be heeded; `place` is where they stand."""
    for key in ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"):
        if (value := settings.get(key)) is not None and not _is_count(value):
            problem = f"{place}: generation_kwargs.{key} {value!r:.60}: must be a whole number of tokens"
            raise LongEvalError(problem, f"Write one from 1 to {MOST_NEW_TOKENS:,}.")
    until = settings.get("until")
    if not all(text is None or isinstance(text, str) for text in (until if isinstance(until, list) else [until])):
        problem = f"{place}: generation_kwargs.until {until!r:.60}: must be a text or a list of texts"
        raise LongEvalError(problem, "Put what ends an answer in quotes.")
    if not isinstance(settings.get("do_sample"), bool | None):
        problem = f"{place}: generation_kwargs.do_sample {settings['do_sample']!r:.60}: must be true or false"
        raise LongEvalError(problem, "Answers are generated greedily here: leave it out.")
    if "temperature" in settings and not _is_temperature(settings["temperature"]):
        problem = (
            f"{place}: generation_kwargs.temperature {settings['temperature']!r:.60}: must be a number of at least 0"
        )
        raise LongEvalError(problem, "Answers are generated greedily here: leave it out.")


MOST_NEW_TOKENS = 1_000_000
"""More tokens than any model answers with."""


def _is_count(value: Any) -> bool:
    """Whether a value says how many tokens to generate; lm-eval takes numbers in quotes too."""
    try:
        return not isinstance(value, bool) and int(value) == float(value) and 1 <= int(value) <= MOST_NEW_TOKENS
    except (TypeError, ValueError, OverflowError):
        return False


def _is_temperature(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and 0 <= float(value) < math.inf
    except (TypeError, ValueError, OverflowError):
        return False


def _check_metrics(path: str, config: Config) -> None:
    from lm_eval.api import metrics  # noqa: F401  # fills the registries
    from lm_eval.api.registry import aggregation_registry, metric_registry

    items = _items(path, config, "metric_list")
    for item in items:
        metric = item.get("metric")
        if metric is None:
            raise _wrong(path, "metric_list", "has an entry without the key metric", "Write metric: NAME.")
        computed = config.get("process_results") is not None or isinstance(metric, FunctionName)
        if not computed:
            _check_name(path, "metric_list", f"metric {metric}", str(metric), list(metric_registry))
        aggregation = item.get("aggregation")
        if isinstance(aggregation, str):
            _check_name(path, "metric_list", f"aggregation {aggregation}", aggregation, list(aggregation_registry))
        elif aggregation is None and computed:
            raise _wrong(path, "metric_list", f"metric {metric} has no aggregation", "Write aggregation: mean.")
    if items and config.get("process_results") is None:
        _check_scored(path, config, items)


def _check_scored(path: str, config: Config, items: list[dict[str, Any]]) -> None:
    """Each metric must fit the output type; one that collects answers only can't stand alone."""
    output = str(config.get("output_type", "generate_until"))
    for item in items:
        metric = item["metric"]
        own = isinstance(metric, FunctionName)
        name = metric.qualified.rpartition(".")[2] if isinstance(metric, FunctionName) else str(metric)
        own_aggregation = isinstance(item.get("aggregation"), FunctionName)
        if is_scored(name, output, own_metric=own, own_aggregation=own_aggregation):
            continue
        if name == NO_SCORE and len(items) > 1:
            continue
        raise _wrong(
            path, "metric_list", f"metric {name} gives no score for output_type {output}", remedy(name, output)
        )


def _check_filters(path: str, config: Config) -> None:
    from lm_eval import filters  # noqa: F401  # fills the registry
    from lm_eval.api.registry import filter_registry

    for item in _items(path, config, "filter_list"):
        if not isinstance(item.get("name"), str) or not isinstance(item.get("filter"), list):
            raise _wrong(path, "filter_list", "has an entry without name and filter", "Write both, filter as a list.")
        for step in item["filter"]:
            name = step.get("function") if isinstance(step, dict) else step
            if isinstance(name, str):
                _check_name(path, "filter_list", f"function {name}", name, list(filter_registry))
            elif not isinstance(name, FunctionName):
                raise _wrong(path, "filter_list", "has a step without function", "Write function: NAME.")


def _items(path: str, config: Config, key: str) -> list[dict[str, Any]]:
    value = config.get(key)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise _wrong(path, key, "must be a list of mappings", "Each entry begins with a dash.")
    return value


def _check_name(path: str, key: str, what: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, list(known), n=3)
        hint = f"Did you mean {' or '.join(near)}? " if near else ""
        raise _wrong(path, key, f"{what} is unknown", f"{hint}Known: {', '.join(sorted(known))}.")


def _check_function(function: FunctionName) -> None:
    """A `!function` must be there: in the Python file beside its YAML file, or in a package."""
    module, _, name = function.qualified.rpartition(".")
    said = f"{place_of_function(function)}: !function {function.qualified}"
    if not module:
        raise LongEvalError(f"{said}: has no module", "Write FILE.NAME for NAME in FILE.py beside it.")
    beside = os.path.join(os.path.dirname(function.file), *module.split(".")) + ".py"
    if not os.path.exists(beside):
        if _find_module(module):
            return
        raise LongEvalError(f"{said}: there is no {beside}, nor a package {module}", "Mend the name.")
    try:
        with open(beside, encoding="utf-8") as file:
            tree = ast.parse(file.read(), beside)
    except SyntaxError as error:
        raise LongEvalError(f"{beside}, line {error.lineno}: not valid Python ({error.msg})", "Mend it.") from error
    names = _names_in(tree)
    if name not in names and "*" not in names:
        near = difflib.get_close_matches(name, names, n=1)
        raise LongEvalError(f"{said}: {beside} has no {name}", f"Did you mean {near[0]}?" if near else "Mend the name.")


def _find_module(module: str) -> bool:
    try:
        return importlib.util.find_spec(module.partition(".")[0]) is not None  # the whole name would run its package
    except (ImportError, ValueError):
        return False


def _names_in(tree: ast.Module) -> set[str]:
    """Names that a module binds at any level: a try or if may hold the function."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    return names


def _wrong(path: str, key: str, what: str, remedy: str) -> LongEvalError:
    return LongEvalError(f"{place_of(path, key)}: {key} {what}", remedy)
