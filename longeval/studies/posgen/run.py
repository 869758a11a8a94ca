"""PosGen's cells become records: trains what has no weights yet, all seeds of a stack together, then evaluates.

A stack that fails (out of memory, a bug) becomes failed records with their reason, and the others go on; a seed that
diverges fails alone. How trainings are stored and gone on with: see `train_posgen`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple, get_args

import numpy as np
import torch

from longeval.backends.hf import memory
from longeval.errors import LongEvalError, WriteError
from longeval.models.device import device_name
from longeval.request import PosGenRequest, request_from_mapping, requests_from_yaml
from longeval.rope.base import RopeTable
from longeval.run.session import Progress, RunResult, remember_request
from longeval.store.curves import Curves
from longeval.store.folder import Store, TrainingFile
from longeval.store.provenance import running_commit
from longeval.store.records import Record
from longeval.studies.posgen.cells import Evaluation, Stack
from longeval.studies.posgen.data import DataSetting, PosGenData, generate
from longeval.studies.posgen.estimate import Work, costs, pass_costs
from longeval.studies.posgen.evaluate import Evaluation as SeedEvaluation
from longeval.studies.posgen.evaluate import TokenArray, evaluate
from longeval.studies.posgen.outcome import Circumstances, posgen_failure, posgen_outcome
from longeval.studies.posgen.plan import PosGenPlan
from longeval.studies.posgen.state import TrainState, ValidLoss, stack
from longeval.studies.posgen.tables import digest
from longeval.studies.posgen.trainer import Trainer, name_seeds, read_state

logger = logging.getLogger(__name__)


def check_settings(specs: Sequence[PosGenRequest], store: Store) -> None:
    """Refuses to put PosGen cells of two settings into one run folder, where nobody could tell them apart.

    Args:
        specs: Requests that are to go into it.
        store: The folder.

    Raises:
        LongEvalError: They differ, from each other or from a request of the folder, in more than tasks, methods,
            regimes and seeds.
    """
    text, origin = store.read_text("spec.yaml"), f"{store.path}/spec.yaml"
    plain = [] if text is None else requests_from_yaml(text, origin=origin)
    there = [request_from_mapping(one, origin=origin) for one in plain if one.get("command") == "posgen"]
    for place, spec in enumerate(specs):
        for other in (*there, *specs[:place]):
            assert isinstance(other, PosGenRequest)
            if found := spec.differences(other):
                raise LongEvalError(
                    f"--out {store.path}: is a run folder of other settings ({'; '.join(found)})",
                    "Choose another --out, or the settings that are there.",
                )


class Pending(NamedTuple):
    """A plan held against a store."""

    stored: dict[str, tuple[Record, ...]]
    """Records of the cells that are done, by cell id."""
    work: list[Work]
    """What is left to do, stack by stack."""


def pending(plan: PosGenPlan, store: Store, *, fresh: bool = False) -> Pending:
    """What of a plan is stored already, and what is left to do; `fresh`: everything is left."""
    stored = {} if fresh else {cell.id: found for cell in plan.cells if (found := store.finished(cell.id)) is not None}
    work = [_left(one, set(stored), store, fresh=fresh) for one in plan.stacks]
    return Pending(stored, [one for one in work if one.stack.evaluations])


def _left(whole: Stack, stored: set[str], store: Store, *, fresh: bool) -> Work:
    """What is left of a stack: its missing cells, the trainings they need, and how far each of these is."""
    left = whole.only({cell.id for cell in whole.cells} - stored)
    done: dict[str, int | None] = {}
    for training in left.trainings:
        if not fresh and store.has_training("weights", training.id):
            done[training.id] = None
        else:
            state = None if fresh else read_state(store, "checkpoints", training)
            done[training.id] = 0 if state is None else state.epoch
    return Work(stack=left, epochs_done=done)


def run_posgen(
    plan: PosGenPlan, store: Store, progress: Progress, *, fresh: bool = False, under_way: bool = False
) -> RunResult:
    """Runs what is missing and returns all records of the plan.

    Args:
        plan: What to compute.
        store: Where records are and go; the request is written beside them before the first.
        progress: Told about every step, validation, evaluation and cell.
        fresh: Train and compute again what is stored.
        under_way: Whether results of the same invocation exist already, so that nothing may end it any more.

    Raises:
        LongEvalError: A precision that the device doesn't have, and nothing has been computed or found yet.
    """
    running_commit()  # now, not at the first record: the code that runs is the code of this moment
    stored, work = pending(plan, store, fresh=fresh)
    if work:
        store.check_writable()
    progress.begin([cost for one in work for cost in costs(plan, one)])
    runner = _Runner(plan=plan, store=store, progress=progress, fresh=fresh, under_way=under_way or bool(stored))
    for one in work:
        runner.turn(one)
    runner.begin_writing()
    records = [record for cell in plan.cells for record in stored.get(cell.id) or runner.records[cell.id]]
    return RunResult(records=tuple(records), computed=len(runner.records), reused=len(stored))


@dataclass(kw_only=True, slots=True)
class _Runner:
    """Runs what is left of a plan."""

    plan: PosGenPlan
    store: Store
    progress: Progress
    fresh: bool
    under_way: bool
    records: dict[str, tuple[Record, ...]] = field(default_factory=dict)
    """Of the cells computed now, by cell id."""
    remembered: bool = False
    noted: set[str] = field(default_factory=set)
    """Evaluations of which it was said already that their losses by epoch are not known."""
    data: dict[DataSetting, PosGenData] = field(default_factory=dict)
    """Of the task that is under way."""

    @property
    def trainer(self) -> Trainer:
        """What gives the weights."""
        return Trainer(
            plan=self.plan, store=self.store, progress=self.progress, fresh=self.fresh, before_write=self.begin_writing
        )

    def turn(self, work: Work) -> None:
        """Trains and evaluates a stack, or keeps the reason why that failed."""
        with _current(self.plan.device):
            self.carry_out(work)

    def carry_out(self, work: Work) -> None:
        """See `turn`; the device is torch's current one."""
        _reset_peak(self.plan.device)
        try:
            self.data = {one: data for one, data in self.data.items() if one.task == work.stack.task}
            for training in work.stack.trainings:
                if training.data not in self.data:
                    self.data[training.data] = generate(training.data)
            started = time.perf_counter()
            states = self.trainer.states(work, self.data)
            trained_s = time.perf_counter() - started
            whole = self.without_diverged(work.stack, states)
            for same in whole.alike():
                self.evaluation(same, whole, states, trained_s)
        except LongEvalError as error:
            if not self.under_way or isinstance(error, WriteError):
                raise
            self.fail(work.stack, str(error))
        except (torch.OutOfMemoryError, MemoryError) as error:
            self.fail(work.stack, _out_of_memory(len(work.stack.trainings), error))
        except Exception as error:
            # A bug: its reason is kept, the others go on.
            logger.debug("%s", error, exc_info=True)
            self.fail(work.stack, f"{type(error).__name__}: {error}")
        # Only here, after the except blocks: the exception holds the tensors.
        if self.plan.device.startswith("cuda"):
            torch.cuda.empty_cache()

    def without_diverged(self, whole: Stack, states: Mapping[int, TrainState]) -> Stack:
        """The stack without seeds that diverged, whose cells have failed."""
        failures = {seed: state.failure() for seed, state in states.items()}
        for cell in whole.cells:
            if (reason := failures[cell.training.seed]) is not None:
                reason += "; no weights of it are kept; a lower --lr or a longer --warmup may help"
                self.keep([posgen_failure(cell, self.plan.spec, reason, device_name(self.plan.device))], None)
        return whole.only({cell.id for cell in whole.cells if failures[cell.training.seed] is None})

    def evaluation(
        self, same: Sequence[Evaluation], whole: Stack, states: Mapping[int, TrainState], trained_s: float
    ) -> None:
        """The cells of one method, in one regime or in both, which are alike where nothing is swapped."""
        started = time.perf_counter()
        plan, spec, first = self.plan, self.plan.spec, same[0]
        held = stack([states[seed] for seed in first.seeds])
        data = [self.data[cell.training.data] for cell in first.cells]
        what = f"{first.pe.canonical} {', '.join(one.regime for one in same)} on {whole.task}"
        self.progress.stage(f"{what} · {name_seeds(first.seeds)}", 1, "evaluation")
        results = self.evaluate(held, [one.test_NT for one in data], first.table)
        losses = self.valid_losses(first, held, data)
        tokens = len(data) * spec.num_test * spec.test_length
        self.progress.advance(tokens, pass_costs(plan, len(data), 1).evaluation, what)
        circumstances = Circumstances(
            elapsed_s=trained_s + time.perf_counter() - started,
            peak_memory_bytes=_peak(plan.device),
            rope_digest=digest(first.table, spec.test_length),
            device=device_name(plan.device),
        )
        for evaluation in same:
            for cell, result, history, valid in zip(evaluation.cells, results, held.history, losses, strict=True):
                self.keep(*posgen_outcome(cell, spec, result, history, valid, circumstances))

    def evaluate(
        self, held: TrainState, sequences: Sequence[TokenArray], table: RopeTable, *, generate: bool = True
    ) -> list[SeedEvaluation]:
        """Every seed's model on its own sequences."""
        return evaluate(
            self.plan.config,
            held.weights,
            np.stack(sequences),
            table,
            first=self.plan.spec.j + self.plan.spec.k,
            device=self.plan.device,
            precision=self.plan.spec.precision,
            generate=generate,
        )

    def valid_losses(
        self, evaluation: Evaluation, held: TrainState, data: Sequence[PosGenData]
    ) -> list[tuple[ValidLoss, ...]]:
        """Losses by epoch with a table, by seed; a training that didn't know the table then has that of its end."""
        curves = [history.curve(evaluation.name) for history in held.history]
        if all(curve and curve[-1].epoch == held.epoch for curve in curves):
            return curves
        if held.epoch > 1 and evaluation.name not in self.noted:
            self.noted.add(evaluation.name)
            logger.info(
                "%s: its loss by epoch is that of the last one only: the weights were trained without this table "
                "(--regime trained,swapped in one request validates with both)",
                evaluation.name,
            )
        results = self.evaluate(held, [one.valid_NT for one in data], evaluation.table, generate=False)
        ends = [
            ValidLoss(
                epoch=held.epoch,
                table=evaluation.name,
                in_distribution=result.in_distribution(result.loss_P, self.plan.spec.length),
                ood=result.ood(result.loss_P, self.plan.spec.length),
            )
            for result in results
        ]
        return [
            (*(loss for loss in curve if loss.epoch < held.epoch), end) for curve, end in zip(curves, ends, strict=True)
        ]

    def fail(self, whole: Stack, reason: str) -> None:
        """Failed records for the cells of a stack that have none yet."""
        for cell in whole.cells:
            if cell.id not in self.records:
                self.keep([posgen_failure(cell, self.plan.spec, reason, device_name(self.plan.device))], None)

    def keep(self, records: Sequence[Record], curves: Curves | None) -> None:
        """Stores a cell."""
        self.begin_writing()
        self.store.save(records, curves)
        self.records[records[0].cell] = tuple(records)
        self.progress.finished(next(record for record in records if record.metric == "accuracy_ood"))

    def begin_writing(self) -> None:
        """Before the first file of this run: the request goes into the run folder, and old weights out of it.

        What an earlier run left of a fresh start's trainings goes all at once, so that whoever goes on with a killed
        one without --fresh finds its own weights and checkpoints alone.
        """
        self.under_way = True
        if not self.remembered or not self.store.is_run_folder():  # the second: someone removed it
            remember_request(self.store, self.plan.spec, self.plan.planned())
        if not self.remembered:
            self.remembered = True
            for training in self.plan.trainings if self.fresh else ():
                for kind in get_args(TrainingFile):
                    self.store.remove_training(kind, training.id)


def _out_of_memory(seeds: int, error: BaseException) -> str:
    """Why a stack failed, and what would help."""
    if seeds == 1:
        return f"out of memory: {error}"
    return f"out of memory with {seeds} seeds at once (--no-stack trains them one after another): {error}"


def _current(device: str) -> AbstractContextManager[object]:
    """Makes a GPU torch's current one, whose streams and graphs are meant where no device is named."""
    return torch.cuda.device(device) if device.startswith("cuda") else nullcontext()


def _reset_peak(device: str) -> None:
    """Starts to measure the peak of memory anew."""
    if device.startswith("cuda"):
        # The reset doesn't do it, and fails where nothing else has so far.
        torch.cuda.init()  # type: ignore[no-untyped-call]  # torch's
        torch.cuda.reset_peak_memory_stats(device)
    else:
        memory.reset_peak()


def _peak(device: str) -> int | None:
    """Peak of the device's allocator, or of the process on a CPU, since the last reset."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    return memory.peak_bytes() if device == "cpu" else None
