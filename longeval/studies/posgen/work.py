"""The work of PosGen: trains the missing weights of a stack, evaluates them, and makes records.

A stack is a set of trainings that differ only in their seed, with all their cells. It trains as one model with a
leading axis of seeds. If seeds train one after another, each stack has one seed. A seed that diverges fails alone.

During a training its state is stored about every minute, at the end of an epoch; a killed run loses only the training
after that. Finished weights are stored, so that further methods or regimes with the same training need no new one. The
weights of a diverged training are not stored; the next run trains them again.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch

from longeval.backends.base import OutOfMemoryError
from longeval.backends.hf import memory
from longeval.metrics import derived
from longeval.models.device import device_name
from longeval.rope.base import RopeTable
from longeval.run.host import Host
from longeval.run.study import Outcome, failed
from longeval.store.curves import CURVES, Curves
from longeval.store.folder import TrainingFile
from longeval.store.records import provenance
from longeval.studies.posgen.cells import Evaluation, Experiment, PosGenCell, Training
from longeval.studies.posgen.data import DataSetting, PosGenData, generate
from longeval.studies.posgen.estimate import Phase, pass_costs, phase_costs, phases
from longeval.studies.posgen.evaluate import SeedEvaluation, TokenArray, evaluate
from longeval.studies.posgen.model import digest
from longeval.studies.posgen.state import History, TrainState, ValidLoss, from_bytes, initial_state, stack, to_bytes
from longeval.studies.posgen.train import steps_per_epoch, train

CHECKPOINT_EVERY_S = 60.0
"""Minimum number of seconds between checkpoints, which are written between epochs."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class PosGenWork:
    """A stack: trainings that differ only in their seed, and all their cells."""

    experiment: Experiment
    task: str
    table: RopeTable
    """The table in training."""
    trainings: tuple[Training, ...]
    """One training for each seed."""
    evaluations: tuple[Evaluation, ...]

    @property
    def cells(self) -> tuple[PosGenCell, ...]:
        """See `Work`."""
        return tuple(cell for evaluation in self.evaluations for cell in evaluation.cells)

    @property
    def tables(self) -> dict[str, RopeTable]:
        """The tables for validation, by name."""
        return {evaluation.name: evaluation.table for evaluation in self.evaluations}

    @property
    def trained_with(self) -> tuple[str, ...]:
        """Names of the methods that have this table in training."""
        return tuple(dict.fromkeys(cell.params["trained_with"] for cell in self.cells))

    def without(self, ids: Container[str]) -> PosGenWork | None:
        """See `Work`. Trainings without remaining cells are left out too."""
        evaluations = []
        for one in self.evaluations:
            cells = tuple(cell for cell in one.cells if cell.id not in ids)
            if cells:
                evaluations.append(dataclasses.replace(one, cells=cells))
        needed = {cell.training.id for one in evaluations for cell in one.cells}
        trainings = tuple(training for training in self.trainings if training.id in needed)
        left = dataclasses.replace(self, trainings=trainings, evaluations=tuple(evaluations))
        return left if evaluations else None

    def by_seed(self) -> Iterator[PosGenWork]:
        """Yields one stack for each seed."""
        for training in self.trainings:
            alone = self.without({cell.id for cell in self.cells if cell.training.id != training.id})
            assert alone is not None
            yield alone

    def smaller(self) -> None:
        """See `Work`. There is no smaller work: the user must choose --no-stack, because it takes longer."""

    def no_memory(self, reason: str) -> str:
        """See `Work`."""
        seeds = len(self.trainings)
        if seeds == 1:
            return f"out of memory: {reason}"
        return f"out of memory with {seeds} seeds at once (--no-stack trains them one after another): {reason}"

    def epochs_to_go_on(self, host: Host) -> list[int]:
        """Finished epochs of each training whose weights aren't stored yet."""
        trainer = _Trainer(work=self, host=host)
        under_way = [
            training for training in self.trainings if host.fresh or not host.store.has_training("weights", training.id)
        ]
        return [trainer.begun(training).epoch for training in under_way]

    def costs(self, host: Host) -> Sequence[float]:
        """See `Work`. The passes are steps and validations of every phase, then evaluations."""
        under_way, tables = self.epochs_to_go_on(host), len(self.tables)
        found: list[float] = []
        for phase in phases(under_way, self.experiment.request.epochs) if under_way else ():
            found += phase_costs(self.experiment, phase, tables)
        groups = self._equal_evaluations()
        return found + [pass_costs(self.experiment, len(same[0].cells), tables).evaluation for same in groups]

    def _equal_evaluations(self) -> list[list[Evaluation]]:
        """Groups of evaluations that differ only in the regime's name, so that one computation serves both."""
        groups: dict[tuple[str, tuple[int, ...]], list[Evaluation]] = {}
        for evaluation in self.evaluations:
            groups.setdefault((evaluation.name, evaluation.seeds), []).append(evaluation)
        return list(groups.values())

    def run(self, host: Host) -> Iterator[Outcome]:
        """Trains and evaluates."""
        device = self.experiment.device
        # Makes the GPU torch's current device, because streams and graphs use that one.
        with torch.cuda.device(device) if device.startswith("cuda") else nullcontext():
            try:
                yield from self._outcomes(host)
            except torch.OutOfMemoryError as error:
                raise OutOfMemoryError(str(error)) from error

    def _outcomes(self, host: Host) -> Iterator[Outcome]:
        """Yields the outcomes of cells whose training diverged, then those of the others as they are evaluated."""
        host.device = device_name(self.experiment.device)
        _reset_peak(self.experiment.device)
        data = {setting: generate(setting) for setting in {training.data for training in self.trainings}}
        started = time.perf_counter()
        states = _Trainer(work=self, host=host).states(data)
        trained_s = time.perf_counter() - started
        failures = {seed: state.failure() for seed, state in states.items()}
        lost = [cell for cell in self.cells if failures[cell.training.seed] is not None]
        for cell in lost:
            remedy = "its weights are not stored; a lower --lr or a longer --warmup may help"
            yield failed(cell, f"{failures[cell.training.seed]}; {remedy}", host.device)
        left = self.without({cell.id for cell in lost})
        for same in left._equal_evaluations() if left is not None else ():
            yield from self._evaluated(host, same, states, data, trained_s)

    def _evaluated(
        self,
        host: Host,
        same: Sequence[Evaluation],
        states: Mapping[int, TrainState],
        every_data: Mapping[DataSetting, PosGenData],
        trained_s: float,
    ) -> Iterator[Outcome]:
        """Yields the outcomes of one method, in one regime or in both.

        The elapsed time of a cell is that of the training in this run and of the evaluation, for all seeds that share
        them.
        """
        started = time.perf_counter()
        request, first = self.experiment.request, same[0]
        state = stack([states[seed] for seed in first.seeds])
        data = [every_data[cell.training.data] for cell in first.cells]
        what = f"{first.pe.canonical} {', '.join(one.regime for one in same)} on {self.task}"
        host.progress.stage(f"{what} · {_seeds(first.seeds)}", 1, "evaluation")
        results = self._evaluate(state, [one.test_NT for one in data], first.table)
        losses = self._valid_losses(host, first, state, data)
        tokens = len(data) * request.num_test * request.test_length
        host.progress.advance(tokens, pass_costs(self.experiment, len(data), 1).evaluation, what)
        measured = {
            "elapsed_s": round(trained_s + time.perf_counter() - started, 3),
            "peak_memory_bytes": _peak(self.experiment.device),
            "rope_digest": digest(first.table, request.test_length),
        }
        for evaluation in same:
            for cell, result, history, valid in zip(evaluation.cells, results, state.history, losses, strict=True):
                yield _outcome(cell, result, history, valid, host.device, measured)

    def _evaluate(
        self, state: TrainState, sequences: Sequence[TokenArray], table: RopeTable, *, generate: bool = True
    ) -> list[SeedEvaluation]:
        """Evaluates every seed's model on its own sequences."""
        request = self.experiment.request
        return evaluate(
            self.experiment.config,
            state.weights,
            np.stack(sequences),
            table,
            first=request.j + request.k,
            device=self.experiment.device,
            precision=request.precision,
            generate=generate,
        )

    def _valid_losses(
        self, host: Host, evaluation: Evaluation, state: TrainState, data: Sequence[PosGenData]
    ) -> list[tuple[ValidLoss, ...]]:
        """Validation losses by epoch with an evaluation's table, for each seed.

        If the table was not validated during the training, there is only the loss after the last epoch.
        """
        curves = [history.curve(evaluation.name) for history in state.history]
        if all(curve and curve[-1].epoch == state.epoch for curve in curves):
            return curves
        noted = host.kept(_Noted)
        if state.epoch > 1 and evaluation.name not in noted:
            noted.add(evaluation.name)
            logger.info(
                "%s: validation loss of the last epoch only, because the weights were trained without this table "
                "(--regime trained,swapped in one request validates with both)",
                evaluation.name,
            )
        results = self._evaluate(state, [one.valid_NT for one in data], evaluation.table, generate=False)
        length = self.experiment.request.length
        ends = [result.valid_loss(state.epoch, evaluation.name, length) for result in results]
        return [
            (*(loss for loss in curve if loss.epoch < state.epoch), end)
            for curve, end in zip(curves, ends, strict=True)
        ]


class _Noted(set[str]):
    """Names of the evaluations for which a run has logged that their losses by epoch are unknown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Trainer:
    """Provides the weights of a stack: reads stored ones and trains the others."""

    work: PosGenWork
    host: Host
    """Holds the store of weights and checkpoints; with `fresh`, stored ones are ignored."""

    def states(self, data: Mapping[DataSetting, PosGenData]) -> dict[int, TrainState]:
        """The final state of every seed on the CPU, either read from the store or trained and stored now.

        Diverged states (`TrainState.failure`) are returned too, but not stored.
        """
        found: dict[int, TrainState] = {}
        missing: dict[int, Training] = {}
        for training in self.work.trainings:
            state = self.stored("weights", training)
            if state is None:
                missing[training.seed] = training
            else:
                found[training.seed] = state
        for trained in self.train(missing, data):
            for index, seed in enumerate(trained.seeds):
                content = to_bytes(trained, index, moments=False)
                found[seed] = from_bytes(content)
                if found[seed].failure() is None:
                    self.save("weights", missing[seed], content)
                self.host.store.remove_training("checkpoints", missing[seed].id)
        return found

    def train(self, trainings: Mapping[int, Training], data: Mapping[DataSetting, PosGenData]) -> list[TrainState]:
        """Trains several seeds together; those with fewer finished epochs catch up first.

        They differ if a run was killed between writing their checkpoints.

        Returns:
            States of seeds that diverged while catching up, then the state of all other seeds.
        """
        experiment, work = self.work.experiment, self.work
        states = sorted((self.begun(training) for training in trainings.values()), key=lambda state: state.epoch)
        groups = [stack(list(group)) for _, group in groupby(states, key=lambda state: state.epoch)]
        ended: list[TrainState] = []
        while groups:
            behind, until = groups.pop(0), groups[0].epoch if groups else experiment.request.epochs
            phase = Phase(seeds=len(behind.seeds), first=behind.epoch, until=until)
            num_passes = len(list(phase_costs(experiment, phase, len(work.tables))))
            title = f"{work.task}, trained with {', '.join(work.trained_with)}"
            what = f"{title} · {_seeds(behind.seeds)}, epochs {behind.epoch + 1} … {until}"
            self.host.progress.stage(what, num_passes, "step")
            watch = _Watch(self, [trainings[seed] for seed in behind.seeds])
            state = train(
                experiment.config,
                experiment.request,
                [data[trainings[seed].data] for seed in behind.seeds],
                behind.seeds,
                work.table,
                device=experiment.device,
                valid_tables=work.tables,
                state=behind,
                on_step=watch.step,
                on_epoch=watch.epoch,
                until=until,
            )
            if not groups or state.epoch < until:  # it stops early only if all its seeds diverged
                ended.append(state)
            else:
                groups[0] = stack([state, groups[0]])
        return ended

    def begun(self, training: Training) -> TrainState:
        """The state from which a training starts: its checkpoint, or the initial state."""
        state = self.stored("checkpoints", training)
        return initial_state(self.work.experiment.config, (training.seed,), "cpu") if state is None else state

    def stored(self, kind: TrainingFile, training: Training) -> TrainState | None:
        """A training's stored state; None if there is none, or, with a warning, if it can't be read."""
        content = None if self.host.fresh else self.host.store.training(kind, training.id)
        if content is None:
            return None
        try:
            return from_bytes(content)
        except ValueError as error:
            path = f"{self.host.store.path}/{kind}/{training.id}.npz"
            logger.warning("%s: %s; it is made again", path, error)
            return None

    def save(self, kind: TrainingFile, training: Training, content: bytes) -> None:
        """Stores a training's file."""
        self.host.before_write()
        self.host.store.save_training(kind, training.id, content)


class _Watch:
    """Reports the progress of trainings that run together, and stores their checkpoints."""

    def __init__(self, trainer: _Trainer, trainings: Sequence[Training]) -> None:
        self._trainer, self._trainings = trainer, trainings
        experiment, tables = trainer.work.experiment, len(trainer.work.tables)
        self._request = request = experiment.request
        self._costs = pass_costs(experiment, len(trainings), tables)
        steps = steps_per_epoch(request.num_train, request.batch_size)
        self._step_tokens = len(trainings) * request.num_train * request.length // steps
        self._valid_tokens = len(trainings) * tables * request.num_valid * request.test_length
        self._saved = time.monotonic()

    def step(self) -> None:
        """Called after each step."""
        self._trainer.host.progress.advance(self._step_tokens, self._costs.step, "step")

    def epoch(self, state: TrainState) -> None:
        """Called after each epoch."""
        losses = ", ".join(f"{loss:.4f}" for history in state.history for loss in history.train_loss[-1:])
        logger.debug("epoch %d of %d: loss %s", state.epoch, self._request.epochs, losses)
        if self._request.validates(state.epoch):
            self._trainer.host.progress.advance(self._valid_tokens, self._costs.validation, "validation")
        if state.epoch < self._request.epochs and time.monotonic() - self._saved >= CHECKPOINT_EVERY_S:
            for index, training in enumerate(self._trainings):
                self._trainer.save("checkpoints", training, to_bytes(state, index))
            self._saved = time.monotonic()


def _seeds(seeds: Sequence[int]) -> str:
    """`seed 3` for one seed, or `5 seeds`."""
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds"


def _outcome(
    cell: PosGenCell,
    result: SeedEvaluation,
    history: History,
    valid: tuple[ValidLoss, ...],
    device: str,
    measured: Mapping[str, Any],
) -> Outcome:
    """The outcome of one cell; it is a failed one if a loss is not finite.

    `measured` holds the fields of its records with time, memory and digest.
    """
    bad = np.flatnonzero(~np.isfinite(result.loss_P))
    if len(bad):
        reason = f"the loss is {result.loss_P[bad[0]]} at position {result.positions_P[bad[0]]} of the test"
        return failed(cell, reason, device)
    assert result.generated_P is not None
    curves = Curves(
        positions=tuple(result.positions_P.tolist()),
        accuracy=tuple(result.accuracy_P.tolist()),
        loss=tuple(result.loss_P.tolist()),
        generated=tuple(result.generated_P.tolist()),
        epochs=tuple(loss.epoch for loss in valid),
        valid_loss_in_distribution=tuple(loss.in_distribution for loss in valid),
        valid_loss_ood=tuple(loss.ood for loss in valid),
    )
    common = {
        **cell.fields(),
        **measured,
        "params": cell.params | {"stacked": history.stacked},
        "n": result.num_sequences,
        "status": "ok",
        "provenance": provenance(device),
    }
    values = derived(CURVES, curves, None, cell.params)
    return Outcome(records=tuple(value.record(metric.name, common) for metric, value in values), found=curves)


def _reset_peak(device: str) -> None:
    """Frees cached memory and resets the peak of memory."""
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        # The reset fails if CUDA was not initialised before.
        torch.cuda.init()  # type: ignore[no-untyped-call]  # torch's
        torch.cuda.reset_peak_memory_stats(device)
    else:
        memory.reset_peak()


def _peak(device: str) -> int | None:
    """Peak memory in bytes since the last reset: of the device's allocator, or of the process on a CPU."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    return memory.peak_bytes() if device == "cpu" else None
