"""The training loop: optimiser steps from a model and batches, which can stop at any time and go on exactly.

A step's loss is the weighted sum of its tokens' negative log-likelihoods over their number, both over all passes and
processes, so neither the number of sequences in a pass nor the number of processes changes the gradient.
AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) decays all trained weights, norms and biases too, as the training
script of YaRN does. Its learning rate depends only on the step, and dropout only on seed, step and process, so a
training goes on from weights, moments and the step alone.

In bfloat16, weights, gradients and moments stay float32; torch's autocast casts weights where they are used.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from longeval.errors import LongEvalError
from longeval.store.losses import Losses
from longeval.studies.finetune.batch import Batch
from longeval.studies.finetune.checkpoint import Checkpoints, StepLog, TrainingState, losses_of
from longeval.studies.finetune.loss import ForwardArguments, ModelWithLoss, make_loss
from longeval.studies.finetune.processes import Processes, check_shared
from longeval.studies.finetune.request import FinetuneRequest, Schedule


class Diverged(Exception):  # noqa: N818  # what happened, as in StopIteration
    """A loss, gradient or weight is not a finite number; the training can't go on.

    Args:
        step: The step, from 1.
        reason: What is not finite.
    """

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(f"the training diverged in step {step}: {reason}")
        self.step = step
        self.reason = reason


def train(
    model: Any,
    batches: Callable[[int], Batch],
    request: FinetuneRequest,
    *,
    seed: int,
    micro_batch: int,
    precision: Literal["float32", "bfloat16"],
    serve: Callable[[Batch], None],
    arguments: ForwardArguments,
    checkpoints: Checkpoints,
    told: Callable[[StepLog], None] = lambda step: None,
    gradient_checkpointing: bool = False,
    processes: Processes | None = None,
) -> Losses:
    """Trains a model in place, from the newest checkpoint if there is one.

    Afterwards the model is in eval mode without gradients, as before. Under FSDP2 its weights stay distributed; see
    `Processes.gather`.

    Args:
        model: A transformers causal language model whose trained weights are float32, or a peft model around one (see
            `lora.adapt`), whose adapters are trained alone.
        batches: Gives the batch of each step, from 0; the same one whenever it is asked.
        request: How to train: steps, loss, rates, clipping.
        seed: Seed of dropout.
        micro_batch: Sequences in a pass.
        precision: What matrix products are computed in.
        serve: Called before each step, to hold the table that the step's batch needs.
        arguments: Gives the arguments of the decoder's forward, see `attend.forward_arguments`.
        checkpoints: Where checkpoints are. The caller removes them when the model is saved.
        told: Called after each step that is made now.
        gradient_checkpointing: Whether only layers' inputs are kept for the backward pass.
        processes: The processes that train together; None: this one alone.

    Returns:
        The log of all steps, including those before the checkpoint.

    Raises:
        Diverged: A loss, gradient or weight is not finite. No checkpoint holds such weights.
        LongEvalError: The checkpoints are another training's, or gradient checkpointing is not supported.
    """
    processes = processes or Processes()
    check_shared(request.batch_size, processes.number)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    with _training(base, request, gradient_checkpointing):
        trained = {name: weight for name, weight in base.named_parameters() if weight.requires_grad}
        assert all(weight.dtype in (torch.float32, torch.float64) for weight in trained.values())
        wrapped = processes.wrap(ModelWithLoss(base, make_loss(request), arguments), _layer_classes(base))
        trained = {name: weight for name, weight in base.named_parameters() if name in trained}  # FSDP2 replaces them
        trainer = _Trainer(wrapped, trained, request, processes, micro_batch=micro_batch, precision=precision)
        state = checkpoints.newest() if processes.is_main else None
        log = list(trainer.restore(state))
        del state  # as large as the model three times over
        for step in range(len(log), request.steps):
            began = time.monotonic()
            batch = batches(step)
            serve(batch)
            due = processes.is_main and step + 1 < request.steps and checkpoints.due(step + 1)
            with seeded((seed, step, processes.rank), trainer.device):
                loss, plain_loss, due = trainer.gradients(batch, step, due=due)
            norm, rate = trainer.update(step)
            entry = StepLog(
                step=step + 1,
                loss=loss,
                plain_loss=plain_loss,
                lr=rate,
                gradient_norm=norm,
                seconds=time.monotonic() - began,
                tokens=batch.tokens_BT.size,
            )
            log.append(entry)
            told(entry)
            if due:
                saved = trainer.state(log)
                if processes.is_main:
                    checkpoints.save(saved)
                del saved
        trainer.check_weights(request.steps)
    return losses_of(log)


def num_predicted(batch: Batch) -> int:
    """How many tokens of a batch are predicted: all but the first of each sequence and of each document."""
    first_BT = np.zeros(batch.tokens_BT.shape, dtype=bool)
    first_BT[:, 0] = True
    if batch.documents_BT is not None:
        first_BT[:, 1:] = np.diff(batch.documents_BT) != 0
    return int((~first_BT).sum())


def learning_rate(step: int, request: FinetuneRequest) -> float:
    """The learning rate of a step, from 0.

    It is that of transformers' schedules (linear, cosine, constant, each with warm-up) at step + 1 of steps + 1, with
    one more step of warm-up. So no step has the rate 0, which their first one has, and the first step after the warm-up
    has the highest.
    """
    rising, steps = request.warmup_steps, request.steps
    if step < rising:
        return request.lr * (step + 1) / (rising + 1)
    schedule: Schedule = request.schedule
    if schedule == "constant":
        return request.lr
    done = (step - rising) / max(1, steps - rising)
    return request.lr * (1 - done if schedule == "linear" else (1 + math.cos(math.pi * done)) / 2)


class _Trainer:
    """The weights that are trained, and AdamW.

    Args:
        wrapped: The model with its loss, as `Processes.wrap` gives it.
        trained: The weights that are trained, by name.
        request: How to train.
        processes: The processes that train together.
        micro_batch: Sequences in a pass.
        precision: What matrix products are computed in.
    """

    def __init__(
        self,
        wrapped: Any,
        trained: dict[str, nn.Parameter],
        request: FinetuneRequest,
        processes: Processes,
        *,
        micro_batch: int,
        precision: str,
    ) -> None:
        self._wrapped = wrapped
        self._trained = trained
        self._request = request
        self._processes = processes
        self._micro_batch = micro_batch
        self._precision = precision
        # FSDP2 may keep weights on the CPU, and compute elsewhere.
        self.device = torch.device(processes.device(str(next(iter(trained.values())).device)))
        self._optimizer = torch.optim.AdamW(
            trained.values(),
            lr=request.lr,
            betas=(request.beta1, request.beta2),
            weight_decay=request.weight_decay,
            fused=True,  # no temporary copies of all weights
        )
        self._scale = float(processes.number)
        """By what the gradients that were accumulated must be multiplied to be those of the step's loss, since DDP and
        FSDP2 give the mean of the processes'."""

    def gradients(self, batch: Batch, step: int, *, due: bool) -> tuple[float, float | None, bool]:
        """Accumulates the gradients of a step.

        Args:
            batch: The batch, of all processes.
            step: The step, from 0.
            due: Whether a checkpoint is due, as the main process says.

        Returns:
            The loss; the loss without weights, or None where it is the same; and `due` of the main process.

        Raises:
            Diverged: The loss is not finite.
        """
        passes = self._processes.passes(batch, self._micro_batch)
        predicted = num_predicted(batch)
        sums = torch.zeros(4, device=self.device, dtype=next(iter(self._trained.values())).dtype)
        for number, places in enumerate(passes, start=1):
            with self._processes.accumulating(self._wrapped, last=number == len(passes)):
                with torch.autocast(
                    self.device.type,
                    dtype=torch.bfloat16,
                    enabled=self._precision == "bfloat16",
                    cache_enabled=False,  # a cast copy of every weight would be kept through the pass
                ):
                    found = self._wrapped(*_sequences(batch, places, self.device))
                (found.weighted / predicted).backward()
            sums[:3] += torch.stack([value.detach() for value in found]).to(self.device)
        sums[3] = float(due)
        weighted, plain, tokens, all_due = self._processes.total(sums).tolist()
        assert tokens == predicted
        if not math.isfinite(weighted):
            raise Diverged(step + 1, f"its loss is {weighted}")
        return weighted / tokens, plain / tokens if self._request.loss != "ce" else None, all_due > 0

    @torch.no_grad()
    def update(self, step: int) -> tuple[float, float]:
        """Clips the gradients that were accumulated, and updates the weights.

        Returns:
            The norm of the gradient before clipping, and the learning rate.

        Raises:
            Diverged: The gradient is not finite. The weights are as before.
        """
        gradients = [weight.grad for weight in self._trained.values() if weight.grad is not None]
        total: Any = torch.nn.utils.get_total_norm(gradients)
        norm = float(total.full_tensor() if hasattr(total, "full_tensor") else total) * self._scale
        if not math.isfinite(norm):
            raise Diverged(step + 1, f"the norm of its gradient is {norm}")
        most = self._request.clip
        clipped = min(1.0, most / (norm + 1e-6)) if most else 1.0  # 1e-6 as in torch.nn.utils.clip_grad_norm_
        torch._foreach_mul_(gradients, self._scale * clipped)
        rate = learning_rate(step, self._request)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return norm, rate

    def state(self, log: Sequence[StepLog]) -> TrainingState:
        """The state after the last step of a log, whole in the main process; nothing that is whole is copied.

        Raises:
            Diverged: A weight is not finite.
        """
        self.check_weights(len(log))
        moments = {
            f"{name}:{kind}": value
            for name, weight in self._trained.items()
            for kind, value in self._optimizer.state[weight].items()
        }
        gather = self._processes.gather
        return TrainingState(log=tuple(log), weights=gather(self._trained), moments=gather(moments))

    def restore(self, state: TrainingState | None) -> tuple[StepLog, ...]:
        """Takes weights and moments from a checkpoint that the main process read; returns its log.

        Raises:
            LongEvalError: It doesn't fit the weights that are trained.
        """
        if state is not None:
            shapes = {name: weight.shape for name, weight in self._trained.items()}
            if {name: weight.shape for name, weight in state.weights.items()} != shapes:
                raise LongEvalError(
                    "the checkpoint in --out is of a training of other weights",
                    "Give another --out, or remove its folder of checkpoints.",
                )
        about = None if state is None else (state.log, frozenset(state.moments))
        about = self._processes.from_main(about)
        if about is None:
            return ()
        log, moments = about
        for name, weight in self._trained.items():
            self._processes.fill(weight, None if state is None else state.weights[name])
            kinds = [kind for kind in ("step", "exp_avg", "exp_avg_sq") if f"{name}:{kind}" in moments]
            for kind in kinds:
                held = torch.zeros((), device=weight.device) if kind == "step" else torch.zeros_like(weight.detach())
                self._processes.fill(held, None if state is None else state.moments[f"{name}:{kind}"])
                self._optimizer.state[weight][kind] = held
        found: tuple[StepLog, ...] = log
        return found

    def check_weights(self, step: int) -> None:
        """Raises Diverged unless all weights are finite after `step` steps."""
        norm: Any = torch.nn.utils.get_total_norm([weight.detach() for weight in self._trained.values()])
        norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        if not math.isfinite(norm):
            raise Diverged(step, "its weights are not finite afterwards")


def _sequences(batch: Batch, places: npt.NDArray[np.int64], device: torch.device) -> tuple[torch.Tensor | None, ...]:
    """Tokens, positions and documents of some sequences of a batch, on a device."""
    parts = (batch.tokens_BT, batch.positions_BT, batch.documents_BT)
    return tuple(None if part_BT is None else torch.from_numpy(part_BT[places]).to(device) for part_BT in parts)


def _layer_classes(model: Any) -> frozenset[str]:
    """Names of the classes of a model's layers, as transformers tells them."""
    return frozenset(model._no_split_modules or ())


@contextlib.contextmanager
def _training(model: Any, request: FinetuneRequest, gradient_checkpointing: bool) -> Iterator[None]:
    """Switches gradients, train mode (dropout as the config says) and gradient checkpointing on, and off afterwards."""
    if request.uses_lora:
        assert any(weight.requires_grad for weight in model.parameters()), "no adapter"
    else:
        model.requires_grad_(True)
    if gradient_checkpointing:
        try:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        except ValueError as error:
            raise LongEvalError(
                f"--gradient-checkpointing: a {model.config.model_type} model has none", "Leave it out."
            ) from error
    model.train()
    try:
        yield
    finally:
        model.eval()
        model.zero_grad(set_to_none=True)
        model.requires_grad_(False)
        if gradient_checkpointing:
            model.gradient_checkpointing_disable()


@contextlib.contextmanager
def seeded(key: tuple[int, ...], device: torch.device) -> Iterator[None]:
    """Seeds torch's random numbers with a key, and puts the generators' states back afterwards."""
    devices = [device] if device.type not in ("cpu", "mps") else []
    with torch.random.fork_rng(devices=devices, device_type=device.type if devices else "cuda"):
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))
        yield
