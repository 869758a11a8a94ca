"""Cells of downstream tasks with their stable ids, and the cells of groups, which average them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from longeval.backends.answering import Ending, end_tokens
from longeval.backends.base import GenerateRequest, capabilities
from longeval.models.prepare import PreparedModel
from longeval.run.cell import Cell, Follows, cell_id
from longeval.run.cost import ModelSize, sample_costs
from longeval.run.setups import FOLLOWS_FACTOR, Setup, dtype_of
from longeval.studies.tasks.definitions.entries import GroupAverage
from longeval.studies.tasks.definitions.files import is_path
from longeval.studies.tasks.definitions.metadata import TaskMetadata, task_digest
from longeval.studies.tasks.prompts.requests import PreparedTask
from longeval.studies.tasks.request import TasksRequest


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskCell(Cell):
    """One (model, method, length, task)."""

    selected_by: ClassVar[tuple[str, ...]] = ("prompts", "seed")
    part: ClassVar[str] = "sample"
    follows: ClassVar[tuple[Follows, ...]] = (FOLLOWS_FACTOR,)

    setup: Setup
    """The method at the cell's length."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskJob:
    """One task at one length on one model: prompts that every method answers."""

    request: TasksRequest
    model: PreparedModel
    size: ModelSize
    setups: tuple[Setup, ...]
    """Each method at this length."""
    name: str
    """The task's name after `--tasks`, or the path of its file."""
    title: str
    """What results are shown under: the task's own name."""
    source: str
    """Where the task is defined."""
    length: int
    task: Any
    """lm-eval's Task, with its samples."""
    metadata: TaskMetadata
    prepared: PreparedTask
    chat: bool
    """Whether prompts went through the chat template."""

    @property
    def skipped(self) -> int:
        """Samples that were looked at and left out."""
        num_docs, limit = self.prepared.num_docs, self.request.limit
        return min(num_docs, limit or num_docs) - len(self.prepared.samples)

    @cached_property
    def cells(self) -> tuple[TaskCell, ...]:
        """One per method."""
        return tuple(_task_cell(self, setup) for setup in self.setups)

    @cached_property
    def costs(self) -> list[float]:
        """Operations of each sample's prompts; common beginnings are read once."""
        return sample_costs(self.size, self.prepared.inputs())


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupCell(Cell):
    """The average of a group's tasks for one (model, method, length)."""

    told_apart_by: ClassVar[tuple[str, ...]] = ("members",)

    average: GroupAverage
    """What is averaged, and how."""
    members: dict[str, str | None]
    """Task → cell id; None where the task's data is missing."""


def _task_cell(job: TaskJob, setup: Setup) -> TaskCell:
    request, metadata, prepared = job.request, job.metadata, job.prepared
    params = setup.params | {
        "source": job.source,
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
        params |= {"end_tokens": _end_tokens(job)}
        if getattr(job.model.tokenizer, "clean_up_tokenization_spaces", False):
            params |= {"clean_up_spaces": True}
    fields = _fields(request, job.model, setup)
    decides = {
        "pe": setup.pe.canonical,
        "task": _identity(job.name),
        "skipped": job.skipped,
        "primary": metadata.primary,
    }
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


def _end_tokens(job: TaskJob) -> list[int]:
    """Ids that end an answer: by the model's own settings (a server keeps those to itself), and by the task's."""
    settings = None if capabilities(job.request.backend).remote else job.model.generation_settings()
    ends = end_tokens(settings, job.model.tokenizer)
    by_stop = {one.stop: one for one in job.prepared.requests if isinstance(one, GenerateRequest)}
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
    """The cell of a group for one method and length.

    Args:
        request: What was asked.
        model: The model.
        setup: Method and length.
        average: What is averaged, and how.
        members: See `GroupCell`.
        chat: See `TaskJob`.
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
    decides = {
        "pe": setup.pe.canonical,
        "task": _identity(average.group),
        "metric": average.metric,
        "filters": average.filters,
        **settings,
    }
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
    return os.path.normpath(name) if is_path(name) else name


def _fields(request: TasksRequest, model: PreparedModel, setup: Setup) -> dict[str, Any]:
    """Fields that the cells of tasks and of groups have."""
    return {
        "model": model.name,
        "factor": setup.factor,
        "length": setup.length,
        "backend": request.backend,
        "dtype": dtype_of(request, model),
    }
