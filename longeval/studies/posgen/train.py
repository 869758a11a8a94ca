"""Training of all seeds of one setting together, epoch by epoch, so that it can stop after any and go on exactly.

As Wang et al. 2024 (arXiv 2403.00071, sections 5 and C.1) train: AdamW, a one-cycle schedule with 10% warm-up, batches
of 128, 150 epochs, the first j+k tokens left out of the loss. The order of sequences in an epoch comes from (seed,
epoch) alone, the rates from the step, so a state after an epoch holds all there is to know. The last batch of an epoch
may be smaller than the others.

Shapes: S seeds, N sequences, T tokens, K steps of an epoch, B sequences of a batch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from longeval.errors import LongEvalError
from longeval.rope.base import RopeTable
from longeval.studies.posgen.evaluate import RangeLoss, range_losses
from longeval.studies.posgen.model import ModelConfig, Weights
from longeval.studies.posgen.precision import Precision, check_precision, matmul_precision
from longeval.studies.posgen.schedule import one_cycle
from longeval.studies.posgen.state import History, TrainState, ValidLoss, initial_state
from longeval.studies.posgen.steps import Stepper
from longeval.studies.posgen.tables import cos_sin

if TYPE_CHECKING:
    from longeval.studies.posgen.data import DataSetting, PosGenData

ALGORITHM = 1
"""Part of every training's id. Raise it with a change after which the same request gives other weights, rounding
aside: of how data, initial weights, orders or dropout are drawn, of the model, the loss, the schedule or AdamW. Weights
and checkpoints that the code before it left are then made anew rather than taken for its own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainSetting:
    """How to train; defaults are the paper's."""

    epochs: int = 150
    batch_size: int = 128
    lr: float = 2e-4
    """The largest learning rate."""
    weight_decay: float = 0.01
    warmup: float = 0.1
    """Fraction of the steps in which the learning rate rises."""
    precision: Precision = "float32"
    validate_every: int = 2
    """Epochs from one validation to the next; there is one after the last epoch in any case."""
    checkpoint_every: int = 5
    """Epochs from one checkpoint to the next."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "validate_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                flag = "--" + name.replace("_", "-")
                raise LongEvalError(f"{flag} {getattr(self, name)}: must be at least 1", "See --help for the default.")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise LongEvalError(f"--lr {self.lr}: must be a positive number", "2e-4 is the paper's.")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise LongEvalError(f"--weight-decay {self.weight_decay}: must be 0 or more", "0.01 is the paper's.")
        if not 0 <= self.warmup <= 1:
            raise LongEvalError(f"--warmup {self.warmup}: must be a fraction, 0 to 1", "0.1 is the paper's.")


class Watch:
    """What a training tells as it goes; this one listens to nothing. States hold live tensors: copy what is kept."""

    def step(self) -> None:
        """One step of all seeds was made (on a GPU: handed over)."""

    def epoch(self, state: TrainState) -> None:
        """An epoch is done; its losses are the last in each seed's history."""

    def checkpoint(self, state: TrainState) -> None:
        """`checkpoint_every` epochs are done since the last, and the training isn't over."""


def steps_per_epoch(num_train: int, batch_size: int) -> int:
    """K: every sequence once, the last batch as full as it gets."""
    return -(-num_train // batch_size)


def train(
    config: ModelConfig,
    setting: TrainSetting,
    data: Sequence[PosGenData],
    seeds: Sequence[int],
    table: RopeTable,
    *,
    device: str,
    valid_tables: Mapping[str, RopeTable] | None = None,
    state: TrainState | None = None,
    watch: Watch | None = None,
    until: int | None = None,
) -> TrainState:
    """Trains one model per seed, all together.

    Args:
        config: The model.
        setting: How to train.
        data: Each seed's data (the same object may stand there several times); all of the same sizes.
        seeds: Each decides the initial weights and the order of sequences of its model.
        table: The RoPE table that is on while training; for sequences of `length` tokens if it depends on length.
        device: As `models.device.resolve_device` gives it.
        valid_tables: Name → the table to validate with; for sequences of `test_length` tokens.
        state: Where to go on from; None begins. It is left as it is.
        watch: Is told of steps, epochs and checkpoints.
        until: Stop after so many epochs of the whole training; all of them if None.

    Returns:
        The state after the last epoch made: that of `until`, or an earlier one by which every seed has diverged.

    Raises:
        LongEvalError: A precision that this device doesn't have, or no sequences to train on or to validate with.
    """
    check_precision(setting.precision, device)
    assert len(data) == len(seeds) and len(set(seeds)) == len(seeds) > 0
    assert all(one.setting.modulus == config.modulus for one in data)
    _check_sizes(data[0].setting, validates=bool(valid_tables))
    state = initial_state(config, seeds, device) if state is None else _copied(state, device)
    assert (state.config, state.seeds) == (config, tuple(seeds)) and set(state.first) == set(config.trainable)
    watch = watch or Watch()
    sizes = data[0].setting
    tokens_SNT = _stacked([one.train_NT for one in data], device)
    valid_SNT = _stacked([one.valid_NT for one in data], device) if valid_tables else None
    held = {
        name: cos_sin(valid, config.num_positions(sizes.test_length), device)
        for name, valid in (valid_tables or {}).items()
    }
    stepper = Stepper(
        config,
        seeds=seeds,
        weights=state.weights,
        first=state.first,
        second=state.second,
        tokens_SNT=tokens_SNT,
        table=cos_sin(table, config.num_positions(sizes.length), device),
        first_predicted=sizes.start_length,
        batch_size=setting.batch_size,
        weight_decay=setting.weight_decay,
        precision=setting.precision,
    )
    with matmul_precision(setting.precision):
        for epoch in range(state.epoch, setting.epochs if until is None else min(until, setting.epochs)):
            if len(state.diverged) == len(seeds):  # no step brings them back
                break
            losses_S = _train_epoch(stepper, setting, seeds, epoch, tokens_SNT.shape[1], watch)
            done, valid = epoch + 1, dict[str, list[RangeLoss]]()
            if valid_SNT is not None and (done % setting.validate_every == 0 or done == setting.epochs):
                valid = range_losses(
                    config,
                    state.weights,
                    valid_SNT,
                    held,
                    first=sizes.start_length,
                    length=sizes.length,
                    precision=setting.precision,
                )
            state = dataclasses.replace(state, epoch=done, history=_extended(state.history, done, losses_S, valid))
            watch.epoch(state)
            if done % setting.checkpoint_every == 0 and done < setting.epochs:
                watch.checkpoint(state)
    return dataclasses.replace(state, weights={name: tensor.detach() for name, tensor in state.weights.items()})


def epoch_order(seed: int, epoch: int, num_train: int, batch_size: int) -> npt.NDArray[np.int64]:
    """Indices of sequences in the order of epoch 0, 1, …, (K, B); behind the last one zeros, which don't count."""
    order_N = np.random.default_rng((seed, epoch)).permutation(num_train)
    padded = np.zeros(steps_per_epoch(num_train, batch_size) * batch_size, dtype=np.int64)
    padded[:num_train] = order_N
    return padded.reshape(-1, batch_size)


def _train_epoch(
    stepper: Stepper, setting: TrainSetting, seeds: Sequence[int], epoch: int, num_train: int, watch: Watch
) -> npt.NDArray[np.float64]:
    """All steps of an epoch; returns the mean loss of its sequences by seed, (S,)."""
    batches_SKB = np.stack([epoch_order(seed, epoch, num_train, setting.batch_size) for seed in seeds])
    num_steps = batches_SKB.shape[1]
    first_step, total = epoch * num_steps, setting.epochs * num_steps
    counts = [min(setting.batch_size, num_train - step * setting.batch_size) for step in range(num_steps)]
    rates = [one_cycle(first_step + step, total, peak=setting.lr, warmup=setting.warmup) for step in range(num_steps)]
    sum_S = torch.zeros_like(stepper.loss_S)
    for step, buffer in enumerate(stepper.buffers(batches_SKB, counts, rates, first_step)):
        stepper.step(buffer, first_step + step)
        sum_S += stepper.loss_S * counts[step]
        watch.step()
    return (sum_S / num_train).cpu().double().numpy()


def _extended(
    histories: Sequence[History],
    epoch: int,
    losses_S: npt.NDArray[np.float64],
    valid: Mapping[str, Sequence[RangeLoss]],
) -> tuple[History, ...]:
    """Every seed's history with what an epoch added."""
    return tuple(
        History(
            train_loss=(*history.train_loss, float(losses_S[seed])),
            valid=(
                *history.valid,
                *(
                    ValidLoss(
                        epoch=epoch, table=name, in_distribution=losses[seed].in_distribution, ood=losses[seed].ood
                    )
                    for name, losses in valid.items()
                ),
            ),
            stacked=max(history.stacked, len(histories)),
        )
        for seed, history in enumerate(histories)
    )


def _check_sizes(sizes: DataSetting, *, validates: bool) -> None:
    """Raises LongEvalError where there is nothing to train on, or to validate with."""
    for name, wanted in (("num_train", True), ("num_valid", validates)):
        if wanted and not getattr(sizes, name):
            raise LongEvalError(f"--{name.replace('_', '-')} 0: training needs such sequences", "Ask for 1 or more.")


def _copied(state: TrainState, device: str) -> TrainState:
    """A state with tensors of its own on a device."""

    def copied(tensors: Weights) -> Weights:
        return {name: tensor.detach().to(device, copy=True) for name, tensor in tensors.items()}

    return dataclasses.replace(
        state, weights=copied(state.weights), first=copied(state.first), second=copied(state.second)
    )


def _stacked(arrays: Sequence[npt.NDArray[np.int64]], device: str) -> torch.Tensor:
    """(S, N, T) on a device."""
    return torch.from_numpy(np.stack(arrays)).to(device)
