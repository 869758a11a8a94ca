"""The work of `finetune`: one training, from the loaded model to the saved one.

The model's rotary module is replaced by ours, as for measuring, so that it is trained with exactly the table that is
measured. Checkpoints lie in RUN/checkpoints until the model is saved.
"""

from __future__ import annotations

import dataclasses
import gc
import logging
import math
import os
import shutil
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from longeval.backends.hf import memory
from longeval.backends.hf.parts import TableRotaryEmbedding, memory_told, replace_rotary
from longeval.export.encoding import encode_for
from longeval.files import working_folder
from longeval.metrics import derived
from longeval.models.device import device_name, process_rank
from longeval.models.resolve import resolve, weights_digest
from longeval.run.host import Host
from longeval.run.overview import format_gib
from longeval.run.study import Outcome, failed
from longeval.store.losses import LOSSES, Losses
from longeval.store.records import provenance
from longeval.studies.finetune.attend import forward_arguments
from longeval.studies.finetune.batch import Batch
from longeval.studies.finetune.cells import FinetuneCell, ModelTraining
from longeval.studies.finetune.checkpoint import Checkpoints, StepLog
from longeval.studies.finetune.estimate import Resources, memory_bytes, step_flops
from longeval.studies.finetune.lora import adapt, merged, save_adapter
from longeval.studies.finetune.processes import Processes
from longeval.studies.finetune.saved import save_model, training_of
from longeval.studies.finetune.text import Batches
from longeval.studies.finetune.train import Diverged, train

logger = logging.getLogger(__name__)

Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FinetuneWork:
    """One training."""

    training: ModelTraining
    resources: Resources
    dtype: Dtype
    """The precision of products; the saved weights have it too."""

    @property
    def cells(self) -> tuple[FinetuneCell, ...]:
        """See `Work`."""
        return (self.training.cell,)

    def costs(self, host: Host) -> Sequence[float]:
        """See `Work`. A pass is an optimiser step; those before the last checkpoint are not made again."""
        training = self.training
        done = 0 if host.fresh else self._checkpoints(host).last_step
        flops = step_flops(training.request, training.model, host.size(training.model), self.resources)
        return [flops] * (training.request.steps - done)

    def without(self, ids: Container[str]) -> FinetuneWork | None:
        """See `Work`."""
        return None if self.training.id in ids else self

    def smaller(self) -> FinetuneWork | None:
        """See `Work`. First fewer sequences share a pass, then activations are computed twice."""
        have = self.resources
        if have.micro_batch > 1:
            less = dataclasses.replace(have, micro_batch=have.micro_batch // 2)
        elif not have.checkpointing and self.training.request.gradient_checkpointing is None:
            less = dataclasses.replace(have, checkpointing=True)
        else:
            return None
        return dataclasses.replace(self, resources=less)

    def memory(self, host: Host) -> int:
        """See `Work`."""
        training = self.training
        size = host.size(training.model)
        return memory_bytes(training.request, training.model, size, self.dtype, self.resources)

    def no_memory(self, reason: str) -> str:
        """See `Work`."""
        return f"out of memory (a shorter --window, --lora or --gradient-checkpointing need less): {reason}"

    def run(self, host: Host) -> Iterator[Outcome]:
        """See `Work`."""
        training = self.training
        if training_of(host.store.local_path(training.saved_as)) not in (None, training.id):
            reason = f"{training.saved_as} is the model of another training, which another request of this run made"
            yield failed(training.cell, reason, host.device)
            return
        host.close()  # no other model stays in memory
        host.device = device_name(training.model.device)
        _reset_peak(training.model.device)
        try:
            with memory_told():
                yield self._trained(host)
        except Diverged as error:  # in all processes alike
            yield failed(training.cell, f"{error}; a lower --lr or a longer --warmup may help", host.device)
        except Exception:
            if "WORLD_SIZE" not in os.environ:
                raise
            # The other processes wait for this one, so it must end; the launcher then ends them too.
            logger.exception("%s failed in process %d", training.saved_as, process_rank())
            raise SystemExit(1) from None
        finally:
            gc.collect()

    def _trained(self, host: Host) -> Outcome:
        """Trains, saves the model, and returns the outcome."""
        training, request = self.training, self.training.request
        processes = Processes()
        model = training.model.load()
        num_parameters = sum(weight.numel() for weight in model.parameters())
        rotary, _ = replace_rotary(model, model.config.model_type)
        adapted = adapt(model, request, seed=training.seed) if request.uses_lora else model
        num_trained = sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad) or num_parameters
        log = self._log(adapted, host, processes, rotary)
        rotary.serve(training.encoding.table, training.encoding.target_length)
        digest = rotary.digest(training.encoding.target_length)
        path = host.store.local_path(training.saved_as)
        if request.uses_lora:
            whole = processes.gather(adapted.state_dict()) if processes.is_sharded else None
            if processes.is_main:
                folder = host.store.local_path("adapters", training.name)
                with working_folder(host.store.local_path()) as made:
                    save_adapter(adapted, made, base=training.model.name, weights=whole)
                    shutil.rmtree(folder, ignore_errors=True)
                    os.makedirs(os.path.dirname(folder), exist_ok=True)
                    os.rename(made, folder)
            model = merged(adapted)
        state = processes.gather(model.state_dict())
        if processes.is_main:
            save_model(
                model,
                training.model,
                training.encoding,
                path,
                stock=request.stock,
                dtype=self.dtype,
                note={"training": training.id, "settings": training.cell.params},
                state=state,
            )
            self._checkpoints(host).remove()
        measured = {
            "elapsed_s": round(math.fsum(log.seconds), 3),
            "peak_memory_bytes": _peak(training.model.device),
            "rope_digest": digest,
        }
        sizes = {"num_parameters": num_parameters, "num_trained": num_trained}
        weights = processes.from_main(weights_digest(resolve(path)) if processes.is_main else None)
        outcome = {"saved_as": training.saved_as, "trained_weights": weights, **sizes}
        return _outcome(training, log, host.device, outcome, measured)

    def _log(self, model: Any, host: Host, processes: Processes, rotary: TableRotaryEmbedding) -> Losses:
        """Trains the model in place, tells the run's progress of it, and returns the log."""
        training, request = self.training, self.training.request
        checkpoints = self._checkpoints(host)
        flops = step_flops(request, training.model, host.size(training.model), self.resources)
        done = checkpoints.last_step
        title = f"{_title(training)}, after step {done}" if done else _title(training)
        host.progress.stage(title, request.steps - done, "step", details=True)
        host.before_write()
        batches = Batches(
            text=training.text,
            augmentation=training.augmentation,
            lengths=training.lengths,
            seed=training.seed,
            batch_size=request.batch_size,
            packing=request.packing,
        )

        def told(step: StepLog) -> None:
            peak = _peak(training.model.device)
            detail = f"loss {step.loss:.3f}" + (f" · {format_gib(peak)}" if peak else "")
            host.progress.advance(step.tokens, flops, detail)

        return train(
            model,
            batches.batch,
            request,
            seed=training.seed,
            micro_batch=self.resources.micro_batch,
            precision=self.dtype,
            serve=_server(training, rotary),
            arguments=forward_arguments,
            checkpoints=checkpoints,
            told=told,
            gradient_checkpointing=self.resources.checkpointing,
            processes=processes,
        )

    def _checkpoints(self, host: Host) -> Checkpoints:
        """The checkpoints of this training."""
        request = self.training.request
        folder = host.store.local_path("checkpoints", self.training.id)
        return Checkpoints(folder, request.keep, every=request.checkpoint_every, training=self.training.id)


def _title(training: ModelTraining) -> str:
    """`smollm2-135m-q4 resonance_yarn pose, seed 0`."""
    positions = "" if training.augmentation.name == "none" else f" {training.augmentation.name}"
    return f"training {training.model.name} {training.encoding.name.canonical}{positions}, seed {training.seed}"


def _server(training: ModelTraining, rotary: TableRotaryEmbedding) -> Callable[[Batch], None]:
    """A function that makes the rotary module hold the table of a batch."""
    encoding, native = training.encoding, training.model.native_length
    rotary.serve(encoding.table, encoding.target_length)

    def serve(batch: Batch) -> None:
        if batch.factor is None:
            return
        length = max(encoding.target_length, round(batch.factor * native))
        table = encode_for(
            encoding.rope, encoding.name, length, factor=batch.factor, arguments=encoding.arguments
        ).table
        rotary.serve(table, length)

    return serve


def _outcome(
    training: ModelTraining, log: Losses, device: str, outcome: dict[str, Any], measured: dict[str, Any]
) -> Outcome:
    """The outcome of a training that ended.

    Args:
        training: The training.
        log: Its losses.
        device: Name of the device.
        outcome: What its record's `params` say of the saved model.
        measured: The fields of its record with time, memory and digest.
    """
    cell = training.cell
    common = {
        **cell.fields(),
        "params": {**cell.params, **outcome},
        **measured,
        "status": "ok",
        "provenance": provenance(device),
    }
    values = derived(LOSSES, log, None, cell.params)
    records = tuple(value.record(metric.name, common) for metric, value in values)
    return Outcome(records=records, found=log, artefact=LOSSES)


def _reset_peak(device: str) -> None:
    """Resets the peak of memory."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    else:
        memory.reset_peak()


def _peak(device: str) -> int | None:
    """Peak memory in bytes since the last reset: of the device's allocator, or of the process on a CPU."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    return memory.peak_bytes() if device == "cpu" else None
