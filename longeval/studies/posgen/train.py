"""Trains all seeds of a setting together, epoch by epoch. A training can stop after any epoch and resume exactly.

It follows Wang et al. 2024 (arXiv 2403.00071, sections 5 and C.1): AdamW, a one-cycle schedule with 10% warm-up,
batches of 128, 150 epochs; the loss leaves out the first j+k tokens. The order of sequences depends only on seed and
epoch, and the learning rate only on the step, so a resumed training needs nothing but the state after an epoch. The
last batch of an epoch may be smaller than the others.

AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101, with torch's defaults) works element by element. So with the
gradient of the sum of the seeds' losses, each seed makes the same step as alone. Learning rate and β1 follow the
one-cycle schedule (Smith and Topin 2018, arXiv 1708.07120) as a closed form of the step, with the constants of torch's
OneCycleLR with cosine annealing, which the paper's published code uses.

Shapes: S seeds, N sequences, B sequences of a batch, T tokens, P predicted tokens, K steps of an epoch.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from longeval.errors import reason
from longeval.rope.base import RopeTable
from longeval.studies.posgen.cells import ModelConfig
from longeval.studies.posgen.evaluate import evaluate, token_nll
from longeval.studies.posgen.model import TorchTable, cos_sin, forward, matmul_precision, model_inputs, product_dtype
from longeval.studies.posgen.request import PosGenRequest, Precision
from longeval.studies.posgen.state import History, TrainState, ValidLoss, initial_state

if TYPE_CHECKING:
    from longeval.studies.posgen.data import PosGenData

DIVISOR = 25.0
"""Peak learning rate / first learning rate."""
FINAL_DIVISOR = 1e4
"""First learning rate / last learning rate."""
LARGEST_BETA1 = 0.95
SMALLEST_BETA1 = 0.85
"""β1 falls from the largest to the smallest value while the learning rate rises, and rises while it falls."""
BETA2 = 0.999
EPS = 1e-8

_EAGER_STEPS = 3
"""Steps before a CUDA graph is captured, in which libraries choose kernels and allocate memory."""

_log = logging.getLogger(__name__)


def train(
    config: ModelConfig,
    request: PosGenRequest,
    data: Sequence[PosGenData],
    seeds: Sequence[int],
    table: RopeTable,
    *,
    device: str,
    valid_tables: Mapping[str, RopeTable] | None = None,
    state: TrainState | None = None,
    on_step: Callable[[], None] = lambda: None,
    on_epoch: Callable[[TrainState], None] = lambda state: None,
    until: int | None = None,
) -> TrainState:
    """Trains one model per seed, all together.

    Args:
        config: The model.
        request: Training settings: epochs, batch size, rates, precision, epochs of validation.
        data: The data of each seed, all with the same sizes; seeds may share an object.
        seeds: Each determines the initial weights and the order of sequences of its model.
        table: The RoPE table in training; for a length-dependent method, the table for sequences of `length` tokens.
        device: A value of `models.device.resolve_device`.
        valid_tables: Name → table for validation, for sequences of `test_length` tokens.
        state: The state to resume from, which is not changed; None: start from initial weights.
        on_step: Called after each step of all seeds is made (on a GPU: queued).
        on_epoch: Called with the state after each epoch. Later steps change its tensors, so copy those you need.
        until: Stop after this epoch of the whole training; None: train all epochs.

    Returns:
        The state after epoch `until`, or after the earlier epoch in which the last seed diverged.
    """
    assert len(data) == len(seeds) and len(set(seeds)) == len(seeds) > 0
    assert all(one.setting.modulus == config.modulus for one in data)
    if state is None:
        state = initial_state(config, seeds, device)
    else:
        state = state.mapped(lambda tensor: tensor.detach().to(device, copy=True))
    assert (state.config, state.seeds) == (config, tuple(seeds)) and set(state.first) == set(config.trainable)
    sizes = data[0].setting
    stepper = Stepper(
        state,
        tokens_SNT=torch.from_numpy(np.stack([one.train_NT for one in data])).to(device),
        table=cos_sin(table, config.num_positions(sizes.length), device),
        first_predicted=sizes.start_length,
        batch_size=request.batch_size,
        weight_decay=request.weight_decay,
        precision=request.precision,
    )
    with matmul_precision(request.precision):
        for epoch in range(state.epoch, request.epochs if until is None else min(until, request.epochs)):
            if len(state.diverged) == len(seeds):  # more steps would change nothing
                break
            losses_S = _train_epoch(stepper, request, seeds, epoch, sizes.num_train, on_step)
            done = epoch + 1
            valid = _valid_losses(state, request, data, valid_tables or {}, device, done)
            history = tuple(
                History(
                    train_loss=(*before.train_loss, float(loss)),
                    valid=(*before.valid, *losses),
                    stacked=max(before.stacked, len(seeds)),
                )
                for before, loss, losses in zip(state.history, losses_S, valid, strict=True)
            )
            state = dataclasses.replace(state, epoch=done, history=history)
            on_epoch(state)
    return dataclasses.replace(state, weights={name: tensor.detach() for name, tensor in state.weights.items()})


def _train_epoch(
    stepper: Stepper,
    request: PosGenRequest,
    seeds: Sequence[int],
    epoch: int,
    num_train: int,
    on_step: Callable[[], None],
) -> npt.NDArray[np.float64]:
    """Makes all steps of an epoch; returns the mean training loss of each seed, shape (S,)."""
    batch_size = request.batch_size
    batches_SKB = np.stack([epoch_order(seed, epoch, num_train, batch_size) for seed in seeds])
    num_steps = batches_SKB.shape[1]
    first_step, total = epoch * num_steps, request.epochs * num_steps
    counts = [min(batch_size, num_train - step * batch_size) for step in range(num_steps)]
    rates = [one_cycle(first_step + step, total, peak=request.lr, warmup=request.warmup) for step in range(num_steps)]
    sum_S = torch.zeros_like(stepper.loss_S)
    for step, buffer in enumerate(stepper.buffers(batches_SKB, counts, rates, first_step)):
        stepper.step(buffer, first_step + step)
        sum_S += stepper.loss_S * counts[step]
        on_step()
    return (sum_S / num_train).cpu().double().numpy()


def _valid_losses(
    state: TrainState,
    request: PosGenRequest,
    data: Sequence[PosGenData],
    tables: Mapping[str, RopeTable],
    device: str,
    epoch: int,
) -> list[list[ValidLoss]]:
    """The validation losses of each seed with each table after an epoch; empty lists if none are due."""
    losses: list[list[ValidLoss]] = [[] for _ in data]
    if not request.validates(epoch):
        return losses
    sizes = data[0].setting
    for name, table in tables.items():
        found = evaluate(
            state.config,
            state.weights,
            np.stack([one.valid_NT for one in data]),
            table,
            first=sizes.start_length,
            device=device,
            precision=request.precision,
            generate=False,
        )
        for own, one in zip(losses, found, strict=True):
            own.append(one.valid_loss(epoch, name, sizes.length))
    return losses


def steps_per_epoch(num_train: int, batch_size: int) -> int:
    """K: the number of steps in which every sequence is used once."""
    return -(-num_train // batch_size)


def epoch_order(seed: int, epoch: int, num_train: int, batch_size: int) -> npt.NDArray[np.int64]:
    """Indices of sequences in the order of an epoch, shape (K, B), padded with zeros after the last sequence."""
    order_N = np.random.default_rng((seed, epoch)).permutation(num_train)
    padded = np.zeros(steps_per_epoch(num_train, batch_size) * batch_size, dtype=np.int64)
    padded[:num_train] = order_N
    return padded.reshape(-1, batch_size)


class Rate(NamedTuple):
    """The learning rate and AdamW's β1 of one step."""

    learning_rate: float
    beta1: float


def one_cycle(step: int, total_steps: int, *, peak: float, warmup: float) -> Rate:
    """Computes the learning rate and β1 of a step.

    If the peak is at step 0, the first rate is the peak; torch would divide by zero. If a training has only one step,
    it has the last rate, as in torch, or the peak if all steps are warm-up.

    Args:
        step: 0 … total_steps−1.
        total_steps: Steps of the whole training.
        peak: The largest learning rate.
        warmup: Share of steps in which the rate rises, 0 … 1; the peak is at step warmup·total_steps − 1.
    """
    assert 0 <= step < total_steps
    first, last = peak / DIVISOR, peak / DIVISOR / FINAL_DIVISOR
    top = warmup * total_steps - 1
    if step <= top:
        part = step / top if top > 0 else 1.0
        return Rate(_anneal(first, peak, part), _anneal(LARGEST_BETA1, SMALLEST_BETA1, part))
    # If the warm-up is shorter than a step, the peak is before the first step, for which the formula also holds.
    part = (step - top) / (total_steps - 1 - top)
    return Rate(_anneal(peak, last, part), _anneal(SMALLEST_BETA1, LARGEST_BETA1, part))


def _anneal(start: float, end: float, part: float) -> float:
    """Interpolates from start (part 0) to end (part 1) along half a cosine."""
    return end + (start - end) / 2 * (1 + math.cos(math.pi * part))


class Stepper:
    """Makes optimiser steps of all stacked seeds, which update a state's weights and moments in place.

    Everything that changes from step to step (indices, weights of sequences, rates) is in fixed buffers, so that on a
    GPU a step can be captured as a CUDA graph and replayed.

    Args:
        state: Weights and moments on the device.
        tokens_SNT: Training sequences on the device.
        table: The RoPE table in training.
        first_predicted: j+k; the loss leaves out the tokens before it, which are random.
        batch_size: B.
        weight_decay: Weight decay of AdamW.
        precision: Precision of the matrix products.
    """

    def __init__(
        self,
        state: TrainState,
        *,
        tokens_SNT: torch.Tensor,
        table: TorchTable,
        first_predicted: int,
        batch_size: int,
        weight_decay: float,
        precision: Precision,
    ) -> None:
        config, weights = state.config, state.weights
        self._config, self._seeds, self._weights = config, state.seeds, weights
        self._trained = [weights[name].requires_grad_() for name in config.trainable]
        self._moments = [(state.first[name], state.second[name]) for name in config.trainable]
        self._tokens_SNT, self._table, self._first_predicted = tokens_SNT, table, first_predicted
        self._weight_decay, self._dtype = weight_decay, product_dtype(precision)
        device, dtype = tokens_SNT.device, weights["embedding"].dtype
        num_seeds = len(tokens_SNT)
        self._seed_index_S1 = torch.arange(num_seeds, device=device)[:, None]
        self._batch_SB = torch.zeros(num_seeds, batch_size, dtype=torch.int64, device=device)
        self._share_B = torch.zeros(batch_size, dtype=dtype, device=device)
        self._rates = torch.zeros(4, dtype=dtype, device=device)
        self.loss_S = torch.zeros(num_seeds, dtype=dtype, device=device)
        """Mean loss of each seed in the last step, shape (S,)."""
        self._generators = [torch.Generator(device) for _ in self._seeds] if config.dropout else []
        self._graph: torch.cuda.CUDAGraph | None = None
        # Dropout re-seeds its generators at each step, which a graph can't do.
        self._capturable = device.type == "cuda" and not config.dropout
        self._side = torch.cuda.Stream(device) if self._capturable else None  # type: ignore[no-untyped-call]  # torch's
        self._eager_steps = 0

    def buffers(
        self, batches_SKB: npt.NDArray[np.int64], counts_K: Sequence[int], rates_K: Sequence[Rate], first_step: int
    ) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Prepares the arguments of `step` for K steps, and copies them to the device together.

        Args:
            batches_SKB: Indices of sequences; the last batch may end with padding.
            counts_K: Number of sequences of each batch, without padding.
            rates_K: Learning rate and β1 of each step.
            first_step: Number of earlier steps.
        """
        device, dtype = self._tokens_SNT.device, self._rates.dtype
        places_B = np.arange(batches_SKB.shape[-1])
        shares_KB = np.stack([np.where(places_B < count, 1.0 / count, 0.0) for count in counts_K])
        scalars = [self._scalars(rate, first_step + step) for step, rate in enumerate(rates_K)]
        parts = (
            torch.from_numpy(np.ascontiguousarray(batches_SKB.swapaxes(0, 1))).to(device),
            # Cast before the copy, because not every accelerator has float64.
            torch.from_numpy(shares_KB).to(dtype).to(device),
            torch.tensor(scalars, dtype=torch.float64).to(dtype).to(device),
        )
        return list(zip(*(part.unbind(0) for part in parts), strict=True))

    def _scalars(self, rate: Rate, step: int) -> tuple[float, float, float, float]:
        """The factors of AdamW's update: decay, 1−β1, −step size, ε; the last two include the bias corrections."""
        root = math.sqrt(1 - BETA2 ** (step + 1))
        size = rate.learning_rate * root / (1 - rate.beta1 ** (step + 1))
        return 1 - rate.learning_rate * self._weight_decay, 1 - rate.beta1, -size, EPS * root

    def step(self, buffer: tuple[torch.Tensor, torch.Tensor, torch.Tensor], number: int) -> None:
        """Makes one step (on a GPU: queues it). `number` is the number of earlier steps of the training."""
        for held, new in zip((self._batch_SB, self._share_B, self._rates), buffer, strict=True):
            held.copy_(new)
        for seed, generator in zip(self._seeds, self._generators, strict=False):  # empty without dropout
            generator.manual_seed(int(np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)[0] >> 1))
        if self._graph is not None:
            self._graph.replay()
        elif not self._capturable:
            self._step()
        elif self._eager_steps < _EAGER_STEPS:
            self._eager_steps += 1
            self._on_side_stream()
        else:
            self._capture()

    def _on_side_stream(self) -> None:
        """Makes a step on a side stream, as torch requires before a capture."""
        assert self._side is not None
        usual = torch.cuda.current_stream(self._tokens_SNT.device)
        self._side.wait_stream(usual)
        with torch.cuda.stream(self._side):
            self._step()
        usual.wait_stream(self._side)

    def _capture(self) -> None:
        """Captures a step and replays it; if that fails, makes this and later steps eagerly."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self._side):  # the default stream may belong to another device
                self._step()
        except RuntimeError as error:
            self._capturable = False
            _log.warning("training without a CUDA graph, which is slower: %s", reason(error))
            self._step()
            return
        self._graph = graph
        graph.replay()

    def _step(self) -> None:
        """Computes loss and gradients for the batch in the buffers, and updates the weights."""
        tokens_SBT = self._tokens_SNT[self._seed_index_S1, self._batch_SB]
        logits_SBTV = forward(
            self._weights,
            model_inputs(tokens_SBT, self._config),
            self._table.cos_TF,
            self._table.sin_TF,
            self._config,
            dtype=self._dtype,
            drop=self._drop if self._generators else None,
        )
        nll_SBP = token_nll(logits_SBTV, tokens_SBT, self._first_predicted, self._config)
        loss_S = (nll_SBP.mean(-1) * self._share_B).sum(-1)
        gradients = torch.autograd.grad(loss_S.sum(), self._trained)
        with torch.no_grad():
            self.loss_S.copy_(loss_S)
            self._update(gradients)

    def _update(self, gradients: Sequence[torch.Tensor]) -> None:
        """Updates weights and moments with AdamW."""
        decay, rest1, minus_size, eps = self._rates.unbind()
        for weight, gradient, (first, second) in zip(self._trained, gradients, self._moments, strict=True):
            first.lerp_(gradient, rest1)
            second.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
            direction = torch.div(first, second.sqrt().add_(eps))
            weight.mul_(decay).addcmul_(direction, minus_size)

    def _drop(self, x: torch.Tensor) -> torch.Tensor:
        """Dropout with one generator per seed, so that a seed has the same dropout alone and stacked."""
        rate = self._config.dropout
        kept = [torch.rand(x.shape[1:], generator=one, device=x.device) >= rate for one in self._generators]
        return x * (torch.stack(kept) / (1 - rate)).to(x.dtype)
