"""Training of all seeds of one setting together, epoch by epoch; it can stop after any epoch and go on exactly.

It trains as Wang et al. 2024 (arXiv 2403.00071, sections 5 and C.1) do: AdamW, a one-cycle schedule with 10% warm-up,
batches of 128, 150 epochs; the loss leaves out the first j+k tokens. The order of sequences follows from the seed and
the epoch, and the rates follow from the step, so the state after an epoch is all that a resumed training needs. The
last batch of an epoch may be smaller than the others.

Shapes: S seeds, N sequences, T tokens, K steps of an epoch, B sequences of a batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from longeval.rope.base import RopeTable
from longeval.studies.posgen.config import ModelConfig, TrainSetting
from longeval.studies.posgen.evaluate import RangeLoss, range_losses
from longeval.studies.posgen.model import Weights, matmul_precision
from longeval.studies.posgen.rotation import cos_sin
from longeval.studies.posgen.state import History, TrainState, ValidLoss, initial_state
from longeval.studies.posgen.steps import Stepper, one_cycle

if TYPE_CHECKING:
    from longeval.studies.posgen.data import PosGenData


class Watch:
    """Callbacks of a training; this class does nothing. Later steps change a state's tensors: copy what you keep."""

    def step(self) -> None:
        """Called after one step of all seeds was made (on a GPU: queued)."""

    def epoch(self, state: TrainState) -> None:
        """Called after an epoch; its losses are the last in each seed's history."""

    def checkpoint(self, state: TrainState) -> None:
        """Called every `checkpoint_every` epochs, but not after the last epoch."""


def steps_per_epoch(num_train: int, batch_size: int) -> int:
    """K: the steps in which every sequence is seen once."""
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
        table: The RoPE table while training; that of sequences of `length` tokens if its method depends on length.
        device: As `models.device.resolve_device` gives it.
        valid_tables: Name → a table to validate with; that of sequences of `test_length` tokens.
        state: The state to go on from, which is not changed; None starts at the beginning.
        watch: Gets the callbacks.
        until: Stop after so many epochs of the whole training; all of them if None.

    Returns:
        The state after epoch `until`, or after the earlier epoch in which the last seed diverged.
    """
    assert len(data) == len(seeds) and len(set(seeds)) == len(seeds) > 0
    assert all(one.setting.modulus == config.modulus for one in data)
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
            if len(state.diverged) == len(seeds):  # more steps would change nothing
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
    """Indices of sequences in the order of an epoch, (K, B); the zeros after the last one don't count."""
    order_N = np.random.default_rng((seed, epoch)).permutation(num_train)
    padded = np.zeros(steps_per_epoch(num_train, batch_size) * batch_size, dtype=np.int64)
    padded[:num_train] = order_N
    return padded.reshape(-1, batch_size)


def _train_epoch(
    stepper: Stepper, setting: TrainSetting, seeds: Sequence[int], epoch: int, num_train: int, watch: Watch
) -> npt.NDArray[np.float64]:
    """Makes all steps of an epoch; returns the mean loss of its sequences by seed, (S,)."""
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
    """Every seed's history with the losses of one more epoch."""
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


def _copied(state: TrainState, device: str) -> TrainState:
    """Copies a state's tensors to a device."""

    def copied(tensors: Weights) -> Weights:
        return {name: tensor.detach().to(device, copy=True) for name, tensor in tensors.items()}

    return dataclasses.replace(
        state, weights=copied(state.weights), first=copied(state.first), second=copied(state.second)
    )


def _stacked(arrays: Sequence[npt.NDArray[np.int64]], device: str) -> torch.Tensor:
    """Every seed's sequences as one tensor on a device, (S, N, T)."""
    return torch.from_numpy(np.stack(arrays)).to(device)
