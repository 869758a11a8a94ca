"""From the name of a task to lm-eval's Task object, with its data.

What runs: `!function` in a task file names Python that lies beside that file. For our tasks that is ours, for lm-eval's
tasks lm-eval's; that of a YAML file or folder that users name themselves runs only with --trust-remote-code. Templates
are rendered in a sandbox. Nothing that comes with a data set or a metric of the hub is ever executed, and tasks that
would run what a model writes are refused.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from longeval.errors import LongEvalError
from longeval.studies.tasks.definitions.checks import check_built, check_task_file
from longeval.studies.tasks.definitions.code import Code, own_functions, refuse, said, with_functions
from longeval.studies.tasks.definitions.entries import LM_EVAL, OURS
from longeval.studies.tasks.definitions.failures import explain
from longeval.studies.tasks.definitions.files import Config, read_config
from longeval.studies.tasks.definitions.guards import forbid_metric_scripts, hub_offline, seeded, why_unreachable
from longeval.studies.tasks.definitions.index import Index
from longeval.studies.tasks.definitions.needs import hub_ids
from longeval.studies.tasks.definitions.ruler import generator_module, prepared
from longeval.studies.tasks.definitions.templates import use_sandbox
from longeval.studies.tasks.quiet import quiet
from longeval.studies.tasks.setting import Setting

logger = logging.getLogger(__name__)

_STRUCTURE = ("tag", "group", "task_list")
_BABILONG = (128, 64, 32, 16, 8, 4, 2, 1)
"""Thousands of tokens for which BABILong has a form of its texts."""


def load_task(
    leaf: str,
    *,
    metadata: Mapping[str, Any],
    include: Sequence[str] = (),
    index: Index | None = None,
    code: Code = "refused",
) -> Any:
    """Builds a task: reads or makes its data, and tries its templates on the first sample.

    Args:
        leaf: A name of `Resolved.leaves`.
        metadata: What its `custom_dataset` function gets as keyword arguments beside its YAML's own metadata:
            `setting` (a `Setting`), and for lm-eval's RULER and BABILong `tokenizer` (a folder that holds nothing but
            a tokenizer, see `tokenizer_folder`) and `max_seq_lengths` (a list with the window).
        include: Folders with more task files.
        index: Of the same folders, where there is one already.
        code: What becomes of functions that a user's file names.

    Returns:
        An `lm_eval.api.task.Task`.

    Raises:
        LongEvalError: If it is no task, isn't run here, its file is broken (file, line, what), its data or a package
            is missing (how to get it), or its own Python fails (file, line, exception).
    """
    index = Index(include) if index is None else index
    entry = index.entry(leaf)
    if entry.kind != "task":
        raise LongEvalError(f"--tasks {leaf}: is a group", f"Its members: {', '.join(entry.members)}.")
    check_runs(leaf, index)
    config = task_config(leaf, index)
    if code == "refused" and (functions := own_functions(config)):
        raise refuse(leaf, functions)
    with quiet():
        if entry.source != LM_EVAL and entry.within is None and entry.path is not None:
            check_task_file(entry.path, config)
        forbid_metric_scripts()
        use_sandbox()
        ids = () if entry.source == OURS else [name for name in hub_ids(entry.needs) if not os.path.isdir(name)]
        unreachable = next((reason for name in ids if (reason := why_unreachable(name)) is not None), None)
        setting = metadata.get("setting")
        seed = setting.seed if isinstance(setting, Setting) else 0
        try:
            with hub_offline(unreachable is not None), seeded(seed), _generator(config, metadata):
                task = _build(config, code, _adapted(config, metadata))
                check_built(entry, task)
        except LongEvalError:
            raise
        except Exception as error:
            raise explain(entry, config, error, unreachable) from error
    return task


def check_runs(leaf: str, index: Index) -> None:
    """Raises LongEvalError for a task that isn't run here; known from its file alone."""
    refusal = index.entry(leaf).refusal
    if refusal is not None:
        raise LongEvalError(f"--tasks {leaf}: not run: {refusal}", "Leave it out, or run it with lm-eval itself.")


def task_config(leaf: str, index: Index) -> Config:
    """The keys of a task as its files say them, includes and changes of its group merged; no code runs.

    Args:
        leaf: A name of `Resolved.leaves`.
        index: Where it is looked up.

    Raises:
        LongEvalError: If it is unknown, or its file is broken.
    """
    entry = index.entry(leaf)
    if entry.within is None:
        return read_config(str(entry.path))
    if entry.base is None:
        return {**entry.changes, "task": entry.name}
    changes = {key: value for key, value in entry.changes.items() if key not in _STRUCTURE}
    return {**task_config(index.scoped(entry, entry.base), index), **changes}


def check_code(leaf: str, index: Index, *, trusted: bool, dry_run: bool) -> None:
    """Refuses a task whose Python may not run; logs which Python it is where it may."""
    functions = own_functions(task_config(leaf, index))
    if functions and not trusted:
        raise refuse(leaf, functions)
    if functions:
        does = "would run (not in a dry run)" if dry_run else "runs"
        logger.warning("%s %s Python that its file names: !function %s", index.entry(leaf).title, does, said(functions))


def _build(config: Config, code: Code, metadata: dict[str, Any]) -> Any:
    from lm_eval.tasks._factory import TaskFactory
    from lm_eval.tasks._index import Entry, Kind

    whole = with_functions(config, code)
    entry = Entry(name=str(config["task"]), kind=Kind.TASK, yaml_path=None, cfg=whole)
    return TaskFactory(meta=metadata).build(entry, overrides=None, registry={})


@contextlib.contextmanager
def _generator(config: Config, metadata: Mapping[str, Any]) -> Iterator[None]:
    """Prepares RULER's generators; does nothing for other tasks."""
    path = generator_module(config)
    if path is None:
        yield
        return
    folder, lengths = metadata.get("tokenizer"), metadata.get("max_seq_lengths")
    assert isinstance(folder, str) and isinstance(lengths, list), "RULER needs tokenizer and max_seq_lengths"
    setting = metadata.get("setting")
    samples, window = (setting.num_samples, setting.length) if isinstance(setting, Setting) else (None, None)
    with prepared(str(config["task"]), path, folder=folder, lengths=lengths, num_samples=samples, window=window):
        yield


def _adapted(config: Config, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """BABILong calls a form of its data what RULER calls a list of lengths: the longest form within the window."""
    adapted = dict(metadata)
    lengths = adapted.get("max_seq_lengths")
    if str(config.get("dataset_path")).startswith("RMT-team/babilong") and isinstance(lengths, list):
        fitting = [size for size in _BABILONG if size * 1024 <= min(lengths)]
        adapted["max_seq_lengths"] = f"{fitting[0] if fitting else 0}k"
    return adapted
