"""Weights of PosGen's trainings: read where they are stored, else trained, all seeds of a stack together.

While a training is under way its state is stored every minute or so, at the end of an epoch; a killed run loses what
came after that. Finished weights are kept, so that another method or regime that is made from them needs no training.
Those of a training that diverged are not: nothing can be made from them, and the next run is to train anew.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from longeval.run.host import Host
from longeval.store.folder import Store, TrainingFile
from longeval.studies.posgen.cells import Experiment, Stack, Training
from longeval.studies.posgen.data import DataSetting, PosGenData
from longeval.studies.posgen.estimate import pass_costs, validates
from longeval.studies.posgen.state import TrainState, from_bytes, initial_state, stack, to_bytes
from longeval.studies.posgen.train import Watch, steps_per_epoch, train

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
