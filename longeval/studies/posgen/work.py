"""The work of PosGen: trains what has no weights yet, all seeds of a stack together, evaluates, and makes records.

A seed that diverges fails alone. How trainings are stored and gone on with: see `trainer.py`.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import torch

from longeval.backends.base import BackendError, OutOfMemoryError
from longeval.backends.hf import memory
from longeval.errors import LongEvalError, WriteError
from longeval.metrics import derived
from longeval.models.device import device_name
from longeval.rope.base import RopeTable
from longeval.run.host import Host
from longeval.run.study import Outcome, failed
from longeval.store.curves import CURVES, Curves
from longeval.store.folder import Store, TrainingFile
from longeval.store.records import provenance
from longeval.studies.posgen.cells import Evaluation, Experiment, PosGenCell, Stack, Training
from longeval.studies.posgen.data import DataSetting, PosGenData, generate
from longeval.studies.posgen.estimate import costs, pass_costs, validates
from longeval.studies.posgen.evaluate import SeedEvaluation, TokenArray, evaluate
from longeval.studies.posgen.model import digest
from longeval.studies.posgen.state import History, TrainState, ValidLoss, from_bytes, initial_state, stack, to_bytes
from longeval.studies.posgen.train import Watch, steps_per_epoch, train

# Weights of PosGen's trainings: read where they are stored, else trained, all seeds of a stack together.
#
# While a training is under way its state is stored every minute or so, at the end of an epoch; a killed run loses what
# came after that. Finished weights are kept, so that another method or regime that is made from them needs no training.
# Those of a training that diverged are not: nothing can be made from them, and the next run is to train anew.

logger = logging.getLogger(__name__)

CHECKPOINT_EVERY_S = 60.0
"""Seconds of training between checkpoints, at least; they are written between epochs."""


def read_state(store: Store, kind: TrainingFile, training: Training) -> TrainState | None:
    """A training's stored state; None if there is none, or none that can be read (said in a log line)."""
    content = store.training(kind, training.id)
    if content is None:
        return None
    try:
        return from_bytes(content)
    except ValueError as error:
        logger.warning("%s/%s/%s.npz: %s; it is made again", store.path, kind, training.id, error)
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Trainer:
    """Gives the weights of stacks."""

    experiment: Experiment
    host: Host
    """Where weights and checkpoints are stored; where it starts afresh, those that are there are passed over."""

    def states(self, whole: Stack, data: Mapping[DataSetting, PosGenData]) -> dict[int, TrainState]:
        """The last state of every seed of a stack, on the CPU: stored, or trained now and then stored.

        One that diverged (`TrainState.failure`) is returned too, and leaves no file.

        Args:
            whole: The stack.
            data: Of all its trainings.
        """
        found: dict[int, TrainState] = {}
        for training in whole.trainings:
            state = self.stored("weights", training)
            if state is not None:
                found[training.seed] = state
        missing = {training.seed: training for training in whole.trainings if training.seed not in found}
        if missing:
            for trained in self.train(whole, missing, data):
                for index, seed in enumerate(trained.seeds):
                    content = to_bytes(trained, index, moments=False)
                    found[seed] = from_bytes(content)
                    if found[seed].failure() is None:
                        self.save("weights", missing[seed], content)
                    self.host.store.remove_training("checkpoints", missing[seed].id)
        return found

    def train(
        self, whole: Stack, trainings: Mapping[int, Training], data: Mapping[DataSetting, PosGenData]
    ) -> list[TrainState]:
        """Trains several seeds together; those that are behind (a kill may come between their files) catch up first.

        Args:
            whole: Table, and what to validate with.
            trainings: By seed.
            data: Of all of them.

        Returns:
            The state of those that came to the end, and before it those of seeds that diverged while catching up.
        """
        states = sorted((self.begun(training) for training in trainings.values()), key=lambda state: state.epoch)
        groups = [stack(list(group)) for _, group in groupby(states, key=lambda state: state.epoch)]
        ended: list[TrainState] = []
        while groups:
            behind, until = groups.pop(0), groups[0].epoch if groups else self.experiment.request.epochs
            watch = _Watch(self, [trainings[seed] for seed in behind.seeds], len(whole.tables))
            seeds, epochs = name_seeds(behind.seeds), f"epochs {behind.epoch + 1} … {until}"
            self.host.progress.stage(
                f"{whole.title} · {seeds}, {epochs}", watch.num_passes(behind.epoch, until), "step"
            )
            state = train(
                self.experiment.config,
                self.experiment.setting,
                [data[trainings[seed].data] for seed in behind.seeds],
                behind.seeds,
                whole.table,
                device=self.experiment.device,
                valid_tables=whole.tables,
                state=behind,
                watch=watch,
                until=until,
            )
            if not groups or state.epoch < until:  # before its time: all of them diverged
                ended.append(state)
            else:
                groups[0] = stack([state, groups[0]])
        return ended

    def stored(self, kind: TrainingFile, training: Training) -> TrainState | None:
        """A training's stored state, unless all is to be made afresh."""
        return None if self.host.fresh else read_state(self.host.store, kind, training)

    def epochs_done(self, trainings: Sequence[Training]) -> dict[str, int | None]:
        """Training id → epochs done; None where its weights are there."""
        done: dict[str, int | None] = {}
        for training in trainings:
            if not self.host.fresh and self.host.store.has_training("weights", training.id):
                done[training.id] = None
            else:
                state = self.stored("checkpoints", training)
                done[training.id] = 0 if state is None else state.epoch
        return done

    def begun(self, training: Training) -> TrainState:
        """Where a training stands."""
        state = self.stored("checkpoints", training)
        return initial_state(self.experiment.config, (training.seed,), "cpu") if state is None else state

    def save(self, kind: TrainingFile, training: Training, content: bytes) -> None:
        """Stores a training's file."""
        self.host.before_write()
        self.host.store.save_training(kind, training.id, content)


class _Watch(Watch):
    """Tells a run's progress of a training's steps, and stores its state from time to time.

    Args:
        trainer: Whose training it is.
        trainings: What is trained, in the order of the stack.
        tables: How many tables it is validated with.
    """

    def __init__(self, trainer: Trainer, trainings: Sequence[Training], tables: int) -> None:
        self._trainer, self._trainings = trainer, trainings
        request = trainer.experiment.request
        self._costs = pass_costs(trainer.experiment, len(trainings), tables)
        self._steps = steps_per_epoch(request.num_train, request.batch_size)
        self._step_tokens = len(trainings) * request.num_train * request.length // self._steps
        self._valid_tokens = len(trainings) * tables * request.num_valid * request.test_length
        self._saved = time.monotonic()

    def num_passes(self, first: int, until: int) -> int:
        """Steps and validations from one epoch to another."""
        epochs = range(first + 1, until + 1)
        return self._steps * len(epochs) + sum(validates(self._trainer.experiment.request, epoch) for epoch in epochs)

    def step(self) -> None:
        """See `Watch`."""
        self._trainer.host.progress.advance(self._step_tokens, self._costs.step, "step")

    def epoch(self, state: TrainState) -> None:
        """See `Watch`."""
        losses = ", ".join(f"{history.train_loss[-1]:.4f}" for history in state.history)
        logger.debug("epoch %d of %d: loss %s", state.epoch, self._trainer.experiment.request.epochs, losses)
        if validates(self._trainer.experiment.request, state.epoch):
            self._trainer.host.progress.advance(self._valid_tokens, self._costs.validation, "validation")

    def checkpoint(self, state: TrainState) -> None:
        """See `Watch`; comes after every epoch, and heeds one a minute."""
        if time.monotonic() - self._saved < CHECKPOINT_EVERY_S:
            return
        for index, training in enumerate(self._trainings):
            self._trainer.save("checkpoints", training, to_bytes(state, index))
        self._saved = time.monotonic()


def name_seeds(seeds: Sequence[int]) -> str:
    """`seed 3`, `5 seeds`."""
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds"


logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Kept:
    """What is kept from one stack to the next."""

    data: dict[DataSetting, PosGenData] = field(default_factory=dict)
    """Of the task that is under way."""
    noted: set[str] = field(default_factory=set)
    """Evaluations of which it was said already that their losses by epoch are not known."""

    def data_of(self, whole: Stack) -> dict[DataSetting, PosGenData]:
        """The data of a stack's trainings."""
        self.data = {one: data for one, data in self.data.items() if one.task == whole.task}
        for training in whole.trainings:
            if training.data not in self.data:
                self.data[training.data] = generate(training.data)
        return self.data


@dataclass(frozen=True, kw_only=True, slots=True)
class PosGenWork:
    """A stack: trainings that differ in their seed alone, and all cells that are made from them."""

    experiment: Experiment
    stack: Stack

    @property
    def cells(self) -> tuple[PosGenCell, ...]:
        """See `Work`."""
        return tuple(self.stack.cells)

    def costs(self, host: Host) -> Sequence[float]:
        """See `Work`."""
        trainer = Trainer(experiment=self.experiment, host=host)
        return list(costs(self.experiment, self.stack, trainer.epochs_done(self.stack.trainings)))

    def without(self, ids: Container[str]) -> PosGenWork | None:
        """See `Work`."""
        left = self.stack.only({cell.id for cell in self.cells if cell.id not in ids})
        return dataclasses.replace(self, stack=left) if left.evaluations else None

    def smaller(self) -> None:
        """See `Work`: --no-stack is for the user to choose, since it takes longer."""

    def no_memory(self, reason: str) -> str:
        """See `Work`."""
        seeds = len(self.stack.trainings)
        if seeds == 1:
            return f"out of memory: {reason}"
        return f"out of memory with {seeds} seeds at once (--no-stack trains them one after another): {reason}"

    def run(self, host: Host) -> Iterator[Outcome]:
        """Trains and evaluates."""
        device = self.experiment.device
        with _current(device), _backend_errors():
            host.device = device_name(device)
            _reset_peak(device)
            data = host.kept(_Kept).data_of(self.stack)
            started = time.perf_counter()
            states = Trainer(experiment=self.experiment, host=host).states(self.stack, data)
            trained_s = time.perf_counter() - started
            failures = {seed: state.failure() for seed, state in states.items()}
            for cell in self.cells:
                if (reason := failures[cell.training.seed]) is not None:
                    reason += "; no weights of it are kept; a lower --lr or a longer --warmup may help"
                    yield failed(cell, reason, host.device)
            whole = self.stack.only({cell.id for cell in self.cells if failures[cell.training.seed] is None})
            for same in whole.alike():
                yield from self.evaluation(host, same, states, data, trained_s)

    def evaluation(
        self,
        host: Host,
        same: Sequence[Evaluation],
        states: Mapping[int, TrainState],
        every_data: Mapping[DataSetting, PosGenData],
        trained_s: float,
    ) -> Iterator[Outcome]:
        """The cells of one method, in one regime or in both, which are alike where nothing is swapped."""
        started = time.perf_counter()
        request, first = self.experiment.request, same[0]
        held = stack([states[seed] for seed in first.seeds])
        data = [every_data[cell.training.data] for cell in first.cells]
        what = f"{first.pe.canonical} {', '.join(one.regime for one in same)} on {self.stack.task}"
        host.progress.stage(f"{what} · {name_seeds(first.seeds)}", 1, "evaluation")
        results = self.evaluate(held, [one.test_NT for one in data], first.table)
        losses = self.valid_losses(host, first, held, data)
        tokens = len(data) * request.num_test * request.test_length
        host.progress.advance(tokens, pass_costs(self.experiment, len(data), 1).evaluation, what)
        circumstances = Circumstances(
            elapsed_s=trained_s + time.perf_counter() - started,
            peak_memory_bytes=_peak(self.experiment.device),
            rope_digest=digest(first.table, request.test_length),
            device=host.device,
        )
        for evaluation in same:
            for cell, result, history, valid in zip(evaluation.cells, results, held.history, losses, strict=True):
                yield posgen_outcome(cell, result, history, valid, circumstances)

    def evaluate(
        self, held: TrainState, sequences: Sequence[TokenArray], table: RopeTable, *, generate: bool = True
    ) -> list[SeedEvaluation]:
        """Every seed's model on its own sequences."""
        return evaluate(
            self.experiment.config,
            held.weights,
            np.stack(sequences),
            table,
            first=self.experiment.request.j + self.experiment.request.k,
            device=self.experiment.device,
            precision=self.experiment.request.precision,
            generate=generate,
        )

    def valid_losses(
        self, host: Host, evaluation: Evaluation, held: TrainState, data: Sequence[PosGenData]
    ) -> list[tuple[ValidLoss, ...]]:
        """Losses by epoch with a table, by seed; a training that didn't know the table then has that of its end."""
        curves = [history.curve(evaluation.name) for history in held.history]
        if all(curve and curve[-1].epoch == held.epoch for curve in curves):
            return curves
        noted = host.kept(_Kept).noted
        if held.epoch > 1 and evaluation.name not in noted:
            noted.add(evaluation.name)
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
                in_distribution=result.in_distribution(result.loss_P, self.experiment.request.length),
                ood=result.ood(result.loss_P, self.experiment.request.length),
            )
            for result in results
        ]
        return [
            (*(loss for loss in curve if loss.epoch < held.epoch), end) for curve, end in zip(curves, ends, strict=True)
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Circumstances:
    """How the passes of a cell went."""

    elapsed_s: float
    """Wall time of this run's part of the training and of the evaluation, each of all seeds that shared it."""
    peak_memory_bytes: int | None
    rope_digest: str
    """Of the table that was on in evaluation."""
    device: str
    """As records name it."""


def posgen_outcome(
    cell: PosGenCell,
    evaluation: SeedEvaluation,
    history: History,
    valid: tuple[ValidLoss, ...],
    circumstances: Circumstances,
) -> Outcome:
    """Records and curves of one cell; a loss that is not finite makes it a failed one.

    Args:
        cell: The cell.
        evaluation: Of its seed, generation included.
        history: Of its training, which didn't diverge.
        valid: Its validation losses by epoch.
        circumstances: For the records.
    """
    if (reason := _not_finite(evaluation)) is not None:
        return failed(cell, reason, circumstances.device)
    assert evaluation.generated_P is not None
    curves = Curves(
        positions=tuple(evaluation.positions_P.tolist()),
        accuracy=tuple(evaluation.accuracy_P.tolist()),
        loss=tuple(evaluation.loss_P.tolist()),
        generated=tuple(evaluation.generated_P.tolist()),
        epochs=tuple(loss.epoch for loss in valid),
        valid_loss_in_distribution=tuple(loss.in_distribution for loss in valid),
        valid_loss_ood=tuple(loss.ood for loss in valid),
    )
    common = cell.fields() | {
        "params": cell.params | {"stacked": history.stacked},
        "n": evaluation.num_sequences,
        "status": "ok",
        "elapsed_s": round(circumstances.elapsed_s, 3),
        "peak_memory_bytes": circumstances.peak_memory_bytes,
        "rope_digest": circumstances.rope_digest,
        "provenance": provenance(circumstances.device),
    }
    values = derived(CURVES, curves, None, cell.params)
    return Outcome(records=tuple(value.record(metric.name, common) for metric, value in values), found=curves)


def _not_finite(evaluation: SeedEvaluation) -> str | None:
    """Why a model's accuracies mean nothing, or None."""
    bad = np.flatnonzero(~np.isfinite(evaluation.loss_P))
    if len(bad):
        return f"the loss is {evaluation.loss_P[bad[0]]} at position {evaluation.positions_P[bad[0]]} of the test"
    return None


@contextmanager
def _backend_errors() -> Iterator[None]:
    """Says in the engine's words that memory ran out, or that the device can't do what was asked."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(str(error)) from error
    except (WriteError, BackendError):
        raise
    except LongEvalError as error:
        raise BackendError(error.problem, error.remedy) from error


def _current(device: str) -> AbstractContextManager[object]:
    """Makes a GPU torch's current one, whose streams and graphs are meant where no device is named."""
    return torch.cuda.device(device) if device.startswith("cuda") else nullcontext()


def _reset_peak(device: str) -> None:
    """Gives back what earlier work held, and starts to measure the peak of memory anew."""
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
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
