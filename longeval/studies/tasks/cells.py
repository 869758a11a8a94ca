"""Cells of downstream tasks, their stable ids, and the cells of groups that average them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from longeval.backends.base import GenerateRequest
from longeval.backends.ending import Ending, end_tokens
from longeval.models.prepare import PreparedModel
from longeval.request import TasksRequest
from longeval.rope.build import MethodName
from longeval.run.cell import cell_id
from longeval.run.setups import Setup, dtype_of
from longeval.store.plan import PlannedCell
from longeval.studies.tasks.definitions.averages import GroupAverage
from longeval.studies.tasks.definitions.metadata import TaskMetadata, task_digest
from longeval.studies.tasks.prompts.prepared import PreparedTask
from longeval.studies.tasks.prompts.requests import Request, reach


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskCell:
    """One (model, method, length, task): the unit of work, storage and resume."""

    id: str
    model: str
    setup: Setup
    """The method at the cell's length."""
    task: str
    backend: str
    dtype: str
    params: dict[str, Any]
    """Everything else that decides the value, as the record shows it."""

    @property
    def pe(self) -> MethodName:
        """The method."""
        return self.setup.pe

    @property
    def length(self) -> int:
        """Window length in tokens."""
        return self.setup.length

    def planned(self) -> PlannedCell:
        """The cell as the run folder's plan keeps it."""
        return _planned(self, self.task, {})


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskJob:
    """One task at one length on one model: prompts that every method answers."""

    model: PreparedModel
    name: str
    """By which it is found: that of a task, or the path of its file."""
    title: str
    """By which it is shown: the task's own."""
    length: int
    task: Any
    """lm-eval's Task, with its samples."""
    metadata: TaskMetadata
    prepared: PreparedTask
    skipped: int
    """Samples that were looked at and left out."""
    chat: bool
    """Whether prompts went through the chat template."""
    cells: tuple[TaskCell, ...]
    """One per method."""

    def inputs(self) -> list[npt.NDArray[np.int32]]:
        """Token ids of each sample's longest input, (T,) each."""
        nothing_T = np.zeros(0, dtype=np.int32)  # of an empty text, which is scored whole
        return [max(map(_input, s.requests), key=len, default=nothing_T) for s in self.prepared.samples]


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupCell:
    """The average of a group's tasks for one (model, method, length)."""

    id: str
    model: str
    setup: Setup
    average: GroupAverage
    """What is averaged, and how."""
    members: dict[str, str | None]
    """Task → cell id; None where the task's data is missing."""
    backend: str
    dtype: str
    params: dict[str, Any]

    @property
    def pe(self) -> MethodName:
        """The method."""
        return self.setup.pe

    @property
    def length(self) -> int:
        """Window length in tokens."""
        return self.setup.length

    def planned(self) -> PlannedCell:
        """The average as the run folder's plan keeps it."""
        return _planned(self, self.average.group, {"members": list(self.members)})


def _planned(cell: TaskCell | GroupCell, task: str, params: dict[str, Any]) -> PlannedCell:
    """A cell of a task or of a group as the run folder's plan keeps it."""
    return PlannedCell(
        cell=cell.id,
        model=cell.model,
        pe=cell.pe.canonical,
        factor=cell.setup.factor,
        length=cell.length,
        data=None,
        task=task,
        protocol=None,
        backend=cell.backend,
        params=params,
    )


def longest_reach(prepared: PreparedTask) -> int:
    """Tokens of the longest input with what it may be answered."""
    return max((reach(request) for sample in prepared.samples for request in sample.requests), default=0)


def most_sent(prepared: PreparedTask) -> int:
    """Tokens that a server needs room for: like `longest_reach`, and one more after a choice, which it generates."""
    requests = (request for sample in prepared.samples for request in sample.requests)
    return max((reach(one) + (not isinstance(one, GenerateRequest)) for one in requests), default=0)


def _input(request: Request) -> npt.NDArray[np.int32]:
    if isinstance(request, GenerateRequest):
        return request.prompt_T
    return np.concatenate([request.context_T, max(request.continuations, key=len)])


def task_cell(spec: TasksRequest, job: TaskJob, setup: Setup, source: str) -> TaskCell:
    """The cell of one method.

    Args:
        spec: The request.
        job: The task with its prompts (its own cells are not looked at).
        setup: The method at the job's length.
        source: Where the task is defined.
    """
    metadata, prepared = job.metadata, job.prepared
    params = setup.params | {
        "source": source,
        "task_version": metadata.version,
        "task_digest": task_digest(job.task),
        "prompts": prepared.digest,
        "own_prompts": metadata.own_prompts,
        "chat_template": job.chat,
        "overlong": spec.overlong,
        "limit": spec.limit,
        "same_samples": spec.same_samples,
        "num_fewshot": prepared.num_fewshot,
        "max_new_tokens": prepared.max_new_tokens,
        "decoding": "greedy" if prepared.max_new_tokens is not None else None,
        "haystack": (spec.haystack or "noise") if metadata.haystack else None,
        "chance": metadata.chance,
    }
    if prepared.max_new_tokens is not None:
        params |= {"end_tokens": _end_tokens(spec, job)}
        if getattr(job.model.tokenizer, "clean_up_tokenization_spaces", False):
            params |= {"clean_up_spaces": True}
    decides = _fields(spec, job.model, setup) | {"task": _identity(job.name), "skipped": job.skipped}
    decides |= {"primary": metadata.primary}
    return TaskCell(
        id=cell_id("task", decides, params),
        model=job.model.name,
        setup=setup,
        task=job.title,
        backend=spec.backend,
        dtype=dtype_of(spec, job.model),
        params=params,
    )


def _end_tokens(spec: TasksRequest, job: TaskJob) -> list[int]:
    """Ids that end an answer: by the model's own settings (a server keeps those to itself), and by the task's."""
    settings = None if spec.backend == "openai" else job.model.generation_settings()
    ends = end_tokens(settings, job.model.tokenizer)
    requests = (one for sample in job.prepared.samples for one in sample.requests)
    by_stop = {one.stop: one for one in requests if isinstance(one, GenerateRequest)}
    return sorted(ends.union(*(Ending(job.model.tokenizer, ends, one).ids for one in by_stop.values())))


def group_cell(
    spec: TasksRequest,
    model: PreparedModel,
    setup: Setup,
    average: GroupAverage,
    members: dict[str, str | None],
    *,
    chat: bool,
    title: Callable[[str], str],
) -> GroupCell:
    """The average of cells of one method and length.

    Args:
        spec: The request.
        model: The model.
        setup: Method and length.
        average: What is averaged, and how.
        members: Task → cell id; None where the task's data is missing.
        chat: Whether prompts went through the chat template.
        title: Name of a task or group → what it is shown as.
    """
    settings: dict[str, Any] = {
        "overlong": spec.overlong,
        "limit": spec.limit,
        "same_samples": spec.same_samples,
        "chat_template": chat,
        "num_fewshot": spec.num_fewshot,
        "max_new_tokens": spec.max_new_tokens,
        "haystack": spec.haystack,
    }
    params = setup.params | {"weight_by_size": average.weight_by_size, **settings}
    # Not the members' ids: data that was missing and is there later makes the same cell whole.
    decides = _fields(spec, model, setup) | {"task": _identity(average.group), "metric": average.metric, **settings}
    return GroupCell(
        id=cell_id("group", decides | {"filters": average.filters}, params | {"members": list(members)}),
        model=model.name,
        setup=setup,
        average=dataclasses.replace(
            average, group=title(average.group), members=tuple(title(task) for task in average.members)
        ),
        members={title(task): cell for task, cell in members.items()},
        backend=spec.backend,
        dtype=dtype_of(spec, model),
        params=params | {"members": [title(task) for task in members]},
    )


def _identity(name: str) -> str:
    """A task's name, or its file whichever way its path was typed."""
    return os.path.normpath(name) if name.endswith((".yaml", ".yml")) or os.sep in name else name


def _fields(spec: TasksRequest, model: PreparedModel, setup: Setup) -> dict[str, Any]:
    return {
        "model": model.name,
        "pe": setup.pe.canonical,
        "factor": setup.factor,
        "length": setup.length,
        "backend": spec.backend,
        "dtype": dtype_of(spec, model),
    }
