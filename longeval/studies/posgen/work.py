"""The work of PosGen: it trains one model, or takes its stored weights, evaluates it, and makes records.

Seeds train one after another, and the cells of a seed are stored before the next seed begins.

While a training is under way its state is stored every minute or so, at the end of an epoch; a killed run loses what
came after that. Finished weights are kept, so that another method or regime that is made from them needs no training.
The weights of a training that diverged are not kept, since no cell can be made from them; the next run trains it anew.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
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
from longeval.studies.posgen.data import PosGenData, generate
from longeval.studies.posgen.estimate import memory_bytes, pass_costs, training_costs
from longeval.studies.posgen.evaluate import ModelEvaluation, TokenArray, evaluate
from longeval.studies.posgen.model import digest
from longeval.studies.posgen.state import TrainState, ValidLoss, from_bytes, initial_state, to_bytes
from longeval.studies.posgen.train import steps_per_epoch, train

CHECKPOINT_EVERY_S = 60.0
"""Minimum number of seconds between checkpoints, which are written between epochs."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class PosGenWork:
    """A training, and all cells that are made from it."""

    experiment: Experiment
    task: str
    table: RopeTable
    """The table while training."""
    training: Training
    evaluations: tuple[Evaluation, ...]

    @property
    def cells(self) -> tuple[PosGenCell, ...]:
        """See `Work`."""
        return tuple(evaluation.cell for evaluation in self.evaluations)

    @property
    def tables(self) -> dict[str, RopeTable]:
        """The tables to validate with, by name; regimes share the table of a method."""
        return {evaluation.name: evaluation.table for evaluation in self.evaluations}

    @property
    def trained_with(self) -> tuple[str, ...]:
        """Names of the methods that have this table in training."""
        return tuple(dict.fromkeys(cell.params["trained_with"] for cell in self.cells))

    def without(self, ids: Container[str]) -> PosGenWork | None:
        """See `Work`."""
        evaluations = tuple(one for one in self.evaluations if one.cell.id not in ids)
        return dataclasses.replace(self, evaluations=evaluations) if evaluations else None

    def smaller(self) -> None:
        """See `Work`; a training can't be divided."""

    def no_memory(self, reason: str) -> str:
        """See `Work`."""
        return f"out of memory: {reason}"

    def memory(self, host: Host) -> int:
        """See `Work`."""
        request = self.experiment.request
        return memory_bytes(self.experiment.config, request.batch_size, request.length)

    def needs_training(self, host: Host) -> bool:
        """Whether its weights aren't stored yet, or are to be made afresh."""
        return host.fresh or not host.store.has_training("weights", self.training.id)

    def costs(self, host: Host) -> Sequence[float]:
        """See `Work`: steps and validations that are left, then evaluations."""
        found: list[float] = []
        if self.needs_training(host):
            epochs_done = _Trainer(self, host).begun().epoch
            found += training_costs(self.experiment, epochs_done, len(self.tables))
        return found + [pass_costs(self.experiment, len(self.tables)).evaluation] * len(self._alike())

    def _alike(self) -> list[list[Evaluation]]:
        """The evaluations in groups that share a table: regimes in which nothing is swapped need one pass."""
        groups: dict[str, list[Evaluation]] = {}
        for evaluation in self.evaluations:
            groups.setdefault(evaluation.name, []).append(evaluation)
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
        """The outcomes of all cells; all fail if the training diverged."""
        host.device = device_name(self.experiment.device)
        _reset_peak(self.experiment.device)
        data = generate(self.training.data)
        started = time.perf_counter()
        state = _Trainer(self, host).state(data)
        trained_s = time.perf_counter() - started
        failure = state.failure()
        if failure is not None:
            remedy = "no weights of it are kept; a lower --lr or a longer --warmup may help"
            for cell in self.cells:
                yield failed(cell, f"{failure}; {remedy}", host.device)
            return
        for same in self._alike():
            yield from self._evaluated(host, same, state, data, trained_s)

    def _evaluated(
        self, host: Host, same: Sequence[Evaluation], state: TrainState, data: PosGenData, trained_s: float
    ) -> Iterator[Outcome]:
        """Yields the outcomes of one method, in one regime or in both.

        Their elapsed time is that of this run's part of the training and of the evaluation.
        """
        started = time.perf_counter()
        request, first = self.experiment.request, same[0]
        what = f"{first.pe.canonical} {', '.join(one.regime for one in same)} on {self.task}"
        host.progress.stage(f"{what} · seed {self.training.seed}", 1, "evaluation")
        result = self._evaluate(state, data.test_NT, first.table)
        valid = self._valid_losses(host, first, state, data)
        cost = pass_costs(self.experiment, len(self.tables)).evaluation
        host.progress.advance(request.num_test * request.test_length, cost, what)
        measured = {
            "elapsed_s": round(trained_s + time.perf_counter() - started, 3),
            "peak_memory_bytes": _peak(self.experiment.device),
            "rope_digest": digest(first.table, request.test_length),
        }
        for evaluation in same:
            yield _outcome(evaluation.cell, result, valid, host.device, measured)

    def _evaluate(
        self, state: TrainState, tokens_NT: TokenArray, table: RopeTable, *, generate: bool = True
    ) -> ModelEvaluation:
        """Evaluates the model on sequences with a table."""
        request = self.experiment.request
        return evaluate(
            self.experiment.config,
            state.weights,
            tokens_NT,
            table,
            first=request.j + request.k,
            device=self.experiment.device,
            precision=request.precision,
            generate=generate,
        )

    def _valid_losses(
        self, host: Host, evaluation: Evaluation, state: TrainState, data: PosGenData
    ) -> tuple[ValidLoss, ...]:
        """Losses by epoch with a table; only that of the end if the training did not validate with it."""
        curve = state.history.curve(evaluation.name)
        if curve and curve[-1].epoch == state.epoch:
            return curve
        noted = host.kept(_Noted)
        if state.epoch > 1 and evaluation.name not in noted:
            noted.add(evaluation.name)
            logger.info(
                "%s: validation loss of the last epoch only, because the weights were trained without this table "
                "(--regime trained,swapped in one request validates with both)",
                evaluation.name,
            )
        result = self._evaluate(state, data.valid_NT, evaluation.table, generate=False)
        end = result.valid_loss(state.epoch, evaluation.name, self.experiment.request.length)
        return (*(loss for loss in curve if loss.epoch < state.epoch), end)


class _Noted(set[str]):
    """Names of the evaluations for which a run has logged that their losses by epoch are unknown."""


class _Trainer:
    """Gives the weights of a work: those that are stored, or new ones by training.

    Weights and checkpoints are stored in the run folder of the host. Where the host starts afresh, stored ones are not
    used.
    """

    def __init__(self, work: PosGenWork, host: Host) -> None:
        self._work, self._host = work, host
        self._experiment, self._request, self._training = work.experiment, work.experiment.request, work.training
        self._costs = pass_costs(work.experiment, len(work.tables))
        self._saved_s = time.monotonic()

    def state(self, data: PosGenData) -> TrainState:
        """The last state of the training, on the CPU: stored, or trained now and then stored.

        Diverged states (`TrainState.failure`) are returned too, but not stored. Other commands may have other cells
        of the same training.
        """
        with self._host.alone(self._training.id):
            state = self._stored("weights")
            if state is not None:
                return state
            content = to_bytes(self._train(data), moments=False)
            state = from_bytes(content)
            if state.failure() is None:
                self._save("weights", content)
            self._host.store.remove_training("checkpoints", self._training.id)
            return state

    def begun(self) -> TrainState:
        """The state to go on from: the checkpoint, or the initial state where there is none."""
        state = self._stored("checkpoints")
        return initial_state(self._experiment.config, self._training.seed, "cpu") if state is None else state

    def _train(self, data: PosGenData) -> TrainState:
        """Trains to the end, and tells the run's progress of it."""
        work, state = self._work, self.begun()
        passes = training_costs(self._experiment, state.epoch, len(work.tables))
        epochs = f"epochs {state.epoch + 1} … {self._request.epochs}"
        title = f"{work.task}, trained with {', '.join(work.trained_with)} · seed {self._training.seed}, {epochs}"
        self._host.progress.stage(title, len(passes), "step")
        return train(
            state,
            self._request,
            data,
            work.table,
            device=self._experiment.device,
            valid_tables=work.tables,
            on_step=self._after_step,
            on_epoch=self._after_epoch,
        )

    def _after_step(self) -> None:
        """Tells progress of a step."""
        request = self._request
        steps = steps_per_epoch(request.num_train, request.batch_size)
        self._host.progress.advance(request.num_train * request.length // steps, self._costs.step, "step")

    def _after_epoch(self, state: TrainState) -> None:
        """Tells progress of the validation after an epoch, and stores a checkpoint if the last is old."""
        request = self._request
        logger.debug("epoch %d of %d: loss %.4f", state.epoch, request.epochs, state.history.train_loss[-1])
        if request.validates(state.epoch):
            tokens = len(self._work.tables) * request.num_valid * request.test_length
            self._host.progress.advance(tokens, self._costs.validation, "validation")
        if state.epoch < request.epochs and time.monotonic() - self._saved_s >= CHECKPOINT_EVERY_S:
            self._save("checkpoints", to_bytes(state))
            self._saved_s = time.monotonic()

    def _stored(self, kind: TrainingFile) -> TrainState | None:
        """The stored state; None if there is none to use, or none that is this training's (a log line says so)."""
        content = None if self._host.fresh else self._host.store.training(kind, self._training.id)
        if content is None:
            return None
        last = self._request.epochs
        try:
            state = from_bytes(content, self._experiment.config)
            if state.seed != self._training.seed or not (last if kind == "weights" else 0) <= state.epoch <= last:
                raise ValueError(f"it is of seed {state.seed} after epoch {state.epoch}")
            if (problem := state.failure()) is not None:
                raise ValueError(problem)
            return state
        except ValueError as error:
            path = f"{self._host.store.path}/{kind}/{self._training.id}.npz"
            logger.warning("%s: %s; it is made again", path, error)
            return None

    def _save(self, kind: TrainingFile, content: bytes) -> None:
        """Stores a file of the training."""
        self._host.before_write()
        self._host.store.save_training(kind, self._training.id, content)


def _outcome(
    cell: PosGenCell,
    result: ModelEvaluation,
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
