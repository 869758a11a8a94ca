"""A request of `longeval tasks` becomes cells: tasks are found and built, every prompt is rendered and tokenised.

Everything a request can have wrong is found here, before weights are loaded: unknown tasks, data that is missing, a
window too short for a question, lengths that don't fit into memory.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from longeval.backends.base import GenerateRequest, Server, capabilities, check_request
from longeval.cache import cache_dir
from longeval.data.special import spelt_note
from longeval.errors import LongEvalError, MissingDataError
from longeval.models.prepare import PreparedModel, prepare_all
from longeval.models.tokenizer import tokenizer_folder
from longeval.rope.build import MethodName
from longeval.run.cost import check_memory, model_size
from longeval.run.host import Silent
from longeval.run.setups import ask_server, check_pin, method_names, setting_notes, setups, usable_methods
from longeval.run.study import Tell
from longeval.studies.tasks.answers import is_length
from longeval.studies.tasks.cells import GroupCell, TaskJob, group_cell
from longeval.studies.tasks.definitions.checks import causes, explain, missing_together
from longeval.studies.tasks.definitions.entries import GroupAverage
from longeval.studies.tasks.definitions.files import Code, Config, FunctionName, NotRunError, is_lm_evals
from longeval.studies.tasks.definitions.index import Index, Resolved, all_leaves
from longeval.studies.tasks.definitions.load import check_code, check_runs, load_task, task_config
from longeval.studies.tasks.definitions.metadata import TaskMetadata, read_metadata
from longeval.studies.tasks.definitions.needs import NOTHING
from longeval.studies.tasks.definitions.templates import TemplateError
from longeval.studies.tasks.prompts.build import prepare
from longeval.studies.tasks.prompts.requests import PreparedTask, PromptWindow, Request, all_inputs, longest, reach
from longeval.studies.tasks.request import TasksRequest
from longeval.studies.tasks.setting import Setting, check_samples_fit, prompt_counter
from longeval.studies.tasks.work import TaskPlan, task_plan
from longeval.values import format_length


def plan_tasks(request: TasksRequest, tell: Tell | None = None, *, dry_run: bool = False) -> TaskPlan:
    """Checks a request and lays out its cells; raises LongEvalError for anything that is wrong with it.

    Args:
        request: What was asked.
        tell: Told what a user should know before something is fetched, and how samples are prepared; None: nobody.
        dry_run: Whether this is only to be shown: no code of models and of users' task files runs.
    """
    tell = tell or Silent()
    check_request(request)
    names = method_names(request.pe, request.pe_args, request.factor)
    request, server = ask_server(request)
    index = Index(request.include)
    chosen = index.resolve(request.tasks)
    leaves = all_leaves(chosen)
    for leaf in leaves:
        check_runs(leaf, index)
    data = f"LONGEVAL_DATA={os.environ.get('LONGEVAL_DATA', '')}".removesuffix("=")
    for item in chosen:
        if item.needs != NOTHING and not item.needs.startswith("file"):
            tell.note(f"{item.title} needs {item.needs.replace('LONGEVAL_DATA', data)}")
    _check_titles(leaves, index)
    for leaf in leaves:
        check_code(leaf, index, trusted=request.trust_remote_code, dry_run=dry_run)
    models = prepare_all(request, capabilities(request.backend), tell.preparing, dry_run=dry_run)
    request, names, notes = usable_methods(request, names, models)
    check_pin(request, names, models)
    if server is not None:
        server.check_reads([model.tokenizer for model in models], scores=False)
    code: Code = "named" if dry_run else "run" if request.trust_remote_code else "refused"
    plans = [_ModelPlan(request, model, names, index, tell, code, server) for model in models]
    for plan in plans:
        plan.add_tasks(chosen)
    jobs = [job for plan in plans for job in plan.jobs]
    _check_heeded(request, jobs)
    if not any(job.prepared.samples for job in jobs):
        raise _nothing_left(request, [need for plan in plans for need in plan.left_out])
    if server is not None:
        _check_room(server, jobs)
    return task_plan(
        request,
        jobs,
        [cell for plan in plans for cell in plan.groups(chosen)],
        [*notes, *(note for plan in plans for note in plan.notes)],
    )


def _check_titles(leaves: Sequence[str], index: Index) -> None:
    """Scores are shown by a task's own name, so that two tasks of one name can't be in a request."""
    names: dict[str, str] = {}
    for leaf in leaves:
        title = index.entry(leaf).title
        if title in names:
            raise LongEvalError(
                f"--tasks {names[title]} and {leaf}: both are called {title}",
                "Rename one in its file, or leave it out.",
            )
        names[title] = leaf


def _check_heeded(request: TasksRequest, jobs: Sequence[TaskJob]) -> None:
    """Settings that no task of the request heeds are errors."""
    if request.haystack is not None and not any(job.metadata.haystack for job in jobs):
        raise LongEvalError(
            f"--haystack {request.haystack}: would be ignored, none of these tasks hides needles in a choice of text",
            "Leave it out, or add --tasks niah.",
        )
    if request.max_new_tokens is not None and all(job.prepared.request_type != "generate_until" for job in jobs):
        raise LongEvalError(
            f"--max-new-tokens {request.max_new_tokens}: would be ignored, none of these tasks generates an answer",
            "Leave it out.",
        )


def _nothing_left(request: TasksRequest, needs: Sequence[int]) -> LongEvalError:
    """The error of a request whose every sample was left out; `needs`: tokens of the window that each would take."""
    shortest = min(needs)
    alike = " at every length (--same-samples)" if request.same_samples else ""
    return LongEvalError(
        f"--overlong skip: leaves nothing to compute: no sample fits into its window{alike}; of those left out the "
        f"shortest needs {shortest:,} tokens, the longest {max(needs):,}",
        f"Use --lengths {shortest} or more, or --overlong middle, which cuts documents.",
    )


def _check_room(server: Server, jobs: Sequence[TaskJob]) -> None:
    """Whether a server has room for what takes most."""

    def sent(request: Request) -> int:
        return reach(request) + (not isinstance(request, GenerateRequest))  # it generates a token after a choice

    job = max(jobs, key=lambda job: longest(job.prepared.requests, sent))
    tokens = longest(job.prepared.requests, sent)
    answer = "an answer of at least one token"
    if job.prepared.max_new_tokens is not None:
        answer = f"its answer of up to {job.prepared.max_new_tokens} (--max-new-tokens)"
    server.check_room(job.length, tokens, f"the longest prompt of {job.title} with {answer} takes {tokens} tokens")


class _ModelPlan:
    """What one model has to do."""

    def __init__(
        self,
        request: TasksRequest,
        model: PreparedModel,
        names: Sequence[MethodName],
        index: Index,
        tell: Tell,
        code: Code,
        server: Server | None,
    ) -> None:
        self.jobs: list[TaskJob] = []
        self.notes = [*model.notes, *setting_notes(request, names, model, server)]
        self.left_out: list[int] = []
        """Tokens of the window that samples would take that don't fit into theirs."""
        self._request = request
        self._model = model
        self._size = model_size(model)
        self._index = index
        self._tell = tell
        self._code = code
        self._chat = _chat(request, model)
        self._setups = list(setups(request, model, names))

    def add_tasks(self, chosen: Sequence[Resolved]) -> None:
        """Jobs for all tasks that were asked for; those of a group whose data is missing are left out, with a note."""
        named = {item.name for item in chosen if item.kind == "task"}
        missing: dict[str, MissingDataError] = {}
        for leaf in all_leaves(chosen):
            try:
                if named.isdisjoint(missing):
                    self.jobs += self._jobs(leaf)
                elif self._index.entry(leaf).needs != NOTHING:  # to say in one error what else is missing
                    config, metadata = self._config(leaf)
                    self._load(leaf, config, metadata, self._request.lengths[0])
            except MissingDataError as error:
                missing[leaf] = error
        absent = {item: [leaf for leaf in item.leaves if leaf in missing] for item in chosen}
        whole = [leaf for item, leaves in absent.items() if len(leaves) == len(item.leaves) for leaf in leaves]
        if whole:
            raise missing_together({self._title(leaf): missing[leaf] for leaf in whole})
        for item, leaves in absent.items():
            if leaves:
                why = causes({self._title(leaf): missing[leaf] for leaf in leaves})
                without = ", ".join(map(self._title, leaves))
                self.notes.append(
                    f"{item.title} goes on without {without}: {why}. --tasks {leaves[0]} says how to get its data"
                )

    def groups(self, chosen: Sequence[Resolved]) -> list[GroupCell]:
        """The averages that the groups ask for."""
        cells = {(job.name, cell.pe.canonical, cell.length): cell.id for job in self.jobs for cell in job.cells}
        averages = dict.fromkeys(_by_length(average) for item in chosen for average in item.averages)
        return [
            group_cell(
                self._request,
                self._model,
                setup,
                average,
                {leaf: cells.get((leaf, setup.pe.canonical, setup.length)) for leaf in average.members},
                chat=self._chat,
                title=self._title,
            )
            for average in averages
            for setup in self._setups
        ]

    def _title(self, name: str) -> str:
        """What a task or group is shown as."""
        return self._index.entry(name).title

    def _config(self, leaf: str) -> tuple[Config, TaskMetadata]:
        config = task_config(leaf, self._index)
        return config, read_metadata(config.get("metadata"), f"--tasks {leaf}")

    def _jobs(self, leaf: str) -> list[TaskJob]:
        """One task at all lengths."""
        config, metadata = self._config(leaf)
        task: Any = None
        spelt: Mapping[str, int] = {}
        jobs = []
        for length in self._request.lengths:
            # Samples are made, or at least read, for this length.
            if task is None or metadata.synthetic or "custom_dataset" in config:
                task = self._load(leaf, config, metadata, length)
            prepared = self._prepare(task, length, leaf)
            self._check_prepared(leaf, metadata, length, prepared)
            job = TaskJob(
                request=self._request,
                model=self._model,
                size=self._size,
                setups=tuple(setup for setup in self._setups if setup.length == length),
                name=leaf,
                title=self._title(leaf),
                source=self._index.entry(leaf).source,
                length=length,
                task=task,
                metadata=metadata,
                prepared=prepared,
                chat=self._chat,
            )
            jobs.append(job)
            self.notes += prepared.notes
            if prepared.skipped and not prepared.samples:
                self.notes.append(
                    f"{self._title(leaf)}: nothing to compute at {format_length(length)}: --overlong skip leaves every "
                    f"sample out, the shortest needs {min(prepared.skipped.values()):,} tokens"
                )
            self.left_out += prepared.skipped.values()
            spelt = max(spelt, prepared.spelt, key=lambda found: sum(found.values()))
        if spelt:
            self.notes.append(
                spelt_note(self._title(leaf), self._model.name, spelt, parsed=self._request.parse_special)
            )
        return self._alike(jobs)

    def _check_prepared(self, leaf: str, metadata: TaskMetadata, length: int, prepared: PreparedTask) -> None:
        """Whether a task has samples that its model can read."""
        if not prepared.num_docs:
            raise LongEvalError(f"--tasks {leaf}: its data has no samples", "Check its split and its files.")
        if metadata.synthetic and prepared.num_truncated:
            raise LongEvalError(
                f"--tasks {leaf}: {prepared.num_truncated} samples that were made for {length} tokens don't fit",
                "Its generator must leave room for chat template and answer; cutting could take out what is asked.",
            )
        self._model.check_embedded(chain.from_iterable(map(all_inputs, prepared.requests)), f"--tasks {leaf}")
        self._check_memory(length, prepared.longest_reach())

    def _check_memory(self, length: int, tokens: int) -> None:
        """An engine knows its own memory, and a server is elsewhere."""
        if capabilities(self._request.backend).estimates:
            check_memory(self._model, self._size, length, tokens)

    def _alike(self, jobs: list[TaskJob]) -> list[TaskJob]:
        """The jobs with the same samples at every length, where that was asked for; a note where they differ."""
        shared = set.intersection(*({sample.index for sample in job.prepared.samples} for job in jobs))
        if all(len(job.prepared.samples) == len(shared) for job in jobs):
            return jobs
        if self._request.same_samples:
            again = [self._prepare(job.task, job.length, job.name, shared) for job in jobs]
            return [dataclasses.replace(job, prepared=prepared) for job, prepared in zip(jobs, again, strict=True)]
        if shared:  # otherwise the flag would leave nothing
            counts = ", ".join(f"{len(job.prepared.samples)} at {format_length(job.length)}" for job in jobs)
            self.notes.append(f"{jobs[0].title}: {counts} samples; --same-samples compares lengths on the same ones")
        return jobs

    def _prepare(self, task: Any, length: int, leaf: str, indices: set[int] | None = None) -> PreparedTask:
        what = f"{self._title(leaf)} at {format_length(length)}: reading prompts"
        try:
            return prepare(
                task,
                self._window(length),
                limit=self._request.limit,
                indices=indices,
                num_fewshot=self._request.num_fewshot,
                max_new_tokens=self._request.max_new_tokens,
                on_sample=lambda done, total: self._tell.preparing(what, done, total),
            )
        except (NotRunError, TemplateError) as error:
            raise explain(self._index.entry(leaf), task_config(leaf, self._index), error, None) from error

    def _window(self, length: int) -> PromptWindow:
        return PromptWindow(
            tokenizer=self._model.tokenizer,
            prefix=self._model.prefix,
            length=length,
            chat=self._chat,
            overlong=self._request.overlong,
            parse_special=self._request.parse_special,
        )

    def _load(self, leaf: str, config: Config, metadata: TaskMetadata, length: int) -> Any:
        """The lm-eval task with its samples; those that are made are made for this window."""
        self._tell.preparing(f"{self._title(leaf)} at {format_length(length)}: reading its data")
        setting = self._setting(leaf, config, metadata, length)
        extra: dict[str, Any] = {"setting": setting}
        if metadata.synthetic and self._request.max_new_tokens is not None:
            extra["max_new_tokens"] = self._request.max_new_tokens  # samples leave room for that many
        function = config.get("custom_dataset")
        lm_evals = isinstance(function, FunctionName) and is_lm_evals(function.file)
        if lm_evals or (function is not None and not metadata.synthetic):
            # lm-eval's functions run the code of any other tokenizer that a file's metadata names.
            # RULER's generators know nothing of a chat template: what it takes is not theirs to fill.
            template = setting.measure("x") - len(self._window(length).encoder().plain(["x"])[0])
            extra |= {"tokenizer": tokenizer_folder(self._model.tokenizer), "max_seq_lengths": [length - template]}
        try:
            return load_task(leaf, metadata=extra, include=self._request.include, index=self._index, code=self._code)
        except LongEvalError as error:
            if self._request.haystack is None or not error.problem.startswith("--data "):
                raise
            problem = f"--haystack {error.problem.removeprefix('--data ')}"
            raise LongEvalError(problem, error.remedy.replace("--data", "--haystack")) from error

    def _setting(self, leaf: str, config: Config, metadata: TaskMetadata, length: int) -> Setting:
        """What a generator of samples must know; raises LongEvalError where they can't be held."""
        num_samples = metadata.samples if self._request.limit is None else self._request.limit
        if metadata.synthetic:
            self._check_memory(length, length)
            check_samples_fit(num_samples, length)
        what = f"{self._title(leaf)} at {format_length(length)}: making samples"
        # What decides the tokens of a prompt beside the tokenizer.
        prefix = f"{list(self._model.prefix)}{' parse_special' if self._request.parse_special else ''}"
        template = None
        if self._chat:
            template = hashlib.sha256(str(self._model.tokenizer.chat_template).encode()).hexdigest()[:16]
        return Setting(
            length=length,
            num_samples=num_samples,
            seed=self._request.seed,
            haystack=self._request.haystack or "noise",
            measure=prompt_counter(self._window(length), config),
            digest=f"{self._model.tokenizer_digest}:{prefix}:{template}",
            cache=cache_dir(),
            on_sample=lambda done: self._tell.preparing(what, done, num_samples),
        )


def _by_length(average: GroupAverage) -> GroupAverage:
    """RULER averages one metric for each length it knows; here a cell has one length, and its metric is `recall`."""
    numbered = average.metric is not None and is_length(average.metric)
    return dataclasses.replace(average, metric="recall") if numbered else average


def _chat(request: TasksRequest, model: PreparedModel) -> bool:
    """Whether prompts go through the chat template; asked for where there is none raises LongEvalError."""
    has_one = bool(getattr(model.tokenizer, "chat_template", None))
    if request.chat_template == "on" and not has_one:
        raise LongEvalError(
            f"--chat-template on: the tokenizer of {model.name} has none", "Leave it out, or use a chat model."
        )
    return has_one and request.chat_template != "off"
