"""Cells of downstream tasks, their stable ids, and the cells of groups that average them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from longeval.backends.answering import Ending, end_tokens
from longeval.backends.base import GenerateRequest, capabilities
from longeval.models.prepare import PreparedModel
from longeval.run.cell import Cell, cell_id
from longeval.run.cost import ModelSize, sample_costs
from longeval.run.setups import Setup, dtype_of
from longeval.studies.tasks.definitions.entries import GroupAverage
from longeval.studies.tasks.definitions.metadata import TaskMetadata, task_digest
from longeval.studies.tasks.prompts.prepared import PreparedTask
from longeval.studies.tasks.prompts.requests import Request, reach
from longeval.studies.tasks.request import TasksRequest


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskCell(Cell):
    """One (model, method, length, task)."""

    setup: Setup
    """The method at the cell's length."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskJob:
    """One task at one length on one model: prompts that every method answers. It has no slots, to keep its costs."""

    model: PreparedModel
    size: ModelSize
    """The model's."""
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

    @cached_property
    def costs(self) -> list[float]:
        """Operations of each sample's prompts; common beginnings are read once."""
        return sample_costs(self.size, self.inputs())

    def inputs(self) -> list[npt.NDArray[np.int32]]:
        """Token ids of each sample's longest input, (T,) each."""
        nothing_T = np.zeros(0, dtype=np.int32)  # of an empty text, which is scored whole
        return [max(map(_input, s.requests), key=len, default=nothing_T) for s in self.prepared.samples]


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupCell(Cell):
    """The average of a group's tasks for one (model, method, length)."""

    told_apart_by: ClassVar[tuple[str, ...]] = ("members",)

    average: GroupAverage
    """What is averaged, and how."""
    members: dict[str, str | None]
    """Task → cell id; None where the task's data is missing."""


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


def task_cell(request: TasksRequest, job: TaskJob, setup: Setup, source: str) -> TaskCell:
    """The cell of one method.

    Args:
        request: What was asked.
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
        "overlong": request.overlong,
        "limit": request.limit,
        "same_samples": request.same_samples,
        "num_fewshot": prepared.num_fewshot,
        "max_new_tokens": prepared.max_new_tokens,
        "decoding": "greedy" if prepared.max_new_tokens is not None else None,
        "haystack": (request.haystack or "noise") if metadata.haystack else None,
        "chance": metadata.chance,
    }
    if prepared.max_new_tokens is not None:
        params |= {"end_tokens": _end_tokens(request, job)}
        if getattr(job.model.tokenizer, "clean_up_tokenization_spaces", False):
            params |= {"clean_up_spaces": True}
    fields = _fields(request, job.model, setup)
    decides = {"pe": setup.pe.canonical, "task": _identity(job.name), "skipped": job.skipped}
    decides |= {"primary": metadata.primary}
    return TaskCell(
        id=cell_id("task", fields | decides, params),
        pe=setup.pe,
        setup=setup,
        task=job.title,
        params=params,
        metric=metadata.primary or "accuracy",
        skipped=job.skipped,
        **fields,
    )


def _end_tokens(request: TasksRequest, job: TaskJob) -> list[int]:
    """Ids that end an answer: by the model's own settings (a server keeps those to itself), and by the task's."""
    settings = None if capabilities(request.backend).remote else job.model.generation_settings()
    ends = end_tokens(settings, job.model.tokenizer)
    requests = (one for sample in job.prepared.samples for one in sample.requests)
    by_stop = {one.stop: one for one in requests if isinstance(one, GenerateRequest)}
    return sorted(ends.union(*(Ending(job.model.tokenizer, ends, one).ids for one in by_stop.values())))


def group_cell(
    request: TasksRequest,
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
        request: What was asked.
        model: The model.
        setup: Method and length.
        average: What is averaged, and how.
        members: Task → cell id; None where the task's data is missing.
        chat: Whether prompts went through the chat template.
        title: Name of a task or group → what it is shown as.
    """
    settings: dict[str, Any] = {
        "overlong": request.overlong,
        "limit": request.limit,
        "same_samples": request.same_samples,
        "chat_template": chat,
        "num_fewshot": request.num_fewshot,
        "max_new_tokens": request.max_new_tokens,
        "haystack": request.haystack,
    }
    params = setup.params | {"weight_by_size": average.weight_by_size, **settings}
    # Not the members' ids: data that was missing and is there later makes the same cell whole.
    fields = _fields(request, model, setup)
    decides = {"pe": setup.pe.canonical, "task": _identity(average.group), "metric": average.metric, **settings}
    decides |= {"filters": average.filters}
    return GroupCell(
        id=cell_id("group", fields | decides, params | {"members": list(members)}),
        pe=setup.pe,
        task=title(average.group),
        average=dataclasses.replace(
            average, group=title(average.group), members=tuple(title(task) for task in average.members)
        ),
        members={title(task): cell for task, cell in members.items()},
        params=params | {"members": [title(task) for task in members]},
        metric="average",
        **fields,
    )


def _identity(name: str) -> str:
    """A task's name, or its file whichever way its path was typed."""
    return os.path.normpath(name) if name.endswith((".yaml", ".yml")) or os.sep in name else name


def _fields(request: TasksRequest, model: PreparedModel, setup: Setup) -> dict[str, Any]:
    """Fields that the cells of tasks and of groups have."""
    return {
        "model": model.name,
        "factor": setup.factor,
        "length": setup.length,
        "backend": request.backend,
        "dtype": dtype_of(request, model),
    }
