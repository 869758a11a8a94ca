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
from pathlib import Path
from typing import Any

from longeval.errors import LongEvalError
from longeval.studies.tasks.definitions.checks import check_task_file
from longeval.studies.tasks.definitions.code import Code, functions_of_files, own_functions, refuse, said
from longeval.studies.tasks.definitions.configs import Config, ConfigReader, FunctionName
from longeval.studies.tasks.definitions.entries import LM_EVAL, OURS, TaskEntry
from longeval.studies.tasks.definitions.failures import explain
from longeval.studies.tasks.definitions.guards import forbid_metric_scripts, hub_offline, quiet, seeded, why_unreachable
from longeval.studies.tasks.definitions.index import Index
from longeval.studies.tasks.definitions.members import Known, Member, members_of
from longeval.studies.tasks.definitions.needs import hub_ids
from longeval.studies.tasks.definitions.ruler import generator_module, prepared
from longeval.studies.tasks.definitions.scored import is_scored, remedy
from longeval.studies.tasks.definitions.templates import use_sandbox
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
    config = _config(entry, index)
    if code == "refused" and (functions := task_code(leaf, index)):
        raise refuse(leaf, functions)
    with quiet(), functions_of_files(code):
        if entry.source != LM_EVAL and entry.within is None and entry.path is not None:
            check_task_file(entry.path, config)
        forbid_metric_scripts()
        use_sandbox()
        ids = () if entry.source == OURS else [name for name in hub_ids(entry.needs) if not os.path.isdir(name)]
        unreachable = next((reason for name in ids if (reason := why_unreachable(name)) is not None), None)
        setting = metadata.get("setting")
        seed = setting.seed if isinstance(setting, Setting) else 0
        try:
            with hub_offline(unreachable is not None), seeded(seed), _generator(entry, config, metadata):
                task = _build(entry, index, _adapted(config, metadata))
                _check_metric_functions(entry, task)
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
    return _config(index.entry(leaf), index)


def check_code(leaf: str, index: Index, *, trusted: bool, dry_run: bool) -> None:
    """Python that users' task files name runs only where they say so, and they are told what it is."""
    functions = task_code(leaf, index)
    if functions and not trusted:
        raise refuse(leaf, functions)
    if functions:
        does = "would run (not in a dry run)" if dry_run else "runs"
        logger.warning("%s %s Python that its file names: !function %s", index.entry(leaf).title, does, said(functions))


def task_code(leaf: str, index: Index) -> tuple[FunctionName, ...]:
    """The Python of users' files that building or running a task runs; for the arguments see `task_config`."""
    entry = index.entry(leaf)
    config = _config(entry, index)
    if entry.within is None:
        return own_functions(config)
    # lm-eval reads the whole file of the group, with all functions in it
    return own_functions({"task": config, "group": _group_file(index.entry(entry.within).path)})


def _group_file(path: str | None) -> Config:
    return ConfigReader(checked=False).read(str(path))


def _config(entry: TaskEntry, index: Index) -> Config:
    if entry.within is None:
        return ConfigReader(checked=False).read(str(entry.path))
    member = _member(entry, index, resolve=False)
    base = {} if member.base is None else _config(_base(entry, member, index), index)
    return {**base, **member.changes}


def _build(entry: TaskEntry, index: Index, metadata: dict[str, Any]) -> Any:
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._factory import TaskFactory

    factory = TaskFactory(meta=metadata)
    if entry.within is None:
        return factory.build(_lm_eval_entry(entry), overrides=None, registry={})
    member = _member(entry, index, resolve=True)
    changes = {key: value for key, value in member.changes.items() if key not in _STRUCTURE}
    if member.base is None:
        own = changes.get("metadata")
        return ConfigurableTask(
            config={**changes, "task": entry.name, "metadata": {**(own if isinstance(own, dict) else {}), **metadata}}
        )
    base = _base(entry, member, index)
    return factory.build(_lm_eval_entry(base), overrides=changes, registry={})


def _lm_eval_entry(entry: TaskEntry) -> Any:
    from lm_eval.tasks._index import Entry
    from lm_eval.tasks._index import Kind as LmEvalKind

    return Entry(name=entry.name, kind=LmEvalKind.TASK, yaml_path=Path(str(entry.path)))


def _member(entry: TaskEntry, index: Index, *, resolve: bool) -> Member:
    """Finds a task that is written or changed in a group's file; with `resolve`, functions are imported."""
    group = index.entry(str(entry.within))

    def read(path: str | None) -> Config:
        if not resolve:
            return _group_file(path)
        from lm_eval.tasks._yaml_loader import load_yaml

        loaded: Config = load_yaml(str(path), resolve_func=True)
        return loaded

    def known(name: str) -> Known | None:
        found = index.find(index.scoped(group, name))
        if found is None:
            return None
        if found.kind == "task":
            return Known(kind="task", config=dict)
        if found.path is None:
            return Known(kind="tag", config=dict, members=found.members)
        return Known(kind="group", config=lambda: read(found.path))

    for member in _flat(members_of(group.name, read(group.path), known)):
        if member.name == entry.name:
            return member
    raise AssertionError(f"{entry.name} isn't in {group.path}")


def _flat(members: Sequence[Member]) -> Iterator[Member]:
    for member in members:
        yield member
        yield from _flat(member.children)


def _base(entry: TaskEntry, member: Member, index: Index) -> TaskEntry:
    assert member.base is not None
    return index.entry(index.scoped(index.entry(str(entry.within)), member.base))


@contextlib.contextmanager
def _generator(entry: TaskEntry, config: Config, metadata: Mapping[str, Any]) -> Iterator[None]:
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


def _check_metric_functions(entry: TaskEntry, task: Any) -> None:
    """lm-eval only logs that it has no function for a metric, and scores what doesn't fit as nothing, or fails late."""
    from lm_eval.api.registry import aggregation_registry, metric_registry
    from lm_eval.api.task import ConfigurableTask

    functions = getattr(task, "_metric_fn_list", {})
    if getattr(task.config, "process_results", None) is not None:
        return
    for name, function in functions.items():
        if function is None:
            raise LongEvalError(
                f"--tasks {entry.name}: lm-eval has no metric {name}, and scripts of the hub aren't run",
                f"Leave out the task, or mend {entry.path}.",
            )
    if not functions or type(task).process_results is not ConfigurableTask.process_results:
        return
    known = [aggregation_registry.get(name) for name in aggregation_registry]
    output = str(task.OUTPUT_TYPE)
    if not any(
        is_scored(
            name,
            output,
            own_metric=name not in metric_registry,
            own_aggregation=task.aggregation().get(name) not in known,
        )
        for name in functions
    ):
        first = next(iter(functions))
        raise LongEvalError(
            f"--tasks {entry.name} ({entry.path}): metric {first} gives no score for output_type {output}",
            remedy(first, output),
        )
