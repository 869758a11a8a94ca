"""Training of one PosGen model, epoch by epoch; it can stop after any epoch and go on exactly.

It follows Wang et al. 2024 (arXiv 2403.00071, sections 5 and C.1): AdamW, a one-cycle schedule with 10% warm-up,
batches of 128, 150 epochs; the loss leaves out the first j+k tokens. The order of sequences depends only on seed and
epoch, and the learning rate only on the step, so a resumed training needs nothing but the state after an epoch. The
last batch of an epoch may be smaller than the others.

AdamW is that of Loshchilov and Hutter 2019 (arXiv 1711.05101), with torch's default numbers. Learning rate and β1
follow the one-cycle schedule (Smith and Topin 2018, arXiv 1708.07120) as a closed form of the step, with the numbers of
torch's OneCycleLR with cosine annealing, which the paper's published code uses.

A step of so small a model takes a GPU less time than Python needs to queue its operations. So a step is captured as a
CUDA graph once and then replayed.

Shapes: N sequences, B of them in a batch, T tokens, P predicted tokens, K steps of an epoch, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from longeval.errors import reason
from longeval.rope.base import RopeTable
from longeval.studies.posgen.evaluate import evaluate, token_nll
from longeval.studies.posgen.model import TorchTable, cos_sin, forward, matmul_precision, model_inputs, product_dtype
from longeval.studies.posgen.request import PosGenRequest, Precision
from longeval.studies.posgen.state import History, TrainState, ValidLoss

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
    state: TrainState,
    request: PosGenRequest,
    data: PosGenData,
    table: RopeTable,
    *,
    device: str,
    valid_tables: Mapping[str, RopeTable] | None = None,
    on_step: Callable[[], None] = lambda: None,
    on_epoch: Callable[[TrainState], None] = lambda state: None,
) -> TrainState:
    """Trains a model to the end.

    Args:
        state: Where to start: `initial_state`, or the state after an epoch of this training. It is not changed.
        request: How to train: epochs, batch size, rates, precision, epochs of validation.
        data: The seed's sequences.
        table: The RoPE table while training; that of sequences of `length` tokens if its method depends on length.
        device: As `models.device.resolve_device` gives it.
        valid_tables: Name → a table to validate with; that of sequences of `test_length` tokens.
        on_step: Called after each step (on a GPU: once it is queued).
        on_epoch: Called with the state after each epoch. Later steps change its tensors: copy what you keep.

    Returns:
        The state after the last epoch, or after the epoch in which the training diverged.
    """
    config, sizes = state.config, data.setting
    assert sizes.modulus == config.modulus and set(state.first) == set(config.trainable)
    state = state.mapped(lambda tensor: tensor.detach().to(device, copy=True))
    stepper = Stepper(
        state,
        tokens_NT=torch.from_numpy(data.train_NT).to(device),
        table=cos_sin(table, config.num_positions(sizes.length), device),
        first_predicted=sizes.start_length,
        batch_size=request.batch_size,
        weight_decay=request.weight_decay,
        precision=request.precision,
    )
    with matmul_precision(request.precision):
        while state.epoch < request.epochs and not state.diverged:  # after a loss of NaN, steps change nothing
            loss = _train_epoch(stepper, request, state, sizes.num_train, on_step)
            state = dataclasses.replace(state, epoch=state.epoch + 1)
            valid = _valid_losses(state, request, data, valid_tables or {}, device)
            before = state.history
            history = History(train_loss=(*before.train_loss, loss), valid=(*before.valid, *valid))
            state = dataclasses.replace(state, history=history)
            on_epoch(state)
    return dataclasses.replace(state, weights={name: tensor.detach() for name, tensor in state.weights.items()})


def _train_epoch(
    stepper: Stepper, request: PosGenRequest, state: TrainState, num_train: int, on_step: Callable[[], None]
) -> float:
    """Makes all steps of the epoch that follows a state; returns the mean loss of its sequences."""
    batch_size = request.batch_size
    batches_KB = epoch_order(state.seed, state.epoch, num_train, batch_size)
    num_steps = len(batches_KB)
    first_step, total = state.epoch * num_steps, request.epochs * num_steps
    counts = [min(batch_size, num_train - step * batch_size) for step in range(num_steps)]
    rates = [one_cycle(first_step + step, total, peak=request.lr, warmup=request.warmup) for step in range(num_steps)]
    loss_sum = torch.zeros_like(stepper.loss)
    for step, buffer in enumerate(stepper.buffers(batches_KB, counts, rates, first_step)):
        stepper.step(buffer, first_step + step)
        loss_sum += stepper.loss * counts[step]
        on_step()
    return float(loss_sum / num_train)


def _valid_losses(
    state: TrainState,
    request: PosGenRequest,
    data: PosGenData,
    tables: Mapping[str, RopeTable],
    device: str,
) -> list[ValidLoss]:
    """The losses on the validation sequences, one with each table; none after an epoch without validation."""
    if not request.validates(state.epoch):
        return []
    losses = []
    for name, table in tables.items():
        found = evaluate(
            state.config,
            state.weights,
            data.valid_NT,
            table,
            first=data.setting.start_length,
            device=device,
            precision=request.precision,
            generate=False,
        )
        losses.append(found.valid_loss(state.epoch, name, data.setting.length))
    return losses


def steps_per_epoch(num_train: int, batch_size: int) -> int:
    """K: the number of steps in which every sequence is seen once."""
    return -(-num_train // batch_size)


def epoch_order(seed: int, epoch: int, num_train: int, batch_size: int) -> npt.NDArray[np.int64]:
    """Indices of sequences in the order of an epoch, (K, B); the zeros at the end of the last batch don't count."""
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
    """Makes optimiser steps, which update a state's weights and moments in place.

    All that changes from step to step (indices of sequences, their shares of the loss, rates) lies in fixed buffers, so
    that on a GPU a step can be captured as a CUDA graph and replayed. The graph and its memory last as long as the
    stepper does.

    Args:
        state: Weights and moments on the device.
        tokens_NT: Training sequences on the device.
        table: The RoPE table while training.
        first_predicted: j+k: tokens before it are random and left out of the loss.
        batch_size: B.
        weight_decay: Weight decay of AdamW.
        precision: Precision of the matrix products.
    """

    def __init__(
        self,
        state: TrainState,
        *,
        tokens_NT: torch.Tensor,
        table: TorchTable,
        first_predicted: int,
        batch_size: int,
        weight_decay: float,
        precision: Precision,
    ) -> None:
        config, weights = state.config, state.weights
        self._config, self._seed, self._weights = config, state.seed, weights
        self._trained = [weights[name].requires_grad_() for name in config.trainable]
        self._moments = [(state.first[name], state.second[name]) for name in config.trainable]
        self._tokens_NT, self._table, self._first_predicted = tokens_NT, table, first_predicted
        self._weight_decay, self._dtype = weight_decay, product_dtype(precision)
        device, dtype = tokens_NT.device, weights["embedding"].dtype
        self._batch_B = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self._share_B = torch.zeros(batch_size, dtype=dtype, device=device)
        self._rates = torch.zeros(4, dtype=dtype, device=device)
        self.loss = torch.zeros((), dtype=dtype, device=device)
        """Mean loss of the last step's batch, nats per token."""
        self._generator = torch.Generator(device) if config.dropout else None
        self._graph: torch.cuda.CUDAGraph | None = None
        # Dropout draws from a generator that is set anew at each step, which a graph can't do.
        self._capturable = device.type == "cuda" and not config.dropout
        self._eager_steps = 0

    def buffers(
        self, batches_KB: npt.NDArray[np.int64], counts_K: Sequence[int], rates_K: Sequence[Rate], first_step: int
    ) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Prepares the arguments of `step` for K steps, and copies them to the device together.

        Args:
            batches_KB: Indices of sequences; a batch that isn't full ends with indices that don't count.
            counts_K: How many sequences of each batch count.
            rates_K: Learning rate and β1 of each step.
            first_step: Number of earlier steps.
        """
        device, dtype = self._tokens_NT.device, self._rates.dtype
        places_B = np.arange(batches_KB.shape[1])
        shares_KB = np.stack([np.where(places_B < count, 1.0 / count, 0.0) for count in counts_K])
        scalars = [self._scalars(rate, first_step + step) for step, rate in enumerate(rates_K)]
        parts = (
            torch.from_numpy(batches_KB).to(device),
            # Cast first: not every accelerator has float64.
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
        """Makes one step; on a GPU it is only queued. `number` is how many steps the training has made before."""
        for held, new in zip((self._batch_B, self._share_B, self._rates), buffer, strict=True):
            held.copy_(new)
        if self._generator is not None:
            drawn = np.random.SeedSequence((self._seed, number)).generate_state(1, np.uint64)
            self._generator.manual_seed(int(drawn[0] >> 1))
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
        """Makes a step on the stream of the capture, as the steps before a capture must be."""
        device = self._tokens_NT.device
        side, usual = _side_stream(device), torch.cuda.current_stream(device)
        side.wait_stream(usual)
        with torch.cuda.stream(side):
            self._step()
        usual.wait_stream(side)

    def _capture(self) -> None:
        """Captures a step and replays it; if that fails, makes this and later steps eagerly."""
        graph = torch.cuda.CUDAGraph()
        try:
            # The default stream of a capture may be another device's.
            with torch.cuda.graph(graph, stream=_side_stream(self._tokens_NT.device)):
                self._step()
        except RuntimeError as error:
            self._capturable = False
            _log.warning("training without a CUDA graph, which is slower: %s", reason(error))
            self._step()
            return
        self._graph = graph
        graph.replay()

    def _step(self) -> None:
        """Computes loss and gradients of the batch in the buffers, and updates the weights."""
        tokens_BT = self._tokens_NT[self._batch_B]
        logits_BTV = forward(
            self._weights,
            model_inputs(tokens_BT, self._config),
            self._table.cos_TF,
            self._table.sin_TF,
            self._config,
            dtype=self._dtype,
            drop=None if self._generator is None else self._drop,
        )
        nll_BP = token_nll(logits_BTV, tokens_BT, self._first_predicted, self._config)
        loss = (nll_BP.mean(-1) * self._share_B).sum()
        gradients = torch.autograd.grad(loss, self._trained)
        with torch.no_grad():
            self.loss.copy_(loss)
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
        """Applies dropout, which sets some elements to 0 and scales up the others so that the mean stays."""
        rate = self._config.dropout
        kept = torch.rand(x.shape, generator=self._generator, device=x.device) >= rate
        return x * (kept / (1 - rate)).to(x.dtype)


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of a device on which steps are captured.

    All trainings of a process share it, since memory that was used on a stream is kept for that stream alone.
    """
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch's
