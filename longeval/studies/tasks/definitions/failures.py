"""What went wrong while lm-eval built a task, in words that help: missing data or packages, a bug of the task."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Mapping

from longeval.errors import LongEvalError, MissingDataError
from longeval.studies.tasks.definitions.code import NotRunError
from longeval.studies.tasks.definitions.entries import LM_EVAL, TaskEntry
from longeval.studies.tasks.definitions.files import Config, place_of
from longeval.studies.tasks.definitions.needs import hub_ids
from longeval.studies.tasks.definitions.templates import TemplateError

_CLIENTS = frozenset({"aiohttp", "datasets", "fsspec", "httpx", "huggingface_hub", "requests", "urllib3", "urllib"})
_HERE = "Correct it, or leave the task out."


def explain(entry: TaskEntry, config: Config, error: Exception, unreachable: str | None) -> LongEvalError:
    """Turns an exception into one message.

    Args:
        entry: The task.
        config: Its keys.
        error: What building it raised.
        unreachable: Why its hub data set can't be asked for, if that was found before.
    """
    for cause in _chain(error):
        if isinstance(cause, LongEvalError):
            return cause
    said = f"--tasks {entry.name}"
    text = _short(error)
    if "Dataset scripts are no longer supported" in str(error):
        return LongEvalError(
            f"{said}: data set {config.get('dataset_path')} is a Python script, and nothing runs code from a data set",
            "Name a copy in plain files (parquet, JSON) as dataset_path, in a YAML file that includes this task.",
        )
    for cause in _chain(error):
        if isinstance(cause, TemplateError):
            return explain_template(entry, config, cause)
        if isinstance(cause, NotRunError):
            return LongEvalError(
                f"{said}: its samples need !function {cause}, and a dry run runs no code of task files",
                "Leave --dry-run out, or the task.",
            )
        explained = _package(said, cause) or _nltk(said, cause)
        if explained is not None:
            return explained
    if unreachable is not None or any(_from_client(cause) for cause in _chain(error)):
        return missing_data(entry, config, unreachable or text)
    if isinstance(error, FileNotFoundError):
        return MissingDataError(
            f"{said}: {text}", "Paths in a task file are relative to the current folder.", reason=text
        )
    where = _own_line(entry, error)
    if where is not None:
        return LongEvalError(f"{said}: {where}: {type(error).__name__}: {text}", _HERE)
    own = f"`lm-eval run --tasks {entry.name}` fails alike." if entry.source == LM_EVAL else _HERE
    return LongEvalError(f"{said} ({entry.path}): can't be built ({type(error).__name__}: {text})", own)


def missing_together(errors: Mapping[str, MissingDataError]) -> MissingDataError:
    """One error for the data of several tasks.

    Args:
        errors: Task → why it can't be built.
    """
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


def missing_data(entry: TaskEntry, config: Config, reason: str) -> MissingDataError:
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


def _package(said: str, error: BaseException) -> LongEvalError | None:
    command = re.search(r"pip install (?!lm[_-]eval)([\w \-.]*\w)", str(error))
    if command is not None:
        return LongEvalError(f"{said}: a Python package is missing", f"pip install {command[1].strip()}")
    if isinstance(error, ModuleNotFoundError) and error.name:
        return LongEvalError(
            f"{said}: the Python package {error.name.split('.')[0]} is missing",
            f"pip install {error.name.split('.')[0]}",
        )
    return None


def explain_template(entry: TaskEntry, config: Config, error: TemplateError) -> LongEvalError:
    """The error for a Jinja template that doesn't fit the data, is broken, or goes beyond its bounds."""
    guilty = next((key for key, value in config.items() if _holds(value, error.template)), "task")
    place = place_of(entry.path, guilty) if entry.path else f"--tasks {entry.name}"
    sample = "" if error.sample is None else f"sample {error.sample}: "
    return LongEvalError(f"{place}: {guilty}: {sample}{error}", "Correct the template, or leave the task out.")


def _holds(value: object, template: str) -> bool:
    """Whether a template is a key's value, or somewhere in it."""
    if isinstance(value, dict | list):
        return any(_holds(inner, template) for inner in (value.values() if isinstance(value, dict) else value))
    return value == template


def _nltk(said: str, error: BaseException) -> LongEvalError | None:
    if not (isinstance(error, LookupError) and "punkt_tab" in str(error)):
        return None
    reason = "punkt_tab of nltk is missing, and can't be downloaded"
    return MissingDataError(f"{said}: {reason}", "python -m nltk.downloader punkt_tab", reason=reason)


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
